//! Tokens on their way to the gateway that wants them: one message a step, past every mailbox.

use std::sync::Arc;

use bytes::Bytes;
use relevo_transport::{ControlConnection, ControlError};
use relevo_wire::{MAX_TOKEN_BYTES, NodeId, TokenBatch};
use rkyv::rancor::Error as RkyvError;
use tokio::sync::mpsc;

use crate::cluster::Directory;

/// Steps' tokens that wait for a gateway that does not read: a second of small steps. One that lets it fill is cut off.
pub(super) const CAPACITY: usize = 1024;

/// Why a stream of tokens ends. The peer is gone, or breaks the rules.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error(transparent)]
    Lost(#[from] ControlError),
    #[error("tokens cannot be read: {0}")]
    Archive(#[from] RkyvError),
}

/// Sends what the engines say until nobody is left who could.
pub(super) async fn send(
    connection: ControlConnection,
    mut batches: mpsc::Receiver<TokenBatch>,
) -> Result<(), TokenError> {
    let Some(first) = batches.recv().await else { return Ok(()) };
    let mut stream = connection.open_messages().await?;
    let mut next = Some(first);
    while let Some(batch) = next {
        let archive = rkyv::to_bytes::<RkyvError>(&batch)?;
        stream.send(Bytes::from_owner(archive)).await?;
        next = batches.recv().await;
    }
    Ok(())
}

/// Gives the keeper what a worker says. It is believed of the sequences that were given to that worker.
pub(super) async fn receive(
    connection: ControlConnection,
    directory: Arc<Directory>,
    from: NodeId,
) -> Result<(), TokenError> {
    let mut stream = connection.accept_messages(MAX_TOKEN_BYTES).await?;
    loop {
        let batch = rkyv::from_bytes::<TokenBatch, RkyvError>(stream.next().await?)?;
        directory.keeper.deliver(&directory, batch, from);
    }
}
