//! Runs the real binary, as a user's shell would.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses a part of it")]

pub mod by_hand;
#[path = "../../../gpu/tests/default_model/mod.rs"]
mod default_model;
mod exchange;
pub mod local_cluster;
mod scrape;
mod server;
pub mod test_ports;

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

pub(crate) use default_model::default_model;
pub use exchange::{get, post};
pub use scrape::Scrape;
pub use server::Server;

/// How long a command may take that loads no model from a network.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The binary with these arguments, without a terminal, logging nothing but errors.
pub fn relevo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("NO_COLOR");
    command
}

/// Cargo tells tests where it is. An example lies in a folder beside it.
fn binary() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_relevo") {
        Some(path) => PathBuf::from(path),
        None => {
            let example = std::env::current_exe().expect("Linux tells");
            example.ancestors().nth(2).expect("an example lies in a folder").join("relevo")
        }
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs it to its end.
///
/// # Panics
/// If it does not end in time; it is killed then.
pub fn finish(command: &mut Command) -> Finished {
    finished(command.spawn().expect("the binary starts"))
}

/// Waits for a run that is under way.
///
/// # Panics
/// As [`finish`].
pub fn finished(child: Child) -> Finished {
    let pid = child.id();
    let (sender, receiver) = mpsc::sync_channel(1);
    let waiting = std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = receiver.recv_timeout(DEADLINE) else {
        kill(pid, "KILL");
        panic!("process {pid} did not end within {DEADLINE:?}");
    };
    waiting.join().expect("the waiting thread ends");
    let Output { status, stdout, stderr } = output.expect("the output is read");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the output is UTF-8");
    Finished { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Sends a signal, by its name without SIG.
pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(status.expect("kill runs").success(), "cannot send {signal} to {pid}");
}

/// Reads a pipe until a line satisfies `is_it`, on a thread of its own; later output is read and thrown away, so that the writer never blocks.
pub fn wait_for_line(pipe: impl Read + Send + 'static, is_it: impl Fn(&str) -> bool + Send + 'static) -> String {
    use std::io::BufRead;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut seen = String::new();
        let mut found = false;
        for line in std::io::BufReader::new(pipe).lines().map_while(Result::ok) {
            if found {
                continue;
            }
            seen += &line;
            seen.push('\n');
            if is_it(&line) {
                found = true;
                let _ = sender.send(Ok(line));
            }
        }
        if !found {
            let _ = sender.send(Err(seen));
        }
    });
    match receiver.recv_timeout(DEADLINE) {
        Ok(Ok(line)) => line,
        Ok(Err(seen)) => panic!("the line never came; seen:\n{seen}"),
        Err(_) => panic!("the line did not come within {DEADLINE:?}"),
    }
}

/// A folder of programs to put first on `PATH`, with a shell script of this name and text in it.
pub fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the script is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the script is made executable");
    path
}

/// The `PATH` of this process with `folder` before it.
pub fn path_with(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}
