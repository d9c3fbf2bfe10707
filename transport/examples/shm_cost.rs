//! What a hand-over by shared memory costs: processor seconds for a GB at both ends, checksums included, and the round trip of a small frame.
//!
//! `cargo run --release -p relevo-transport --example shm_cost -- [--block-kib N] [--blocks N] [--pool-mib N] [--gb N] [--inline]`
//!
//! It starts itself again as the sender, so that two processes take part, as in a cluster.

#![allow(clippy::print_stdout, reason = "figures are what it is for")]
#![allow(unsafe_code, reason = "the sender's memory is mapped, as a pool's is")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapMut};
use relevo_transport::{
    Frame, FrameSender, FrameSink, FrameWriter, Patience, Refusal, ShmAddress, ShmListener, Ticket, shm_link,
};
use relevo_wire::{
    ArchivedKvBlocksHeader, BlockIndex, DeviceId, ElementType, Epoch, KvBlocksHeader, KvLayout, LayerIndex, LeaseId,
    PROTOCOL_VERSION, RequestId, SequenceId, SharedRegion, checksum,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const DEADLINE: Duration = Duration::from_secs(10);

/// Frames on the way at a time, as pushers of a few sequences have them.
const IN_FLIGHT: usize = 4;

const ROUND_TRIPS: usize = 20_000;

#[derive(Clone, Copy)]
struct Options {
    block_kib: usize,
    num_blocks: usize,
    pool_mib: usize,
    gb: usize,
    /// Blocks lie where the receiver cannot read them, and follow by their bytes.
    inline: bool,
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { block_kib: 64, num_blocks: 64, pool_mib: 1024, gb: 8, inline: false };
    let mut sends_to = None;
    while let Some(flag) = arguments.next() {
        if flag == "--inline" {
            options.inline = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{flag} wants a value"))?;
        match flag.as_str() {
            "--block-kib" => options.block_kib = value.parse()?,
            "--blocks" => options.num_blocks = value.parse()?,
            "--pool-mib" => options.pool_mib = value.parse()?,
            "--gb" => options.gb = value.parse()?,
            "--send-to" => sends_to = Some(value.parse::<ShmAddress>()?),
            _ => return Err(format!("{flag} is no flag of this program").into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        match sends_to {
            Some(address) => send(address, options).await,
            None => receive(options).await,
        }
    })
}

/// Processor seconds of this process so far, its own and the system's for it.
fn processor_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // Linux counts a hundred ticks a second for its users.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// One KV head whose keys and values make a block of so many KiB.
fn layout(block_kib: usize) -> Result<KvLayout, Failure> {
    let dim = u32::try_from(block_kib * 16)?;
    Ok(KvLayout { num_layers: 1, num_kv_heads: 1, key_dim: dim, value_dim: dim, element: ElementType::F16 })
}

/// A pool to write to.
struct Pool(Arc<Mutex<MmapMut>>);

struct Writer {
    memory: Arc<Mutex<MmapMut>>,
    first: usize,
    block_bytes: usize,
}

impl FrameSink for Pool {
    type Writer = Writer;

    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<Writer, Refusal> {
        let first = header.targets().next().map_or(0, |block| block.0 as usize);
        Ok(Writer { memory: Arc::clone(&self.0), first, block_bytes: header.layout().layer_block_bytes() })
    }
}

impl FrameWriter for Writer {
    fn write(&mut self, index: usize, offset: usize, piece: &[u8]) -> Result<(), Refusal> {
        let start = (self.first + index) * self.block_bytes + offset;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.get_mut(start..start + piece.len()).ok_or(Refusal::Mismatch)?.copy_from_slice(piece);
        Ok(())
    }

    fn finish(self) -> Result<(), Refusal> {
        Ok(())
    }
}

async fn receive(options: Options) -> Result<(), Failure> {
    let mut memory = MmapMut::map_anon(options.pool_mib << 20)?;
    memory.advise(Advice::HugePage)?;
    memory.fill(1);
    let listener = ShmListener::open(Patience::default())?;
    let ticket = Ticket::random()?;
    listener.expect(ticket.clone(), "the sender");
    let mut sender = start_sender(listener.address(), options)?;
    sender.stdin.take().ok_or("no way to the sender")?.write_all(ticket.as_bytes())?;
    let out = sender.stdout.take().ok_or("no way from the sender")?;
    let mut serving = JoinSet::new();
    let pool = Arc::new(Pool(Arc::new(Mutex::new(memory))));
    serving.spawn(async move { listener.serve(move |_| Some(Arc::clone(&pool))).await });
    let (ours, figures) = tokio::task::spawn_blocking(move || follow(out)).await??;
    sender.wait()?;
    let [sent_gb, theirs, seconds, p50, p99] = figures[..] else { return Err("the sender has failed".into()) };
    let Options { block_kib, num_blocks, pool_mib, inline, .. } = options;
    println!("{num_blocks} blocks of {block_kib} KiB a frame, pools of {pool_mib} MiB, inline: {inline}");
    println!("  sender    {:.3} CPU-s/GB, with its checksums", theirs / sent_gb);
    println!("  receiver  {:.3} CPU-s/GB, with its checksums", ours / sent_gb);
    println!("  both      {:.3} CPU-s/GB; {:.2} GB/s", (ours + theirs) / sent_gb, sent_gb / seconds);
    println!("  a frame of 4 KiB: there and back in {p50:.1} us (p50), {p99:.1} us (p99)");
    Ok(())
}

fn start_sender(address: &ShmAddress, options: Options) -> Result<Child, Failure> {
    let Options { block_kib, num_blocks, pool_mib, gb, inline } = options;
    let mut sender = Command::new(std::env::current_exe()?);
    sender.args(["--send-to", &address.to_string()]);
    for (flag, value) in [("--block-kib", block_kib), ("--blocks", num_blocks), ("--pool-mib", pool_mib), ("--gb", gb)]
    {
        sender.args([flag, &value.to_string()]);
    }
    if inline {
        sender.arg("--inline");
    }
    Ok(sender.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// What this process spends between the bytes that stand before and after what is measured; and the sender's figures, which follow.
fn follow(mut out: ChildStdout) -> Result<(f64, Vec<f64>), Failure> {
    let mut mark = || {
        out.read_exact(&mut [0])?;
        processor_seconds()
    };
    let (before, after) = (mark()?, mark()?);
    let mut text = String::new();
    out.read_to_string(&mut text)?;
    Ok((after - before, text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?))
}

/// Memory that holds blocks of noise.
struct Blocks {
    region: SharedRegion,
    memory: Bytes,
    _owner: Arc<()>,
}

impl Blocks {
    fn new(byte_len: usize, inline: bool) -> Result<Self, Failure> {
        let file = memfd_create("pool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, byte_len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        // SAFETY: the file keeps its length, and nobody else has it yet.
        let mut map = unsafe { MmapMut::map_mut(&file) }?;
        let mut word = 1_u64;
        for place in map.chunks_exact_mut(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            place.copy_from_slice(&word.to_le_bytes());
        }
        let map: Mmap = map.make_read_only()?;
        let (start, owner) = (map.as_ptr().addr(), Arc::new(()));
        let addresses = if inline { 0..0 } else { start..start + byte_len };
        let weak: std::sync::Weak<()> = Arc::downgrade(&owner);
        let region = SharedRegion::new(Arc::new(file), addresses, weak);
        Ok(Self { region, memory: Bytes::from_owner(map), _owner: owner })
    }

    /// A frame as a pusher makes it, of the blocks from `first` on.
    fn frame(&self, layout: KvLayout, first: usize, num_blocks: usize) -> Result<Frame, Failure> {
        let byte_len = layout.layer_block_bytes();
        let block = |index: usize| self.memory.slice(index * byte_len..(index + 1) * byte_len);
        let blocks: Vec<Bytes> = (first..first + num_blocks).map(block).collect();
        let first = u32::try_from(first)?;
        let header = KvBlocksHeader {
            protocol: PROTOCOL_VERSION,
            device: DeviceId(0),
            sequence: SequenceId { request: RequestId(7), choice: 1, attempt: 2 },
            lease: LeaseId(3),
            epoch: Epoch(4),
            layer: LayerIndex(0),
            first_block: 0,
            blocks: (first..).map(BlockIndex).take(blocks.len()).collect(),
            layout,
            checksums: blocks.iter().map(|block| checksum(block)).collect(),
        };
        Ok(Frame::new(&header, blocks)?)
    }
}

async fn send(address: ShmAddress, options: Options) -> Result<(), Failure> {
    let Options { block_kib, num_blocks, pool_mib, gb, inline } = options;
    let mut ticket = [0; 32];
    std::io::stdin().read_exact(&mut ticket)?;
    let blocks = Arc::new(Blocks::new(pool_mib << 20, inline)?);
    let ticket = Ticket::from_bytes(ticket);
    let (link, carried) = shm_link(&address, ticket, blocks.region.clone(), 32, Patience::default())?;
    let mut tasks = JoinSet::new();
    tasks.spawn(carried);
    let layout = layout(block_kib)?;
    let frame_bytes = num_blocks * layout.layer_block_bytes();
    let frames_of_pool = (pool_mib << 20) / frame_bytes;
    // Once through both pools first, so that all pages are there and mapped.
    push_all(&link, &blocks, layout, (frames_of_pool, num_blocks)).await?;
    say(b".")?;
    let (started, before) = (Instant::now(), processor_seconds()?);
    let num_frames = gb * 1_000_000_000 / frame_bytes;
    for start in (0..num_frames).step_by(frames_of_pool) {
        push_all(&link, &blocks, layout, (frames_of_pool.min(num_frames - start), num_blocks)).await?;
    }
    let (seconds, used) = (started.elapsed().as_secs_f64(), processor_seconds()? - before);
    say(b".")?;
    let (p50, p99) = round_trips(&link, &blocks).await?;
    let sent_gb = (num_frames * frame_bytes) as f64 / 1e9;
    say(format!("{sent_gb} {used} {seconds} {p50} {p99}").as_bytes())
}

fn say(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Pushes so many frames of so many blocks each, from the pool's beginning on.
async fn push_all(
    link: &FrameSender,
    blocks: &Arc<Blocks>,
    layout: KvLayout,
    (num_frames, num_blocks): (usize, usize),
) -> Result<(), Failure> {
    let mut pushers = JoinSet::new();
    for lane in 0..IN_FLIGHT {
        let (link, blocks) = (link.clone(), Arc::clone(blocks));
        pushers.spawn(async move {
            for index in (lane..num_frames).step_by(IN_FLIGHT) {
                link.push(blocks.frame(layout, index * num_blocks, num_blocks)?, DEADLINE).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    pushers.join_all().await.into_iter().collect()
}

/// Median and 99th percentile, in microseconds.
async fn round_trips(link: &FrameSender, blocks: &Blocks) -> Result<(f64, f64), Failure> {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for index in 0..ROUND_TRIPS {
        let started = Instant::now();
        link.push(blocks.frame(layout(4)?, index % 1000, 1)?, DEADLINE).await?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[ROUND_TRIPS / 2], times[ROUND_TRIPS * 99 / 100]))
}
