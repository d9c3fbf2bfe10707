//! What a worker says of its prefix cache to routers.

/// Names a full block together with all blocks before it, to routers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct HintKey(pub u64);

/// What a worker says of its prefix cache at a time. Numbers count the batches of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PrefixBatch {
    /// What one must have heard before: this, and all that it follows.
    pub from_seq: u64,
    /// What one has heard then. The same as `from_seq` if nothing is new: it is said now and then, so that who has missed the last words
    /// finds out.
    pub seq: u64,
    /// What is said.
    pub words: PrefixWords,
}

/// What a batch says.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum PrefixWords {
    /// What has changed.
    Changed(PrefixChange),
    /// A part of all that is held.
    Snapshot {
        /// Blocks that it holds now.
        keys: Vec<HintKey>,
        /// From here on one need not know what was before.
        is_first: bool,
        /// With it one knows everything.
        is_last: bool,
    },
}

/// What has changed in a worker's prefix cache. A block is in one of the lists at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PrefixChange {
    /// Blocks that it holds now.
    pub added: Vec<HintKey>,
    /// Blocks that it holds no more.
    pub removed: Vec<HintKey>,
}

impl PrefixBatch {
    /// Whether it says nothing but how much was said.
    pub fn is_mark(&self) -> bool {
        self.from_seq == self.seq
    }
}
