//! Where blocks land: leases that are open for their writers.

use std::time::Duration;

use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::GrantedLease;
use relevo_actors::policy::leases::{Arrivals, Left};
use relevo_actors::prefill::PrefillEvent;
use relevo_gpu::model::StepModel;
use relevo_wire::{DeviceId, LeaseId, SequenceId};

use crate::agenda::Place;
use crate::checks::Broken;
use crate::device::{Landing, NUM_LAYERS};
use crate::engine::{Frame, broken};
use crate::lease_book::Use;
use crate::world::{Happening, World};

/// Longest time that a frame's blocks take to be written once it has arrived.
const WRITING_MICROS: u64 = 8000;

impl World {
    /// Lets writers in, and tells the prefill side.
    pub(crate) fn grant(
        &mut self,
        device: usize,
        prefill: DeviceId,
        sequence: SequenceId,
        granted: GrantedLease,
    ) -> Result<(), Broken> {
        let (lease, now, decode) = (granted.lease, self.agenda.now(), self.devices[device].id);
        let num_blocks = u32::try_from(granted.blocks.len()).map_err(broken)?;
        let arrivals = Arrivals::new(NUM_LAYERS, granted.num_present..num_blocks);
        let Some(kv) = self.engine(device, granted.epoch).map(|engine| engine.model.kv_memory()) else {
            return self.decode(device, DecodeEvent::Returned(lease));
        };
        let spec = self.scenario.requests.iter().find(|spec| spec.request.sequence.request == sequence.request);
        let deadline = spec.and_then(|spec| spec.request.deadline);
        self.lease_book.granted((device, granted.epoch, lease), prefill, deadline, now);
        let is_complete = arrivals.is_complete();
        self.devices[device]
            .landings
            .insert(lease, Landing { sequence, granted: granted.clone(), arrivals, kv, num_written: 0 });
        if is_complete {
            let _ = self.tell_decode(device, Place::Landing(device), DecodeEvent::Complete(lease));
        }
        let event = PrefillEvent::Granted { sequence, decode, lease: granted };
        if !self.tell_prefill(self.index_of(prefill), Place::Decode(device), event) {
            self.decode(device, DecodeEvent::Returned(lease))?;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, device: usize, lease: LeaseId) -> Result<(), Broken> {
        let landing = self.devices[device].landings.get_mut(&lease);
        let is_drained = landing.is_none_or(|landing| landing.arrivals.close());
        if is_drained {
            self.devices[device].landings.remove(&lease);
            self.decode(device, DecodeEvent::WritersGone(lease))?;
        }
        Ok(())
    }

    /// Blocks arrive: their writer is let in, or the sender is told that the lease is gone.
    pub(crate) fn land(&mut self, frame: Box<Frame>) -> Result<(), Broken> {
        if self.is_unlucky(self.scenario.losses.lost_frames) {
            self.note(|| format!("layer {} of {} is lost on its way", frame.layer.0, frame.sequence));
            self.let_go(&frame);
            return Ok(());
        }
        let range = frame.first_block..frame.first_block + u32::try_from(frame.blocks.len()).unwrap_or(0);
        let landing = self.devices[frame.to].landings.get_mut(&frame.lease);
        let landing = landing.filter(|it| it.granted.epoch == frame.lease_epoch && it.sequence == frame.sequence);
        let entered = landing.map(|landing| landing.arrivals.enter(frame.layer.0, range));
        if matches!(entered, Some(Ok(_))) {
            self.lease_book.used((frame.to, frame.lease_epoch, frame.lease), Use::Writing, self.agenda.now())?;
            let writing = Duration::from_micros(self.random.between(1, WRITING_MICROS));
            self.later(self.devices[frame.to].node, writing, Happening::Written(frame));
            return Ok(());
        }
        self.let_go(&frame);
        let delay = self.delay();
        let happening = Happening::NotTaken { device: frame.from, sequence: frame.sequence };
        self.later(self.devices[frame.from].node, delay, happening);
        Ok(())
    }

    /// A writer is done.
    pub(crate) fn written(&mut self, frame: &Frame) -> Result<(), Broken> {
        let (now, device) = (self.agenda.now(), frame.to);
        self.let_go(frame);
        let landing = self.devices[device].landings.get_mut(&frame.lease);
        let Some(landing) = landing.filter(|landing| landing.granted.epoch == frame.lease_epoch) else { return Ok(()) };
        let first = frame.first_block as usize;
        for (&target, bytes) in landing.granted.blocks[first..].iter().zip(&frame.blocks) {
            landing.kv.write(frame.layer, target, bytes).map_err(broken)?;
        }
        let range = frame.first_block..frame.first_block + u32::try_from(frame.blocks.len()).unwrap_or(0);
        let num_expected = landing.granted.blocks.len() - landing.granted.num_present as usize;
        landing.num_written += frame.blocks.len();
        let progress = (landing.num_written, num_expected * NUM_LAYERS as usize);
        let event = match landing.arrivals.leave(frame.layer.0, range, true, now) {
            Left::Quietly => None,
            Left::Complete => Some(DecodeEvent::Complete(frame.lease)),
            Left::Drained => {
                self.devices[device].landings.remove(&frame.lease);
                Some(DecodeEvent::WritersGone(frame.lease))
            }
        };
        let _ = event.map(|event| self.tell_decode(device, Place::Landing(device), event));
        self.sees_blocks(frame.sequence, progress);
        self.lease_book.used((device, frame.lease_epoch, frame.lease), Use::Written, now)
    }

    /// What has arrived renews its lease; then time alone has its way with the others.
    pub(crate) fn tick_decode(&mut self, device: usize) -> Result<(), Broken> {
        let open: Vec<LeaseId> = self.devices[device].decode.open_leases().collect();
        for lease in open {
            let landing = self.devices[device].landings.get(&lease);
            if let Some(at) = landing.and_then(|landing| landing.arrivals.last_arrival()) {
                self.decode(device, DecodeEvent::Arrived { lease, at })?;
            }
        }
        self.decode(device, DecodeEvent::Tick)
    }

    /// The sender's bytes are gone.
    pub(crate) fn let_go(&mut self, frame: &Frame) {
        let delay = self.delay();
        let happening = Happening::Unpin { device: frame.from, epoch: frame.epoch, pin: frame.pin };
        self.later(self.devices[frame.from].node, delay, happening);
    }
}
