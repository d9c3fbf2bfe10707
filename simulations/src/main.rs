//! `relevo-simulations SEED [NUM]`: replays one seed event by event, or plays many and tells which of them break a promise.

use std::process::ExitCode;

use relevo_simulations::{Scenario, play, play_aloud};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]
fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).map_while(|argument| argument.parse().ok()).collect();
    let failures: Vec<_> = match numbers[..] {
        [seed] => {
            println!("{}", Scenario::of_seed(seed).summary());
            match play_aloud(seed, &mut |line| println!("{line}")) {
                Ok(report) => {
                    println!("{report:#?}");
                    Vec::new()
                }
                Err(failure) => vec![failure],
            }
        }
        [first, num] => (first..first.saturating_add(num)).filter_map(|seed| play(seed).err()).collect(),
        _ => {
            eprintln!("usage: relevo-simulations SEED       replay one seed, event by event");
            eprintln!("       relevo-simulations FIRST NUM  play NUM seeds, from FIRST on");
            return ExitCode::from(2);
        }
    };
    for failure in &failures {
        eprintln!("{failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
