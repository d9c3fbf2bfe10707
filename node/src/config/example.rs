//! The example file, made from the types.

use std::fmt::Write;

use super::section::Section;
use super::sections::{Device, Log, Model, Node, Router, Server, Testing, Traces, Transport};

/// The text of `relevo config --example`: every key with its default; what has none is shown as a comment.
pub fn example() -> String {
    let mut text = String::from(
        "# Relevo's configuration. Every key stands here with its default; those behind a `#` have none.\n\
         # Flags win over this file. `relevo config --check relevo.toml` says what is wrong with one.\n",
    );
    write_section::<Server>(&mut text, "[server]", Shown::Open);
    write_section::<Model>(&mut text, "[model]", Shown::Open);
    write_section::<Router>(&mut text, "[router]", Shown::Open);
    write_section::<Node>(&mut text, "[node]", Shown::Open);
    write_section::<Transport>(&mut text, "[transport]", Shown::Open);
    write_section::<Device>(&mut text, "[[device]]", Shown::Open);
    write_section::<Log>(&mut text, "[log]", Shown::Open);
    write_section::<Traces>(&mut text, "[traces]", Shown::Open);
    write_section::<Testing>(&mut text, "[testing]", Shown::Commented);
    text
}

/// Whether a section's heading is a comment, too.
#[derive(PartialEq, Eq)]
enum Shown {
    Open,
    Commented,
}

fn write_section<S: Section>(text: &mut String, heading: &str, shown: Shown) {
    let defaults = toml::Table::try_from(S::default()).unwrap_or_default();
    text.push('\n');
    for line in S::ABOUT {
        let _ = writeln!(text, "#{line}");
    }
    let _ = writeln!(text, "{}{heading}", if shown == Shown::Commented { "# " } else { "" });
    for key in S::KEYS {
        for line in key.doc {
            let _ = writeln!(text, "#{line}");
        }
        let _ = match (key.example, defaults.get(key.name)) {
            (Some(example), _) => writeln!(text, "# {} = {example}", key.name),
            (None, Some(value)) => writeln!(text, "{} = {value}", key.name),
            (None, None) => writeln!(text, "# {} =", key.name),
        };
    }
}
