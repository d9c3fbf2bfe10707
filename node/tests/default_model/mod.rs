//! Where the default model lies on this machine.

use std::path::PathBuf;

/// The default model, SmolLM2-135M-Instruct in Q4_1, in the data folder.
///
/// # Panics
/// If it is not there: a test that needs it must not pass without it.
#[expect(
    clippy::disallowed_methods,
    reason = "the data folder is found as the binary finds it; tests have no configuration"
)]
pub(crate) fn default_model() -> PathBuf {
    let data = std::env::var("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|_| std::env::var("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .expect("neither XDG_DATA_HOME nor HOME is set");
    let path = data.join("relevo/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing; `make test` fetches it, as does `relevo model pull`", path.display());
    path
}
