//! Whom a node dials because it cannot wait to be dialled: its seeds until it has found the cluster and, if it is the coordinator, those of whom it is told.
//!
//! A coordinator that is started again somewhere else is not looked for there. So it looks for the others: one that answers names all that it knows.

// The address alone: nothing is opened here.
use core::net::SocketAddr;
use std::collections::BTreeMap;

use relevo_wire::{NodeEntry, NodeId, Role, Roles};

/// Whom it has dialled, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    node: NodeId,
    own: SocketAddr,
    seeds: Vec<SocketAddr>,
    is_coordinator: bool,
    dialling: BTreeMap<SocketAddr, Sought>,
    /// Why each seed was dialled in vain the last time.
    troubles: BTreeMap<SocketAddr, String>,
}

/// Who is dialled at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sought {
    /// Dialled until it answers.
    Seed,
    /// Dialled once: a word of a node costs no more than that, be it true or not.
    Acquaintance,
}

impl Search {
    /// Of a node that others dial at `own`.
    pub(crate) fn new(node: NodeId, own: SocketAddr, seeds: &[SocketAddr], is_coordinator: bool) -> Self {
        let seeds = seeds.iter().copied().filter(|seed| *seed != own).collect();
        Self { node, own, seeds, is_coordinator, dialling: BTreeMap::new(), troubles: BTreeMap::new() }
    }

    /// Which seeds are to be dialled now; `linked` is what the peers play to whom there is a link. The coordinator looks for anybody, the others for it.
    pub(crate) fn due(&mut self, linked: &[Roles]) -> Vec<SocketAddr> {
        let is_found = |roles: &Roles| self.is_coordinator || roles.contains(Role::Coordinator);
        if linked.iter().any(is_found) {
            return Vec::new();
        }
        let dialling = &mut self.dialling;
        let begins = |seed: &&SocketAddr| dialling.insert(**seed, Sought::Seed).is_none();
        self.seeds.iter().filter(begins).copied().collect()
    }

    /// Somebody says who else there is: which of them are to be dialled now. A coordinator's map says so to all others.
    pub(crate) fn told(&mut self, nodes: Vec<NodeEntry>, is_linked: impl Fn(NodeId) -> bool) -> Vec<NodeEntry> {
        if !self.is_coordinator {
            return Vec::new();
        }
        let is_stranger =
            |entry: &NodeEntry| entry.node != self.node && entry.listen != self.own && !is_linked(entry.node);
        let mut strangers: Vec<_> = nodes.into_iter().filter(is_stranger).collect();
        let dialling = &mut self.dialling;
        strangers.retain(|entry| match dialling.contains_key(&entry.listen) {
            true => false,
            false => dialling.insert(entry.listen, Sought::Acquaintance).is_none(),
        });
        strangers
    }

    /// Somebody answers there.
    pub(crate) fn answered(&mut self, address: SocketAddr) {
        self.dialling.remove(&address);
    }

    /// It was dialled in vain, or who answers does not want this node: whether a person ought to hear of it, which is so for each new reason.
    pub(crate) fn failed(&mut self, address: SocketAddr, reason: &str) -> bool {
        let is_known = self.troubles.get(&address).is_some_and(|trouble| trouble == reason);
        let is_news = self.dialling.remove(&address) != Some(Sought::Acquaintance) && !is_known;
        if is_news {
            self.troubles.insert(address, reason.to_owned());
        }
        is_news
    }

    /// This node itself answers there, by another way than its own address: it is not asked again.
    pub(crate) fn is_own(&mut self, address: SocketAddr) {
        self.answered(address);
        self.seeds.retain(|seed| *seed != address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [SocketAddr; 0] = [];

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn entry(node: u32, port: u16) -> NodeEntry {
        NodeEntry { node: NodeId(node), name: format!("node-{node}"), roles: Role::Decode.into(), listen: at(port) }
    }

    fn search(is_coordinator: bool) -> Search {
        Search::new(NodeId(1), at(1), &[at(1), at(2), at(3)], is_coordinator)
    }

    #[test]
    fn seeds_are_dialled_one_call_each_until_the_coordinator_is_linked() {
        let mut search = search(false);
        assert_eq!(search.due(&[]), [at(2), at(3)], "and not itself");
        assert_eq!(search.due(&[Role::Decode.into()]), NOBODY, "they are being dialled");
        assert!(search.failed(at(3), "silent"));
        assert_eq!(search.due(&[Role::Decode.into()]), [at(3)]);
        search.answered(at(2));
        search.answered(at(3));
        assert_eq!(search.due(&[Role::Coordinator.into()]), NOBODY);
        assert_eq!(search.due(&[]), [at(2), at(3)], "it is gone again");
    }

    #[test]
    fn a_coordinator_looks_for_anybody_and_then_for_those_of_whom_it_is_told() {
        let mut search = search(true);
        assert_eq!(search.due(&[]), [at(2), at(3)]);
        search.answered(at(2));
        assert!(search.failed(at(3), "silent"));
        assert_eq!(search.due(&[Role::Prefill.into()]), NOBODY);
        let is_linked = |node| node == NodeId(2);
        let told = || vec![entry(1, 9), entry(2, 2), entry(4, 4), entry(5, 5), entry(6, 1)];
        let strangers = search.told(told(), is_linked);
        assert_eq!(strangers, [entry(4, 4), entry(5, 5)], "neither itself nor who is linked");
        assert!(search.told(told(), is_linked).is_empty(), "they are being dialled");
        search.answered(at(4));
        assert!(!search.failed(at(5), "silent"), "nobody need hear of a node that is gone");
        let is_linked = |node| node == NodeId(2) || node == NodeId(4);
        assert_eq!(search.told(told(), is_linked), [entry(5, 5)], "another says so, too");
    }

    #[test]
    fn who_is_no_coordinator_waits_for_its_map() {
        assert!(search(false).told(vec![entry(4, 4)], |_| false).is_empty());
    }

    #[test]
    fn a_reason_is_said_once_and_again_when_it_is_another() {
        let mut search = search(false);
        assert!(search.failed(at(2), "silent"));
        assert!(!search.failed(at(2), "silent"));
        assert!(search.failed(at(2), "refused"));
        search.answered(at(2));
        assert!(!search.failed(at(2), "refused"), "it answers each time, to say so");
    }

    #[test]
    fn a_seed_that_turns_out_to_be_the_node_itself_is_not_dialled_again() {
        let mut search = search(true);
        search.is_own(at(3));
        assert_eq!(search.due(&[]), [at(2)]);
    }
}
