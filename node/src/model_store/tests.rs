//! How models are found.

use super::*;

fn folder_with(files: &[&str]) -> (tempfile::TempDir, ModelStore) {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"GGUF").unwrap();
    }
    let store = ModelStore::new(folder.path());
    (folder, store)
}

fn names(resolved: Resolved) -> Vec<String> {
    match resolved {
        Resolved::Found { names, .. } => names,
        Resolved::Missing(model) => panic!("{} is missing", model.name),
    }
}

#[test]
fn only_whole_models_are_listed() {
    let (_folder, store) = folder_with(&[
        "b.gguf",
        ".pull-7/SmolLM2-135M-Instruct.Q4_1.gguf",
        ".hidden.gguf",
        "notes.txt",
        "a/config.json",
        "a/model.safetensors",
        "half/config.json",
    ]);
    let listed: Vec<String> = store.list().unwrap().into_iter().map(|model| model.name).collect();
    assert_eq!(listed, ["a", "b"]);
}

#[test]
fn a_data_folder_that_is_not_there_holds_nothing() {
    assert_eq!(ModelStore::new("/nonexistent/relevo").list().unwrap(), []);
}

#[test]
fn a_model_is_found_by_stem_file_name_or_path() {
    let (folder, store) = folder_with(&["Tiny.Q8_0.gguf"]);
    let path = folder.path().join("Tiny.Q8_0.gguf");
    for wanted in ["Tiny.Q8_0", "tiny.q8_0", "Tiny.Q8_0.gguf", path.to_str().unwrap()] {
        assert_eq!(names(store.resolve(wanted).unwrap()), ["Tiny.Q8_0"], "{wanted}");
    }
}

#[test]
fn the_default_is_missing_until_its_file_is_whole() {
    let (_folder, store) = folder_with(&["SmolLM2-135M-Instruct.Q4_1.gguf"]);
    assert_eq!(store.resolve("SmolLM2").unwrap(), Resolved::Missing(&CATALOGUE[0]));
}

#[test]
fn an_unknown_name_names_the_nearest() {
    let (folder, store) = folder_with(&["Qwen3-0.6B.gguf"]);
    let says = |wanted: &str| store.resolve(wanted).unwrap_err().to_string();
    assert!(says("smolm").contains("did you mean `smollm2`?"), "{}", says("smolm"));
    assert!(says("qwen3").contains("did you mean `Qwen3-0.6B`?"), "{}", says("qwen3"));
    assert!(!says("zzz").contains("did you mean"), "{}", says("zzz"));
    assert_eq!(says("/nonexistent/x.gguf"), "no file or folder /nonexistent/x.gguf");
    assert_eq!(says("x.gguf"), "no file or folder x.gguf");
    let folder = folder.path().to_str().unwrap();
    assert!(says(folder).contains("a folder without config.json and *.safetensors"), "{}", says(folder));
}
