//! What has arrived under a lease, and who is writing: the part of a lease that receivers of blocks share with its ledger.
//!
//! **Invariant:** no writer is let in after [`Arrivals::close`], and a lease is drained once: when it is closed and its last writer has left.

use std::ops::Range;

use relevo_wire::Instant64;

/// The blocks of one lease.
#[derive(Clone, Debug)]
pub struct Arrivals {
    num_layers: u32,
    /// Blocks of the sequence that are to come: those before are held already.
    expected: Range<u32>,
    /// One flag for each (layer, expected block).
    arrived: Vec<bool>,
    num_missing: usize,
    num_writers: u32,
    closed: bool,
    last_arrival: Option<Instant64>,
}

/// Why a writer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAllowed {
    /// The lease is over.
    Closed,
    /// The blocks are not part of it.
    OutOfRange,
}

/// What a writer's leaving brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Quietly,
    /// Everything has arrived now.
    Complete,
    /// The lease was closed, and this was its last writer.
    Drained,
}

impl Arrivals {
    /// Nothing has arrived of blocks `expected` in each of `num_layers`.
    pub fn new(num_layers: u32, expected: Range<u32>) -> Self {
        let num_missing = num_layers as usize * expected.len();
        Self {
            num_layers,
            expected,
            arrived: vec![false; num_missing],
            num_missing,
            num_writers: 0,
            closed: false,
            last_arrival: None,
        }
    }

    /// Whether there is nothing (left) to come.
    pub fn is_complete(&self) -> bool {
        self.num_missing == 0
    }

    /// Writers that are in.
    pub fn num_writers(&self) -> u32 {
        self.num_writers
    }

    /// When something arrived last.
    pub fn last_arrival(&self) -> Option<Instant64> {
        self.last_arrival
    }

    /// Whether a writer of these blocks would be let in.
    ///
    /// # Errors
    /// The lease is over, or the blocks are not part of it.
    pub fn check(&self, layer: u32, blocks: Range<u32>) -> Result<(), NotAllowed> {
        if self.closed {
            return Err(NotAllowed::Closed);
        }
        let fits = layer < self.num_layers
            && blocks.start >= self.expected.start
            && blocks.start <= blocks.end
            && blocks.end <= self.expected.end;
        if fits { Ok(()) } else { Err(NotAllowed::OutOfRange) }
    }

    /// Lets a writer of these blocks in; tells which of them have not arrived before. It must [`Arrivals::leave`].
    ///
    /// # Errors
    /// As [`Arrivals::check`].
    pub fn enter(&mut self, layer: u32, blocks: Range<u32>) -> Result<Vec<bool>, NotAllowed> {
        self.check(layer, blocks.clone())?;
        self.num_writers += 1;
        Ok(self.flags(layer, blocks).iter().map(|arrived| !arrived).collect())
    }

    /// A writer leaves; `written`: all its blocks are in their place.
    pub fn leave(&mut self, layer: u32, blocks: Range<u32>, written: bool, now: Instant64) -> Left {
        self.num_writers = self.num_writers.saturating_sub(1);
        let mut num_new = 0;
        if written {
            self.last_arrival = Some(now);
            for arrived in self.flags(layer, blocks) {
                num_new += usize::from(!*arrived);
                *arrived = true;
            }
            self.num_missing -= num_new;
        }
        match (self.closed, self.num_writers) {
            (true, 0) => Left::Drained,
            (false, _) if num_new > 0 && self.num_missing == 0 => Left::Complete,
            _ => Left::Quietly,
        }
    }

    /// Lets nobody in any more; `true` if nobody is in.
    pub fn close(&mut self) -> bool {
        let was_open = !self.closed;
        self.closed = true;
        was_open && self.num_writers == 0
    }

    fn flags(&mut self, layer: u32, blocks: Range<u32>) -> &mut [bool] {
        let start = layer as usize * self.expected.len() + (blocks.start - self.expected.start) as usize;
        &mut self.arrived[start..start + blocks.len()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lease_is_complete_with_its_last_block_and_a_repeat_changes_nothing() {
        let mut arrivals = Arrivals::new(2, 3..5);
        let now = Instant64(7);
        for (layer, block, expected) in
            [(0, 3, Left::Quietly), (1, 4, Left::Quietly), (0, 4, Left::Quietly), (1, 3, Left::Complete)]
        {
            assert_eq!(arrivals.enter(layer, block..block + 1), Ok(vec![true]));
            assert_eq!(arrivals.leave(layer, block..block + 1, true, now), expected);
        }
        assert_eq!(arrivals.enter(1, 3..5), Ok(vec![false, false]));
        assert_eq!(arrivals.leave(1, 3..5, true, now), Left::Quietly);
        assert_eq!(arrivals.enter(2, 3..4), Err(NotAllowed::OutOfRange));
        assert_eq!(arrivals.enter(0, 2..4), Err(NotAllowed::OutOfRange));
        assert_eq!(arrivals.enter(0, 4..6), Err(NotAllowed::OutOfRange));
    }

    #[test]
    fn a_block_that_could_not_be_written_has_not_arrived() {
        let mut arrivals = Arrivals::new(1, 0..1);
        arrivals.enter(0, 0..1).unwrap();
        assert_eq!(arrivals.leave(0, 0..1, false, Instant64(1)), Left::Quietly);
        assert!(!arrivals.is_complete());
        assert_eq!(arrivals.enter(0, 0..1), Ok(vec![true]));
    }

    proptest! {
        #[test]
        fn a_closed_lease_is_drained_exactly_once_when_its_last_writer_leaves(
            steps in proptest::collection::vec((any::<bool>(), 0u32..3, 0u32..4, any::<bool>()), 1..60), close_at in 0usize..60,
        ) {
            let mut arrivals = Arrivals::new(3, 0..4);
            let (mut inside, mut drained) = (Vec::new(), 0);
            for (step, (enters, layer, block, written)) in steps.into_iter().enumerate() {
                if step == close_at {
                    drained += u32::from(arrivals.close());
                    prop_assert!(!arrivals.close());
                }
                if enters {
                    match arrivals.enter(layer, block..block + 1) {
                        Ok(_) => inside.push((layer, block, written)),
                        Err(error) => prop_assert!(error == NotAllowed::Closed && step >= close_at),
                    }
                } else if let Some((layer, block, written)) = inside.pop() {
                    let left = arrivals.leave(layer, block..block + 1, written, Instant64(step as u64));
                    drained += u32::from(left == Left::Drained);
                    prop_assert!(left != Left::Drained || inside.is_empty());
                }
            }
            drained += u32::from(arrivals.close());
            while let Some((layer, block, written)) = inside.pop() {
                drained += u32::from(arrivals.leave(layer, block..block + 1, written, Instant64(0)) == Left::Drained);
            }
            prop_assert_eq!(drained, 1);
        }
    }
}
