//! A frame's answer on the wire: thirty-two bytes, of which the first says what it is, the eighth and later ones, in threes of eight, its figures.
//! All answers have one length, so that no peer's answer makes us allocate.

use relevo_wire::FrameError;

use crate::link::PushError;

/// Length of an answer.
pub(crate) const ANSWER_BYTES: usize = 32;

/// What stands for the text of a malformed header, which stays with the peer who read it.
const MALFORMED_AT_PEER: &str = "as its receiver found";

/// An answer as bytes.
pub(crate) fn to_bytes(answer: &Result<(), PushError>) -> [u8; ANSWER_BYTES] {
    let (kind, figures) = match answer {
        Ok(()) => (0, [0; 3]),
        // The last two arise at a link's own end, and no receiver answers so.
        Err(PushError::LeaseGone | PushError::Closed | PushError::Deadline(_)) => (1, [0; 3]),
        Err(PushError::Corrupt { index }) => (2, [*index, 0, 0]),
        Err(PushError::Mismatch) => (3, [0; 3]),
        Err(PushError::Malformed(error)) => malformed(error),
    };
    let mut bytes = [0; ANSWER_BYTES];
    bytes[0] = kind;
    for (place, figure) in bytes[8..].chunks_exact_mut(8).zip(figures) {
        place.copy_from_slice(&(figure as u64).to_le_bytes());
    }
    bytes
}

fn malformed(error: &FrameError) -> (u8, [usize; 3]) {
    match *error {
        FrameError::Malformed(_) => (4, [0; 3]),
        FrameError::HeaderTooLong { byte_len } => (5, [byte_len, 0, 0]),
        FrameError::PayloadTooLong { byte_len } => (6, [byte_len, 0, 0]),
        FrameError::NoFrame => (7, [0; 3]),
        FrameError::Protocol(version) => (8, [usize::from(version), 0, 0]),
        FrameError::Inconsistent { num_blocks, num_checksums, payload_bytes } => {
            (9, [num_blocks, num_checksums, payload_bytes])
        }
        FrameError::Checksum { index } => (2, [index, 0, 0]),
    }
}

/// The answer that a peer gave; `None` if it is none.
pub(crate) fn from_bytes(bytes: &[u8; ANSWER_BYTES]) -> Option<Result<(), PushError>> {
    let mut figures = bytes[8..].chunks_exact(8).map(|figure| {
        let figure = figure.try_into().map(u64::from_le_bytes).ok();
        figure.and_then(|figure| usize::try_from(figure).ok())
    });
    let mut figure = || figures.next().flatten();
    let error = match bytes[0] {
        0 => return Some(Ok(())),
        1 => return Some(Err(PushError::LeaseGone)),
        2 => return Some(Err(PushError::Corrupt { index: figure()? })),
        3 => return Some(Err(PushError::Mismatch)),
        4 => FrameError::Malformed(MALFORMED_AT_PEER.to_owned()),
        5 => FrameError::HeaderTooLong { byte_len: figure()? },
        6 => FrameError::PayloadTooLong { byte_len: figure()? },
        7 => FrameError::NoFrame,
        8 => FrameError::Protocol(figure()?.try_into().ok()?),
        9 => FrameError::Inconsistent { num_blocks: figure()?, num_checksums: figure()?, payload_bytes: figure()? },
        _ => return None,
    };
    Some(Err(PushError::Malformed(error)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_says_at_the_sender_what_it_said_at_the_receiver() {
        let malformed = [
            FrameError::Malformed(MALFORMED_AT_PEER.to_owned()),
            FrameError::HeaderTooLong { byte_len: 65_537 },
            FrameError::PayloadTooLong { byte_len: usize::MAX },
            FrameError::NoFrame,
            FrameError::Protocol(u16::MAX),
            FrameError::Inconsistent { num_blocks: 1, num_checksums: 2, payload_bytes: 3 },
        ];
        let mut answers = vec![Ok(())];
        answers.extend([PushError::LeaseGone, PushError::Corrupt { index: 4095 }, PushError::Mismatch].map(Err));
        answers.extend(malformed.map(|error| Err(PushError::Malformed(error))));
        for answer in answers {
            assert_eq!(from_bytes(&to_bytes(&answer)), Some(answer));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes: [u8; 32]) {
            let _ = from_bytes(&bytes);
        }
    }
}
