//! `relevo-simulations SEED [NUM]` and `relevo-simulations STEP BLOW`: replay one run event by event, or play many and tell which of them break a
//! promise.

use std::process::ExitCode;

use relevo_actors::policy::hand_over::HandOverStep;
use relevo_simulations::{Blow, Failure, Scenario, World, play};

const USAGE: &str = "\
usage: relevo-simulations SEED       replay one seed, event by event
       relevo-simulations FIRST NUM  play NUM seeds, from FIRST on
       relevo-simulations STEP BLOW  replay one cell of the table of hand-overs, such as half-pushed kill-decode";

#[expect(clippy::print_stderr, reason = "a report is what it is for")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let numbers: Vec<u64> = arguments.iter().map_while(|argument| argument.parse().ok()).collect();
    let failures: Vec<_> = match (&numbers[..], &arguments[..]) {
        (&[seed], [_]) => replay(Scenario::of_seed(seed)).into_iter().collect(),
        (&[first, num], [_, _]) => (first..first.saturating_add(num)).filter_map(|seed| play(seed).err()).collect(),
        (_, &[step, blow]) if let Some(scenario) = cell(step, blow) => replay(scenario).into_iter().collect(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    for failure in &failures {
        eprintln!("{failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cell(step: &str, blow: &str) -> Option<Scenario> {
    let step = HandOverStep::ALL.into_iter().find(|known| known.name() == step)?;
    let blow = Blow::all().into_iter().find(|known| known.to_string() == blow)?;
    Some(Scenario::of_cell(step, blow))
}

#[expect(clippy::print_stdout, reason = "a report is what it is for")]
fn replay(scenario: Scenario) -> Option<Failure> {
    println!("{}", scenario.summary());
    let report = World::new(scenario).play_aloud(&mut |line| println!("{line}"));
    report.inspect(|report| println!("{report:#?}")).err()
}
