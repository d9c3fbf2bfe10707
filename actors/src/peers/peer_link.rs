//! One peer: dialled until there is a link, watched while there is one, let go of when it is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent, pg};
use ractor_cluster::RactorMessage;
use relevo_transport::ControlConnection;
use relevo_transport::identity::{Expected, Name};
use relevo_wire::{Beat, Hello, Instant64, NodeId, Role};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::facade::{FacadeActor, FacadeArguments, FacadeMessage};
use super::hello::{self, Greeted, HelloError, own_beat};
use super::mesh::MeshMessage;
use super::network::Network;
use super::own_words::{OwnWords, group_prefix};
use super::permission::Sender;
use super::remote_ref::RemoteRef;
use super::session::{LinkStream, Sessions};
use super::table::Peer;
use super::token_streams::{self, TokenError};
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::policy::liveness::Liveness;
use crate::policy::rate::Rate;

/// Why a link ends whose node stops in good order; the peer hears it.
pub(crate) const GOODBYE: &str = "the node stops";

/// Why a connection is closed beside which there is another; the peer hears it.
const LINKED: &str = "there is a link already";

/// How often a peer's silence is looked at, and whether to dial it.
const TICK: Duration = Duration::from_millis(50);

/// How often this node says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long a session may take to begin.
const SESSION_PATIENCE: Duration = Duration::from_secs(3);

/// Bounds of the pause before a peer is dialled again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the one with the greater name waits for the other to dial.
const COURTESY: Duration = Duration::from_secs(1);

/// How long a facade may take to end.
const FACADE_PATIENCE: Duration = Duration::from_secs(1);

/// Most devices of a node that are listened to.
const MAX_DEVICES: usize = 64;

/// A peer's actor.
pub(super) struct PeerLinkActor;

/// Its messages.
#[derive(RactorMessage)]
pub(crate) enum PeerLinkMessage {
    /// Where it is dialled.
    Known(SocketAddr),
    /// It has answered, and waits for a hello.
    Dialled(ControlConnection),
    /// There is a connection, dialled from here or from there, and both have said hello.
    Connected(Box<Greeted>),
    /// It was dialled in vain.
    NotConnected(String),
    /// Something ends the link of this number.
    Failed { link: u64, reason: String },
    /// Time went by.
    Tick,
}

/// What it is started with.
#[derive(Clone)]
pub(super) struct PeerLinkArguments {
    pub(super) directory: Arc<Directory>,
    pub(super) network: Network,
    pub(super) sessions: Sessions,
    pub(super) name: Name,
}

pub(super) struct PeerLinkState {
    arguments: PeerLinkArguments,
    node: NodeId,
    myself: ActorRef<PeerLinkMessage>,
    known: Option<SocketAddr>,
    link: Option<Link>,
    num_links: u64,
    dialling: JoinSet<()>,
    /// At most one.
    greeting: JoinSet<()>,
    redial: Duration,
    redial_at: Instant64,
    _ticker: Ticker,
}

/// What there is between two connections.
struct Link {
    id: u64,
    connection: ControlConnection,
    hello: Hello,
    facade: ActorRef<FacadeMessage>,
    secret: [u8; 32],
    /// By which the peer's facade is found.
    theirs: String,
    since: Instant64,
    is_reachable: watch::Sender<bool>,
    liveness: Liveness,
    /// When its last heartbeat came.
    heard: Arc<AtomicU64>,
    failed: mpsc::Sender<String>,
    rate: Rate,
    sent_bytes_per_s: Arc<AtomicU64>,
    /// Dropped with the link, which ends them.
    tasks: JoinSet<()>,
}

impl Actor for PeerLinkActor {
    type Msg = PeerLinkMessage;
    type State = PeerLinkState;
    type Arguments = PeerLinkArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let ticker = Ticker::start(myself.clone(), TICK, || PeerLinkMessage::Tick);
        let waits = arguments.network.name > arguments.name;
        Ok(PeerLinkState {
            node: NodeId::of_name(arguments.name.as_str()),
            arguments,
            myself,
            known: None,
            link: None,
            num_links: 0,
            dialling: JoinSet::new(),
            greeting: JoinSet::new(),
            redial: REDIAL.0,
            redial_at: if waits { clock::now() + COURTESY } else { clock::now() },
            _ticker: ticker,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PeerLinkMessage::Known(address) => state.known = Some(address),
            PeerLinkMessage::Dialled(connection) => state.dialled(connection),
            PeerLinkMessage::Connected(greeted) => state.connected(*greeted).await?,
            PeerLinkMessage::NotConnected(reason) => state.not_connected(&reason),
            PeerLinkMessage::Failed { link, reason } => {
                if state.link.as_ref().is_some_and(|present| present.id == link) {
                    state.take_down(&reason).await;
                }
            }
            PeerLinkMessage::Tick => state.tick().await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ProcessGroupChanged(pg::GroupChangeMessage::Join(_, group, actors)) => {
                state.found(&group, &actors);
            }
            SupervisionEvent::ProcessGroupChanged(pg::GroupChangeMessage::Leave(_, group, actors)) => {
                let is_theirs = |link: &Link| link.theirs == group && actors.iter().any(is_remote);
                if state.link.as_ref().is_some_and(is_theirs) {
                    state.take_down("its session has ended").await;
                }
            }
            SupervisionEvent::ActorFailed(actor, _) | SupervisionEvent::ActorTerminated(actor, _, _) => {
                let is_ours = |link: &Link| link.facade.get_id() == actor.get_id();
                if state.link.as_ref().is_some_and(is_ours) {
                    state.take_down("its facade has died").await;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.take_down(GOODBYE).await;
        Ok(())
    }
}

fn is_remote(actor: &ActorCell) -> bool {
    !actor.get_id().is_local()
}

impl PeerLinkState {
    async fn tick(&mut self) {
        let now = clock::now();
        let Some(link) = &mut self.link else { return self.dial_if_due(now) };
        link.liveness.heard(Instant64(link.heard.load(Ordering::Relaxed)));
        if link.liveness.is_lost(now) {
            self.take_down("it is silent").await;
        } else if !*link.is_reachable.borrow() && now.since(link.since) >= SESSION_PATIENCE {
            self.take_down("its session does not begin").await;
        } else {
            let total =
                link.connection.path().sent_bytes + self.arguments.directory.links.delivered_bytes_to(self.node);
            if let Some(rate) = link.rate.at(total, now) {
                link.sent_bytes_per_s.store(rate, Ordering::Relaxed);
            }
        }
    }

    fn dial_if_due(&mut self, now: Instant64) {
        while self.dialling.try_join_next().is_some() {}
        if self.arguments.directory.is_leaving() {
            return;
        }
        while self.greeting.try_join_next().is_some() {}
        let is_trying = !self.dialling.is_empty() || !self.greeting.is_empty();
        let Some(address) = self.known.filter(|_| !is_trying && now >= self.redial_at) else { return };
        let (endpoint, name, myself) =
            (self.arguments.network.endpoint.clone(), self.arguments.name.clone(), self.myself.clone());
        self.dialling.spawn(async move {
            let message = match endpoint.dial(address, Expected::node(name)).await {
                Ok(connection) => PeerLinkMessage::Dialled(connection),
                Err(error) => PeerLinkMessage::NotConnected(error.to_string()),
            };
            // Fails when this node stops.
            let _ = myself.cast(message);
        });
    }

    /// Says hello to a peer that has answered, unless there is a link by now. To dial takes long where packets are lost; to whom a link serves
    /// already, nobody says a hello that would replace it.
    fn dialled(&mut self, connection: ControlConnection) {
        while self.greeting.try_join_next().is_some() {}
        if self.link.is_some() || !self.greeting.is_empty() {
            return connection.close(LINKED);
        }
        let PeerLinkArguments { directory, network, name, .. } = self.arguments.clone();
        let myself = self.myself.clone();
        self.greeting.spawn(async move {
            let (address, is_coordinator) = (connection.address(), connection.peer().roles.contains(Role::Coordinator));
            let message = match hello::greet(&network, connection).await {
                Ok(greeted) => PeerLinkMessage::Connected(Box::new(greeted)),
                Err(error) => {
                    report(&name, &error);
                    let reason = error.to_string();
                    if is_coordinator && !reason.contains(LINKED) {
                        // One that is being restarted dials it anew.
                        let _ = directory.mesh.cast(MeshMessage::NotSeeded(address, reason.clone()));
                    }
                    PeerLinkMessage::NotConnected(reason)
                }
            };
            // Fails when this node stops.
            let _ = myself.cast(message);
        });
    }

    fn not_connected(&mut self, reason: &str) {
        tracing::debug!(peer = %self.arguments.name, reason, "was dialled in vain");
        self.redial_at = clock::now() + self.redial;
        self.redial = (self.redial * 2).min(REDIAL.1);
    }

    /// Takes a connection over, or leaves it for one that is there: of two that were dialled at a time both ends keep the one of the smaller name.
    async fn connected(&mut self, greeted: Greeted) -> Result<(), ActorProcessingErr> {
        if let Some(link) = &self.link {
            let is_older = greeted.hello.incarnation < link.hello.incarnation;
            let is_same = greeted.hello.incarnation == link.hello.incarnation;
            let is_second = is_same && self.is_preferred(&link.connection) && !self.is_preferred(&greeted.connection);
            if is_older || is_second {
                greeted.connection.close(LINKED);
                return Ok(());
            }
            self.take_down("another connection takes its place").await;
        }
        self.begin(greeted).await
    }

    fn is_preferred(&self, connection: &ControlConnection) -> bool {
        connection.is_dialler() == (self.arguments.network.name < self.arguments.name)
    }

    async fn begin(&mut self, greeted: Greeted) -> Result<(), ActorProcessingErr> {
        let Greeted { connection, hello, writer, reader } = greeted;
        let (own, peer) = (self.arguments.network.name.clone(), self.arguments.name.clone());
        let secrets = connection.secret(b"relevo message").zip(connection.secret(b"relevo facade"));
        let Some((secret, group)) = secrets else {
            connection.close("no secret");
            return Ok(());
        };
        let group = |whose: &Name| format!("{}{:032x}", group_prefix(whose), group_number(&group));
        let theirs = group(&peer);
        self.num_links += 1;
        let (failed, failures) = mpsc::channel(1);
        let (is_reachable, becomes_reachable) = watch::channel(false);
        let sender = Sender { node: self.node, name: peer.clone(), roles: connection.peer().roles };
        let arguments = FacadeArguments {
            directory: Arc::clone(&self.arguments.directory),
            sender,
            group: group(&own),
            secret,
            is_reachable: becomes_reachable,
            failed: failed.clone(),
        };
        let (facade, _) = Actor::spawn_linked(None, FacadeActor, arguments, self.myself.get_cell()).await?;
        pg::monitor(theirs.clone(), self.myself.get_cell());
        let own_words = OwnWords { peer: peer.clone(), incarnation: hello.incarnation, failed: failed.clone() };
        let now = clock::now();
        let mut link = Link {
            id: self.num_links,
            connection: connection.clone(),
            hello,
            facade,
            secret,
            theirs: theirs.clone(),
            since: now,
            is_reachable,
            liveness: Liveness::new(TICK, now),
            heard: Arc::new(AtomicU64::new(now.0)),
            failed,
            rate: Rate::new(0, now),
            sent_bytes_per_s: Arc::default(),
            tasks: JoinSet::new(),
        };
        self.watch(&mut link, failures);
        self.link = Some(link);
        self.redial = REDIAL.0;
        let stream = LinkStream { reader, writer, own: own_words };
        if let Err(error) = self.arguments.sessions.begin(stream, connection.is_dialler()).await {
            self.take_down(&error.to_string()).await;
        } else {
            // It may have come before it was looked for.
            self.found(&theirs, &pg::get_members(&theirs));
        }
        Ok(())
    }

    /// The tasks that a link has from its first moment.
    fn watch(&self, link: &mut Link, mut failures: mpsc::Receiver<String>) {
        let (id, myself) = (link.id, self.myself.clone());
        let connection = link.connection.clone();
        link.tasks.spawn(async move {
            let reason = tokio::select! {
                reason = failures.recv() => reason.unwrap_or_default(),
                reason = connection.closed() => reason,
            };
            // Fails when this node stops.
            let _ = myself.cast(PeerLinkMessage::Failed { link: id, reason });
        });
        let directory = Arc::clone(&self.arguments.directory);
        link.tasks.spawn(say_beats(directory, link.connection.clone()));
        let hears = HearsBeats {
            directory: Arc::clone(&self.arguments.directory),
            sender: Sender { node: self.node, name: self.arguments.name.clone(), roles: link.connection.peer().roles },
            heard: Arc::clone(&link.heard),
        };
        link.tasks.spawn(hears.run(link.connection.clone(), link.failed.clone()));
    }

    /// The peer's facade: from here on it can be reached.
    fn found(&mut self, group: &str, actors: &[ActorCell]) {
        let is_sought = |link: &&mut Link| link.theirs == group && !*link.is_reachable.borrow();
        let Some(link) = self.link.as_mut().filter(is_sought) else { return };
        let Some(facade) = actors.iter().find(|actor| is_remote(actor)) else { return };
        let (remote, delivers) = RemoteRef::new(facade.clone().into(), link.secret, link.failed.clone());
        link.tasks.spawn(delivers);
        let (tokens, batches) = mpsc::channel(token_streams::CAPACITY);
        link.tasks.spawn(or_fail(token_streams::send(link.connection.clone(), batches), link.failed.clone()));
        let directory = &self.arguments.directory;
        if directory.plays(Role::Gateway) {
            let receives = token_streams::receive(link.connection.clone(), Arc::clone(directory), self.node);
            link.tasks.spawn(or_fail(receives, link.failed.clone()));
        }
        let peer = Arc::new(Peer {
            node: self.node,
            name: self.arguments.name.clone(),
            roles: link.hello.roles,
            listen: link.hello.listen,
            incarnation: link.hello.incarnation,
            connection: link.connection.clone(),
            remote,
            tokens,
            sent_bytes_per_s: Arc::clone(&link.sent_bytes_per_s),
        });
        tracing::info!(peer = %peer.name, roles = %peer.roles, incarnation = peer.incarnation, "a link is up");
        directory.peers.insert(Arc::clone(&peer));
        directory.peer_found(&peer);
        link.is_reachable.send_replace(true);
    }

    /// Ends the link: nobody speaks through it any more, then everyone lets go of what hung on it.
    async fn take_down(&mut self, reason: &str) {
        let Some(mut link) = self.link.take() else { return };
        let (directory, name) = (&self.arguments.directory, &self.arguments.name);
        directory.peers.remove(self.node);
        pg::demonitor(link.theirs.clone(), self.myself.get_id());
        // What it has said is done, or will not be: a message that came after what follows would never be cleaned up after.
        let _ = link.facade.kill_and_wait(Some(FACADE_PATIENCE)).await;
        link.connection.close(reason);
        link.tasks.shutdown().await;
        if *link.is_reachable.borrow() {
            metrics::counter!("relevo_links_lost_total", "peer" => name.to_string()).increment(1);
            match directory.is_leaving() || reason.contains(GOODBYE) {
                true => tracing::info!(peer = %name, reason, "a link has ended"),
                false => tracing::warn!(peer = %name, reason, "a link is lost"),
            }
            directory.peer_lost(name);
        } else {
            tracing::debug!(peer = %name, reason, "a link has not come up");
        }
        self.redial_at = clock::now() + self.redial;
    }
}

/// A stream of tokens that breaks takes its link along.
async fn or_fail(stream: impl Future<Output = Result<(), TokenError>>, failed: mpsc::Sender<String>) {
    if let Err(error) = stream.await {
        // A full channel holds an earlier reason.
        let _ = failed.try_send(error.to_string());
    }
}

fn group_number(secret: &[u8; 32]) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&secret[..16]);
    u128::from_le_bytes(bytes)
}

/// Says why two nodes do not talk, where a person has to mend it.
pub(super) fn report(peer: &Name, error: &HelloError) {
    if matches!(error, HelloError::Itself) || !error.is_lasting() {
        return;
    }
    metrics::counter!("relevo_peers_refused_total", "reason" => error.label()).increment(1);
    tracing::warn!(%peer, %error, "a peer does not fit this node");
}

async fn say_beats(directory: Arc<Directory>, connection: ControlConnection) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match rkyv::to_bytes::<RkyvError>(&own_beat(&directory)) {
            // A beat that cannot be sent shows at the other end.
            Ok(beat) => drop(connection.send_beat(Bytes::from_owner(beat))),
            Err(error) => tracing::error!(%error, "a heartbeat cannot be archived"),
        }
    }
}

/// Listens to a peer's heartbeats.
struct HearsBeats {
    directory: Arc<Directory>,
    sender: Sender,
    heard: Arc<AtomicU64>,
}

impl HearsBeats {
    async fn run(self, connection: ControlConnection, failed: mpsc::Sender<String>) {
        while let Ok(bytes) = connection.next_beat().await {
            let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
            aligned.extend_from_slice(&bytes);
            match rkyv::from_bytes::<Beat, RkyvError>(&aligned) {
                Ok(beat) if self.is_its_own(&beat) => {
                    self.heard.store(clock::now().0, Ordering::Relaxed);
                    self.directory.heard(self.sender.node, beat);
                }
                _ => {
                    metrics::counter!("relevo_messages_refused_total", "reason" => "heartbeat").increment(1);
                    drop(failed.try_send("its heartbeat is none of its own".to_owned()));
                    return;
                }
            }
        }
    }

    /// A node speaks of its own devices, in roles that its certificate allows.
    fn is_its_own(&self, beat: &Beat) -> bool {
        let computes = self.sender.roles.contains(Role::Prefill) || self.sender.roles.contains(Role::Decode);
        beat.devices.len() <= MAX_DEVICES
            && (computes || beat.devices.is_empty())
            && beat.devices.iter().all(|device| device.facts.device.node() == self.sender.node)
    }
}
