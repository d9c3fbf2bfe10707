//! A node of the cluster that turns on another, with a good certificate and while clients stream: no process dies, nothing is left, and no client notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod hostile;
mod program;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hostile::blocks::{Gunner, NUM_TOKENS, Tally};
use hostile::dawdlers;
use hostile::intruder::{Intruder, OWN_PID};
use hostile::packets::Packet;
use hostile::tenant::Tenant;
use hostile::words::{Liar, Said};
use hostile::{OTHERS, Siege, TARGET};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Frames that must be answered, whatever becomes of others on the way.
const NUM_FRAMES: u64 = 100_000;

/// Who send them, each over a connection of its own.
const NUM_GUNNERS: u64 = 3;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What the attacked node may grow by under the last nine tenths of the frames, in MiB: less than a third of the bytes that they have. Seen are 3 to
/// 36, in one or two steps of the allocator after which it stays as it is; without any attack, 18.
const MAX_GROWTH_MIB: u64 = 64;

/// Nodes that say what they like, each over one connection after the other.
const NUM_LIARS: u64 = 4;

/// Hellos, frames, messages and heartbeats that they say.
const NUM_WORDS: u64 = 10_000;

#[test]
fn a_hundred_thousand_mutated_frames_of_blocks_are_judged_one_by_one_and_disturb_nobody() {
    let siege = Siege::begin();
    let identity = siege.admit("prefill-9");
    let tally = runtime().block_on(async {
        let intruder = Arc::new(Intruder::enter(&identity, TARGET, siege.address()).await);
        let mut tenant = Tenant::move_in(&intruder).await;
        let mut leases = Vec::new();
        for _ in 0..4 {
            leases.push(tenant.ask(NUM_TOKENS).await);
        }
        let newest = Arc::new(AtomicU64::new(leases[3].lease.lease.0));
        let mut probing = JoinSet::new();
        probing.spawn(tenant.probe(Arc::clone(&newest)));
        let gunners = |num_frames: u64, seed: u64| {
            let mut gunners = JoinSet::new();
            for number in 0..NUM_GUNNERS {
                let mut gunner = Gunner::new(seed + number, &leases, Arc::clone(&newest));
                let intruder = Arc::clone(&intruder);
                gunners.spawn(async move { gunner.attack(&intruder, num_frames / NUM_GUNNERS).await });
            }
            gunners.join_all()
        };
        let mut tally = Tally::default();
        gunners(NUM_FRAMES / 10, 1).await.iter().for_each(|part| tally.add(part));
        let before = siege.memory_mib();
        gunners(NUM_FRAMES * 9 / 10, 100).await.iter().for_each(|part| tally.add(part));
        let after = siege.memory_mib();
        println!("{before} MiB after a tenth, {after} MiB in the end");
        assert!(after <= before + MAX_GROWTH_MIB, "{before} MiB, then {after} MiB");
        tally
    });
    let num_foreign = siege.counted("relevo_messages_refused_total", "reason=\"foreign_lease\"");
    println!("{tally:?}, {num_foreign} frames for leases of others");
    let [taken, gone, corrupt, mismatch, malformed, .., version, inconsistent] = tally.answers;
    for (answer, num_frames) in [
        ("taken", taken),
        ("lease gone", gone),
        ("corrupt", corrupt),
        ("mismatch", mismatch),
        ("malformed", malformed),
        ("version", version),
        ("inconsistent", inconsistent),
    ] {
        assert!(num_frames >= 1000, "{answer}: {tally:?}");
    }
    assert!(tally.num_answered() >= NUM_FRAMES && tally.num_cut_off >= 50, "{tally:?}");
    assert!(num_foreign >= 10, "{num_foreign} were aimed well");
    let log = siege.end();
    let num_lines = log.lines().filter(|line| line.contains("a lease that is not its own")).count() as u64;
    assert!(num_lines <= tally.num_connections, "{num_lines} lines: a peer does not fill the log");
}

#[test]
fn thousands_of_mutated_hellos_messages_and_heartbeats_end_the_links_of_those_who_say_them_alone() {
    let siege = Siege::begin();
    let identities: Vec<_> = (0..NUM_LIARS).map(|number| siege.admit(&format!("liar-{number}"))).collect();
    let said = runtime().block_on(async {
        let mut liars = JoinSet::new();
        for (number, identity) in (0..).zip(identities) {
            let address = siege.address();
            liars.spawn(async move {
                let intruder = Intruder::enter(&identity, TARGET, address).await;
                Liar::new(number, &intruder).attack(&intruder, NUM_WORDS / NUM_LIARS).await
            });
        }
        let mut said = Said::default();
        liars.join_all().await.into_iter().for_each(|part| said.add(part));
        said
    });
    println!("{said:?}");
    let messages = ["malformed", "not_allowed", "heartbeat", "wrong_secret"].map(|reason| ("messages", reason));
    let hellos = ["malformed_hello", "protocol_version", "model", "kv_layout"].map(|reason| ("peers", reason));
    for (what, reason) in messages.into_iter().chain(hellos) {
        let num = siege.counted(&format!("relevo_{what}_refused_total"), &format!("reason=\"{reason}\""));
        println!("{num} {what} refused: {reason}");
        assert!(num >= 5, "{reason}: {num}");
    }
    siege.end();
}

#[test]
fn who_dawdles_is_silent_or_announces_too_much_is_cut_off_in_time() {
    let siege = Siege::begin();
    let address = siege.address();
    let identities = ["half-0", "half-1", "half-2", "half-3"].map(|name| siege.admit(name));
    runtime().block_on(async {
        let mut intruders = Vec::new();
        for identity in &identities {
            intruders.push(Intruder::enter(identity, TARGET, address).await);
        }
        let [one, two, three, four] = &intruders[..] else { panic!("four") };
        let idle = one.dial_for_blocks().await;
        let [long_header, long_payload] = dawdlers::TOO_LONG;
        let (frame, header, payload, nothing, hello, long_hello, session, silence, ()) = tokio::join!(
            dawdlers::drip_a_frame(one),
            dawdlers::announce(one, long_header),
            dawdlers::announce(one, long_payload),
            dawdlers::say_nothing(one),
            dawdlers::drip_a_hello(two),
            dawdlers::say_too_much(two),
            dawdlers::begin_nothing(three),
            dawdlers::fall_silent(four),
            dawdlers::throw_datagrams(address, 2000),
        );
        for (reason, expected) in [
            (frame, "a frame did not come within 10s"),
            (header, "the peer sends no frames"),
            (payload, "the peer sends no frames"),
            (nothing, "it did not say hello within 2s"),
            (hello, "it did not say hello within 2s"),
            (long_hello, "a message of 4294967295 bytes, at most 16384 are accepted"),
            (session, "its session does not begin"),
            (silence, "it is silent"),
        ] {
            assert!(reason.contains(expected), "{reason}, expected: {expected}");
        }
        assert!(idle.close_reason().is_none(), "who says nothing between two frames may stay");
    });
    siege.end();
}

/// All nodes know what sessions begin with, and which groups others have.
#[test]
fn nobody_ends_the_link_of_another_by_taking_its_name_or_its_group() {
    let siege = Siege::begin();
    let identity = siege.admit("prefill-9");
    runtime().block_on(async {
        let intruder = Intruder::enter(&identity, TARGET, siege.address()).await;
        let mut num_groups = 0;
        for other in OTHERS {
            let mut session = intruder.join().await.unwrap();
            for group in session.others.clone() {
                num_groups += 1;
                let theirs = format!("relevo/{other}/{}", group.rsplit('/').next().unwrap());
                // The first may have ended it.
                let _ = session.line.write(&Packet::join(&theirs, OWN_PID + 1)).await;
                let _ = session.line.write(&Packet::leave(&theirs, OWN_PID + 1)).await;
            }
            session.line.ended().await;
        }
        assert!(num_groups >= OTHERS.len() * OTHERS.len(), "{num_groups}: it is told of their links");
        for other in OTHERS {
            let session = intruder.authenticate(&format!("{other}.{:016x}@relevo", 1)).await;
            assert!(session.is_err(), "a session by the name of {other}");
        }
    });
    let refused = siege.counted("relevo_messages_refused_total", "reason=\"not_allowed\"");
    assert_eq!(refused, 2 * OTHERS.len() as u64);
    siege.end();
}
