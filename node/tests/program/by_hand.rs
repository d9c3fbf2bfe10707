//! A cluster whose nodes a test sets up and starts one by one, as an operator does on many machines.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use relevo_transport::identity::{Authority, Host, LiveIdentity, Moment, NodeRequest, Role};

use super::local_cluster::SCRIPT;
use super::test_ports::free_udp;
use super::{finished, kill, relevo};

/// A node of a test's own: `relevo node`. It is killed if the test fails before it is stopped.
pub struct Node {
    child: Option<Child>,
    log: PathBuf,
}

impl Node {
    pub fn start(settings: &Path) -> Self {
        Self::of(relevo(["node", "--config"]).arg(settings), settings)
    }

    /// What all of its starts log lies beside its settings.
    pub fn of(command: &mut Command, settings: &Path) -> Self {
        let log = settings.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        Self { child: Some(command.stderr(file).spawn().unwrap()), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Ends it, and looks at what it has logged.
    pub fn stop(self) {
        kill(self.pid(), "TERM");
        self.ends();
    }

    /// Waits for its end, and looks at what it has logged.
    pub fn ends(mut self) {
        let end = finished(self.child.take().unwrap());
        let log = std::fs::read_to_string(&self.log).unwrap();
        assert!(end.status.success(), "{end:?}: {log}");
        assert!(!log.contains(" ERROR "), "{log}");
    }

    /// SIGKILL. What it logged is looked at when it has been started again and is stopped.
    pub fn kill(mut self) {
        self.end_now();
    }

    fn end_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_now();
    }
}

/// What a node is started with, beside its certificate.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    pub roles: &'a [Role],
    pub listen: SocketAddr,
    pub seeds: Vec<SocketAddr>,
    /// Further lines of `[node]` and of other sections.
    pub lines: &'a str,
}

/// An authority, and the folders and settings of its nodes.
pub struct ByHand {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub seed: SocketAddr,
}

#[expect(clippy::disallowed_methods, reason = "certificates go by the wall clock")]
pub fn now() -> Moment {
    Moment(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

impl ByHand {
    /// Its authority has begun at `then`.
    pub fn begun(then: Moment) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("script.toml"), SCRIPT).unwrap();
        let authority = Authority::create(&folder.path().join("ca"), &"test".parse().unwrap(), then).unwrap();
        Self { folder, authority, seed: free_udp() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn device(&self) -> String {
        format!("scripted:{}", self.path("script.toml").display())
    }

    /// A certificate.
    pub fn issue(&self, name: &str, roles: &[Role], issued: Moment) {
        let hosts = vec![Host::Address(Ipv4Addr::LOCALHOST.into())];
        let request = NodeRequest { name: name.parse().unwrap(), roles: roles.iter().copied().collect(), hosts };
        self.authority.issue(&request, &self.path(name), issued).unwrap();
    }

    /// The settings of a node that has one, in a file of this name; its state lies beside that file.
    pub fn settings(&self, name: &str, file: &str, settings: &Settings<'_>) -> PathBuf {
        let Settings { roles, listen, seeds, lines } = settings;
        let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
        let seeds: Vec<_> = seeds.iter().map(SocketAddr::to_string).collect();
        let text = format!(
            "[node]\nroles = {names:?}\nlisten = \"{listen}\"\nseeds = {seeds:?}\nidentity = \"{}\"\nstate_dir = \"{}\"\n\
             {lines}\n[[device]]\nkind = \"{}\"\n",
            self.path(name).display(),
            self.path(&format!("{file}.state")).display(),
            self.device(),
        );
        let path = self.path(&format!("{file}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate, and settings by it: the coordinator is looked for at the seed.
    pub fn node(&self, name: &str, roles: &[Role], issued: Moment, listen: SocketAddr, lines: &str) -> PathBuf {
        self.issue(name, roles, issued);
        self.settings(name, name, &Settings { roles, listen, seeds: vec![self.seed], lines })
    }

    pub fn serial(&self, name: &str) -> String {
        LiveIdentity::load(&self.path(name)).unwrap().own().serial.to_string()
    }
}
