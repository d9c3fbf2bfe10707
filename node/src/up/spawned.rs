//! The processes of a local cluster: started, watched, started again when they die, stopped together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relevo_actors::clock;
use relevo_wire::{Instant64, Role};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{Common, Failure};
use crate::terminal;

/// A process that lived less long has died at its start.
const SETTLED: Duration = Duration::from_secs(5);

/// Bounds of the pause before one is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a process may take to end beside the time for its streams, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// A process that is to be.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) roles: Vec<Role>,
    pub(super) settings: PathBuf,
    pub(super) metrics: Option<SocketAddr>,
}

/// The process ids of those that run, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Pids(Arc<Mutex<BTreeMap<String, u32>>>);

impl Pids {
    /// As they are now.
    pub(super) fn now(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, name: &str, pid: Option<u32>) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => _ = pids.insert(name.to_owned(), pid),
            None => _ = pids.remove(name),
        }
    }
}

/// All processes of a local cluster.
pub(super) struct Spawned {
    common: Common,
    allow_faults: bool,
    stop: CancellationToken,
    workers: Vec<Worker>,
    pids: Pids,
    watched: JoinSet<Result<(), Failure>>,
}

impl Spawned {
    pub(super) fn new(common: Common, allow_faults: bool, stop: CancellationToken) -> Self {
        let (workers, pids, watched) = (Vec::new(), Pids::default(), JoinSet::new());
        Self { common, allow_faults, stop, workers, pids, watched }
    }

    /// Starts one, and again whenever it dies.
    pub(super) fn add(&mut self, worker: Worker) {
        let keeper = Keeper {
            worker: worker.clone(),
            common: self.common.clone(),
            allow_faults: self.allow_faults,
            stop: self.stop.clone(),
            pids: self.pids.clone(),
        };
        self.workers.push(worker);
        self.watched.spawn(keeper.keep());
    }

    /// They, in the order in which they were added.
    pub(super) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Their process ids.
    pub(super) fn pids(&self) -> Pids {
        self.pids.clone()
    }

    /// Returns when one cannot be started.
    ///
    /// # Errors
    /// Why.
    pub(super) async fn watch(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.watched.join_next().await {
            ended.unwrap_or_else(|error| {
                let source = std::io::Error::other(error);
                Err(Failure::System { doing: "the watch over a process failed".into(), source })
            })?;
        }
        Ok(())
    }

    /// Lets them end their streams, the gateway first, whose streams need the others; kills what is left.
    pub(super) async fn stop(mut self, drain: Duration) {
        self.stop.cancel();
        let order = self.workers.iter().map(|worker| worker.name.clone()).collect::<Vec<_>>();
        let mut deadline = clock::now() + drain + END_PATIENCE;
        for (index, name) in order.iter().enumerate() {
            self.signal(name, Signal::TERM);
            if index == 0 {
                self.wait_for_end(name, deadline).await;
                deadline = clock::now() + END_PATIENCE;
            }
        }
        for name in &order {
            self.wait_for_end(name, deadline).await;
            self.signal(name, Signal::KILL);
        }
        self.watched.shutdown().await;
    }

    fn signal(&self, name: &str, signal: Signal) {
        let pid = self.pids.now().get(name).and_then(|&pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }

    async fn wait_for_end(&self, name: &str, deadline: Instant64) {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while self.pids.now().contains_key(name) && clock::now() < deadline {
            ticks.tick().await;
        }
    }
}

/// Keeps one process running.
struct Keeper {
    worker: Worker,
    common: Common,
    allow_faults: bool,
    stop: CancellationToken,
    pids: Pids,
}

impl Keeper {
    async fn keep(self) -> Result<(), Failure> {
        let name = &self.worker.name;
        let mut pause = RESTART.0;
        let mut has_settled = false;
        loop {
            let began = clock::now();
            let mut child = self.start()?;
            self.pids.set(name, child.id());
            // Waiting would close it, and the process would end.
            let _input = child.stdin.take();
            let status = child.wait().await;
            self.pids.set(name, None);
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let failed = |source| Failure::System { doing: format!("cannot wait for {name}"), source };
            let status = status.map_err(failed)?;
            let lived = clock::now().since(began) >= SETTLED;
            has_settled |= lived || status.success() || status.signal().is_some();
            if !has_settled {
                return Err(Failure::Spawned { name: name.clone(), how: how(status) });
            }
            pause = if lived { RESTART.0 } else { (pause * 2).min(RESTART.1) };
            terminal::say(format!("{name} {}, and is started again", how(status)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    fn start(&self) -> Result<Child, Failure> {
        let failed = |source| Failure::System { doing: format!("cannot start {}", self.worker.name), source };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("node").arg("--config").arg(&self.worker.settings).arg("--stop-with-input");
        // The service manager watches us, we watch them.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        if self.allow_faults {
            command.arg("--allow-faults");
        }
        command.args(self.common.arguments());
        // Its standard input ends with this process; signals of the terminal reach it through us, in order.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
        command.spawn().map_err(failed)
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
