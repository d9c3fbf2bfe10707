//! `relevo drain|undrain|role`: an operator's orders to a cluster, given to its gateway.

use relevo_wire::DeviceRole;
use serde_json::{Value, json};

use crate::cli::{Failure, variant};
use crate::http_client::ServerArgs;
use crate::terminal;

/// Where a gateway takes orders.
pub(crate) const ORDER_PATH: &str = "/relevo/order";

/// Arguments of `relevo drain` and `relevo undrain`.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The node's name, as `relevo status` shows it
    node: String,
    #[command(flatten)]
    gateway: ServerArgs,
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
    gateway: ServerArgs,
}

/// Lets a node finish what it has and sends nothing new there, or ends that.
///
/// # Errors
/// See [`Failure`].
pub async fn drain(args: &DrainArgs, drains: bool) -> Result<(), Failure> {
    let (order, done) =
        if drains { ("drain", "drains: nothing new goes there") } else { ("undrain", "takes work again") };
    tell(&args.gateway, &json!({ (order): args.node })).await?;
    terminal::say(format!("{} {done}", args.node));
    Ok(())
}

/// Lets a node's devices play a role, and no other.
///
/// # Errors
/// See [`Failure`].
pub async fn role(args: &RoleArgs) -> Result<(), Failure> {
    tell(&args.gateway, &json!({ "role": args.role, "node": args.node })).await?;
    terminal::say(format!("{} plays {} now; weights and cache stay", args.node, args.role.name()));
    Ok(())
}

async fn tell(gateway: &ServerArgs, order: &Value) -> Result<(), Failure> {
    let _: Value = gateway.client()?.post(ORDER_PATH, order).await?;
    Ok(())
}
