//! The rules of the house that a compiler does not check: arrows between crates, file length, purpose lines, pure cores, names,
//! and documents that say what is true.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file.
const MAX_LINES: usize = 600;

/// Which crate may use which of our own: arrows point down only.
const ARROWS: [(&str, &[&str]); 6] = [
    ("node", &["relevo-actors", "relevo-transport", "relevo-gpu", "relevo-wire"]),
    ("simulations", &["relevo-actors", "relevo-gpu", "relevo-wire"]),
    ("actors", &["relevo-transport", "relevo-gpu", "relevo-wire"]),
    ("transport", &["relevo-wire"]),
    ("gpu", &["relevo-wire"]),
    ("transport/wire", &[]),
];

/// What a pure core must not know: other crates' runtimes, clocks, I/O, randomness of its own.
const IMPURE: [&str; 14] = [
    "tokio",
    "ractor",
    "Instant::now",
    "SystemTime",
    "std::time::Instant",
    "clock::now",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "std::env",
    "async fn",
    ".await",
    "rand::",
];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 10] =
    ["utils", "util", "common", "helpers", "helper", "manager", "misc", "shared", "stuff", "types"];

/// File names that every folder may have; each actor has a core and a shell.
const REPEATABLE: [&str; 6] = ["mod.rs", "lib.rs", "main.rs", "tests.rs", "core.rs", "shell.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder of the project that end so, by their path from the root, sorted.
fn files_below(folder: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && entry.file_name() != "target" {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    found.sort();
    found.iter().map(|path| path.strip_prefix(root()).unwrap().to_owned()).collect()
}

/// A crate's sources; those of `transport/wire` are not `transport`'s.
fn sources(folder: &str) -> Vec<PathBuf> {
    let below = |part: &str| files_below(&format!("{folder}/{part}"), "rs");
    below("src").into_iter().chain(below("tests")).chain(below("benches")).collect()
}

fn all_sources() -> Vec<PathBuf> {
    ARROWS.iter().flat_map(|(folder, _)| sources(folder)).collect()
}

/// The lines of code, comments left out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
}

#[track_caller]
fn assert_none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn arrows_between_crates_point_down_only() {
    let mut offenders = Vec::new();
    for (folder, allowed) in ARROWS {
        let manifest: toml::Table = toml::from_str(&read(format!("{folder}/Cargo.toml"))).unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for name in dependencies.keys().filter(|name| name.starts_with("relevo")) {
                if !allowed.contains(&name.as_str()) {
                    offenders.push(format!("{folder} uses {name}"));
                }
            }
        }
    }
    let workspace: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let members: BTreeSet<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap()).collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(folder, _)| *folder).collect();
    assert_eq!(members, known, "a crate without a place among the arrows");
    assert_none("arrows that point up", &offenders);
}

#[test]
fn files_are_short_and_open_with_their_purpose() {
    let mut offenders = Vec::new();
    for path in all_sources() {
        let text = read(&path);
        let num_lines = text.lines().count();
        if num_lines > MAX_LINES {
            offenders.push(format!("{} has {num_lines} lines, at most {MAX_LINES}", path.display()));
        }
        if !text.starts_with("//! ") {
            offenders.push(format!("{} does not open with `//! ` and its purpose", path.display()));
        }
    }
    assert_none("files", &offenders);
}

#[test]
fn no_two_files_of_a_crate_have_one_name_and_none_has_an_empty_one() {
    let mut offenders = Vec::new();
    for (folder, _) in ARROWS {
        let mut places: BTreeMap<String, PathBuf> = BTreeMap::new();
        for path in files_below(&format!("{folder}/src"), "rs") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut words = path.iter().map(|part| part.to_string_lossy());
            if let Some(empty) = words.find(|part| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"))) {
                offenders.push(format!("{} has a name that says nothing: {empty}", path.display()));
            }
            if REPEATABLE.contains(&name.as_str()) {
                continue;
            }
            if let Some(other) = places.insert(name, path.clone()) {
                offenders.push(format!("{} and {} have one name", path.display(), other.display()));
            }
        }
    }
    assert_none("names", &offenders);
}

fn is_core(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let in_core = parts.iter().any(|part| part == "core" || part == "core.rs");
    path.starts_with("actors/src/policy") || (path.starts_with("actors/src") && in_core)
}

#[test]
fn cores_know_no_runtime_clock_or_input() {
    let cores: Vec<PathBuf> = all_sources().into_iter().filter(|path| is_core(path)).collect();
    let mut offenders = Vec::new();
    for path in &cores {
        for (number, line) in code_lines(&read(path)) {
            if let Some(impure) = IMPURE.iter().find(|impure| line.contains(**impure)) {
                offenders.push(format!("{}:{number} knows {impure}", path.display()));
            }
        }
    }
    assert_none("cores", &offenders);
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let mut offenders = Vec::new();
    for path in all_sources() {
        let this_file = path.ends_with("tidy.rs");
        for (number, line) in read(&path).lines().enumerate() {
            let left = ["#[ignore", "todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"];
            if let Some(found) = left.iter().find(|left| line.contains(**left) && !this_file) {
                offenders.push(format!("{}:{} has {found}", path.display(), number + 1));
            }
        }
    }
    assert_none("left to do", &offenders);
}

#[test]
fn the_example_configuration_is_up_to_date() {
    let example = relevo::config::example();
    assert_eq!(read("docs/relevo.example.toml"), example, "run `make example-config`");
}

/// What stands in quotes in the code or in backticks in a document and looks like a metric's name.
fn metric_names(text: &str, quote: char) -> BTreeSet<String> {
    let is_name = |word: &&str| {
        let rest = word.strip_prefix("relevo_").or(word.strip_prefix("vllm:"));
        rest.is_some_and(|rest| {
            rest.len() > 2 && rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
    };
    let word = |quoted: &str| quoted.split('{').next().unwrap_or_default().to_owned();
    text.split(quote).map(word).filter(|word| is_name(&word.as_str())).collect()
}

#[test]
fn the_metrics_document_names_those_of_the_code_and_no_others() {
    let mut in_code = BTreeSet::new();
    for path in all_sources().iter().filter(|path| path.iter().any(|part| part == "src")) {
        let text = read(path);
        let crates = ["relevo_actors", "relevo_gpu", "relevo_wire", "relevo_transport", "relevo_simulations"];
        in_code.extend(metric_names(&text, '"').into_iter().filter(|name| !crates.contains(&name.as_str())));
    }
    let in_document = metric_names(&read("docs/metrics.md"), '`');
    assert_eq!(in_document, in_code, "left: docs/metrics.md; right: the code");
}

/// The lines of a document's code blocks.
fn code_blocks(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push(line.trim().trim_start_matches("$ ").to_owned());
        }
    }
    lines
}

#[test]
fn the_commands_that_documents_show_exist() {
    let makefile = read("Makefile");
    let mut offenders = Vec::new();
    let documents = ["README.md", "CONTRIBUTING.md"].map(PathBuf::from).into_iter().chain(files_below("docs", "md"));
    let mut num_commands = 0;
    for document in documents.chain(files_below("deploy", "md")) {
        for line in code_blocks(&read(&document)) {
            let words: Vec<&str> = line.split(" #").next().unwrap_or_default().split_whitespace().collect();
            let exists = match words.first() {
                Some(&"make") => {
                    words[1..].iter().all(|word| word.contains('=') || makefile.contains(&format!("\n{word}:")))
                }
                Some(&"relevo") => is_a_command(&line),
                _ => continue,
            };
            num_commands += 1;
            if !exists {
                offenders.push(format!("{}: {line}", document.display()));
            }
        }
    }
    assert_none("commands that do not exist", &offenders);
    assert!(num_commands >= 2, "the documents show no commands");
}

/// Whether the command line is one that relevo takes. Quoted words may hold spaces.
fn is_a_command(line: &str) -> bool {
    let line = line.split(" #").next().unwrap_or_default().split(" > ").next().unwrap_or_default();
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    match relevo::cli::command_tree().try_get_matches_from(words) {
        Ok(_) => true,
        Err(error) => {
            matches!(error.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion)
        }
    }
}
