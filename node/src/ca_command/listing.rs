//! `relevo ca list`: what was issued, as a table for a person or as JSON.

use relevo_transport::identity::{Authority, Moment, Record, State};
use serde::Serialize;

use crate::cli::Failure;
use crate::terminal::{self, Style};

/// What `--json` prints.
#[derive(Serialize)]
struct Listing {
    cluster: Cluster,
    certificates: Vec<Certificate>,
}

#[derive(Serialize)]
struct Cluster {
    name: String,
    id: String,
    valid_until: String,
}

#[derive(Serialize)]
struct Certificate {
    name: String,
    roles: Vec<&'static str>,
    hosts: Vec<String>,
    serial: String,
    valid_until: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
}

/// Prints what an authority has issued.
///
/// # Errors
/// See [`Failure`].
pub(super) fn run(authority: &Authority, json: bool, now: Moment) -> Result<(), Failure> {
    let records = authority.list(now)?;
    let text = if json { as_json(authority, &records)? } else { as_table(authority, &records, now) };
    Ok(terminal::print(text)?)
}

fn as_json(authority: &Authority, records: &[Record]) -> Result<String, Failure> {
    let cluster = Cluster {
        name: authority.name().to_string(),
        id: authority.cluster().to_string(),
        valid_until: authority.not_after().to_string(),
    };
    let certificates = records.iter().map(certificate).collect();
    serde_json::to_string_pretty(&Listing { cluster, certificates })
        .map_err(|error| Failure::System { doing: "cannot print JSON".to_owned(), source: error.into() })
}

fn certificate(record: &Record) -> Certificate {
    Certificate {
        name: record.node.name.to_string(),
        roles: record.node.roles.iter().map(|role| role.name()).collect(),
        hosts: record.hosts.iter().map(ToString::to_string).collect(),
        serial: record.node.serial.to_string(),
        valid_until: record.node.not_after.to_string(),
        state: match record.state {
            State::Valid => "valid",
            State::Expired => "expired",
            State::Revoked { .. } => "revoked",
        },
        revoked_at: match record.state {
            State::Revoked { since } => Some(since.to_string()),
            State::Valid | State::Expired => None,
        },
    }
}

fn as_table(authority: &Authority, records: &[Record], now: Moment) -> String {
    let style = Style::of_stdout();
    let heading = format!(
        "{} {}",
        style.strong(format!("cluster {}", authority.name())),
        style.faint(format!("{}, authority valid until {}", authority.cluster(), authority.not_after()))
    );
    if records.is_empty() {
        return format!("{heading}\n\nno certificates yet; `relevo ca issue` makes one");
    }
    let mut table = terminal::table(&["NAME", "ROLES", "HOSTS", "SERIAL", "VALID UNTIL", "STATE"]);
    for record in records {
        let node = &record.node;
        let hosts: Vec<String> = record.hosts.iter().map(ToString::to_string).collect();
        table.add_row([
            node.name.to_string(),
            node.roles.to_string(),
            hosts.join(","),
            node.serial.to_string(),
            node.not_after.to_string(),
            state(record, now),
        ]);
    }
    format!("{heading}\n\n{}", table.trim_fmt())
}

fn state(record: &Record, now: Moment) -> String {
    const SECONDS_PER_DAY: u64 = 86_400;
    match record.state {
        State::Valid => format!("valid, {} days left", record.node.not_after.0.saturating_sub(now.0) / SECONDS_PER_DAY),
        State::Expired => "expired".to_owned(),
        State::Revoked { since } => format!("revoked {since}"),
    }
}
