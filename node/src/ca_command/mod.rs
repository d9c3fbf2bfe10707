//! `relevo ca init|issue|revoke|list`: the cluster's own certificate authority.

mod listing;

use std::path::PathBuf;

use relevo_transport::identity::{
    Authority, AuthorityError, Host, Moment, Name, NodeRequest, Role, Roles, UnknownRole,
};

use crate::cli::{Common, Failure, nearest};
use crate::{terminal, wall_clock};

/// The commands under `relevo ca`.
#[derive(Debug, clap::Subcommand)]
pub enum CaCommand {
    /// Make the certificate authority of a new cluster
    Init(InitArgs),
    /// Give a node a key, a certificate and a folder of all that it needs
    #[command(
        after_help = "A certificate is good for 30 days. Its key is in the node's folder and nowhere else: move it there safely."
    )]
    Issue(IssueArgs),
    /// Revoke all certificates of a node
    Revoke(RevokeArgs),
    /// List the certificates that were issued
    List(ListArgs),
}

/// Where the authority lies.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The authority's folder [default: ca in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Arguments of `relevo ca init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    #[command(flatten)]
    place: Place,
    /// What people call the cluster
    #[arg(long, value_name = "CLUSTER", default_value = "relevo")]
    name: Name,
}

/// Arguments of `relevo ca issue`.
#[derive(Debug, clap::Args)]
pub struct IssueArgs {
    /// The node's name, unique in the cluster
    name: Name,
    /// What it may do: gateway, coordinator, prefill, decode, expert, operator
    #[arg(long = "role", value_name = "ROLE", required = true, value_delimiter = ',', value_parser = role)]
    roles: Vec<Role>,
    /// Where it can be reached: IP addresses and DNS names; an operator needs none
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
    hosts: Vec<Host>,
    /// The folder to make for the node [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Arguments of `relevo ca revoke`.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// The node's name
    name: Name,
    #[command(flatten)]
    place: Place,
}

/// Arguments of `relevo ca list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
///
/// # Errors
/// See [`Failure`].
pub fn run(command: CaCommand, common: &Common) -> Result<(), Failure> {
    let now = Moment(wall_clock::unix_seconds());
    match command {
        CaCommand::Init(args) => init(args, common, now),
        CaCommand::Issue(args) => issue(args, common, now),
        CaCommand::Revoke(args) => revoke(&args, common, now),
        CaCommand::List(args) => listing::run(&Authority::load(&args.place.folder(common)?)?, args.json, now),
    }
}

impl Place {
    fn folder(&self, common: &Common) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(common.store()?.folder().join("ca")),
        }
    }
}

fn init(args: InitArgs, common: &Common, now: Moment) -> Result<(), Failure> {
    let folder = args.place.folder(common)?;
    let authority = Authority::create(&folder, &args.name, now)?;
    terminal::say(format!(
        "made the authority of cluster {} ({}), good until {}; its ca.key makes nodes: keep {} safe, and backed up",
        authority.name(),
        authority.cluster(),
        authority.not_after(),
        folder.display()
    ));
    Ok(terminal::print(folder.display())?)
}

fn issue(args: IssueArgs, common: &Common, now: Moment) -> Result<(), Failure> {
    let roles: Roles = args.roles.into_iter().collect();
    if args.hosts.is_empty() && roles != Role::Operator.into() {
        return Err(Failure::Usage(format!(
            "where can {} be reached? expected --host with an IP address or DNS name; only an operator needs none",
            args.name
        )));
    }
    let authority = Authority::load(&args.place.folder(common)?)?;
    let out = args.out.unwrap_or_else(|| PathBuf::from(args.name.as_str()));
    let request = NodeRequest { name: args.name, roles, hosts: args.hosts };
    let issued = authority.issue(&request, &out, now)?;
    let node = issued.node;
    terminal::say(format!(
        "issued {} of {} for {}, good until {}; its folder holds its key: move it to the node as its owner's only",
        node.serial, node.name, node.roles, node.not_after
    ));
    if !issued.still_valid.is_empty() {
        let serials: Vec<String> = issued.still_valid.iter().map(ToString::to_string).collect();
        terminal::say(format!(
            "{} had a certificate: {} stays good until its end or `relevo ca revoke`, which revokes the new one, too",
            node.name,
            serials.join(", ")
        ));
    }
    Ok(terminal::print(out.display())?)
}

fn revoke(args: &RevokeArgs, common: &Common, now: Moment) -> Result<(), Failure> {
    let authority = Authority::load(&args.place.folder(common)?)?;
    let serials = match authority.revoke(&args.name, now) {
        Err(AuthorityError::NotIssued(name)) => {
            let records = authority.list(now)?;
            let nearest = nearest(name.as_str(), records.iter().map(|record| record.node.name.as_str()));
            return Err(Failure::UnknownNode { name, nearest: nearest.map(str::to_owned) });
        }
        serials => serials?,
    };
    let list = authority.revocations_path();
    terminal::say(format!(
        "nodes refuse {} once they have the new list: copy {} over {} in each node's folder",
        args.name,
        list.display(),
        list.file_name().unwrap_or_default().display()
    ));
    let lines: Vec<String> = serials.iter().map(ToString::to_string).collect();
    Ok(terminal::print(lines.join("\n"))?)
}

fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|error: UnknownRole| match nearest(text, Role::ALL.iter().map(|role| role.name())) {
        Some(name) => format!("{error}; did you mean `{name}`?"),
        None => error.to_string(),
    })
}
