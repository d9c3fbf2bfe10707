//! `relevo drain|undrain|role`: an operator's orders to a cluster, given to its gateway.

use std::path::PathBuf;

use relevo_wire::DeviceRole;
use serde_json::{Value, json};

use crate::cli::{Failure, variant};
use crate::http_client::ApiClient;
use crate::terminal;

/// Where a gateway takes orders.
const ORDER_PATH: &str = "/relevo/order";

/// Which gateway is told.
#[derive(Debug, clap::Args)]
pub struct Gateway {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A file whose first line is an API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// Arguments of `relevo drain` and `relevo undrain`.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The node's name, as `relevo status` shows it
    node: String,
    #[command(flatten)]
    gateway: Gateway,
}

/// Arguments of `relevo role`.
#[derive(Debug, clap::Args)]
pub struct RoleArgs {
    /// The node's name, as `relevo status` shows it
    node: String,
    /// What its devices do from now on; what they have in hand they finish
    #[arg(value_name = "decode|prefill", value_parser = variant::<DeviceRole>)]
    role: DeviceRole,
    #[command(flatten)]
    gateway: Gateway,
}

/// Lets a node finish what it has and sends nothing new there, or ends that.
///
/// # Errors
/// See [`Failure`].
pub async fn drain(args: &DrainArgs, drains: bool) -> Result<(), Failure> {
    let (order, done) =
        if drains { ("drain", "drains: nothing new goes there") } else { ("undrain", "takes work again") };
    args.gateway.tell(&json!({ (order): args.node })).await?;
    terminal::say(format!("{} {done}", args.node));
    Ok(())
}

/// Lets a node's devices play a role, and no other.
///
/// # Errors
/// See [`Failure`].
pub async fn role(args: &RoleArgs) -> Result<(), Failure> {
    args.gateway.tell(&json!({ "role": args.role, "node": args.node })).await?;
    terminal::say(format!("{} plays {} now; weights and cache stay", args.node, args.role.name()));
    Ok(())
}

impl Gateway {
    async fn tell(&self, order: &Value) -> Result<(), Failure> {
        let client = ApiClient::new(&self.url, self.api_key_file.as_deref())?;
        let _: Value = client.post(ORDER_PATH, order).await?;
        Ok(())
    }
}
