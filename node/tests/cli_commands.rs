//! What the commands print, where, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::process::Stdio;

use program::{finish, relevo};

#[test]
fn the_version_goes_to_stdout() {
    let run = finish(&mut relevo(["--version"]));
    assert_eq!(run.stdout, format!("relevo {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!((run.stderr.as_str(), run.status.code()), ("", Some(0)));
}

#[test]
fn wrong_flags_and_values_say_what_would_be_right() {
    let cases: [(&[&str], &str); 9] = [
        (&["model", "pul"], "a similar subcommand exists: 'pull'"),
        (&["model", "list", "--data-dri", "x"], "a similar argument exists: '--data-dir'"),
        (&["model", "pull", "smollm2", "--from", "x"], "cannot be used with"),
        (&["completions", "cmd"], "possible values: bash, elvish, fish, powershell, zsh"),
        (&["bench", "serve", "--slo-ttft-ms", "soon"], "expected milliseconds, such as 200"),
        (&["bench", "engine", "--through-actors", "--parallel", "2"], "cannot be used with '--parallel"),
        (&["config"], "<--example|--check <FILE>>"),
        (&["status", "--log", "relevo=loud"], "expected levels by module such as"),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
    ];
    for (arguments, expected) in cases {
        let run = finish(&mut relevo(arguments));
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{arguments:?}");
    }
}

#[test]
fn failures_are_one_line_on_stderr() {
    let nobody = "http://127.0.0.1:9";
    let cases: [(&[&str], i32, &str); 6] = [
        (&["status", "--url", nobody], 1, "no server answers at http://127.0.0.1:9: Connection refused"),
        (&["chat", "--url", "ftp://x", "hello"], 1, "`ftp://x` is no URL of a server"),
        (&["bench", "serve", "--url", nobody], 1, "no server answers at"),
        (&["model", "inspect", "smolm", "--data-dir", "/nonexistent"], 1, "did you mean `smollm2`?"),
        (&["config", "--check", "/nonexistent.toml"], 2, "/nonexistent.toml: No such file or directory"),
        (&["status", "--api-key-file", "/nonexistent"], 1, "cannot read an API key from /nonexistent"),
    ];
    for (arguments, code, expected) in cases {
        let run = finish(&mut relevo(arguments));
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {run:?}");
        assert!(run.stderr.starts_with("relevo: ") && run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
        assert_eq!((run.stderr.lines().count(), run.stdout.as_str()), (1, ""), "{arguments:?}: {run:?}");
    }
}

#[test]
fn the_example_configuration_passes_its_own_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relevo.toml");
    std::fs::write(&path, finish(&mut relevo(["config", "--example"])).stdout).unwrap();
    let run = finish(relevo(["config", "--check"]).arg(&path));
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(run.stdout.contains("is right: serves smollm2 on http://127.0.0.1:8080 with 1 device"), "{run:?}");

    std::fs::write(&path, "[server]\nlisten_on = 1\n").unwrap();
    let run = finish(relevo(["config", "--check"]).arg(&path));
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    let expected =
        format!("relevo: {}: unknown key `server.listen_on`, did you mean `server.listen`?\n", path.display());
    assert_eq!(run.stderr, expected);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let run = finish(&mut relevo(["completions", shell]));
        assert_eq!(run.status.code(), Some(0));
        for command in ["model", "chat", "status", "bench"] {
            assert!(run.stdout.contains(command), "{shell} lacks {command}");
        }
    }
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let mut child = relevo(["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let run = program::finished(child);
    assert_eq!((run.stderr.as_str(), run.status.code()), ("", Some(0)));
}

#[test]
fn without_a_home_the_data_folder_must_be_named() {
    let run = finish(relevo(["model", "list"]).env_remove("HOME").env_remove("XDG_DATA_HOME"));
    assert_eq!(run.status.code(), Some(2));
    assert!(run.stderr.contains("--data-dir DIR"), "{run:?}");
}
