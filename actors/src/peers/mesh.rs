//! All links of a node: the actor above the peers' actors. It takes in those who dial, dials the seeds until one answers, and learns from the
//! coordinator's maps who else there is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use relevo_transport::ControlConnection;
use relevo_transport::identity::{Expected, Name, PeerIdentity};
use relevo_wire::{NodeEntry, NodeId, Role};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::hello::{self, Greeted, HelloError};
use super::network::Network;
use super::peer_link::{self, PeerLinkActor, PeerLinkArguments, PeerLinkMessage};
use super::session::Sessions;
use crate::clock;
use crate::cluster::{Directory, PeerSink, Ticker};

/// Name in the supervision tree.
pub(crate) const NAME: &str = "mesh";

/// How often it is seen to that a coordinator is linked.
const TICK: Duration = Duration::from_millis(250);

/// Connections that have shown who they are, and wait to be greeted.
const ARRIVALS: usize = 64;

/// Peers that a node links to.
const MAX_PEERS: usize = 1024;

/// The mesh's actor.
pub(crate) struct MeshActor;

/// Its messages.
#[derive(RactorMessage)]
pub(crate) enum MeshMessage {
    /// A peer has dialled and said hello.
    Greeted(Box<Greeted>),
    /// A seed has answered.
    Seeded(SocketAddr, ControlConnection),
    /// Who is in the cluster.
    Learn(Vec<NodeEntry>),
    /// A seed was dialled in vain, or a coordinator does not want this node, for this reason.
    NotSeeded(SocketAddr, String),
    /// Time went by.
    Tick,
    /// To see whether the fault switches let it live.
    Poke,
}

/// What it is started with.
pub(crate) struct MeshArguments {
    pub(crate) directory: Arc<Directory>,
    pub(crate) network: Network,
}

pub(crate) struct MeshState {
    directory: Arc<Directory>,
    network: Network,
    myself: ActorRef<MeshMessage>,
    sessions: Sessions,
    peers: BTreeMap<Name, ActorRef<PeerLinkMessage>>,
    /// Dropped with the state, which ends them.
    tasks: JoinSet<()>,
    dialling: JoinSet<()>,
    /// Why each seed was dialled in vain the last time.
    troubles: BTreeMap<SocketAddr, String>,
    _ticker: Ticker,
}

impl Actor for MeshActor {
    type Msg = MeshMessage;
    type State = MeshState;
    type Arguments = MeshArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        MeshArguments { directory, network }: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let sessions = Sessions::start(&network, myself.get_cell()).await?;
        directory.mesh.set(myself.clone());
        let mut state = MeshState {
            directory,
            network,
            sessions,
            peers: BTreeMap::new(),
            tasks: JoinSet::new(),
            dialling: JoinSet::new(),
            troubles: BTreeMap::new(),
            _ticker: Ticker::start(myself.clone(), TICK, || MeshMessage::Tick),
            myself,
        };
        state.listen();
        state.learn(state.directory.map().nodes).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MeshMessage::Greeted(greeted) => state.greeted(greeted).await?,
            MeshMessage::Seeded(seed, connection) => state.seeded(seed, connection).await?,
            MeshMessage::Learn(nodes) => state.learn(nodes).await?,
            MeshMessage::NotSeeded(seed, reason) => state.not_seeded(seed, reason),
            MeshMessage::Tick => {
                state.seek_coordinator();
                state.directory.link_probe.expire(clock::now());
            }
            MeshMessage::Poke => state.directory.on_message(NAME),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, reason) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => (actor, reason.unwrap_or_default()),
            _ => return Ok(()),
        };
        match state.peers.iter().find(|(_, peer)| peer.get_id() == actor.get_id()) {
            Some((name, _)) => {
                tracing::error!(peer = %name, reason, "the actor of a peer died: it is made anew when the peer is met");
                let name = name.clone();
                state.peers.remove(&name);
                Ok(())
            }
            None => Err(format!("the sessions died: {reason}").into()),
        }
    }
}

impl MeshState {
    /// Takes in who dials.
    fn listen(&mut self) {
        let (controls, arrivals) = mpsc::channel(ARRIVALS);
        let (endpoint, directory) = (self.network.endpoint.clone(), Arc::clone(&self.directory));
        let probing = Arc::clone(&directory);
        let room_of = move |peer: &PeerIdentity| probing.link_probe.room_of(NodeId::of_name(peer.name.as_str()));
        let sink_of = move |peer: &PeerIdentity| PeerSink::of(&directory, peer).map(Arc::new);
        self.tasks.spawn(async move {
            endpoint
                .serve(controls, sink_of, room_of, |reason| {
                    let reason = reason.map_or("handshake", |reason| reason.label());
                    metrics::counter!("relevo_peers_refused_total", "reason" => reason).increment(1);
                })
                .await;
        });
        if let Some(memory) = self.directory.links.memory() {
            let directory = Arc::clone(&self.directory);
            self.tasks.spawn(async move { memory.serve(directory).await });
        }
        self.tasks.spawn(greet_arrivals(self.network.clone(), arrivals, self.myself.clone()));
    }

    async fn greeted(&mut self, greeted: Box<Greeted>) -> Result<(), ActorProcessingErr> {
        let name = greeted.connection.peer().name.clone();
        match self.peer(&name).await? {
            // Fails if it dies right now: the peer dials again.
            Some(peer) => drop(peer.cast(PeerLinkMessage::Connected(greeted))),
            None => greeted.connection.close("this node has too many peers"),
        }
        Ok(())
    }

    async fn seeded(&mut self, seed: SocketAddr, connection: ControlConnection) -> Result<(), ActorProcessingErr> {
        let name = connection.peer().name.clone();
        if name == self.network.name {
            let reason = HelloError::Itself.to_string();
            connection.close(&reason);
            self.not_seeded(seed, reason);
        } else if let Some(peer) = self.peer(&name).await? {
            let _ = peer.cast(PeerLinkMessage::Dialled(connection));
        }
        Ok(())
    }

    async fn learn(&mut self, nodes: Vec<NodeEntry>) -> Result<(), ActorProcessingErr> {
        for entry in nodes {
            let Ok(name) = entry.name.parse::<Name>() else { continue };
            if name != self.network.name
                && let Some(peer) = self.peer(&name).await?
            {
                let _ = peer.cast(PeerLinkMessage::Known(entry.listen));
            }
        }
        Ok(())
    }

    /// The actor of a peer, a new one if it is met for the first time.
    async fn peer(&mut self, name: &Name) -> Result<Option<ActorRef<PeerLinkMessage>>, ActorProcessingErr> {
        if let Some(peer) = self.peers.get(name) {
            return Ok(Some(peer.clone()));
        }
        if self.peers.len() >= MAX_PEERS {
            tracing::warn!(peer = %name, "is not linked: {MAX_PEERS} peers are known");
            return Ok(None);
        }
        let arguments = PeerLinkArguments {
            directory: Arc::clone(&self.directory),
            network: self.network.clone(),
            sessions: self.sessions.clone(),
            name: name.clone(),
        };
        let (peer, _) = Actor::spawn_linked(None, PeerLinkActor, arguments, self.myself.get_cell()).await?;
        self.peers.insert(name.clone(), peer.clone());
        Ok(Some(peer))
    }

    /// Said once, and again when the reason is another one.
    fn not_seeded(&mut self, seed: SocketAddr, reason: String) {
        if self.troubles.get(&seed) != Some(&reason) {
            tracing::warn!(%seed, reason, "the coordinator is not reached, and is dialled again until it is");
            self.troubles.insert(seed, reason);
        }
    }

    /// Dials the seeds while no coordinator is linked.
    fn seek_coordinator(&mut self) {
        while self.dialling.try_join_next().is_some() {}
        let has_one =
            self.directory.plays(Role::Coordinator) || !self.directory.peers.playing(Role::Coordinator).is_empty();
        if has_one || !self.dialling.is_empty() {
            return;
        }
        let own = self.network.listen;
        for &seed in self.network.seeds.iter().filter(|seed| **seed != own) {
            self.dialling.spawn(dial_seed(self.network.clone(), seed, self.myself.clone()));
        }
    }
}

async fn dial_seed(network: Network, seed: SocketAddr, mesh: ActorRef<MeshMessage>) {
    let message = match network.endpoint.dial(seed, Expected::one_of([Role::Coordinator])).await {
        Ok(connection) => MeshMessage::Seeded(seed, connection),
        Err(error) => MeshMessage::NotSeeded(seed, error.to_string()),
    };
    // Fails when this node stops.
    let _ = mesh.cast(message);
}

async fn greet_arrivals(
    network: Network,
    mut arrivals: mpsc::Receiver<ControlConnection>,
    mesh: ActorRef<MeshMessage>,
) {
    let mut greeting = JoinSet::new();
    while let Some(connection) = arrivals.recv().await {
        while greeting.try_join_next().is_some() {}
        // One who does not say hello is gone after its patience, so that no more wait than could arrive in that time.
        if greeting.len() >= ARRIVALS {
            connection.close("too many are arriving");
            continue;
        }
        let (network, mesh) = (network.clone(), mesh.clone());
        greeting.spawn(async move {
            let name = connection.peer().name.clone();
            match hello::greet(&network, connection).await {
                Ok(greeted) => drop(mesh.cast(MeshMessage::Greeted(Box::new(greeted)))),
                Err(error @ (HelloError::Lost(_) | HelloError::Parted(_))) => {
                    tracing::debug!(peer = %name, %error, "has gone before its hello")
                }
                Err(error) => peer_link::report(&name, &error),
            }
        });
    }
}
