//! A node's certificate while the node runs: the next one in time, and whatever an operator puts into its folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::cluster::{Cluster, Renewer};
use relevo_transport::identity::{Authority, LiveIdentity, Moment, PeerIdentity, Renewal};
use relevo_wire::Instant64;

use crate::cli::{Failure, one_line};
use crate::wall_clock;

/// How often a node looks whether its folder holds another certificate or revocation list, and whether it is time for the next one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bounds of the pause after a certificate was asked for in vain: a third of its time, ten days of thirty, is left when it is asked for first.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));

/// The authority in `folder`, for the coordinator to sign with.
///
/// # Errors
/// The user's fault: there is none, or it is another cluster's.
pub(super) fn renewer(folder: &Path, own: &PeerIdentity) -> Result<Renewer, Failure> {
    let authority = Authority::load(folder)?;
    if authority.cluster() != own.cluster {
        return Err(Failure::Usage(format!(
            "node.authority {} is that of cluster {}, this node is of {}: give it the folder that issued its certificate",
            folder.display(),
            authority.cluster(),
            own.cluster
        )));
    }
    Ok(Arc::new(move |node, request| {
        let renewed = authority.renew(node, request, now()).map_err(|error| error.to_string())?;
        tracing::info!(node = %node.name, "its next certificate is signed");
        Ok(renewed)
    }))
}

/// Keeps a node's identity good. Never ends.
pub(super) async fn keep(identity: LiveIdentity, cluster: Arc<Cluster>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let (mut next_try, mut pause) = (Instant64::default(), RETRY.0);
    loop {
        ticks.tick().await;
        take_up(&identity, &cluster);
        let present = identity.present();
        metrics::gauge!("relevo_certificate_end_seconds").set(present.validity().not_after.0 as f64);
        let is_due = present.validity().is_renewal_due(now()) && clock::now() >= next_try;
        // While the coordinator is away, others say so.
        if !is_due || !cluster.reaches_coordinator() {
            continue;
        }
        match renew(&identity, &cluster).await {
            Ok(()) => pause = RETRY.0,
            Err(reason) => {
                tracing::warn!(
                    ends = %present.validity().not_after, reason, retry_in = ?pause,
                    "no next certificate: once this one ends, no peer lets this node in"
                );
                next_try = clock::now() + pause;
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

/// Takes up what an operator puts into the node's folder; lets go of peers that are revoked by it.
fn take_up(identity: &LiveIdentity, cluster: &Cluster) {
    if !identity.has_changed() {
        return;
    }
    match identity.reload() {
        Ok(reloaded) if reloaded.is_nothing() => {}
        Ok(reloaded) => {
            tracing::info!(?reloaded, "the node's identity was read anew");
            part_from_revoked(identity, cluster);
        }
        Err(error) => {
            tracing::warn!(%error, "the node's folder has changed and cannot be used: the identity stays");
        }
    }
}

fn part_from_revoked(identity: &LiveIdentity, cluster: &Cluster) {
    cluster.part_from(|peer| identity.is_revoked(peer));
}

async fn renew(identity: &LiveIdentity, cluster: &Cluster) -> Result<(), String> {
    let (renewal, request) = Renewal::begin(identity).map_err(|error| one_line(&error))?;
    let renewed = cluster.renew(identity.own(), request).await?;
    // It waits for the disk.
    let finished = tokio::task::spawn_blocking(move || renewal.finish(&renewed)).await;
    finished.map_err(|error| one_line(&error))?.map_err(|error| one_line(&error))?;
    tracing::info!(ends = %identity.present().validity().not_after, "the node has its next certificate");
    part_from_revoked(identity, cluster);
    Ok(())
}

fn now() -> Moment {
    Moment(wall_clock::unix_seconds())
}
