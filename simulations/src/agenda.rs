//! What will happen when: virtual time, and messages that keep their order on each link.

use std::collections::BTreeMap;
use std::time::Duration;

use relevo_wire::Instant64;

/// Who sends to whom; messages of one link arrive in the order in which they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link(pub(crate) Place, pub(crate) Place);

/// A sender or receiver: an actor, a thread, or what a node does beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// What a node hands on from its peers, and hands out to them.
    Node(usize),
    Gateway(usize),
    Router(usize),
    Coordinator,
    Supervisor(usize),
    Prefill(usize),
    Decode(usize),
    Engine(usize),
    /// Where blocks land.
    Landing(usize),
}

/// The future. Two happenings at one time come in the order in which they were put down.
#[derive(Debug)]
pub(crate) struct Agenda<H> {
    now: Instant64,
    happenings: BTreeMap<(Instant64, u64), H>,
    num_put: u64,
    last_arrivals: BTreeMap<Link, Instant64>,
}

impl<H> Agenda<H> {
    pub(crate) const fn new() -> Self {
        Self { now: Instant64(0), happenings: BTreeMap::new(), num_put: 0, last_arrivals: BTreeMap::new() }
    }

    pub(crate) const fn now(&self) -> Instant64 {
        self.now
    }

    pub(crate) fn at(&mut self, time: Instant64, happening: H) {
        self.num_put += 1;
        self.happenings.insert((time.max(self.now), self.num_put), happening);
    }

    pub(crate) fn after(&mut self, delay: Duration, happening: H) {
        self.at(self.now + delay, happening);
    }

    /// As [`Agenda::after`], but not before what was sent on this link earlier.
    pub(crate) fn send(&mut self, link: Link, delay: Duration, happening: H) {
        let arrival = self.last_arrivals.get(&link).copied().unwrap_or_default().max(self.now + delay);
        self.last_arrivals.insert(link, arrival);
        self.at(arrival, happening);
    }

    /// The next happening; time moves on to it.
    pub(crate) fn next(&mut self) -> Option<H> {
        let ((time, _), happening) = self.happenings.pop_first()?;
        self.now = time;
        Some(happening)
    }
}
