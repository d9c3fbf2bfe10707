//! The links between nodes, and what lies between: delays, cuts, pauses. A link is whole or over.
//!
//! **Invariant:** what is said over a link arrives in order while both ends have it, or not at all; when an end lets go of it, its node lets
//! go of everything that it did for the other.

use std::time::Duration;

use relevo_actors::coordinator::{ClusterMap, CoordinatorEvent};
use relevo_actors::policy::liveness::Liveness;
use relevo_wire::{Beat, Instant64};

use crate::agenda::{Link, Place};
use crate::checks::Broken;
use crate::coordinating::Word;
use crate::node::{End, REDIAL};
use crate::world::{Happening, World};

/// How often a node looks at its peers' silence, and whether to dial them.
pub(crate) const NODE_TICK: Duration = Duration::from_millis(50);

/// How often a node says that it lives.
pub(crate) const BEAT: Duration = Duration::from_millis(100);

/// How long a dial may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(1);

/// How long a session may take to begin.
const SESSION_PATIENCE: Duration = Duration::from_secs(3);

/// How long the one with the greater name waits for the other to dial.
const COURTESY: Duration = Duration::from_secs(1);

/// How often a coordinator is looked for.
const SEEK: Duration = Duration::from_millis(250);

/// By how much a late heartbeat is late at most, in milliseconds.
const LATENESS: u64 = 300;

/// Something on its way.
pub(crate) struct Envelope {
    /// The process that it is for; none if it concerns the world.
    pub(crate) to: Option<Process>,
    /// The link that it goes over.
    pub(crate) over: Option<Over>,
    pub(crate) happening: Happening,
}

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    node: usize,
    incarnation: u64,
}

/// A link, as seen by who gets something over it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Over {
    from: usize,
    link: u64,
}

/// Where something may be held up for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Barrier {
    /// A process that stands still.
    Node(usize),
    /// A way from one node to another that is cut.
    Way(usize, usize),
}

/// What is said between nodes about links themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// `from` wants a link.
    Dialled { from: usize, incarnation: u64 },
    /// `from` has its end of this link.
    Answered { from: usize, incarnation: u64, link: u64 },
    /// `from` wants no link, since it has one.
    Declined { from: usize },
    /// `from` can be reached over this link from here on.
    Found { from: usize, link: u64 },
    /// `from` has let go of this link.
    Closed { from: usize, link: u64 },
}

impl World {
    pub(crate) fn node_of(&self, place: Place) -> usize {
        match place {
            Place::Node(node) => node,
            Place::Gateway(gateway) | Place::Router(gateway) => self.gateways[gateway].node,
            Place::Coordinator => self.coordinator.node,
            Place::Supervisor(device)
            | Place::Prefill(device)
            | Place::Decode(device)
            | Place::Engine(device)
            | Place::Landing(device) => self.devices[device].node,
        }
    }

    fn process(&self, node: usize) -> Process {
        Process { node, incarnation: self.nodes[node].incarnation }
    }

    /// Something that will happen in a node, if its process lives then.
    pub(crate) fn later(&mut self, node: usize, delay: Duration, happening: Happening) {
        let to = Some(self.process(node));
        self.agenda.after(delay, Envelope { to, over: None, happening });
    }

    /// Something that will happen to the world.
    pub(crate) fn world_later(&mut self, delay: Duration, happening: Happening) {
        self.agenda.after(delay, Envelope { to: None, over: None, happening });
    }

    /// What one place of a node says to another of it, in order.
    pub(crate) fn say(&mut self, from: Place, to: Place, happening: Happening) {
        let (delay, process) = (self.delay(), self.process(self.node_of(to)));
        self.agenda.send(Link(from, to), delay, Envelope { to: Some(process), over: None, happening });
    }

    /// What one node says to another; false if there is no link.
    #[must_use]
    pub(crate) fn post(&mut self, from: Place, to: Place, happening: Happening) -> bool {
        let (source, target) = (self.node_of(from), self.node_of(to));
        let Some(link) = self.nodes[source].link_to(target) else { return false };
        let (delay, process) = (self.delay(), self.process(target));
        let over = Some(Over { from: source, link });
        self.agenda.send(Link(from, to), delay, Envelope { to: Some(process), over, happening });
        true
    }

    /// Until when nothing gets from one node to another.
    fn cut(&self, from: usize, to: usize) -> Option<Instant64> {
        self.cuts.get(&(from, to)).copied().filter(|&until| self.agenda.now() < until)
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut(from, to).is_some()
    }

    /// Nothing gets from one node to the other for so long.
    pub(crate) fn cut_for(&mut self, from: usize, to: usize, lasts: Duration) {
        let until = (self.agenda.now() + lasts).max(self.cut(from, to).unwrap_or_default());
        self.cuts.insert((from, to), until);
    }

    /// What has arrived; nothing if it is lost, or is held up on its way.
    pub(crate) fn open(&mut self, envelope: Envelope) -> Option<Happening> {
        let Some(to) = envelope.to else { return Some(envelope.happening) };
        let node = &self.nodes[to.node];
        if !node.is_up || node.incarnation != to.incarnation {
            self.drop_unread(envelope.happening);
            return None;
        }
        if let Some(Over { from, link }) = envelope.over {
            // Blocks have connections of their own, which their sender lets go of with the link.
            let is_blocks = matches!(envelope.happening, Happening::Frame(_));
            let (whose, peer) = if is_blocks { (from, to.node) } else { (to.node, from) };
            if self.nodes[whose].end_to(peer) != Some(link) {
                self.drop_unread(envelope.happening);
                return None;
            }
            let way = Barrier::Way(from, to.node);
            if self.is_held(way) {
                self.hold(way, envelope);
                return None;
            }
        }
        let door = Barrier::Node(to.node);
        if self.is_held(door) {
            self.hold(door, envelope);
            return None;
        }
        if let (Some(Over { from, .. }), Happening::Errand { .. } | Happening::Tokens { .. }) =
            (envelope.over, &envelope.happening)
        {
            // Nothing is taken of a peer that could not be answered yet.
            let end = self.nodes[to.node].peers.get_mut(&from).and_then(|peer| peer.end.as_mut());
            if let Some(end) = end.filter(|end| !end.is_reachable) {
                end.unread.push(envelope);
                return None;
            }
        }
        Some(envelope.happening)
    }

    /// Whether nothing gets past it, or something waits there that must go first.
    fn is_held(&self, barrier: Barrier) -> bool {
        self.agenda.now() < self.open_from(barrier) || self.held.contains_key(&barrier)
    }

    fn open_from(&self, barrier: Barrier) -> Instant64 {
        match barrier {
            Barrier::Node(node) => self.nodes[node].paused_until,
            Barrier::Way(from, to) => self.cut(from, to).unwrap_or_default(),
        }
    }

    fn hold(&mut self, barrier: Barrier, envelope: Envelope) {
        let held = self.held.entry(barrier).or_default();
        held.push(envelope);
        if held.len() == 1 {
            self.release(barrier);
        }
    }

    /// What was held up goes on, in order, if nothing holds it up any longer.
    pub(crate) fn release(&mut self, barrier: Barrier) {
        let (now, open_from) = (self.agenda.now(), self.open_from(barrier));
        if now < open_from {
            return self.world_later(open_from.since(now), Happening::Released(barrier));
        }
        for envelope in self.held.remove(&barrier).unwrap_or_default() {
            self.agenda.after(Duration::ZERO, envelope);
        }
    }

    fn drop_unread(&mut self, happening: Happening) {
        if let Happening::Frame(frame) | Happening::Written(frame) = happening {
            self.let_go(&frame);
        }
    }

    /// A signal is a packet: it gets there now or never.
    fn signal(&mut self, from: usize, to: usize, signal: Signal) {
        if !self.is_cut(from, to) {
            let delay = self.delay();
            self.later(to, delay, Happening::Signal { node: to, signal });
        }
    }

    /// Time for a node to look at its peers.
    pub(crate) fn tick_node(&mut self, node: usize) -> Result<(), Broken> {
        self.world_later(NODE_TICK, Happening::NodeTick(node));
        let now = self.agenda.now();
        if !self.nodes[node].is_awake(now) {
            return Ok(());
        }
        let peers: Vec<usize> = self.nodes[node].peers.keys().copied().collect();
        for index in peers {
            let is_coordinator = self.nodes[index].plays_coordinator;
            let Some(peer) = self.nodes[node].peers.get_mut(&index) else { continue };
            if let Some(end) = &mut peer.end {
                if end.liveness.is_lost(now) {
                    self.take_down(node, index, "it is silent")?;
                } else if !end.is_reachable && now.since(end.since) >= SESSION_PATIENCE {
                    self.take_down(node, index, "its session does not begin")?;
                }
                continue;
            }
            if peer.dials_until.is_some_and(|until| now >= until) {
                peer.dials_until = None;
                peer.redial_at = now + peer.redial;
                // Seeds are dialled again and again.
                peer.redial = if is_coordinator { SEEK } else { (peer.redial * 2).min(REDIAL.1) };
            }
            if peer.dials_until.is_none() && now >= peer.redial_at && (peer.is_known || is_coordinator) {
                peer.dials_until = Some(now + DIAL_PATIENCE);
                let incarnation = self.nodes[node].incarnation;
                self.signal(node, index, Signal::Dialled { from: node, incarnation });
            }
        }
        Ok(())
    }

    pub(crate) fn hear_signal(&mut self, node: usize, signal: Signal) -> Result<(), Broken> {
        match signal {
            Signal::Dialled { from, incarnation } => self.dialled(node, from, incarnation),
            Signal::Answered { from, incarnation, link } => self.answered(node, from, (incarnation, link)),
            Signal::Declined { from } => {
                let now = self.agenda.now();
                if let Some(peer) = self.nodes[node].peers.get_mut(&from) {
                    (peer.dials_until, peer.redial_at) = (None, now + peer.redial);
                }
                Ok(())
            }
            Signal::Found { from, link } => {
                let end = self.nodes[node].peers.get_mut(&from).and_then(|peer| peer.end.as_mut());
                if let Some(end) = end.filter(|end| end.link == link && !end.is_reachable) {
                    end.is_reachable = true;
                    for envelope in std::mem::take(&mut end.unread) {
                        self.agenda.after(Duration::ZERO, envelope);
                    }
                    self.found(node, from);
                }
                Ok(())
            }
            Signal::Closed { from, link } => {
                if self.nodes[node].end_to(from) == Some(link) {
                    self.take_down(node, from, "the other end")
                } else {
                    Ok(())
                }
            }
        }
    }

    fn dialled(&mut self, node: usize, from: usize, incarnation: u64) -> Result<(), Broken> {
        if !self.takes(node, from, incarnation, from) {
            self.signal(node, from, Signal::Declined { from: node });
            return Ok(());
        }
        self.num_links += 1;
        let link = self.num_links;
        self.begin_link(node, from, (incarnation, link), from)?;
        let own = self.nodes[node].incarnation;
        self.signal(node, from, Signal::Answered { from: node, incarnation: own, link });
        Ok(())
    }

    fn answered(&mut self, node: usize, from: usize, (incarnation, link): (u64, u64)) -> Result<(), Broken> {
        if !self.takes(node, from, incarnation, node) {
            self.signal(node, from, Signal::Closed { from: node, link });
            return Ok(());
        }
        self.begin_link(node, from, (incarnation, link), node)?;
        // Part of the session, which sends it again until it is there.
        let (delay, to) = (self.delay(), Some(self.process(from)));
        let happening = Happening::Signal { node: from, signal: Signal::Found { from: node, link } };
        self.agenda.after(delay, Envelope { to, over: Some(Over { from: node, link }), happening });
        if let Some(end) = self.nodes[node].peers.get_mut(&from).and_then(|peer| peer.end.as_mut()) {
            end.is_reachable = true;
            self.found(node, from);
        }
        Ok(())
    }

    /// Whether a new link takes the place of the one that is there: of two that were dialled at a time both ends keep the one of the smaller name.
    fn takes(&self, node: usize, peer: usize, incarnation: u64, dialler: usize) -> bool {
        let Some(end) = self.nodes[node].peers.get(&peer).and_then(|peer| peer.end.as_ref()) else { return true };
        let is_preferred = |dialler: usize| (dialler == node) == (node < peer);
        let is_second = incarnation == end.incarnation && is_preferred(end.dialler) && !is_preferred(dialler);
        incarnation >= end.incarnation && !is_second
    }

    fn begin_link(
        &mut self,
        node: usize,
        peer: usize,
        (incarnation, link): (u64, u64),
        dialler: usize,
    ) -> Result<(), Broken> {
        if self.nodes[node].end_to(peer).is_some() {
            self.take_down(node, peer, "another takes its place")?;
        }
        let now = self.agenda.now();
        let liveness = Liveness::new(NODE_TICK, now);
        if let Some(peer) = self.nodes[node].peers.get_mut(&peer) {
            peer.end =
                Some(End { link, incarnation, dialler, since: now, is_reachable: false, unread: Vec::new(), liveness });
            (peer.dials_until, peer.redial) = (None, REDIAL.0);
        }
        Ok(())
    }

    /// A peer can be reached.
    fn found(&mut self, node: usize, peer: usize) {
        self.note(|| format!("node-{node} has a link to node-{peer}"));
        if let Some(peer) = self.nodes[node].peers.get_mut(&peer) {
            peer.parted = None;
        }
        if self.nodes[node].plays_coordinator {
            let entry = self.nodes[peer].entry();
            self.tell_coordinator(Place::Node(node), Word::Event(CoordinatorEvent::Node(entry)));
        }
        self.tell_router_who_is_there(node);
    }

    /// Ends a node's end of a link: nobody speaks through it any more, then everyone there lets go of what hung on it.
    pub(crate) fn take_down(&mut self, node: usize, peer: usize, reason: &str) -> Result<(), Broken> {
        let now = self.agenda.now();
        let Some(state) = self.nodes[node].peers.get_mut(&peer) else { return Ok(()) };
        let Some(end) = state.end.take() else { return Ok(()) };
        state.redial_at = now + state.redial;
        self.signal(node, peer, Signal::Closed { from: node, link: end.link });
        self.note(|| format!("node-{node} lets go of its link to node-{peer}: {reason}"));
        if end.is_reachable {
            if let Some(state) = self.nodes[node].peers.get_mut(&peer) {
                state.parted = Some(now);
            }
            self.tally.links_lost += 1;
            self.peer_lost(node, peer)?;
        }
        Ok(())
    }

    /// Time for a node to say to each of its peers that it lives, and its devices.
    pub(crate) fn beat_peers(&mut self, node: usize) {
        self.world_later(BEAT, Happening::NodeBeat(node));
        let now = self.agenda.now();
        if !self.nodes[node].is_awake(now) {
            return;
        }
        let beat = Beat { map: self.nodes[node].map_seen(), devices: self.recent_heartbeats(node) };
        let ends = self.nodes[node].peers.iter();
        let ends: Vec<_> = ends.filter_map(|(&peer, state)| Some((peer, state.end.as_ref()?.link))).collect();
        for (peer, link) in ends {
            if self.is_cut(node, peer) || self.is_unlucky(self.scenario.losses.lost_heartbeats) {
                continue;
            }
            let mut delay = self.delay();
            if self.is_unlucky(self.scenario.losses.late_heartbeats) {
                // Later ones may overtake it.
                delay += Duration::from_millis(self.random.between(0, LATENESS));
            }
            let to = Some(self.process(peer));
            let happening = Happening::PeerBeat { node: peer, from: node, beat: Box::new(beat.clone()) };
            self.agenda.after(delay, Envelope { to, over: Some(Over { from: node, link }), happening });
        }
    }

    /// A peer says that it lives.
    pub(crate) fn hear_beat(&mut self, node: usize, from: usize, beat: Box<Beat>) {
        let now = self.agenda.now();
        if let Some(end) = self.nodes[node].peers.get_mut(&from).and_then(|peer| peer.end.as_mut()) {
            end.liveness.heard(now);
        }
        if self.nodes[node].plays_coordinator {
            self.tell_coordinator(Place::Node(node), Word::Beat { node: from, beat });
        }
    }

    /// A node sees a map: an older one is one that was overtaken, or of a coordinator that has been replaced.
    pub(crate) fn adopt(&mut self, node: usize, map: ClusterMap) {
        if (map.term, map.version) <= self.nodes[node].map_seen() {
            return;
        }
        self.learn(node, &map);
        self.nodes[node].map = map.clone();
        self.tell_router_of_map(node, map);
    }

    /// Who is in the map can be dialled.
    pub(crate) fn learn(&mut self, node: usize, map: &ClusterMap) {
        let now = self.agenda.now();
        for entry in &map.nodes {
            let index = entry.node.0 as usize - 1;
            if let Some(peer) = self.nodes[node].peers.get_mut(&index).filter(|peer| !peer.is_known) {
                peer.is_known = true;
                peer.redial_at = peer.redial_at.max(now + if node > index { COURTESY } else { Duration::ZERO });
            }
        }
    }

    /// Whether two nodes hear each other, as far as either of them knows and in truth.
    pub(crate) fn talk(&self, one: usize, other: usize) -> bool {
        let now = self.agenda.now();
        let is_linked = || {
            let (there, back) = (self.nodes[one].link_to(other), self.nodes[other].link_to(one));
            there.is_some() && there == back && !self.is_cut(one, other) && !self.is_cut(other, one)
        };
        self.nodes[one].is_awake(now) && self.nodes[other].is_awake(now) && (one == other || is_linked())
    }
}
