//! Memory that other processes of the host can be let into.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

/// A stretch of this process's memory that lies in an unnamed file, so that who is given the file reads the same bytes: what a KV pool tells the
/// carriers about itself, neither knowing the other.
///
/// It does not keep the memory, only the file's descriptor.
#[derive(Clone)]
pub struct SharedRegion {
    file: Arc<OwnedFd>,
    addresses: Range<usize>,
    owner: Weak<dyn Any + Send + Sync>,
}

impl SharedRegion {
    /// All of `file`, mapped at `addresses` for as long as `owner` lives, and not longer.
    pub fn new(file: Arc<OwnedFd>, addresses: Range<usize>, owner: Weak<dyn Any + Send + Sync>) -> Self {
        Self { file, addresses, owner }
    }

    /// The file, to be handed over.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the memory is still there. Once it is not, its addresses may be those of other memory.
    pub fn is_alive(&self) -> bool {
        self.owner.strong_count() > 0
    }

    /// Whether this is the same file, mapped by the same owner.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// Where in the file `bytes` lie; nothing if they do not lie there as a whole.
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.addresses.start)?;
        let end = offset.checked_add(bytes.len())?;
        (end <= self.addresses.len() && self.is_alive()).then_some(offset)
    }
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No addresses: they help those who look for a way in.
        write!(f, "SharedRegion({} bytes)", self.addresses.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: &Arc<Vec<u8>>, addresses: Range<usize>) -> SharedRegion {
        let file = std::fs::File::open("/dev/null").unwrap();
        let owner: Weak<Vec<u8>> = Arc::downgrade(bytes);
        SharedRegion::new(Arc::new(file.into()), addresses, owner)
    }

    #[test]
    fn bytes_have_an_offset_only_if_all_of_them_lie_inside() {
        let memory = Arc::new(vec![0; 100]);
        let start = memory.as_ptr().addr();
        let inner = region(&memory, start + 20..start + 60);
        assert_eq!(inner.offset_of(&memory[20..60]), Some(0));
        assert_eq!(inner.offset_of(&memory[30..31]), Some(10));
        assert_eq!(inner.offset_of(&memory[60..60]), Some(40), "nothing lies anywhere");
        for outside in [0..1, 19..21, 59..61, 60..61, 0..100] {
            assert_eq!(inner.offset_of(&memory[outside.clone()]), None, "{outside:?}");
        }
        assert_eq!(region(&memory, start..usize::MAX).offset_of(&memory[3..9]), Some(3));
    }

    #[test]
    fn a_region_whose_memory_is_gone_holds_nothing() {
        let memory = Arc::new(vec![0; 100]);
        let whole = region(&memory, 0..usize::MAX);
        assert!(whole.is_alive() && whole.offset_of(&memory).is_some());
        assert!(whole.is(&whole.clone()) && !whole.is(&region(&memory, 0..usize::MAX)));
        let other = vec![0; 10];
        drop(memory);
        assert!(!whole.is_alive());
        assert_eq!(whole.offset_of(&other), None);
    }
}
