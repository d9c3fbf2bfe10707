//! Ctrl-C and SIGTERM: the first asks to stop, the second stops at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{service_manager, terminal};

/// Exit code of a process that was interrupted twice: 128 + SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// The signals that end a server.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Listens from now on; the signals no longer kill.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Cancels `stop` at the first signal and ends the process at the second. Never returns otherwise.
    pub async fn obey(mut self, stop: CancellationToken) {
        let name = self.next().await;
        service_manager::stopping();
        terminal::say(format!("{name}: stopping; once more stops at once"));
        stop.cancel();
        let name = self.next().await;
        terminal::say(format!("{name}: stopped at once"));
        std::process::exit(INTERRUPTED);
    }
}
