//! `relevo bench chaos` in its short form: a cluster whose workers are killed, stopped and cut off under load keeps its promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use program::{finish, relevo};
use serde_json::Value;

#[test]
fn twenty_seconds_of_misfortunes_cost_no_answer_and_leave_nothing_behind() {
    // The promise about pauses is for a machine that does nothing else: ten times that here.
    let arguments =
        ["bench", "chaos", "--duration", "20", "--every", "3", "--streams", "16", "--max-gap-ms", "10000", "--json"];
    let end = finish(&mut relevo(arguments));
    assert!(end.status.success(), "{end:?}");
    let report: Value = serde_json::from_str(&end.stdout).unwrap();
    for key in ["failed", "wrong", "leftover_blocks", "contradicted_tokens"] {
        assert_eq!(report[key], 0, "{key}: {report}");
    }
    assert!(report["completed"].as_u64().unwrap() >= 30, "{report}");
    assert!(report["struck"].as_u64().unwrap() >= 16, "{report}");
    let strikes = report["strikes"].as_array().unwrap();
    assert!(strikes.len() >= 3, "{report}");
    let has_said = end.stderr.contains("no worker is cut off the network");
    assert_eq!(report["has_partitions"], !has_said, "{}", end.stderr);
}
