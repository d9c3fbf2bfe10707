//! Frames of KV blocks that are not what they should be, many at a time over a live link, and how each of them is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use relevo_wire::{
    BLOCK_TOKENS, BlockIndex, ElementType, Epoch, KvBlocksHeader, KvLayout, LayerIndex, LeaseId, MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES, PROTOCOL_VERSION, RequestId, checksum,
};
use tokio::time::timeout;

use super::dice::Dice;
use super::intruder::{DEADLINE, Intruder};
use super::tenant::OwnLease;

/// Frames over one connection: written one after the other while their answers are read.
const VOLLEY: usize = 1024;

/// What `SCRIPT` makes of a block.
pub(crate) const LAYOUT: KvLayout =
    KvLayout { num_layers: 4, num_kv_heads: 1, key_dim: 32, value_dim: 32, element: ElementType::F16 };

/// How frames were answered, by the answer's first byte, and how connections ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answers: [u64; 10],
    /// Closed by the other side, since no next frame could be found.
    pub(crate) num_cut_off: u64,
    pub(crate) num_connections: u64,
}

impl Tally {
    pub(crate) fn num_answered(&self) -> u64 {
        self.answers.iter().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, answers)| *sum += answers);
        self.num_cut_off += other.num_cut_off;
        self.num_connections += other.num_connections;
    }
}

/// A header, and the blocks that belong to it.
#[derive(Clone)]
struct Frame {
    header: KvBlocksHeader,
    payload: Vec<u8>,
}

/// One who sends frames until enough are answered.
pub(crate) struct Gunner {
    dice: Dice,
    targets: Vec<Frame>,
    newest: Arc<AtomicU64>,
    last: Vec<u8>,
}

impl Gunner {
    /// `newest`: the lease that was given out last; those of others are around it.
    pub(crate) fn new(seed: u64, leases: &[OwnLease], newest: Arc<AtomicU64>) -> Self {
        let targets = leases.iter().flat_map(frames_of).collect();
        Self { dice: Dice::new(seed), targets, newest, last: Vec::new() }
    }

    pub(crate) async fn attack(&mut self, intruder: &Intruder, num_frames: u64) -> Tally {
        let mut tally = Tally::default();
        while tally.num_answered() < num_frames {
            let connection = intruder.dial_for_blocks().await;
            let (mut outgoing, mut incoming) = connection.open_bi().await.unwrap();
            let written = async {
                for _ in 0..VOLLEY {
                    // As they go, so that each is aimed at what is open by then.
                    outgoing.write_all(&self.frame()).await.unwrap();
                }
            };
            let ((), ()) = tokio::join!(written, read_answers(&mut incoming, &mut tally));
            tally.num_connections += 1;
            tally.num_cut_off += u64::from(self.part(&connection, outgoing).await);
        }
        tally
    }

    /// The next frame's bytes, in step with what its prefix says.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.dice.pick(&self.targets).clone();
        let bytes = match self.dice.below(10) {
            0..4 => {
                if self.dice.below(2) == 0 {
                    self.aim_at_others(&mut frame.header);
                }
                let mut header = bytes_of(&frame.header);
                self.dice.mutate(&mut header);
                wire(&header, &frame.payload)
            }
            4 => {
                self.dice.mutate(&mut frame.payload);
                frame.wire()
            }
            5 => {
                self.aim_at_others(&mut frame.header);
                frame.wire()
            }
            6 => {
                let mut header = bytes_of(&frame.header);
                header.resize(self.dice.below(2 * header.len()), 0xa5);
                wire(&header, &frame.payload)
            }
            7 => {
                frame.payload.resize(self.dice.below(2 * frame.payload.len()), 0x5a);
                frame.wire()
            }
            8 => {
                self.change_a_field(&mut frame.header);
                frame.wire()
            }
            // As it should be, in whatever order of layers, or the one before once more.
            _ if self.dice.below(2) == 0 && !self.last.is_empty() => self.last.clone(),
            _ => frame.wire(),
        };
        self.last.clone_from(&bytes);
        bytes
    }

    fn aim_at_others(&mut self, header: &mut KvBlocksHeader) {
        // Between two that were given to the intruder lie those of others, some of them still open.
        let newest = self.newest.load(Ordering::Relaxed);
        header.lease = LeaseId((newest + 1).saturating_sub(self.dice.below(6) as u64));
    }

    fn change_a_field(&mut self, header: &mut KvBlocksHeader) {
        let odd = self.dice.next() as u32;
        match self.dice.below(8) {
            0 => header.protocol = PROTOCOL_VERSION.wrapping_add(1 + odd as u16 % 9),
            1 => header.epoch = Epoch(header.epoch.0 + 1 + u64::from(odd % 3)),
            2 => header.sequence.request = RequestId(header.sequence.request.0 ^ u64::from(odd | 1)),
            3 => header.first_block = header.first_block.wrapping_add(odd | 1),
            4 => header.layer = LayerIndex(LAYOUT.num_layers + odd % 99),
            5 => header.blocks[0] = BlockIndex(header.blocks[0].0 ^ (odd | 1)),
            6 => header.layout.num_layers += 1 + odd % 5,
            _ => header.checksums.extend([odd, odd]),
        }
    }

    /// Ends a connection, in one of the ways in which one can; tells whether it was for the other side to do so.
    async fn part(&mut self, connection: &Connection, mut outgoing: SendStream) -> bool {
        let mut bytes = self.dice.pick(&self.targets).wire();
        match self.dice.below(6) {
            0 => bytes[self.dice.below(4)] ^= 1 + self.dice.below(255) as u8,
            1 => bytes[4..8].copy_from_slice(&(MAX_HEADER_BYTES as u32 + 1 + self.dice.below(99) as u32).to_le_bytes()),
            2 => {
                bytes[8..16].copy_from_slice(&(MAX_PAYLOAD_BYTES as u64 + 1 + self.dice.below(99) as u64).to_le_bytes())
            }
            3 => bytes.truncate(1 + self.dice.below(bytes.len() - 1)),
            4 => bytes = self.dice.bytes(64),
            _ => {
                // In the middle of a frame, and without a word.
                let byte_len = self.dice.below(bytes.len());
                outgoing.write_all(&bytes[..byte_len]).await.unwrap();
                connection.close(0u32.into(), b"");
                return false;
            }
        }
        // The other side may have seen enough of it already.
        let _ = outgoing.write_all(&bytes).await;
        let _ = outgoing.finish();
        let reason = timeout(DEADLINE, connection.closed()).await.unwrap();
        let is_ours = matches!(&reason, ConnectionError::ApplicationClosed(close) if close.error_code == 1u32.into());
        assert!(is_ours, "{reason:?}");
        true
    }
}

impl Frame {
    fn wire(&self) -> Vec<u8> {
        wire(&bytes_of(&self.header), &self.payload)
    }
}

fn bytes_of(header: &KvBlocksHeader) -> Vec<u8> {
    header.to_bytes().unwrap().to_vec()
}

fn wire(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let (header_bytes, payload_bytes) = (u32::try_from(header.len()).unwrap(), payload.len() as u64);
    [b"RKV\x01", &header_bytes.to_le_bytes()[..], &payload_bytes.to_le_bytes(), header, payload].concat()
}

/// All that could be pushed under a lease: each block of each layer, and all blocks of a layer at once.
fn frames_of(own: &OwnLease) -> Vec<Frame> {
    let first = own.lease.num_present as usize;
    let num_blocks = own.lease.blocks.len();
    let ranges = (first..num_blocks).map(|block| block..block + 1).chain(std::iter::once(first..num_blocks));
    let frame = |layer: u32, range: std::ops::Range<usize>| {
        let blocks: Vec<Vec<u8>> =
            range.clone().map(|block| vec![(7 * block as u32 + layer) as u8; BLOCK_BYTES]).collect();
        let header = KvBlocksHeader {
            protocol: PROTOCOL_VERSION,
            sequence: own.sequence,
            device: own.device,
            lease: own.lease.lease,
            epoch: own.lease.epoch,
            layer: LayerIndex(layer),
            first_block: u32::try_from(range.start).unwrap(),
            blocks: own.lease.blocks[range].to_vec(),
            layout: LAYOUT,
            checksums: blocks.iter().map(|block| checksum(block)).collect(),
        };
        Frame { header, payload: blocks.concat() }
    };
    ranges
        .flat_map(|range| (0..LAYOUT.num_layers).map(move |layer| (layer, range.clone())))
        .map(|(layer, range)| frame(layer, range))
        .collect()
}

/// Bytes of a block of a layer.
const BLOCK_BYTES: usize = LAYOUT.layer_block_bytes();

/// Tokens of a lease of three blocks, of which the last is not full.
pub(crate) const NUM_TOKENS: usize = 2 * BLOCK_TOKENS + 5;

async fn read_answers(incoming: &mut RecvStream, tally: &mut Tally) {
    let mut answers = vec![0; 32 * VOLLEY];
    timeout(DEADLINE, incoming.read_exact(&mut answers)).await.unwrap().unwrap();
    for answer in answers.chunks_exact(32) {
        tally.answers[usize::from(answer[0])] += 1;
    }
}
