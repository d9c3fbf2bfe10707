//! A network namespace for the run: its loopback is cut by nft without anybody else noticing.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::geteuid;
use tokio::process::Command;

use super::subject::failed;
use crate::cli::Failure;

/// Whether this process is in a namespace of its own.
pub(super) enum Entered {
    /// It is.
    Inside(Network),
    /// It is not, for this reason.
    Not(String),
}

/// The loopback of this namespace.
pub(super) struct Network(());

/// Which packets of a port are lost.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    /// Those that go there.
    To,
    /// Those that come from there.
    From,
}

/// Goes on in a new network namespace, if this user may make one: this process then begins anew there, with the same arguments and one more.
pub(super) async fn enter(is_inside: bool) -> Result<Entered, Failure> {
    if is_inside {
        let network = Network::open().await.map_err(|source| failed("cannot use nft", source))?;
        return Ok(Entered::Inside(network));
    }
    let reason = match (succeeds("unshare", &namespace_flags(), &["true"]).await, has("nft").await) {
        (true, true) => return Err(failed("cannot begin anew in a network namespace", begin_anew())),
        (false, _) => "this user may not make a network namespace (unshare --net)",
        (_, false) => "nft is not installed",
    };
    Ok(Entered::Not(reason.to_owned()))
}

/// Others than root get a user namespace, in which they are.
fn namespace_flags() -> Vec<&'static str> {
    if geteuid().is_root() { vec!["--net"] } else { vec!["--net", "--map-root-user"] }
}

/// Returns only if it fails.
fn begin_anew() -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = std::process::Command::new("unshare");
    command.args(namespace_flags()).arg(program).args(std::env::args_os().skip(1)).arg("--in-namespace");
    command.exec()
}

async fn succeeds(program: &str, flags: &[&str], arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(flags).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

async fn has(program: &str) -> bool {
    succeeds(program, &["--version"], &[]).await
}

impl Network {
    async fn open() -> io::Result<Self> {
        run("ip", "link set lo up").await?;
        run("nft", "add table inet relevo").await?;
        // On their way in: a packet that is lost on its way out, its sender hears of.
        run("nft", "add chain inet relevo lost { type filter hook input priority 0 ; }").await?;
        Ok(Self(()))
    }

    /// Loses the packets of a UDP port from here on.
    pub(super) async fn cut(&self, port: u16, direction: Direction) -> io::Result<()> {
        let end = match direction {
            Direction::To => "dport",
            Direction::From => "sport",
        };
        run("nft", &format!("add rule inet relevo lost udp {end} {port} drop")).await
    }

    /// Loses nothing any more.
    pub(super) async fn mend(&self) -> io::Result<()> {
        run("nft", "flush chain inet relevo lost").await
    }
}

async fn run(program: &str, arguments: &str) -> io::Result<()> {
    let ended = Command::new(program).args(arguments.split(' ')).stdin(Stdio::null()).output().await?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    Err(io::Error::other(format!("`{program} {arguments}`: {said}")))
}
