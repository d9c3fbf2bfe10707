//! What goes wrong on a control connection when its peer means it to: hellos, sessions, messages and heartbeats that are not what they should be.

use bytes::Bytes;
use relevo_wire::{
    Beat, BlockIndex, ClusterMap, ControlMessage, DeviceFacts, DeviceId, DeviceRole, Epoch, GrantedLease, HandOver,
    Heartbeat, LeaseId, LinkBench, MapVersion, NodeId, Order, PrefixBatch, PrefixChange, PrefixWords, RequestId,
    SequenceId, Stepping, ToDecode, ToGateway, ToPrefill, ToProbe,
};
use rkyv::rancor::Error as RkyvError;
use tokio::io::AsyncWriteExt;

use super::blocks::LAYOUT;
use super::dice::Dice;
use super::intruder::{Ended, Intruder, Line, OWN_PID, Session};
use super::packets::{Actor, Control, Packet, Spawn, Terminate, framed};
use super::tenant;

/// What is said at once, before the other side is waited for.
const NUM_AT_ONCE: usize = 8;

/// How many were said of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said {
    pub(crate) hellos: u64,
    pub(crate) frames: u64,
    pub(crate) auths: u64,
    pub(crate) packets: u64,
    pub(crate) messages: u64,
    pub(crate) sealed_wrongly: u64,
    pub(crate) beats: u64,
    /// Conversations that the other side ended sooner than all was said.
    pub(crate) broken_off: u64,
}

impl Said {
    pub(crate) fn add(&mut self, other: Self) {
        self.hellos += other.hellos;
        self.frames += other.frames;
        self.auths += other.auths;
        self.packets += other.packets;
        self.messages += other.messages;
        self.sealed_wrongly += other.sealed_wrongly;
        self.beats += other.beats;
        self.broken_off += other.broken_off;
    }

    pub(crate) fn total(&self) -> u64 {
        self.hellos + self.frames + self.auths + self.packets + self.messages + self.sealed_wrongly + self.beats
    }
}

/// One who says such things until there were enough of them.
pub(crate) struct Liar {
    dice: Dice,
    said: Said,
    messages: Vec<Vec<u8>>,
    /// Which of them a node that prefills may not say.
    forbidden: usize,
    beats: Vec<Vec<u8>>,
}

impl Liar {
    pub(crate) fn new(seed: u64, intruder: &Intruder) -> Self {
        let messages = messages(intruder);
        let forbidden = messages.iter().position(|message| matches!(message, ControlMessage::Map(_))).unwrap();
        let messages = messages.into_iter().map(|message| rkyv::to_bytes::<RkyvError>(&message).unwrap().to_vec());
        let beats = beats(intruder).into_iter().map(|beat| rkyv::to_bytes::<RkyvError>(&beat).unwrap().to_vec());
        let (dice, said) = (Dice::new(seed), Said::default());
        Self { dice, said, messages: messages.collect(), forbidden, beats: beats.collect() }
    }

    pub(crate) async fn attack(mut self, intruder: &Intruder, num_words: u64) -> Said {
        let mut round = 0;
        while self.said.total() < num_words {
            let talked = match round % 8 {
                0 | 1 => self.hello(intruder).await,
                2 => self.garbage(intruder).await,
                3 => self.auth(intruder).await,
                4 => self.packets(intruder).await,
                5 => self.messages(intruder).await,
                6 => self.sealed_wrongly(intruder).await,
                _ => self.beats(intruder).await,
            };
            self.said.broken_off += u64::from(talked.is_err());
            round += 1;
        }
        self.said
    }

    async fn hello(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut hello = intruder.hello();
        match self.dice.below(6) {
            0 => hello[..4].copy_from_slice(&((16 << 10) + 1 + self.dice.below(1 << 30) as u32).to_le_bytes()),
            1 => {
                let byte_len = 1 + self.dice.below(999);
                hello = [&(byte_len as u32).to_le_bytes()[..], &self.dice.bytes(byte_len)].concat();
            }
            _ => self.dice.mutate(&mut hello[4..]),
        }
        self.said.hellos += 1;
        let line = intruder.say(&hello).await?;
        self.end(line).await
    }

    async fn garbage(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut line = intruder.greet().await?;
        for _ in 0..NUM_AT_ONCE {
            let byte_len = self.dice.below(999);
            self.said.frames += 1;
            line.outgoing.write_all(&framed(&self.dice.bytes(byte_len))).await?;
        }
        self.end(line).await
    }

    async fn auth(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut line = intruder.greet().await?;
        let words = [Packet::name(&intruder.session_name(), 1), Packet::answer(1, "no cookie"), Packet::ready()];
        for _ in 0..NUM_AT_ONCE {
            self.said.auths += 1;
            let packet = self.dice.pick(&words).clone();
            line.outgoing.write_all(&self.mutated(&packet)).await?;
        }
        // Whatever was taken so far: this is taken from nobody.
        line.write(&Packet::answer(1, "no cookie")).await?;
        line.ended().await;
        Ok(())
    }

    async fn packets(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut session = intruder.join().await?;
        let own = intruder.own_group(&session);
        let actors = (0..9).map(|pid| Actor { pid, name: Some("mesh".to_owned()) }).collect();
        let words = [
            Packet::control(Control { spawn: Some(Spawn { actors }), ..Control::default() }),
            Packet::control(Control { terminate: Some(Terminate { ids: vec![OWN_PID, 1] }), ..Control::default() }),
            Packet::join(&own, OWN_PID + 1),
            Packet::leave(&own, OWN_PID + 1),
            Packet::ready(),
            Packet::deliver(session.facade, 1, &session.secret),
            Packet::reply(OWN_PID, 1, vec![1, 2, 3]),
        ];
        for _ in 0..NUM_AT_ONCE {
            self.said.packets += 1;
            let packet = self.dice.pick(&words).clone();
            let frame = self.mutated(&packet);
            session.line.outgoing.write_all(&frame).await?;
        }
        self.end_by_message(session).await
    }

    async fn messages(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut session = intruder.join().await?;
        for tag in 0..NUM_AT_ONCE as u64 {
            let mut message = self.dice.pick(&self.messages).clone();
            if self.dice.below(4) > 0 {
                self.dice.mutate(&mut message);
            }
            self.said.messages += 1;
            let sealed = [&session.secret[..], &message].concat();
            session.line.write(&Packet::deliver(session.facade, tag, &sealed)).await?;
        }
        self.end_by_message(session).await
    }

    /// Good messages with a secret that is not this link's.
    async fn sealed_wrongly(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let mut session = intruder.join().await?;
        for tag in 0..NUM_AT_ONCE as u64 {
            let mut secret = session.secret;
            self.dice.mutate(&mut secret);
            self.said.sealed_wrongly += 1;
            let message = self.dice.pick(&self.messages);
            let sealed = [&secret[..], message].concat();
            session.line.write(&Packet::deliver(session.facade, tag, &sealed)).await?;
        }
        self.end_by_message(session).await
    }

    async fn beats(&mut self, intruder: &Intruder) -> Result<(), Ended> {
        let line = intruder.greet().await?;
        for _ in 0..NUM_AT_ONCE {
            let mut beat = self.dice.pick(&self.beats).clone();
            self.dice.mutate(&mut beat);
            self.said.beats += 1;
            line.connection.send_beat(Bytes::from(beat)).map_err(Ended::other)?;
        }
        line.connection.send_beat(Bytes::from_static(b"no beat")).map_err(Ended::other)?;
        line.ended().await;
        Ok(())
    }

    /// A frame whose content has other bytes than it should have.
    fn mutated(&mut self, packet: &Packet) -> Vec<u8> {
        let mut frame = packet.frame();
        self.dice.mutate(&mut frame[8..]);
        frame
    }

    /// By a good message that no node of this role may say: all that came before it has been looked at by then.
    async fn end_by_message(&self, mut session: Session) -> Result<(), Ended> {
        let sealed = [&session.secret[..], &self.messages[self.forbidden]].concat();
        session.line.write(&Packet::deliver(session.facade, 99, &sealed)).await?;
        session.line.ended().await;
        Ok(())
    }

    /// Whatever was taken so far: after a frame that is too long nothing is.
    async fn end(&mut self, mut line: Line) -> Result<(), Ended> {
        line.outgoing.write_all(&(u64::MAX - self.dice.below(99) as u64).to_be_bytes()).await?;
        line.ended().await;
        Ok(())
    }
}

/// One of each kind that there is, those of other roles too. None is of a sequence that anybody has.
fn messages(intruder: &Intruder) -> Vec<ControlMessage> {
    let (own, there) = (DeviceId::of(intruder.node(), 0), DeviceId::of(NodeId::of_name(intruder.target.as_str()), 0));
    let sequence = SequenceId { request: RequestId::of(NodeId::of_name("gateway"), 1 << 37), choice: 0, attempt: 0 };
    let request = tenant::request(sequence, 40);
    let lease = LeaseId(1 << 37);
    let granted = GrantedLease { lease, epoch: Epoch(1), blocks: vec![BlockIndex(1)], num_present: 0 };
    let hand_over = HandOver { sequence, lease, first_token: u32::MAX, cached_tokens: u32::MAX };
    let batch = PrefixBatch { from_seq: 0, seq: 1, words: PrefixWords::Changed(PrefixChange::default()) };
    vec![
        ControlMessage::Prefill(there, ToPrefill::Admit(request.clone(), there)),
        ControlMessage::Prefill(there, ToPrefill::Granted(sequence, own, granted)),
        ControlMessage::Decode(there, ToDecode::LeaseAsked(request, own)),
        ControlMessage::Decode(there, ToDecode::Returned(lease)),
        ControlMessage::Decode(there, ToDecode::HandedOver(hand_over)),
        ControlMessage::Decode(there, ToDecode::WriterLost(own)),
        ControlMessage::Abort(there, sequence),
        ControlMessage::Gateway(ToGateway::Started(sequence)),
        ControlMessage::Gateway(ToGateway::DeviceLost(own, Stepping::These(vec![sequence]))),
        ControlMessage::Gateway(ToGateway::PrefixChanged(own, Epoch(1), batch)),
        ControlMessage::Map(ClusterMap { term: u64::MAX, ..ClusterMap::default() }),
        ControlMessage::Left(own, Epoch(1)),
        ControlMessage::Order(Order::Drain(intruder.target.to_string())),
        ControlMessage::SetRoles(vec![DeviceRole::Prefill]),
        ControlMessage::SetDraining(true),
        ControlMessage::TellPrefixes(there),
        ControlMessage::AskStatus,
        ControlMessage::AskTrace(sequence.request),
        ControlMessage::Renew(vec![0x30; 99]),
        ControlMessage::AskMemoryLink,
        ControlMessage::MeasureLink(intruder.node(), LinkBench { block_kib: None, rounds: 1 }),
        ControlMessage::Probe(ToProbe::Open(LAYOUT, 4)),
        ControlMessage::Probe(ToProbe::Again),
    ]
}

/// A heartbeat of nobody, and one of a device.
fn beats(intruder: &Intruder) -> [Beat; 2] {
    let facts = DeviceFacts {
        device: DeviceId::of(intruder.node(), 0),
        name: "cpu-0".to_owned(),
        roles: vec![DeviceRole::Prefill],
        able: vec![DeviceRole::Prefill],
        epoch: Epoch(1),
        num_blocks: 99,
        max_context: 9999,
    };
    let map = (0, MapVersion(0));
    let device = Heartbeat { facts, serving: true, progress: 1, busy: false, draining: false, map };
    [Beat { map, devices: Vec::new() }, Beat { map, devices: vec![device] }]
}
