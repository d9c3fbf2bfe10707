//! Drives the engine through all that `relevo up` puts around it but HTTP: gateway, router, prefill actor, hand-over, decode actor.

use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::cluster::{Cluster, ClusterOptions, DeviceSpec};
use relevo_actors::gateway::SequenceStream;
use relevo_wire::{Instant64, StreamEvent};

use super::requests::Requests;
use super::runner::engine_failed;
use crate::cli::Failure;

/// How long the cluster may take to stop; nothing runs by then.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// A cluster of one device.
pub(super) struct ActorRunner {
    cluster: Cluster,
    requests: Requests,
}

impl ActorRunner {
    pub(super) async fn start(device: DeviceSpec, vocab_size: usize) -> Result<Self, Failure> {
        let cluster = Cluster::start(ClusterOptions::new(vec![device])).await;
        let cluster = cluster.map_err(|error| engine_failed(&error.to_string()))?;
        Ok(Self { cluster, requests: Requests::new(vocab_size) })
    }

    /// Time from the submission to the first token after a prompt of `num_tokens`.
    pub(super) async fn prefill(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        self.generate(num_tokens, 1).await
    }

    /// Time from the submission to the last of `num_tokens` tokens, the first of them drawn from a context of one.
    pub(super) async fn decode(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        self.generate(1, num_tokens).await
    }

    async fn generate(&mut self, num_prompt: usize, num_tokens: usize) -> Result<Duration, Failure> {
        let request = self.requests.next(num_prompt, num_tokens);
        let start = clock::now();
        let mut stream = self.cluster.gateway().submit(request).map_err(|error| engine_failed(&error.to_string()))?;
        let end = read(&mut stream, num_tokens).await?;
        // To its end, so that the next one begins with an idle engine.
        while stream.next().await.is_some() {}
        Ok(end.since(start))
    }

    pub(super) async fn stop(self) {
        self.cluster.shutdown(STOP_WITHIN).await;
    }
}

/// When the last of `num_tokens` tokens came.
async fn read(stream: &mut SequenceStream, num_tokens: usize) -> Result<Instant64, Failure> {
    let mut left = num_tokens;
    while left > 0 {
        match stream.next().await {
            Some(StreamEvent::Token { .. }) => left -= 1,
            Some(StreamEvent::Failed(error)) => return Err(engine_failed(&error.to_string())),
            Some(_) => {}
            None => return Err(engine_failed("the stream was cut")),
        }
    }
    Ok(clock::now())
}
