//! The gateway's actor: parent of the tasks that take submissions in, hand tokens out, and watch the clock.
//!
//! None of a stream's news goes through its mailbox (see [`super::keeper`]); it is there so that a task that dies is restarted under the
//! rules of the tree. What the tasks read from outlives them.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorMessage;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::handle::Submission;
use crate::cluster::Directory;
use crate::device::TokenBatch;

/// Name in the supervision tree.
pub(crate) const NAME: &str = "gateway";

/// How late a deadline, or a reader that has gone without a token showing it, may be noticed.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// The gateway's actor.
pub(crate) struct GatewayActor;

/// What the gateway reads from; outlives it.
#[derive(Clone)]
pub(crate) struct Intake {
    pub(crate) submissions: Arc<Mutex<mpsc::Receiver<Submission>>>,
    pub(crate) tokens: Arc<Mutex<mpsc::Receiver<TokenBatch>>>,
}

/// What it is started with.
pub(crate) struct GatewayArguments {
    pub(crate) directory: Arc<Directory>,
    pub(crate) intake: Intake,
}

/// Its messages.
#[derive(RactorMessage)]
pub(crate) enum GatewayMessage {
    /// To see whether the fault switches let it live.
    Poke,
    /// One of its tasks has ended.
    TaskEnded,
}

pub(crate) struct GatewayState {
    directory: Arc<Directory>,
    /// Dropped with the state, which ends the tasks.
    _tasks: JoinSet<()>,
}

impl Actor for GatewayActor {
    type Msg = GatewayMessage;
    type State = GatewayState;
    type Arguments = GatewayArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        GatewayArguments { directory, intake }: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        tasks.spawn(take_in(Arc::clone(&directory), intake.submissions, EndSignal(myself.clone())));
        tasks.spawn(hand_out(Arc::clone(&directory), intake.tokens, EndSignal(myself.clone())));
        tasks.spawn(watch_the_clock(Arc::clone(&directory), EndSignal(myself.clone())));
        directory.gateway.set(myself);
        Ok(GatewayState { directory, _tasks: tasks })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            GatewayMessage::Poke => {
                state.directory.on_message(NAME);
                Ok(())
            }
            GatewayMessage::TaskEnded => Err("a task of the gateway has ended".into()),
        }
    }
}

/// Tells the actor when its task ends, also by a panic.
struct EndSignal(ActorRef<GatewayMessage>);

impl Drop for EndSignal {
    fn drop(&mut self) {
        // Fails when the actor itself has ended its tasks.
        let _ = self.0.cast(GatewayMessage::TaskEnded);
    }
}

/// Ends (with the actor) when the cluster shuts down and nobody can submit any more.
async fn take_in(directory: Arc<Directory>, submissions: Arc<Mutex<mpsc::Receiver<Submission>>>, signal: EndSignal) {
    let mut submissions = submissions.lock().await;
    while let Some(submission) = submissions.recv().await {
        directory.keeper.admit(&directory, submission);
    }
    // Every handle is gone: nobody will submit again. That is no fault.
    std::mem::forget(signal);
}

async fn hand_out(directory: Arc<Directory>, tokens: Arc<Mutex<mpsc::Receiver<TokenBatch>>>, _signal: EndSignal) {
    let mut tokens = tokens.lock().await;
    while let Some(batch) = tokens.recv().await {
        directory.hand_out(batch).await;
    }
}

async fn watch_the_clock(directory: Arc<Directory>, _signal: EndSignal) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        directory.keeper.sweep(&directory);
    }
}
