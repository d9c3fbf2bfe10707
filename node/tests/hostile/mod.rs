//! A cluster of real processes whose clients stream all the time while an authenticated node attacks one of them, and what must hold of it afterwards.

pub(crate) mod blocks;
pub(crate) mod dawdlers;
pub(crate) mod dice;
pub(crate) mod intruder;
pub(crate) mod packets;
pub(crate) mod tenant;
pub(crate) mod words;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::program::local_cluster::{SCRIPT, World, body, eventually, is_at_rest, node, pid, status, stream};
use crate::program::{Scrape, Server, finish, relevo};

/// Who is attacked.
pub(crate) const TARGET: &str = "decode-0";

/// Whose links to it must hold.
pub(crate) const OTHERS: [&str; 2] = ["gateway", "prefill-0"];

const NODES: [&str; 3] = [OTHERS[0], OTHERS[1], TARGET];

const NUM_CLIENTS: usize = 2;

/// Long enough that a stream lives through many attacks, short enough that many streams begin under them.
const NUM_TOKENS: u32 = 30;

/// Prompts that begin differently.
const NUM_PROMPTS: usize = 16;

/// The cluster and its clients.
pub(crate) struct Siege {
    world: World,
    cluster: Server,
    pids: Vec<u32>,
    clients: Vec<JoinHandle<usize>>,
    is_over: Arc<AtomicBool>,
}

fn prompt(index: usize) -> String {
    format!("{index} is what this prompt begins with, and then it goes on for more than a few blocks of sixteen")
}

impl Siege {
    pub(crate) fn begin() -> Self {
        let world = World::new();
        // A prompt takes long enough for its lease to be found while it is open.
        std::fs::write(world.script(), format!("{SCRIPT}prefill_token_us = 300\n")).unwrap();
        let [data, settings] = ["data", "relevo.toml"].map(|name| world.folder.path().join(name));
        // Every block of every prompt is to be handed over, so that each lease has all that could be written to by another.
        let device = format!("[[device]]\nkind = \"{}\"\nprefix_cache = false\n", world.device());
        std::fs::write(&settings, device).unwrap();
        let paths = ["--data-dir", data.to_str().unwrap(), "--config", settings.to_str().unwrap()];
        // Not by shared memory: the blocks of the others are to come over the port that is attacked.
        let shape = ["--local-cluster", "1p1d", "--disaggregate", "always", "--carrier", "quic"];
        let cluster = Server::start(&[&shape[..], &paths].concat());
        let pids = NODES.iter().map(|name| pid(&cluster.url, name)).collect();
        let ask = |url: &str, index| stream(url, &body(&prompt(index), NUM_TOKENS), usize::MAX, || {});
        let expected: Arc<Vec<_>> = Arc::new((0..NUM_PROMPTS).map(|index| ask(&cluster.url, index)).collect());
        let is_over = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let (url, expected, is_over) = (cluster.url.clone(), Arc::clone(&expected), Arc::clone(&is_over));
            std::thread::spawn(move || {
                let mut num_streams = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let index = (number + NUM_CLIENTS * num_streams) % NUM_PROMPTS;
                    assert_eq!(ask(&url, index), expected[index], "prompt {index}");
                    num_streams += 1;
                }
                num_streams
            })
        };
        let clients = (0..NUM_CLIENTS).map(client).collect();
        Self { world, cluster, pids, clients, is_over }
    }

    /// A folder with a certificate of the cluster's own authority, which allows its node to prefill.
    pub(crate) fn admit(&self, name: &str) -> PathBuf {
        let authority = self.world.settings_path("gateway").parent().unwrap().join("ca");
        let identity = self.world.folder.path().join(name);
        let words = ["ca", "issue", name, "--role", "prefill", "--host", "127.0.0.1", "--dir"];
        let issued = finish(relevo(words).arg(authority).arg("--out").arg(&identity));
        assert!(issued.status.success(), "{issued:?}");
        identity
    }

    /// Where the attacked node's peers dial it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.world.settings(TARGET)["node"]["listen"].as_str().unwrap().parse().unwrap()
    }

    /// What the attacked node has counted.
    pub(crate) fn counted(&self, metric: &str, label: &str) -> u64 {
        let settings = self.world.settings(TARGET);
        let url = format!("http://{}", settings["node"]["metrics_listen"].as_str().unwrap());
        Scrape::of(&url).sum(metric, label).unwrap_or(0)
    }

    /// No link of the attacked node but those of intruders was lost.
    fn has_lost_no_other_link(&self) {
        for peer in OTHERS {
            assert_eq!(self.counted("relevo_links_lost_total", &format!("peer=\"{peer}\"")), 0, "{peer}");
        }
    }

    /// The attacked node's memory of its own, in MiB.
    pub(crate) fn memory_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pids[2])).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
    }

    /// The intruders have gone. Nobody has noticed them: every stream was what it is alone, nothing was sent again, no link but theirs was lost,
    /// nobody died, and nothing is left of them. Returns the log.
    pub(crate) fn end(mut self) -> String {
        let url = &self.cluster.url;
        self.is_over.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            // Each ends the stream that it has, so that the last one has been through all of it.
            assert!(client.join().unwrap() > 0, "a client has streamed");
        }
        self.has_lost_no_other_link();
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        let after = status(url);
        assert_eq!(NODES.map(|name| node(&after, name)["pid"].as_u64().unwrap()).to_vec(), pids(&self.pids));
        let gateway = Scrape::of(url);
        for metric in ["relevo_replays_total", "relevo_contradicted_tokens_total", "relevo_restarts_total"] {
            assert_eq!(gateway.sum(metric, ""), None, "{metric}");
        }
        let end = self.cluster.stop("TERM");
        assert!(end.status.success(), "{end:?}");
        for trouble in [" ERROR ", "panicked"] {
            let lines: Vec<_> = end.stderr.lines().filter(|line| line.contains(trouble)).take(9).collect();
            assert!(lines.is_empty(), "{lines:#?}");
        }
        end.stderr
    }
}

fn pids(pids: &[u32]) -> Vec<u64> {
    pids.iter().map(|&pid| u64::from(pid)).collect()
}
