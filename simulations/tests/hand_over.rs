//! The table *steps x blows*: whatever strikes a hand-over, at whichever of its steps, the streams are those of an undisturbed cluster.

use std::collections::BTreeSet;

use relevo_actors::policy::hand_over::HandOverStep;
use relevo_simulations::{Blow, CELL_REQUESTS, Party, Report, Scenario, World};

/// Plays a cell; what it breaks, in words.
fn play(step: HandOverStep, blow: Blow) -> Result<Report, String> {
    let report = World::new(Scenario::of_cell(step, blow)).play().map_err(|failure| failure.to_string())?;
    let broken = |promise: &str| {
        Err(format!("{promise}\nreplay it with: cargo run -p relevo-simulations -- {step} {blow}\n{report:?}"))
    };
    if report.ambushes != 1 {
        return broken("it never came to its step");
    }
    let is_cut_off = blow == Blow::Kill(Party::Gateway);
    if report.finished + report.cut_off != CELL_REQUESTS || (report.cut_off > 0) != is_cut_off {
        return broken("not every stream has its end");
    }
    if blow.is_harmless() && report.replays > 0 {
        return broken("what was under way did not finish where it was");
    }
    Ok(report)
}

#[test]
fn whatever_strikes_a_hand_over_at_whichever_step_no_stream_shows_it() {
    let (blows, mut failures, mut num_cells) = (Blow::all(), Vec::new(), 0);
    for step in HandOverStep::ALL {
        for &blow in &blows {
            num_cells += 1;
            failures.extend(play(step, blow).err().map(|failure| format!("{step} x {blow}: {failure}")));
        }
    }
    let first = failures.first().map_or("", String::as_str);
    assert!(failures.is_empty(), "{} of {num_cells} cells break a promise, the first:\n{first}", failures.len());
    assert_eq!(num_cells, HandOverStep::ALL.len() * blows.len());
}

#[test]
fn no_two_blows_and_no_two_steps_have_one_name() {
    let blows: BTreeSet<String> = Blow::all().iter().map(ToString::to_string).collect();
    assert_eq!(blows.len(), Blow::all().len());
    let steps: BTreeSet<&str> = HandOverStep::ALL.iter().map(|step| step.name()).collect();
    assert_eq!(steps.len(), HandOverStep::ALL.len());
    assert!(HandOverStep::ALL.is_sorted());
}
