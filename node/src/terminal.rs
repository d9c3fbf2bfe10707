//! What a person reads: results on stdout, all else on stderr, colour only where it is wanted.
//!
//! **Invariant:** nothing else in the node writes to stdout or stderr, the log apart.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::environment;

/// A result, on stdout.
///
/// # Errors
/// Transient: stdout is closed (as by `| head`), which ends a command quietly.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// A piece of a result that goes on, on stdout.
///
/// # Errors
/// As [`print`].
pub fn print_piece(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()
}

/// News for the person in front of it, on stderr. Nobody listening is no failure.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether stdout is a terminal.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// How much a text on stdout stands out: nothing unless stdout is a terminal and `NO_COLOR` is unset (<https://no-color.org>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// What stdout wants.
    pub fn of_stdout() -> Self {
        Self { coloured: stdout_is_terminal() && !environment::no_color() }
    }

    /// No escape sequences at all.
    pub const fn plain() -> Self {
        Self { coloured: false }
    }

    /// A heading or a value that matters.
    pub fn strong(self, text: impl Display) -> String {
        self.wrapped("1", text)
    }

    /// What may be overlooked.
    pub fn faint(self, text: impl Display) -> String {
        self.wrapped("2", text)
    }

    /// Something that is well.
    pub fn good(self, text: impl Display) -> String {
        self.wrapped("32", text)
    }

    /// Something that is not.
    pub fn bad(self, text: impl Display) -> String {
        self.wrapped("31", text)
    }

    fn wrapped(self, code: &str, text: impl Display) -> String {
        if self.coloured { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }
}

/// A progress bar over bytes on stderr; hidden where stderr is no terminal.
pub fn byte_progress(total: u64, what: &str) -> ProgressBar {
    progress(total, what, "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A progress bar over a count on stderr; hidden where stderr is no terminal.
pub fn count_progress(total: u64, what: &str) -> ProgressBar {
    progress(total, what, "{msg} {bar:32} {pos}/{len} {per_sec} {eta}")
}

fn progress(total: u64, what: &str, template: &str) -> ProgressBar {
    let target = if stderr_is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(what.to_owned())
}

/// A table without frames, for stdout.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(headings.iter().copied());
    table
}

/// Bytes as a person reads them, such as `93.8 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A count with its thousands apart, such as `98,362,432`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration as a person reads it: `12 ms`, `3.4 s`.
pub fn duration(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{} ms", span.as_millis())
    } else {
        format!("{:.1} s", span.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_in_the_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(98_362_432), "93.8 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(98_362_432), "98,362,432");
    }

    #[test]
    fn a_plain_style_adds_nothing() {
        assert_eq!(Style::plain().strong("x"), "x");
        assert_eq!(Style { coloured: true }.bad("x"), "\u{1b}[31mx\u{1b}[0m");
    }
}
