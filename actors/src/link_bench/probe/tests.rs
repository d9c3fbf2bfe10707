//! The far end of a measurement: one guest, whose memory comes free whatever ends it.

use std::sync::Weak;

use relevo_wire::ElementType;

use super::*;

const LAYOUT: KvLayout =
    KvLayout { num_layers: 2, num_kv_heads: 1, key_dim: 4, value_dim: 4, element: ElementType::F16 };

async fn step(probe: &LinkProbe, from: u32, step: ToProbe) -> Result<LeaseId, String> {
    match probe.take(NodeId(from), step).await {
        ControlReply::Probed { lease, .. } => Ok(lease),
        ControlReply::Refused(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn pool(probe: &LinkProbe) -> Weak<dyn KvMemory> {
    Arc::downgrade(&probe.guest().as_ref().unwrap().pool)
}

#[tokio::test]
async fn each_lease_is_the_guests_and_over_with_the_next() {
    let probe = LinkProbe::default();
    let first = step(&probe, 1, ToProbe::Open(LAYOUT, 8)).await.unwrap();
    assert_eq!(probe.landing.prefill_of(first), Some(probe_device(NodeId(1))));
    let second = step(&probe, 1, ToProbe::Again).await.unwrap();
    assert_eq!((probe.landing.prefill_of(first), second > first), (None, true));
    assert_eq!(step(&probe, 1, ToProbe::Read).await, Ok(second));
    assert!(step(&probe, 2, ToProbe::Again).await.is_err(), "it is no guest");
    assert!(step(&probe, 2, ToProbe::Open(LAYOUT, 8)).await.unwrap_err().contains("another node"));
}

#[tokio::test]
async fn whatever_ends_a_measurement_its_memory_comes_free() {
    type Ending = fn(&LinkProbe);
    let endings: [Ending; 3] = [
        |probe| probe.part_from(NodeId(1)),
        |probe| probe.expire(clock::now() + PATIENCE),
        |probe| drop(probe.part_for(NodeId(1))),
    ];
    for ends in endings {
        let probe = LinkProbe::default();
        let lease = step(&probe, 1, ToProbe::Open(LAYOUT, 8)).await.unwrap();
        let (pool, mut room) = (pool(&probe), probe.room_of(NodeId(1)).unwrap());
        assert!(probe.room_of(NodeId(1)).is_none(), "one connection at a time");
        probe.expire(clock::now());
        assert_eq!(room.over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        ends(&probe);
        assert_eq!(probe.landing.prefill_of(lease), None);
        assert!(pool.upgrade().is_none());
        assert_eq!(room.over.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}

#[tokio::test]
async fn of_two_who_open_at_a_time_one_is_refused_and_nothing_of_it_stays() {
    let probe = LinkProbe::default();
    let (one, two) = tokio::join!(step(&probe, 1, ToProbe::Open(LAYOUT, 8)), step(&probe, 2, ToProbe::Open(LAYOUT, 8)));
    assert_eq!([&one, &two].into_iter().filter(|opened| opened.is_ok()).count(), 1, "{one:?} {two:?}");
    let (lease, pool) = (one.or(two).unwrap(), pool(&probe));
    [NodeId(1), NodeId(2)].into_iter().for_each(|node| probe.part_from(node));
    assert_eq!((probe.landing.prefill_of(lease), pool.strong_count()), (None, 0));
}

#[tokio::test]
async fn bare_copies_go_on_while_their_guest_takes_other_blocks() {
    let probe = LinkProbe::default();
    step(&probe, 1, ToProbe::Open(LAYOUT, 8)).await.unwrap();
    let mut room = probe.room_of(NodeId(1)).unwrap();
    step(&probe, 1, ToProbe::Open(LAYOUT, 4)).await.unwrap();
    assert_eq!(room.over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    drop(room);
    step(&probe, 1, ToProbe::Open(LAYOUT, 4)).await.unwrap();
    assert!(probe.room_of(NodeId(1)).is_some(), "for its next connection");
}
