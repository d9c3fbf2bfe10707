//! The one screen that a server prints when it serves.

use std::net::SocketAddr;

use relevo_actors::status::ClusterStatus;

use super::loading::PlannedDevice;
use crate::terminal::{self, Style};

/// What the screen tells.
pub(super) struct Banner<'a> {
    pub(super) address: SocketAddr,
    pub(super) needs_key: bool,
    pub(super) title: &'a str,
    pub(super) names: &'a [String],
    /// Such as `Q4_1, 30 layers`.
    pub(super) kind: &'a str,
    /// Positions that the model was made for.
    pub(super) model_context: usize,
    pub(super) has_chat: bool,
    pub(super) devices: &'a [PlannedDevice],
    pub(super) status: &'a ClusterStatus,
}

impl Banner<'_> {
    /// The screen as text.
    pub(super) fn text(&self, style: Style) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let base = format!("http://{}", self.address);
        let mut lines = vec![style.strong(format!("Relevo {version} serves {}", self.names.join(", "))), String::new()];
        let mut row = |name: &str, text: String| lines.push(format!("  {} {text}", style.faint(format!("{name:8}"))));
        row("model", self.model_line());
        for device in self.devices {
            row("device", device_line(device));
        }
        row("actors", self.actors());
        row("API", format!("{base}/v1 (OpenAI), {base}/openapi.json, {base}/metrics"));
        lines.push(String::new());
        lines.push("Try it:".to_owned());
        lines.push(String::new());
        lines.extend(self.curl(&base).into_iter().map(|line| style.strong(format!("  {line}"))));
        lines.push(String::new());
        lines.push("Or `relevo chat`; `relevo status` shows what goes on. Ctrl-C stops.".to_owned());
        lines.join("\n")
    }

    fn model_line(&self) -> String {
        let context = self.devices.first().map_or(self.model_context, |device| device.max_context);
        let made_for = if context < self.model_context {
            format!(" of {}", terminal::thousands(self.model_context as u64))
        } else {
            String::new()
        };
        format!("{} ({}, context {}{made_for})", self.title, self.kind, terminal::thousands(context as u64))
    }

    /// The tree's names, such as `coordinator, router, gateway, device-0 (engine, prefill, decode)`.
    fn actors(&self) -> String {
        let tree = &self.status.supervision;
        let roots: Vec<&str> =
            tree.iter().filter(|actor| actor.parent.is_none()).map(|actor| actor.name.as_str()).collect();
        let is_top = |parent: &Option<String>| parent.as_deref().is_some_and(|parent| roots.contains(&parent));
        let label = |name: &str| {
            let children: Vec<&str> = tree
                .iter()
                .filter(|actor| actor.parent.as_deref() == Some(name))
                .map(|actor| actor.name.rsplit('/').next().unwrap_or(&actor.name))
                .collect();
            if children.is_empty() { name.to_owned() } else { format!("{name} ({})", children.join(", ")) }
        };
        let tops = tree.iter().filter(|actor| is_top(&actor.parent));
        tops.map(|actor| label(&actor.name)).collect::<Vec<_>>().join(", ")
    }

    fn curl(&self, base: &str) -> Vec<String> {
        let key = if self.needs_key { " -H \"Authorization: Bearer $KEY\"" } else { "" };
        let (path, body) = if self.has_chat {
            (
                "chat/completions",
                r#"{"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}"#,
            )
        } else {
            (
                "completions",
                r#"{"prompt": [1, 2, 3], "max_tokens": 16, "return_tokens_as_token_ids": true, "logprobs": 1}"#,
            )
        };
        vec![format!("curl {base}/v1/{path} -H 'content-type: application/json'{key} \\"), format!("  -d '{body}'")]
    }
}

fn device_line(device: &PlannedDevice) -> String {
    let roles: Vec<&str> = device.roles.iter().map(|role| role.name()).collect();
    format!(
        "{}: {}, {}; weights {}, KV {} ({} tokens)",
        device.name,
        device.hardware(),
        roles.join(" + "),
        terminal::bytes(device.plan.memory().weights),
        terminal::bytes(device.plan.memory().kv),
        terminal::thousands(device.kv_tokens as u64)
    )
}
