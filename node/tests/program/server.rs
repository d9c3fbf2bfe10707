//! A server of a test's own: the real binary on a free port.

use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::thread::JoinHandle;

use super::{Finished, finished, kill, relevo, wait_for_line};

/// A running `relevo up`. It is killed if the test fails before it is stopped.
pub struct Server {
    child: Option<Child>,
    /// Read from the first byte on: a server whose log nobody reads would wait for room in the pipe.
    log: Option<JoinHandle<String>>,
    pub url: String,
}

impl Server {
    /// Starts `relevo up` with little KV memory and these further arguments, and waits for its screen.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = relevo(["up", "--listen", "127.0.0.1:0", "--kv-memory", "128MiB"]);
        Self::of(command.args(arguments))
    }

    /// Starts a server by a configuration file.
    pub fn with_config(path: &Path, arguments: &[&str]) -> Self {
        Self::of(relevo(["up", "--listen", "127.0.0.1:0", "--config"]).arg(path).args(arguments))
    }

    fn of(command: &mut std::process::Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("the log is UTF-8");
            text
        });
        let line = wait_for_line(child.stdout.take().expect("stdout is piped"), |line| line.contains("API "));
        let word =
            line.split_whitespace().find(|word| word.starts_with("http://")).expect("the screen names the address");
        let url = word.trim_end_matches("/v1").to_owned();
        Self { child: Some(child), log: Some(log), url }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends a signal and waits for the end.
    pub fn stop(self, signal: &str) -> Finished {
        kill(self.pid(), signal);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Finished {
        let end = finished(self.child.take().expect("it runs"));
        let log = self.log.take().expect("it is read");
        Finished { stderr: log.join().expect("the log is read"), ..end }
    }

    /// Memory of its own in KiB: pages of mapped files, which the system takes back as it likes, do not count.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }

    /// Entries of a folder of its in `/proc`: `fd` for open files, `task` for threads.
    pub fn entries(&self, folder: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{folder}", self.pid())).expect("the process lives").count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
