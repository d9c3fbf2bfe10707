//! What one node holds for another must go with the link between them.
//!
//! **Invariant** (held to account): a second and a tick after a node can hear nothing of another, or has no link to it any more, it holds no
//! sequence of that one's gateway, no lease that is that one's to write to, and no stream that counts on that one's devices.

use std::time::Duration;

use relevo_wire::{DeviceRole, Instant64, NodeId};

use crate::checks::{Broken, ensure};
use crate::device::{Device, role_index};
use crate::scenario::node_id;
use crate::world::{TICK, World};

/// Half a second until the silence is noticed, a tick of those who look for it, a step of a slow engine, and messages take their time.
pub(crate) const LET_GO_WITHIN: Duration = Duration::from_millis(1000);

/// How long the news that a node is gone may be under way within another.
const NEWS: Duration = Duration::from_millis(100);

impl World {
    /// At each tick: since when nodes hear nothing of each other, and whether they have let go of each other.
    pub(crate) fn check_partings(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        for node in 0..self.nodes.len() {
            for peer in 0..self.nodes.len() {
                self.look_for_silence(node, peer, now);
            }
            if !self.nodes[node].is_awake(now) {
                continue;
            }
            let lost = self.nodes[node]
                .peers
                .iter()
                .filter(|(_, peer)| peer.lost_since().is_some_and(|since| now.since(since) > LET_GO_WITHIN + TICK));
            for peer in lost.map(|(&peer, _)| node_id(peer)).collect::<Vec<_>>() {
                self.has_let_go(node, peer)?;
            }
        }
        Ok(())
    }

    /// Who sleeps cannot notice silence: its time begins when it wakes up.
    fn look_for_silence(&mut self, node: usize, peer: usize, now: Instant64) {
        let is_asleep = !self.nodes[node].is_awake(now);
        let is_silent = !self.nodes[peer].is_awake(now) || self.is_cut(peer, node);
        let Some(peer) = self.nodes[node].peers.get_mut(&peer) else { return };
        if is_asleep {
            (peer.unheard, peer.parted) = (None, peer.parted.map(|_| now));
        } else if is_silent {
            peer.unheard.get_or_insert(now);
        } else {
            peer.unheard = None;
        }
    }

    fn has_let_go(&self, node: usize, lost: NodeId) -> Result<(), Broken> {
        let devices = self.devices[self.nodes[node].devices.clone()].iter().zip(self.nodes[node].devices.clone());
        for (device, index) in devices {
            self.device_has_let_go(index, device, lost)?;
        }
        let Some(gateway) = self.gateway_on(node) else { return Ok(()) };
        let waits = self.select(gateway, |phase, placement| placement.needs_node(phase, lost));
        ensure(waits.is_empty(), || format!("node-{node} has lost node {lost}, and waits for it with {waits:?}"))
    }

    fn device_has_let_go(&self, index: usize, device: &Device, lost: NodeId) -> Result<(), Broken> {
        let id = device.id;
        let mut sequences = device.prefill.sequences().filter(|_| device.has_actor[role_index(DeviceRole::Prefill)]);
        let wanted = sequences.find(|sequence| sequence.request.gateway() == lost);
        ensure(wanted.is_none(), || format!("{id} prefills {wanted:?} for node {lost}, which is lost"))?;
        let is_able = |now: Instant64, hung_until: Instant64| now.since(hung_until) > LET_GO_WITHIN;
        let engine = device.engine.as_ref().filter(|engine| engine.hangs_since.is_none());
        let Some(engine) = engine.filter(|engine| is_able(self.agenda.now(), engine.hung_until)) else { return Ok(()) };
        let wanted = engine.core.sequences().find(|sequence| sequence.request.gateway() == lost);
        ensure(wanted.is_none(), || format!("{id} computes {wanted:?} for node {lost}, which is lost"))?;
        let lease = self.lease_book.held_for(index, engine.epoch, lost);
        ensure(lease.is_none(), || format!("{id} holds {lease:?} for node {lost}, which is lost"))
    }

    /// Whether a node that sends new work to another knows by now that it cannot.
    pub(crate) fn knows_it_is_lost(&self, node: usize, peer: usize) -> bool {
        let parted = self.nodes[node].peers.get(&peer).and_then(|peer| peer.parted);
        parted.is_some_and(|since| self.agenda.now().since(since) > NEWS)
    }
}
