//! The messages of `ractor_cluster`, as far as a session takes them: written out, since the crate keeps its own to itself.

use prost::Message;
use sha2::{Digest, Sha256};

/// The scope of groups for which nothing else is said.
const SCOPE: &str = "__default_scope__";

/// A frame's content. On the wire its three kinds are one choice.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Packet {
    #[prost(message, optional, tag = "1")]
    pub(crate) auth: Option<Auth>,
    #[prost(message, optional, tag = "2")]
    pub(crate) node: Option<Node>,
    #[prost(message, optional, tag = "3")]
    pub(crate) control: Option<Control>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Auth {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<SessionName>,
    #[prost(message, optional, tag = "4")]
    pub(crate) challenge: Option<Challenge>,
    #[prost(message, optional, tag = "5")]
    pub(crate) answer: Option<ChallengeAnswer>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) flags: Option<Flags>,
    #[prost(string, tag = "3")]
    pub(crate) connection_string: String,
    #[prost(uint64, tag = "4")]
    pub(crate) connection_id: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Flags {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Challenge {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, tag = "3")]
    pub(crate) challenge: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ChallengeAnswer {
    #[prost(uint32, tag = "1")]
    pub(crate) challenge: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) digest: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(message, optional, tag = "2")]
    pub(crate) call: Option<Call>,
    #[prost(message, optional, tag = "3")]
    pub(crate) reply: Option<Reply>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Call {
    #[prost(uint64, tag = "1")]
    pub(crate) to: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) what: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(crate) tag: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) timeout_ms: Option<u64>,
    #[prost(string, tag = "5")]
    pub(crate) variant: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(uint64, tag = "1")]
    pub(crate) to: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) tag: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) what: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Control {
    #[prost(message, optional, tag = "1")]
    pub(crate) spawn: Option<Spawn>,
    #[prost(message, optional, tag = "2")]
    pub(crate) terminate: Option<Terminate>,
    #[prost(message, optional, tag = "5")]
    pub(crate) join: Option<Group>,
    #[prost(message, optional, tag = "6")]
    pub(crate) leave: Option<Group>,
    #[prost(message, optional, tag = "9")]
    pub(crate) ready: Option<Ready>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Spawn {
    #[prost(message, repeated, tag = "1")]
    pub(crate) actors: Vec<Actor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Terminate {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Group {
    #[prost(string, tag = "1")]
    pub(crate) group: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) actors: Vec<Actor>,
    #[prost(string, tag = "3")]
    pub(crate) scope: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Actor {
    #[prost(uint64, tag = "1")]
    pub(crate) pid: u64,
    #[prost(string, optional, tag = "2")]
    pub(crate) name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Ready {}

impl Group {
    pub(crate) fn of(group: &str, pid: u64) -> Self {
        Self { group: group.to_owned(), actors: vec![Actor { pid, name: None }], scope: SCOPE.to_owned() }
    }
}

impl Packet {
    /// A client's first words. Of two sessions of one name the one of the lower id stays.
    pub(crate) fn name(name: &str, connection_id: u64) -> Self {
        let (name, connection_string) = (name.to_owned(), format!("relevo:{name}"));
        let name = SessionName { name, flags: Some(Flags { version: 1 }), connection_string, connection_id };
        Self { auth: Some(Auth { name: Some(name), ..Auth::default() }), ..Self::default() }
    }

    /// Shows that one knows the cluster's secret.
    pub(crate) fn answer(challenge: u32, cookie: &str) -> Self {
        let digest = Sha256::new().chain_update(challenge.to_be_bytes()).chain_update(cookie).finalize().to_vec();
        let answer = Some(ChallengeAnswer { challenge: 7, digest });
        Self { auth: Some(Auth { answer, ..Auth::default() }), ..Self::default() }
    }

    pub(crate) fn control(control: Control) -> Self {
        Self { control: Some(control), ..Self::default() }
    }

    pub(crate) fn join(group: &str, pid: u64) -> Self {
        Self::control(Control { join: Some(Group::of(group, pid)), ..Control::default() })
    }

    pub(crate) fn leave(group: &str, pid: u64) -> Self {
        Self::control(Control { leave: Some(Group::of(group, pid)), ..Control::default() })
    }

    pub(crate) fn ready() -> Self {
        Self::control(Control { ready: Some(Ready {}), ..Control::default() })
    }

    /// A message to a facade; `what` with its length before it, as an argument goes.
    pub(crate) fn deliver(to: u64, tag: u64, what: &[u8]) -> Self {
        let what = [&(what.len() as u64).to_be_bytes(), what].concat();
        let call = Some(Call { to, what, tag, timeout_ms: Some(2000), variant: "Deliver".to_owned() });
        Self { node: Some(Node { call, reply: None }), ..Self::default() }
    }

    pub(crate) fn reply(to: u64, tag: u64, what: Vec<u8>) -> Self {
        Self { node: Some(Node { call: None, reply: Some(Reply { to, tag, what }) }), ..Self::default() }
    }

    /// As it goes over the wire.
    pub(crate) fn frame(&self) -> Vec<u8> {
        framed(&self.encode_to_vec())
    }
}

/// Any bytes as a frame.
pub(crate) fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u64).to_be_bytes(), content].concat()
}
