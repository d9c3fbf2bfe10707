//! What an operator does to a worker while it serves: drains it, gives it the other role for a while, renews its certificate.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relevo_actors::clock;
use relevo_transport::identity::{Authority, CERTIFICATE_FILE, Host, KEY_FILE, Moment, NodeIdentity, NodeRequest};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::subject::{Subject, Worker, failed, metric};
use crate::cli::Failure;
use crate::config::Config;
use crate::config_command;
use crate::http_client::ApiClient;
use crate::order_command::ORDER_PATH;
use crate::wall_clock;

/// How long a node may take to take up what is in its folder: it looks each second.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(10);

/// How often it is asked whether it has.
const POLL: Duration = Duration::from_millis(100);

/// Drains a worker, and ends that after a while.
pub(super) async fn drain_for(subject: &Subject, worker: &Worker, time: Duration) -> Result<(), Failure> {
    order(subject, json!({ "drain": worker.name })).await?;
    subject.wait_for(worker, "is drained", |device| device.standing == "draining").await?;
    sleep(time).await;
    order(subject, json!({ "undrain": worker.name })).await?;
    subject.wait_for(worker, "is drained no longer", |device| device.standing == "serving").await
}

/// Gives a worker the role that it does not play, and its own after a while.
pub(super) async fn flip_for(subject: &Subject, worker: &Worker, time: Duration) -> Result<(), Failure> {
    let Some((own, other)) = flip(worker) else { return Ok(()) };
    for (role, pause) in [(other, time), (own, Duration::ZERO)] {
        order(subject, json!({ "role": role, "node": worker.name })).await?;
        let what = format!("is told to play {role}");
        subject.wait_for(worker, &what, |device| device.roles.iter().map(String::as_str).eq([role])).await?;
        sleep(pause).await;
    }
    Ok(())
}

/// The role that a worker plays, and the one that it does not; nothing if it plays both: an order gives it one.
pub(super) fn flip(worker: &Worker) -> Option<(&'static str, &'static str)> {
    match &worker.roles[..] {
        [one] if one == "prefill" => Some(("prefill", "decode")),
        [one] if one == "decode" => Some(("decode", "prefill")),
        _ => None,
    }
}

async fn order(subject: &Subject, order: Value) -> Result<(), Failure> {
    let _: Value = subject.client().post(ORDER_PATH, &order).await?;
    Ok(())
}

/// Issues a worker's certificate anew, puts it into the worker's folder as `relevo ca issue` and `mv` would, and waits until the worker shows it.
pub(super) async fn renew(subject: &Subject, worker: &Worker) -> Result<(), Failure> {
    let settings = settings_of(worker.pid)?;
    let gateway = subject.gateway_pid().await.map(settings_of).transpose()?;
    let (Some(folder), Some(metrics)) = (settings.node.identity, settings.node.metrics_listen) else {
        return Err(Failure::Usage(format!("{} has no certificate or no metrics", worker.name)));
    };
    let Some(authority) = gateway.and_then(|gateway| gateway.node.authority) else {
        return Err(Failure::Usage("the gateway has no authority".to_owned()));
    };
    let issuing = spawn_blocking(move || issue_anew(&authority, &folder));
    let end = issuing.await.map_err(|source| failed("cannot issue a certificate", io::Error::other(source)))??;
    let node = ApiClient::new(&format!("http://{metrics}"), None)?;
    let began = clock::now();
    // Its end is what a running node says of its certificate; it was issued seconds later than the one before.
    while metric(&node.get_text("/metrics").await?, "relevo_certificate_end_seconds") != Some(end.0 as f64) {
        if clock::now().since(began) > TAKEN_UP_WITHIN {
            return Err(Failure::Promise(format!("{} does not take up its new certificate", worker.name)));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// The end of the new certificate.
fn issue_anew(authority: &Path, folder: &Path) -> Result<Moment, Failure> {
    let own = NodeIdentity::load(folder)?.own().clone();
    let new = folder.with_extension("new");
    let hosts = vec![Host::Address(Ipv4Addr::LOCALHOST.into())];
    let request = NodeRequest { name: own.name, roles: own.roles, hosts };
    let now = Moment(wall_clock::unix_seconds());
    let issued = Authority::load(authority)?.issue(&request, &new, now)?;
    // Between the two the folder is of no use, and the node keeps what it has.
    let moved =
        [KEY_FILE, CERTIFICATE_FILE].into_iter().try_for_each(|file| fs::rename(new.join(file), folder.join(file)));
    moved.and_then(|()| fs::remove_dir_all(&new)).map_err(|source| failed("cannot renew a certificate", source))?;
    Ok(issued.node.not_after)
}

/// What a process of the cluster was started with, by its command line.
fn settings_of(pid: u32) -> Result<Config, Failure> {
    let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
    let line = fs::read(&path).map_err(|source| failed("cannot read how a node was started", source))?;
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let file = words.by_ref().find(|word| word == "--config").and_then(|_| words.next());
    let file = file.ok_or_else(|| Failure::Usage(format!("process {pid} is no node of a local cluster")))?;
    config_command::load(Path::new(file.as_ref()))
}
