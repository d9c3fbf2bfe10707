//! OpenAI's own Python client, strict response validation on, against the real binary and the default model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::path::Path;
use std::process::Command;

use program::{Server, default_model};

#[test]
fn openais_own_client_finds_every_rule_kept() {
    default_model();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = project.join(".venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `make python-env`", python.display());
    let server = Server::start(&[]);
    let script = project.join("node/tests/clients/openai_client.py");
    let run = Command::new(python).arg(script).arg(&server.url).output().unwrap();
    let report = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{report}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(report.ends_with(" checks passed\n"), "{report}");
    assert_eq!(server.stop("INT").status.code(), Some(0));
}
