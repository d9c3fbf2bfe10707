//! An intruder that is given leases, as any node that prefills is: so that frames can be aimed at what is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relevo_transport::ControlConnection;
use relevo_wire::{
    Beat, ControlMessage, ControlReply, DeviceId, GenerateRequest, GrantedLease, Instant64, MapVersion, NodeId,
    RequestId, SamplingParams, SentRequest, SequenceId, TenantId, ToDecode, ToPrefill,
};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::intruder::{DEADLINE, Intruder, Line, OWN_PID};
use super::packets::Packet;

/// A request that no gateway has made, far from those that it has.
const FIRST_REQUEST: u64 = 1 << 38;

/// How often it asks for one more lease, to know which ids are given out now.
const PROBE: Duration = Duration::from_millis(20);

/// A lease of the intruder's own.
#[derive(Clone)]
pub(crate) struct OwnLease {
    pub(crate) sequence: SequenceId,
    pub(crate) lease: GrantedLease,
    pub(crate) device: DeviceId,
}

/// A session that is kept.
pub(crate) struct Tenant {
    from: DeviceId,
    at: DeviceId,
    gateway: NodeId,
    secret: [u8; 32],
    facade: u64,
    num_said: u64,
    outgoing: mpsc::Sender<Vec<u8>>,
    granted: mpsc::Receiver<(SequenceId, GrantedLease)>,
    connection: ControlConnection,
    _tasks: JoinSet<()>,
}

impl Tenant {
    pub(crate) async fn move_in(intruder: &Intruder) -> Self {
        let session = intruder.join().await.unwrap();
        let (secret, facade) = (session.secret, session.facade);
        let (connection, mut writer, line) = session.line.into_parts();
        let (outgoing, mut to_write) = mpsc::channel::<Vec<u8>>(64);
        let (grants, granted) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(frame) = to_write.recv().await {
                writer.write_all(&frame).await.unwrap();
            }
        });
        tasks.spawn(beat(connection.clone()));
        tasks.spawn(answer(line, outgoing.clone(), grants));
        Self {
            from: DeviceId::of(intruder.node(), 0),
            at: DeviceId::of(NodeId::of_name(intruder.target.as_str()), 0),
            gateway: NodeId::of_name("gateway"),
            secret,
            facade,
            num_said: 0,
            outgoing,
            granted,
            connection,
            _tasks: tasks,
        }
    }

    pub(crate) async fn say(&mut self, message: &ControlMessage) {
        self.num_said += 1;
        let sealed = rkyv::api::high::to_bytes_in::<_, RkyvError>(message, self.secret.to_vec()).unwrap();
        self.outgoing.send(Packet::deliver(self.facade, self.num_said, &sealed).frame()).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, num_tokens: usize) -> OwnLease {
        let sequence =
            SequenceId { request: RequestId::of(self.gateway, FIRST_REQUEST + self.num_said), choice: 0, attempt: 0 };
        let request = request(sequence, num_tokens);
        self.say(&ControlMessage::Decode(self.at, ToDecode::LeaseAsked(request, self.from))).await;
        let (granted, lease) = timeout(DEADLINE, self.granted.recv()).await.unwrap().unwrap();
        assert_eq!(granted, sequence);
        OwnLease { sequence, lease, device: self.at }
    }

    /// Keeps `newest` at the lease that was given out last.
    pub(crate) async fn probe(mut self, newest: Arc<AtomicU64>) {
        let mut ticks = tokio::time::interval(PROBE);
        loop {
            ticks.tick().await;
            let lease = self.ask(17).await.lease.lease;
            newest.fetch_max(lease.0, Ordering::Relaxed);
            self.say(&ControlMessage::Decode(self.at, ToDecode::Returned(lease))).await;
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.connection.close("moves out");
    }
}

pub(crate) fn request(sequence: SequenceId, num_tokens: usize) -> SentRequest {
    let request = GenerateRequest {
        sequence,
        tenant: TenantId(0),
        // No prompt that anybody else has.
        prompt: (0..num_tokens).map(|index| 3 + (sequence.request.0 as u32 + index as u32) % 200).collect(),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: [].into(),
        max_tokens: 4,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    };
    SentRequest::new(&request, Instant64(0), None)
}

/// What a node without devices says ten times a second.
pub(crate) async fn beat(connection: ControlConnection) {
    let beat = Beat { map: (0, MapVersion(0)), devices: Vec::new() };
    let beat = Bytes::from_owner(rkyv::to_bytes::<RkyvError>(&beat).unwrap());
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while connection.send_beat(beat.clone()).is_ok() {
        ticks.tick().await;
    }
}

/// Takes whatever the other side says, as one who does not would lose its link.
async fn answer(mut line: Line, outgoing: mpsc::Sender<Vec<u8>>, grants: mpsc::Sender<(SequenceId, GrantedLease)>) {
    let taken = rkyv::to_bytes::<RkyvError>(&ControlReply::Taken).unwrap().to_vec();
    while let Ok(packet) = line.read().await {
        let Some(call) = packet.node.and_then(|node| node.call) else { continue };
        let mut archive = AlignedVec::<16>::new();
        // After the argument's length and the secret.
        archive.extend_from_slice(&call.what[8 + 32..]);
        let message = rkyv::from_bytes::<ControlMessage, RkyvError>(&archive).unwrap();
        if let ControlMessage::Prefill(_, ToPrefill::Granted(sequence, _, lease)) = message {
            grants.send((sequence, lease)).await.unwrap();
        }
        let reply = Packet::reply(OWN_PID, call.tag, taken.clone()).frame();
        if outgoing.send(reply).await.is_err() {
            return;
        }
    }
}
