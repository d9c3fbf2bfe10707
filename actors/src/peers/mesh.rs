//! All links of a node: the actor above the peers' actors. It takes in those who dial, dials those whom [`Search`] wants to find, and learns from
//! the coordinator's maps who else there is.

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
use crate::policy::search::Search;

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
    /// Somebody who is looked for has answered.
    Seeded(SocketAddr, ControlConnection),
    /// Who is in the cluster.
    Learn(Vec<NodeEntry>),
    /// A peer says who else it knows, to a coordinator that may know nobody.
    Told(Vec<NodeEntry>),
    /// Somebody was dialled in vain, or a coordinator does not want this node, for this reason.
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
    search: Search,
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
        let search = Search::new(network.node(), network.listen, &network.seeds, directory.plays(Role::Coordinator));
        let mut state = MeshState {
            directory,
            network,
            sessions,
            peers: BTreeMap::new(),
            tasks: JoinSet::new(),
            dialling: JoinSet::new(),
            search,
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
            MeshMessage::Told(nodes) => state.told(nodes),
            MeshMessage::NotSeeded(address, reason) => state.not_seeded(address, &reason),
            MeshMessage::Tick => {
                state.seek();
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

    async fn seeded(&mut self, address: SocketAddr, connection: ControlConnection) -> Result<(), ActorProcessingErr> {
        let name = connection.peer().name.clone();
        if name == self.network.name {
            let reason = HelloError::Itself.to_string();
            connection.close(&reason);
            self.not_seeded(address, &reason);
            self.search.is_own(address);
            return Ok(());
        }
        self.search.answered(address);
        if let Some(peer) = self.peer(&name).await? {
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

    fn not_seeded(&mut self, address: SocketAddr, reason: &str) {
        if self.search.failed(address, reason) {
            match self.directory.plays(Role::Coordinator) {
                true => {
                    tracing::warn!(seed = %address, reason, "a seed is not reached, and is dialled until somebody is linked")
                }
                false => tracing::warn!(
                    seed = %address, reason, "the coordinator is not reached, and is dialled again until it is"
                ),
            }
        }
    }

    /// Dials the seeds until whom they are to lead to is linked.
    fn seek(&mut self) {
        while self.dialling.try_join_next().is_some() {}
        let linked: Vec<_> = self.directory.peers.all().iter().map(|peer| peer.roles).collect();
        for seed in self.search.due(&linked) {
            // A coordinator that has been started somewhere else takes whoever is there.
            let expected = match self.directory.plays(Role::Coordinator) {
                true => Expected::one_of(Role::ALL),
                false => Expected::one_of([Role::Coordinator]),
            };
            self.dialling.spawn(dial(self.network.clone(), seed, expected, self.myself.clone()));
        }
    }

    fn told(&mut self, nodes: Vec<NodeEntry>) {
        let peers = &self.directory.peers;
        for entry in self.search.told(nodes, |node| peers.find(node).is_some()) {
            match entry.name.parse::<Name>() {
                Ok(name) => {
                    let expected = Expected::node(name);
                    self.dialling.spawn(dial(self.network.clone(), entry.listen, expected, self.myself.clone()));
                }
                Err(error) => self.not_seeded(entry.listen, &error.to_string()),
            }
        }
    }
}

async fn dial(network: Network, address: SocketAddr, expected: Expected, mesh: ActorRef<MeshMessage>) {
    let message = match network.endpoint.dial(address, expected).await {
        Ok(connection) => MeshMessage::Seeded(address, connection),
        Err(error) => MeshMessage::NotSeeded(address, error.to_string()),
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
