//! The supervision tree as status shows it: who is whose child, in what state, restarted how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::status::ActorStatus;

/// The names in the tree, parents before children.
#[derive(Debug, Default)]
pub(crate) struct SupervisionTree(Mutex<Vec<Node>>);

#[derive(Debug)]
struct Node {
    name: String,
    parent: Option<String>,
    running: bool,
    restarts: u64,
    starts: u64,
}

impl SupervisionTree {
    /// It runs (again).
    pub(crate) fn started(&self, name: &str, parent: Option<&str>) {
        let mut nodes = self.nodes();
        let index = nodes.iter().position(|node| node.name == name).unwrap_or_else(|| {
            let (name, parent) = (name.to_owned(), parent.map(str::to_owned));
            nodes.push(Node { name, parent, running: false, restarts: 0, starts: 0 });
            nodes.len() - 1
        });
        let node = &mut nodes[index];
        node.running = true;
        node.starts += 1;
        if node.starts > 1 {
            node.restarts += 1;
            metrics::counter!("relevo_restarts_total", "actor" => node.name.clone()).increment(1);
        }
    }

    /// It is gone, for now.
    pub(crate) fn stopped(&self, name: &str) {
        if let Some(node) = self.nodes().iter_mut().find(|node| node.name == name) {
            node.running = false;
        }
    }

    /// A snapshot.
    pub(crate) fn status(&self) -> Vec<ActorStatus> {
        let state = |running| if running { "running" } else { "restarting" };
        let status = |node: &Node| ActorStatus {
            name: node.name.clone(),
            parent: node.parent.clone(),
            state: state(node.running).to_owned(),
            restarts: node.restarts,
        };
        let nodes = self.nodes();
        let mut by_depth: BTreeMap<(usize, usize), ActorStatus> = BTreeMap::new();
        for (index, node) in nodes.iter().enumerate() {
            by_depth.insert((depth(&nodes, node), index), status(node));
        }
        by_depth.into_values().collect()
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn depth(nodes: &[Node], node: &Node) -> usize {
    let parent = node.parent.as_ref().and_then(|name| nodes.iter().find(|other| other.name == *name));
    parent.map_or(0, |parent| 1 + depth(nodes, parent))
}
