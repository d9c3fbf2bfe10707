//! `relevo node` as its service manager and its authority meet it: what systemd is told, and certificates that are renewed while it serves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use program::by_hand::{ByHand, Node, now};
use program::local_cluster::{body, eventually, prompt, stream};
use program::test_ports::{free_tcp, free_udp};
use program::{DEADLINE, Scrape, kill, relevo};
use relevo_transport::identity::{Moment, Role};

#[test]
fn certificates_are_renewed_before_they_end_while_streams_go_on() {
    // Two thirds of thirty days and a few seconds ago, so that it is time once the cluster serves.
    let issued = Moment(now().0 - 20 * 24 * 3600 + 6);
    let place = ByHand::begun(issued);
    let api = free_tcp();
    let of_gateway = format!(
        "authority = \"{}\"\n[server]\nlisten = \"{api}\"\n[router]\ndisaggregate = \"always\"",
        place.path("ca").display()
    );
    let metrics = free_tcp();
    let gateway = place.node("gateway", &[Role::Gateway, Role::Coordinator], issued, place.seed, &of_gateway);
    let of_prefill = format!("metrics_listen = \"{metrics}\"");
    let prefill = place.node("prefill", &[Role::Prefill], issued, free_udp(), &of_prefill);
    let decode = place.node("decode", &[Role::Decode], issued, free_udp(), "");
    let names = ["gateway", "prefill", "decode"];
    let before = names.map(|name| place.serial(name));
    let nodes = [gateway, prefill, decode].map(|settings| Node::start(&settings));
    let url = format!("http://{api}");
    eventually("the cluster serves", || program::get(&url, "/ready").is_some_and(|(code, _)| code == 200));
    let end_of = |url: &str| Scrape::of(url).sum("relevo_certificate_end_seconds", "").unwrap();
    let expected = stream(&url, &body(&prompt(), 100), usize::MAX, || {});
    assert_eq!(expected.len(), 100);
    eventually("all have their next certificate", || {
        assert_eq!(stream(&url, &body(&prompt(), 100), usize::MAX, || {}), expected);
        names.iter().zip(&before).all(|(name, before)| place.serial(name) != *before)
    });
    assert_eq!(stream(&url, &body(&prompt(), 100), usize::MAX, || {}), expected);
    // To within the time that it took until it was due.
    let month = 30 * 24 * 3600;
    let metrics = format!("http://{metrics}");
    eventually("the new end is shown", || [&url, &metrics].iter().all(|url| end_of(url) > now().0 + month - 600));
    nodes.into_iter().for_each(Node::stop);
    // What they have got is good for a start.
    let authority_log: Vec<_> = place.authority.list(now()).unwrap();
    assert_eq!(authority_log.len(), 6, "each was renewed once: {authority_log:?}");
}

#[test]
fn an_authority_that_is_not_the_clusters_or_not_the_coordinators_is_refused_in_words() {
    let (ours, theirs) = (ByHand::begun(now()), ByHand::begun(now()));
    let line = format!("authority = \"{}\"", theirs.path("ca").display());
    let settings = ours.node("coordinator", &[Role::Coordinator], now(), ours.seed, &line);
    let end = program::finish(&mut { relevo([Path::new("node"), Path::new("--config"), &settings]) });
    assert!(end.stderr.contains("give it the folder that issued its certificate"), "{end:?}");
    let settings = ours.node("decode", &[Role::Decode], now(), free_udp(), &line);
    let end = program::finish(&mut { relevo([Path::new("node"), Path::new("--config"), &settings]) });
    assert!(end.stderr.contains("node.authority is set, expected \"coordinator\" among node.roles"), "{end:?}");
}

/// What a service manager is told, message by message.
struct Listener(UnixDatagram);

impl Listener {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("it is told something in time");
        String::from_utf8(bytes[..length].to_vec()).unwrap().trim().to_owned()
    }

    fn wait_for(&self, message: &str) {
        while !self.next().contains(message) {}
    }
}

#[test]
fn a_service_manager_is_told_of_the_start_of_life_and_of_the_end() {
    let place = ByHand::begun(now());
    let decode = place.node("worker", &[Role::Prefill, Role::Decode], now(), free_udp(), "");
    let path = place.path("notify");
    let listener = Listener::new(&path);
    let mut command = relevo(["node", "--config"]);
    let node = Node::of(command.arg(&decode).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"), &decode);
    let pid = node.pid();
    listener.wait_for("READY=1");
    listener.wait_for("STATUS=looks for the coordinator");
    listener.wait_for("WATCHDOG=1");
    listener.wait_for("WATCHDOG=1");
    // One that does not run gives no sign of life, whatever the reason.
    kill(pid, "STOP");
    listener.0.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let mut bytes = [0; 64];
    while listener.0.recv(&mut bytes).is_ok() {}
    kill(pid, "CONT");
    listener.0.set_read_timeout(Some(DEADLINE)).unwrap();
    listener.wait_for("WATCHDOG=1");
    kill(pid, "TERM");
    listener.wait_for("STOPPING=1");
    node.ends();
}
