//! Watches the hand-over of one sequence, step by step, and strikes when it has come to the one that is waited for.

use std::time::Duration;

use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{DeviceCommand, DeviceRole};
use relevo_actors::gateway::Placement;
use relevo_actors::policy::hand_over::HandOverStep;
use relevo_actors::prefill::PrefillEvent;
use relevo_wire::{Epoch, SequenceId};

use crate::scenario::{Ambush, Blow, Misfortune, Party};
use crate::world::{Happening, World};

/// How long a process that was killed stays away, a cut lasts, a slow device is slow: longer than it takes to notice it.
const LONG: Duration = Duration::from_millis(1200);

/// A pause that is no death.
const SHORT: Duration = Duration::from_millis(300);

impl World {
    pub(crate) fn sees_prefill(&mut self, event: &PrefillEvent) {
        if let Some((sequence, step)) = HandOverStep::of_prefill(event) {
            self.reached(sequence, step);
        }
    }

    pub(crate) fn sees_decode(&mut self, event: &DecodeEvent) {
        if let Some((sequence, step)) = HandOverStep::of_decode(event) {
            self.reached(sequence, step);
        }
    }

    /// An engine takes an order.
    pub(crate) fn sees_order(&mut self, device: usize, epoch: Epoch, command: &DeviceCommand) {
        if let DeviceCommand::Commit { lease, .. } = command
            && let Some(sequence) = self.lease_book.sequence_of((device, epoch, *lease))
        {
            self.reached(sequence, HandOverStep::Committed);
        }
    }

    /// So many blocks of layers have been written, of so many.
    pub(crate) fn sees_blocks(&mut self, sequence: SequenceId, (written, all): (usize, usize)) {
        self.reached(sequence, HandOverStep::FirstLayerPushed);
        if 2 * written >= all {
            self.reached(sequence, HandOverStep::HalfPushed);
        }
        if written >= all {
            self.reached(sequence, HandOverStep::AllPushed);
        }
    }

    /// The client has read so many tokens.
    pub(crate) fn sees_tokens(&mut self, sequence: SequenceId, num_read: usize) {
        let Some(Ambush { request, .. }) = &self.scenario.ambush else { return };
        if *request != sequence.request {
            return;
        }
        let spec = self.scenario.requests.iter().find(|spec| spec.request.sequence.request == *request);
        let all = spec.map_or(0, |spec| spec.request.max_tokens as usize);
        if num_read >= 1 {
            self.reached(sequence, HandOverStep::FirstToken);
        }
        if 2 * num_read >= all {
            self.reached(sequence, HandOverStep::MidDecode);
        }
    }

    /// A sequence has come to a step; the first time in its first attempt it may be what is waited for.
    pub(crate) fn reached(&mut self, sequence: SequenceId, step: HandOverStep) {
        let is_watched = |ambush: &Ambush| ambush.request == sequence.request && sequence.attempt == 0;
        let Some(ambush) = self.scenario.ambush.clone().filter(is_watched) else { return };
        if !self.steps_reached.insert(step) {
            return;
        }
        self.note(|| format!("{sequence} has come to {step}"));
        if step != ambush.step {
            return;
        }
        let gateway = self.gateway_of(ambush.request);
        let live = gateway.and_then(|gateway| self.gateways[gateway].streams.get(&ambush.request));
        let Some(placement) = live.and_then(|live| live.placement) else { return };
        self.tally.ambushes += 1;
        // When whoever took the step is done with it.
        let misfortune = self.aimed(placement, ambush.blow);
        self.world_later(Duration::ZERO, Happening::Strikes(misfortune));
    }

    fn aimed(&self, placement: Placement, blow: Blow) -> Misfortune {
        let node = |party| self.party(placement, party);
        match blow {
            Blow::Kill(party) => Misfortune::Kill(node(party), LONG),
            Blow::KillRole(Party::Prefill) => Misfortune::Role(self.index_of(placement.prefill), DeviceRole::Prefill),
            Blow::KillRole(_) => Misfortune::Role(self.index_of(placement.decode), DeviceRole::Decode),
            Blow::Pause(party) => Misfortune::Pause(node(party), SHORT),
            Blow::Slow(party) => Misfortune::Slow(self.nodes[node(party)].devices.start, LONG),
            Blow::Drain(party) => Misfortune::Drain(node(party), LONG),
            Blow::Flip(Party::Prefill) => Misfortune::Flip(node(Party::Prefill), DeviceRole::Decode),
            Blow::Flip(party) => Misfortune::Flip(node(party), DeviceRole::Prefill),
            Blow::CutOneWay(from, to) => Misfortune::Cut(node(from), node(to), LONG),
            Blow::CutBothWays(one, other) => Misfortune::Part(node(one), node(other), LONG),
            Blow::Flap(one, other) => Misfortune::Flap(node(one), node(other)),
        }
    }

    fn party(&self, placement: Placement, party: Party) -> usize {
        match party {
            Party::Prefill => self.devices[self.index_of(placement.prefill)].node,
            Party::Decode => self.devices[self.index_of(placement.decode)].node,
            Party::Gateway => self.gateways[0].node,
            Party::Coordinator => self.coordinator.node,
        }
    }
}
