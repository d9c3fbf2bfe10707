//! What peers do to a listener of shared memory, and what its other peers notice: nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails as its test does")]

mod links;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use links::arena::{Arena, memory_file};
use links::{ARENA, CAPACITY, DEADLINE, LAYOUT, Notes, blocks, dial_shm, frame, header, until};
use relevo_transport::{
    Frame, FrameSender, Patience, PushError, ShmAddress, ShmDialError, ShmListener, Ticket, shm_link,
};
use relevo_wire::{KvBlocksHeader, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use rustix::fs::{FallocateFlags, SealFlags, fallocate};
use rustix::io::pwrite;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const SEALED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Length of a villain's memory.
const MEMORY_BYTES: usize = 8192;

const BLOCK: u64 = LAYOUT.layer_block_bytes() as u64;

/// The offset of a block that follows by its bytes.
const INLINE: u64 = u64::MAX;

/// A listener, a peer that behaves, and what is needed to be one that does not.
struct Scene {
    listener: ShmListener,
    notes: Arc<Notes>,
    tasks: JoinSet<()>,
    good: FrameSender,
    num_good: u32,
}

impl Scene {
    fn new(patience: Patience) -> Self {
        let listener = ShmListener::open(patience).unwrap();
        let (notes, mut tasks) = (Arc::new(Notes::default()), JoinSet::new());
        let (served, sink) = (listener.clone(), Arc::clone(&notes));
        tasks.spawn(async move { served.serve(move |_| Some(Arc::clone(&sink))).await });
        let good = dial_shm(&listener, &ARENA, &mut tasks);
        Self { listener, notes, tasks, good, num_good: 0 }
    }

    /// A ticket that is expected.
    fn ticket(&self) -> Ticket {
        let ticket = Ticket::random().unwrap();
        self.listener.expect(ticket.clone(), "device-9");
        ticket
    }

    /// Dials as somebody who is expected, and hands over `file`.
    fn greet(&self, file: BorrowedFd<'_>) -> UnixStream {
        self.greet_with(&greeting(&self.ticket()), &[file])
    }

    fn greet_with(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> UnixStream {
        let stream = BlockingStream::connect_addr(&socket_address(self.listener.address())).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
        }
        sendmsg(&stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    /// A peer that was let in.
    fn attack(&self) -> (UnixStream, Arc<OwnedFd>) {
        let file = Arc::new(memory_file(MEMORY_BYTES, SEALED));
        (self.greet(file.as_fd()), file)
    }

    /// The other link still carries frames.
    async fn others_notice_nothing(&mut self) {
        let layer = self.num_good % 50;
        self.num_good += 1;
        assert_eq!(self.good.push(frame(layer), DEADLINE).await, Ok(()));
        assert_eq!(self.notes.arrived().len() as u32, self.num_good, "and no frame of the other peer has arrived");
        assert_eq!(self.notes.arrived().last().unwrap().0, layer);
    }
}

fn socket_address(address: &ShmAddress) -> SocketAddr {
    SocketAddr::from_abstract_name(address.to_string()).unwrap()
}

fn greeting(ticket: &Ticket) -> Vec<u8> {
    [b"RKS\x01", &ticket.as_bytes()[..]].concat()
}

/// A frame's head as it goes over the wire.
fn wire(header: &[u8], places: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = b"RKP\x01".to_vec();
    bytes.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(places.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(header);
    for (offset, byte_len) in places {
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&byte_len.to_le_bytes());
    }
    bytes
}

/// Announces three blocks; its lease is gone while it is written.
fn good_header() -> Vec<u8> {
    header(60, &blocks(60)).to_bytes().unwrap().to_vec()
}

/// Whether the listener has closed the connection, without an answer.
async fn is_closed(stream: &mut UnixStream) -> bool {
    let mut answer = [0; 32];
    match timeout(DEADLINE, stream.read(&mut answer)).await.unwrap() {
        Ok(num_read) => num_read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// What the next answer says, by its first byte.
async fn answer(stream: &mut UnixStream) -> u8 {
    let mut answer = [0; 32];
    timeout(DEADLINE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    answer[0]
}

#[tokio::test]
async fn who_is_not_expected_is_refused() {
    let mut scene = Scene::new(Patience::default());
    scene.others_notice_nothing().await;
    let file = memory_file(MEMORY_BYTES, SEALED);
    let ticket = scene.ticket();
    let mut near = *ticket.as_bytes();
    near[31] ^= 1;
    let mut other_version = greeting(&scene.ticket());
    other_version[3] = 2;
    let http = b"GET / HTTP/1.1\r\nHost: relevo\r\n\r\n1234".to_vec();
    for bytes in [greeting(&Ticket::from_bytes(near)), greeting(&Ticket::from_bytes([0; 32])), other_version, http] {
        assert!(is_closed(&mut scene.greet_with(&bytes, &[file.as_fd()])).await);
        scene.others_notice_nothing().await;
    }
    let mut let_in = scene.greet_with(&greeting(&ticket), &[file.as_fd()]);
    let_in.write_all(&wire(&good_header(), &[(0, BLOCK); 3])).await.unwrap();
    assert_eq!(answer(&mut let_in).await, 2, "it is read: three blocks of zeros are not those that were announced");
    assert!(is_closed(&mut scene.greet_with(&greeting(&ticket), &[file.as_fd()])).await, "a ticket is good once");
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn files_that_cannot_be_trusted_are_refused() {
    let mut scene = Scene::new(Patience::default());
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(MEMORY_BYTES as u64).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let files: [OwnedFd; 6] = [
        memory_file(MEMORY_BYTES, SealFlags::empty()),
        memory_file(MEMORY_BYTES, SealFlags::SHRINK),
        memory_file(0, SEALED),
        disk.into(),
        pipe.into(),
        std::fs::File::open("/dev/zero").unwrap().into(),
    ];
    for file in &files {
        assert!(is_closed(&mut scene.greet(file.as_fd())).await);
        scene.others_notice_nothing().await;
    }
    assert!(is_closed(&mut scene.greet_with(&greeting(&scene.ticket()), &[])).await, "no file");
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn files_beyond_the_first_do_not_reach_the_listener() {
    let mut scene = Scene::new(Patience::default());
    scene.others_notice_nothing().await;
    let files = [(); 3].map(|()| memory_file(MEMORY_BYTES, SEALED));
    // Other tests of this process open files too; these are known by their length.
    let num_open = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|entry| std::fs::metadata(entry.path()).is_ok_and(|found| found.len() == MEMORY_BYTES as u64))
            .count()
    };
    let before = num_open();
    let mut stream = scene.greet_with(&greeting(&scene.ticket()), &files.each_ref().map(AsFd::as_fd));
    stream.write_all(&wire(&good_header(), &[(0, BLOCK); 3])).await.unwrap();
    assert_eq!(answer(&mut stream).await, 2);
    assert_eq!(num_open(), before, "the first is mapped, and closed");
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn a_peer_cannot_take_away_memory_that_is_read() {
    let scene = Scene::new(Patience::default());
    let (mut stream, file) = scene.attack();
    let file = std::fs::File::from(file.try_clone().unwrap());
    assert!(file.set_len(0).is_err());
    stream.write_all(&wire(&good_header(), &[(MEMORY_BYTES as u64 - BLOCK, BLOCK); 3])).await.unwrap();
    assert_eq!(answer(&mut stream).await, 2);
    // A hole reads as zeros.
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 0, MEMORY_BYTES as u64).unwrap();
    stream.write_all(&wire(&good_header(), &[(0, BLOCK); 3])).await.unwrap();
    assert_eq!(answer(&mut stream).await, 2);
}

#[tokio::test]
async fn places_outside_the_memory_end_their_connection_alone() {
    let mut scene = Scene::new(Patience::default());
    let end = MEMORY_BYTES as u64;
    for outside in [
        (end - BLOCK + 1, BLOCK),
        (end, 1),
        (end + 1, 0),
        (u64::MAX - 1, BLOCK),
        (0, end + 1),
        (1 << 47, BLOCK),
        (8, u64::MAX - 4),
    ] {
        let (mut stream, _file) = scene.attack();
        stream.write_all(&wire(&good_header(), &[(0, BLOCK), (BLOCK, BLOCK), outside])).await.unwrap();
        assert!(is_closed(&mut stream).await, "{outside:?}");
        scene.others_notice_nothing().await;
    }
    // The last place that there is, one that is aligned to nothing, and none.
    let (mut stream, file) = scene.attack();
    let payload = blocks(3);
    pwrite(&*file, &payload[0], 13).unwrap();
    pwrite(&*file, &payload[1], end - BLOCK).unwrap();
    let places = [(13, BLOCK), (end - BLOCK, BLOCK), (INLINE, BLOCK)];
    let header = header(3, &payload).to_bytes().unwrap();
    stream.write_all(&[wire(&header, &places), payload[2].to_vec()].concat()).await.unwrap();
    assert_eq!(answer(&mut stream).await, 0);
    assert_eq!(scene.notes.arrived().last().unwrap().1, payload);
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_their_connection_alone() {
    let mut scene = Scene::new(Patience::default());
    let with = |at: usize, bytes: &[u8]| {
        let mut wire = wire(&good_header(), &[(0, BLOCK); 3]);
        wire[at..at + bytes.len()].copy_from_slice(bytes);
        wire
    };
    let too_long = u32::try_from(MAX_HEADER_BYTES + 1).unwrap().to_le_bytes();
    let too_many = 8193_u32.to_le_bytes();
    let half = (MAX_PAYLOAD_BYTES / 2) as u64;
    let too_much = wire(&good_header(), &[(INLINE, half), (INLINE, half), (INLINE, 1)]);
    let endless = wire(&good_header(), &[(INLINE, u64::MAX), (INLINE, u64::MAX), (INLINE, 2)]);
    for bytes in [vec![0; 12], with(3, &[2]), with(4, &too_long), with(8, &too_many), too_much, endless] {
        let (mut stream, _file) = scene.attack();
        stream.write_all(&bytes).await.unwrap();
        assert!(is_closed(&mut stream).await);
        scene.others_notice_nothing().await;
    }
}

#[tokio::test]
async fn a_frame_that_is_cut_anywhere_does_not_arrive() {
    let mut scene = Scene::new(Patience::default());
    let payload = blocks(3);
    let header = header(3, &payload).to_bytes().unwrap();
    let whole = [wire(&header, &[(INLINE, BLOCK); 3]), payload.concat()].concat();
    let head = whole.len() - payload.concat().len();
    for length in [1, 11, 12, 13, 12 + header.len(), 13 + header.len(), head, head + 1, whole.len() - 1] {
        let (mut stream, _file) = scene.attack();
        stream.write_all(&whole[..length]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(is_closed(&mut stream).await, "{length}");
        scene.others_notice_nothing().await;
    }
    for length in [1, 35] {
        drop(scene.greet_with(&greeting(&scene.ticket())[..length], &[]));
        scene.others_notice_nothing().await;
    }
}

#[tokio::test]
async fn a_peer_that_dawdles_is_cut_off_while_others_are_served() {
    let patience = Patience { frame: Duration::from_millis(400), ..Patience::default() };
    let mut scene = Scene::new(patience);
    // In its greeting, and in a frame.
    let mut silent = scene.greet_with(b"RKS", &[]);
    assert!(is_closed(&mut silent).await);
    let (stream, _file) = scene.attack();
    let (mut incoming, mut outgoing) = stream.into_split();
    outgoing.write_all(&wire(&good_header(), &[(INLINE, BLOCK); 3])).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let drip = async {
        while outgoing.write_all(&[7]).await.is_ok() {
            ticks.tick().await;
        }
    };
    let mut rest = Vec::new();
    let (closed, ()) = tokio::join!(timeout(DEADLINE, incoming.read_to_end(&mut rest)), drip);
    assert!(closed.is_ok() && rest.is_empty(), "no answer");
    // A peer that says nothing between two frames may stay.
    let (mut idle, _file) = scene.attack();
    for _ in 0..2 {
        let frame = [wire(&good_header(), &[(INLINE, BLOCK); 3]), blocks(60).concat()].concat();
        idle.write_all(&frame).await.unwrap();
        assert_eq!(answer(&mut idle).await, 1, "the lease is gone");
        let mut byte = [0];
        assert!(timeout(Duration::from_millis(600), idle.read(&mut byte)).await.is_err());
    }
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_cut_off() {
    let patience = Patience { frame: Duration::from_millis(400), ..Patience::default() };
    let mut scene = Scene::new(patience);
    let (mut stream, _file) = scene.attack();
    let frame = wire(&good_header(), &[(0, BLOCK); 3]);
    // Both directions fill up, and then the connection breaks.
    let flood = async { while stream.write_all(&frame).await.is_ok() {} };
    assert!(timeout(DEADLINE, flood).await.is_ok());
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn mutated_headers_are_answered_and_leave_the_stream_in_step() {
    let mut scene = Scene::new(Patience::default());
    let (mut stream, file) = scene.attack();
    let (header, payload) = (good_header(), blocks(60));
    pwrite(&*file, &payload.concat(), 0).unwrap();
    let places = [(0, BLOCK), (INLINE, BLOCK), (2 * BLOCK, BLOCK)];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut answers = [0; 10];
    for _ in 0..3000 {
        let mut bytes = header.clone();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let position = (random >> 33) as usize % bytes.len();
            bytes[position] ^= (random >> 24) as u8;
        }
        stream.write_all(&[wire(&bytes, &places), payload[1].to_vec()].concat()).await.unwrap();
        answers[usize::from(answer(&mut stream).await)] += 1;
    }
    assert!(answers[4] > 0 && answers[8] > 0, "malformed headers and other versions were among them: {answers:?}");
    let arrived = scene.notes.arrived();
    // A flipped bit may name another layer, or nothing that counts here: then the frame is a good one.
    assert!(arrived.len() <= answers[0] && arrived.iter().all(|(_, blocks)| *blocks == payload));
    scene.num_good = arrived.len() as u32;
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn memory_that_changes_while_it_is_read_arrives_as_announced_or_not_at_all() {
    let mut scene = Scene::new(Patience::default());
    let (mut stream, file) = scene.attack();
    let header = header(3, &vec![Bytes::from(vec![7; LAYOUT.layer_block_bytes()]); 3]).to_bytes().unwrap();
    let frame = wire(&header, &[(0, BLOCK); 3]);
    let is_over = Arc::new(AtomicBool::new(false));
    let (writer, over) = (Arc::clone(&file), Arc::clone(&is_over));
    let scribbler = std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            for byte in [8, 7] {
                pwrite(&*writer, &[byte; LAYOUT.layer_block_bytes()], 0).unwrap();
            }
        }
    });
    let mut num_arrived = 0;
    for _ in 0..2000 {
        stream.write_all(&frame).await.unwrap();
        let answer = answer(&mut stream).await;
        assert!([0, 2].contains(&answer), "{answer}");
        num_arrived += u32::from(answer == 0);
    }
    is_over.store(true, Ordering::Relaxed);
    scribbler.join().unwrap();
    let arrived = scene.notes.arrived();
    assert_eq!(arrived.len() as u32, num_arrived);
    assert!(arrived.iter().flat_map(|(_, blocks)| blocks).all(|block| block.iter().all(|byte| *byte == 7)));
    scene.num_good = num_arrived;
    scene.others_notice_nothing().await;
}

/// A listener that is none of ours, and what it does with its one peer.
fn impostor(serve: impl FnOnce(BlockingStream) + Send + 'static) -> (ShmAddress, std::thread::JoinHandle<()>) {
    let digits: String = Ticket::random().unwrap().as_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let address: ShmAddress = format!("relevo-kv-{digits}").parse().unwrap();
    let listener = BlockingListener::bind_addr(&socket_address(&address)).unwrap();
    (address, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
}

fn link(address: &ShmAddress, arena: &Arena, patience: Patience) -> (FrameSender, JoinSet<()>) {
    let (sender, carried) = shm_link(address, Ticket::random().unwrap(), arena.region(), CAPACITY, patience).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(carried);
    (sender, tasks)
}

fn frame_of(arena: &Arena) -> Frame {
    let block = arena.put(&[1; LAYOUT.layer_block_bytes()]);
    Frame::new(&KvBlocksHeader { ..header(1, std::slice::from_ref(&block)) }, vec![block]).unwrap()
}

#[tokio::test]
async fn blocks_stay_pinned_until_their_answer_or_the_end_of_their_link() {
    let (address, peer) = impostor(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let arena = Arena::new(1 << 20);
    let patience = Patience { answer: Duration::from_millis(600), ..Patience::default() };
    let (sender, _tasks) = link(&address, &arena, patience);
    let frame = frame_of(&arena);
    assert_eq!(arena.num_holders(), 2);
    let gave_up = Duration::from_millis(50);
    assert_eq!(sender.push(frame, gave_up).await, Err(PushError::Deadline(gave_up)));
    assert_eq!(arena.num_holders(), 2, "the peer may still be reading");
    until("the bytes are let go of", || arena.num_holders() == 1).await;
    until("the link is closed", || sender.is_closed()).await;
    assert_eq!(sender.push(frame_of(&arena), DEADLINE).await, Err(PushError::Closed));
    peer.join().unwrap();
}

#[tokio::test]
async fn a_link_whose_peer_says_what_nobody_asked_or_nonsense_is_closed() {
    for (is_asked, answer) in [(false, [0; 32]), (true, [99; 32])] {
        let (address, peer) = impostor(move |mut stream| {
            // The greeting, and then, perhaps, the first bytes of a frame.
            stream.read_exact(&mut [0; 36]).unwrap();
            if is_asked {
                stream.read_exact(&mut [0; 12]).unwrap();
            }
            stream.write_all(&answer).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let arena = Arena::new(1 << 20);
        let (sender, _tasks) = link(&address, &arena, Patience::default());
        if is_asked {
            assert_eq!(sender.push(frame_of(&arena), DEADLINE).await, Err(PushError::Closed));
        }
        until("the link is closed", || sender.is_closed()).await;
        peer.join().unwrap();
    }
}

#[tokio::test]
async fn a_link_that_finds_nobody_is_refused_at_once() {
    let nowhere: ShmAddress = "relevo-kv-00000000000000000000000000000000".parse().unwrap();
    let refused = shm_link(&nowhere, Ticket::random().unwrap(), ARENA.region(), CAPACITY, Patience::default());
    assert!(matches!(refused.err(), Some(ShmDialError::Unreachable(_))));
    let listener = ShmListener::open(Patience::default()).unwrap();
    let gone = listener.address().clone();
    drop(listener);
    let refused = shm_link(&gone, Ticket::random().unwrap(), ARENA.region(), CAPACITY, Patience::default());
    assert!(matches!(refused.err(), Some(ShmDialError::Unreachable(_))));
}

#[tokio::test]
async fn a_peer_that_is_parted_from_is_out_in_the_middle_of_a_frame_and_others_stay() {
    // It would wait for the rest for longer than this test does.
    let mut scene = Scene::new(Patience { frame: 2 * DEADLINE, ..Patience::default() });
    scene.others_notice_nothing().await;
    let file = memory_file(MEMORY_BYTES, SEALED);
    let mut halfway = scene.greet(file.as_fd());
    halfway.write_all(&wire(&good_header(), &[(INLINE, BLOCK); 3])).await.unwrap();
    halfway.write_all(&[0; 5]).await.unwrap();
    until("it is let in", || scene.notes.num_admitted() > 1).await;
    let unused = scene.ticket();
    scene.listener.part_from("device-9");
    assert!(is_closed(&mut halfway).await);
    assert!(is_closed(&mut scene.greet_with(&greeting(&unused), &[file.as_fd()])).await, "its ticket is void");
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn a_peer_without_a_sink_is_refused() {
    let listener = ShmListener::open(Patience::default()).unwrap();
    let (served, mut tasks) = (listener.clone(), JoinSet::new());
    tasks.spawn(async move { served.serve(|_| None::<Arc<Notes>>).await });
    let link = dial_shm(&listener, &ARENA, &mut tasks);
    assert_eq!(link.push(frame(1), DEADLINE).await, Err(PushError::Closed));
}

#[tokio::test]
async fn an_idle_link_is_closed_with_its_listener() {
    let mut scene = Scene::new(Patience::default());
    scene.others_notice_nothing().await;
    let Scene { listener, mut tasks, good, .. } = scene;
    let mut carried = JoinSet::new();
    let idle = dial_shm(&listener, &ARENA, &mut carried);
    assert_eq!(idle.push(frame(2), DEADLINE).await, Ok(()));
    tasks.abort_all();
    until("an idle link notices", || idle.is_closed() && good.is_closed()).await;
}

#[tokio::test]
async fn an_idle_link_is_closed_with_its_memory() {
    let mut scene = Scene::new(Patience::default());
    let arena = Arena::new(1 << 20);
    let idle = dial_shm(&scene.listener, &arena, &mut scene.tasks);
    assert_eq!(idle.push(frame_of(&arena), DEADLINE).await, Ok(()));
    drop(arena);
    until("an idle link notices", || idle.is_closed()).await;
}
