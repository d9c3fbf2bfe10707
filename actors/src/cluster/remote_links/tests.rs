//! Two peers that share their memory with this node, and one lease: only the one that it names may write.

use std::sync::Mutex;

use relevo_gpu::cpu::KvPool;
use relevo_gpu::model::KvMemory;
use relevo_transport::{Frame, Patience, PushError, ShmListener, Ticket, shm_link};
use relevo_wire::{
    BlockIndex, ElementType, Epoch, GrantedLease, KvBlocksHeader, KvLayout, LayerIndex, LeaseId, PROTOCOL_VERSION,
    RequestId, SequenceId, checksum,
};

use super::*;
use crate::cluster::{ClusterOptions, DeviceSpec};
use crate::decode::LandingEvent;
use crate::device::DeviceRole;

const DEADLINE: Duration = Duration::from_secs(20);
const LAYOUT: KvLayout =
    KvLayout { num_layers: 1, num_kv_heads: 1, key_dim: 2, value_dim: 2, element: ElementType::F16 };
const DEVICE: DeviceId = DeviceId::of(NodeId::ALONE, 0);
const LEASE: LeaseId = LeaseId(5);
const SEQUENCE: SequenceId = SequenceId { request: RequestId(1), choice: 0, attempt: 0 };

/// A node with a lease for one block of the peer `honest`.
fn lease_for_honest() -> (Arc<Directory>, Arc<KvPool>, Arc<Mutex<Vec<LandingEvent>>>) {
    let never = || Err(relevo_gpu::compute::ComputeError::Device("no model is needed".to_owned()));
    let options = ClusterOptions::new(vec![DeviceSpec::new("cpu0", &[DeviceRole::Decode], never)]);
    let directory = Arc::new(Directory::new(&options).unwrap());
    let (pool, events) = (Arc::new(KvPool::new(LAYOUT, 2).unwrap()), Arc::<Mutex<Vec<_>>>::default());
    let granted = GrantedLease { lease: LEASE, epoch: Epoch(3), blocks: vec![BlockIndex(1)], num_present: 0 };
    let prefill = DeviceId::of(NodeId::of_name("honest"), 0);
    let (kv, said): (Arc<dyn KvMemory>, _) = (pool.clone(), Arc::clone(&events));
    let landing = &directory.device(DEVICE).unwrap().landing;
    landing.open((SEQUENCE, prefill), granted, kv, move |event| said.lock().unwrap().push(event));
    (directory, pool, events)
}

fn frame(blocks: Vec<bytes::Bytes>) -> Frame {
    let header = KvBlocksHeader {
        protocol: PROTOCOL_VERSION,
        device: DEVICE,
        sequence: SEQUENCE,
        lease: LEASE,
        epoch: Epoch(3),
        layer: LayerIndex(0),
        first_block: 0,
        blocks: vec![BlockIndex(1)],
        layout: LAYOUT,
        checksums: blocks.iter().map(|block| checksum(block)).collect(),
    };
    Frame::new(&header, blocks).unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_peer_writes_by_shared_memory_into_its_own_leases_only() {
    let (directory, pool, events) = lease_for_honest();
    let listener = ShmListener::open(Patience::default()).unwrap();
    let (served, mut tasks) = (listener.clone(), JoinSet::new());
    let sink_of = move |peer: &str| {
        let (directory, node) = (Arc::clone(&directory), NodeId::of_name(peer));
        Some(Arc::new(PeerSink { directory, node, has_trespassed: AtomicBool::new(false) }))
    };
    tasks.spawn(async move { served.serve(sink_of).await });
    let theirs = KvPool::shareable(LAYOUT, 2).unwrap();
    theirs.write(LayerIndex(0), BlockIndex(0), &vec![7; LAYOUT.layer_block_bytes()]).unwrap();
    for (peer, expected) in [("villain", Err(PushError::Mismatch)), ("honest", Ok(()))] {
        let (ticket, region) = (Ticket::random().unwrap(), theirs.shared_region().unwrap());
        listener.expect(ticket.clone(), peer);
        let (sender, carried) = shm_link(listener.address(), ticket, region, 4, Patience::default()).unwrap();
        tasks.spawn(carried);
        let pushed = sender.push(frame(vec![theirs.read(LayerIndex(0), BlockIndex(0))]), DEADLINE).await;
        assert_eq!(pushed, expected, "{peer}");
        let has_landed = pool.read(LayerIndex(0), BlockIndex(1)).iter().all(|byte| *byte == 7);
        assert_eq!(has_landed, expected.is_ok(), "{peer}");
    }
    assert_eq!(*events.lock().unwrap(), [LandingEvent::Complete(LEASE)]);
}
