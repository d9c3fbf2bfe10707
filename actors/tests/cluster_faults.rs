//! Whatever breaks, the streams that were accepted go on as if nothing had, and every block comes back.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::cluster::{Cluster, ClusterError, ClusterOptions};
use relevo_actors::faults::Fault;
use relevo_wire::RequestError;
use tokio::time::timeout;
use world::{
    LAYOUTS, Layout, PATIENCE, at_rest, options, read, reference, request, serve, serve_all, start, start_with, until,
};

const SHUTDOWN: Duration = Duration::from_secs(5);

/// Actors and engines of a layout, as its own supervision tree names them.
async fn tree(layout: Layout) -> Vec<String> {
    let cluster = start(layout).await;
    let names = cluster.status().supervision.into_iter().map(|actor| actor.name).collect();
    cluster.shutdown(SHUTDOWN).await;
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_any_node_of_the_tree_changes_no_stream() {
    let expected = reference(0..12).await;
    // Not over QUIC, where each of the many clusters takes a second to close: the steps below have its faults.
    for layout in [Layout::Combined, Layout::SameDevice, Layout::TwoDevices, Layout::Crossed] {
        for name in tree(layout).await {
            let cluster = start(layout).await;
            let mut streams: Vec<_> = (0..12).map(|id| cluster.gateway().submit(request(id)).unwrap()).collect();
            let mut first = timeout(PATIENCE, streams[0].next()).await.unwrap();
            cluster.kill(&name).unwrap();
            let mut outcomes = Vec::new();
            for stream in &mut streams {
                outcomes.push(world::read_on(first.take(), stream).await);
            }
            assert_eq!(outcomes, expected, "{layout:?} without {name}");
            // An engine that had no step left when it was killed dies at the first one of this.
            let mut once_more = request(3);
            once_more.sequence.request.0 += 100;
            assert_eq!(serve(&cluster, once_more).await, expected[3], "{layout:?} serves after {name}");
            let restarted =
                || cluster.status().supervision.iter().any(|actor| actor.name == name && actor.restarts == 1);
            until(&format!("{layout:?}: {name} is restarted"), &restarted, &cluster).await;
            at_rest(&cluster).await;
            cluster.shutdown(SHUTDOWN).await;
        }
    }
}

/// Faults at each step of the protocol: the n-th message of each actor that has a part in it, the n-th step of each engine.
fn faults_at_each_step(layout: Layout) -> Vec<Fault> {
    let mut faults = Vec::new();
    let num_devices = if matches!(layout, Layout::TwoDevices | Layout::Crossed | Layout::OverQuic) { 2 } else { 1 };
    let roles = |device| [format!("device-{device}/prefill"), format!("device-{device}/decode")];
    let actors = (0..num_devices).flat_map(roles).chain(["router".to_owned()]);
    for actor in actors {
        for message in 1..=8 {
            faults.push(Fault::PanicActor { actor: actor.clone(), message });
            faults.push(Fault::LoseReaders { actor: actor.clone(), message });
        }
    }
    for device in (0..num_devices).map(|index| format!("cpu{index}")) {
        for step in 1..=4 {
            faults.push(Fault::PanicEngine { device: device.clone(), step });
            faults.push(Fault::FailEngine { device: device.clone(), step });
        }
    }
    if num_devices == 2 {
        for nth in 1..=4 {
            faults.push(Fault::DropFrame { frame: nth });
            faults.push(Fault::CorruptFrame { frame: nth });
            faults.push(Fault::ExpireLease { lease: nth });
        }
    }
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_any_step_of_the_protocol_changes_no_stream_and_leaks_no_block() {
    let expected = reference(0..4).await;
    for layout in [Layout::SameDevice, Layout::TwoDevices, Layout::Crossed, Layout::OverQuic] {
        for fault in faults_at_each_step(layout) {
            let mut options = ClusterOptions { faults: Some(vec![fault.clone()]), ..options(layout) };
            options.limits.lease_term = Duration::from_millis(300);
            let cluster = Cluster::start(options).await.unwrap();
            let mut streams: Vec<_> = (0..4).map(|id| cluster.gateway().submit(request(id)).unwrap()).collect();
            for (stream, expected) in streams.iter_mut().zip(&expected) {
                match fault {
                    Fault::LoseReaders { .. } => world::read_until_cut(stream).await,
                    _ => assert_eq!(read(stream).await, *expected, "{layout:?} {fault:?}"),
                }
            }
            at_rest(&cluster).await;
            if matches!(fault, Fault::LoseReaders { .. }) {
                // The step may be yet to come.
                cluster.shutdown(SHUTDOWN).await;
                continue;
            }
            let mut once_more = request(2);
            once_more.sequence.request.0 += 100;
            assert_eq!(serve(&cluster, once_more).await, expected[2], "{layout:?} after {fault:?}");
            at_rest(&cluster).await;
            cluster.shutdown(SHUTDOWN).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_request_ends_alone() {
    let expected = reference(0..10).await;
    for layout in LAYOUTS {
        let mut poison = request(90);
        poison.prompt = Arc::from([400, 401, 402, 403, 404]);
        let cluster = start_with(layout, vec![Fault::Poison { tokens: vec![401, 402, 403] }]).await;
        let mut streams: Vec<_> = (0..5).map(|id| cluster.gateway().submit(request(id)).unwrap()).collect();
        let mut poisoned = cluster.gateway().submit(poison).unwrap();
        streams.extend((5..10).map(|id| cluster.gateway().submit(request(id)).unwrap()));
        let outcome = read(&mut poisoned).await;
        assert_eq!(outcome.end, Err(RequestError::Poisoned { num_deaths: 2 }), "{layout:?}");
        for (stream, expected) in streams.iter_mut().zip(&expected) {
            assert_eq!(read(stream).await, *expected, "{layout:?}");
        }
        at_rest(&cluster).await;
        cluster.shutdown(SHUTDOWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_engine_is_replaced_and_its_streams_go_on() {
    let expected = reference(0..4).await;
    let hang = Fault::HangEngine { device: "cpu0".into(), step: 3, millis: 3000 };
    let mut options = ClusterOptions { faults: Some(vec![hang]), ..options(Layout::SameDevice) };
    options.limits.hang_after = Duration::from_millis(300);
    let cluster = Cluster::start(options).await.unwrap();
    assert_eq!(serve_all(&cluster, 0..4).await, expected);
    at_rest(&cluster).await;
    cluster.shutdown(SHUTDOWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_refused_where_they_are_not_allowed() {
    let cluster = Cluster::start(ClusterOptions { faults: None, ..options(Layout::Combined) }).await.unwrap();
    assert!(matches!(cluster.kill("router"), Err(ClusterError::FaultsForbidden)));
    assert!(matches!(cluster.inject(Fault::Poison { tokens: vec![1] }), Err(ClusterError::FaultsForbidden)));
    cluster.shutdown(SHUTDOWN).await;
}
