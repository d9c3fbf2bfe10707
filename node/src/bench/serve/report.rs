//! What a run showed, as JSON and as a table.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ServeArgs;
use super::workers::{Measured, Timing};
use crate::bench::percentiles::Percentiles;
use crate::terminal;

/// The one line of `--json`.
#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) concurrency: usize,
    pub(super) requests: usize,
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) duration_s: f64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) requests_per_second: f64,
    pub(super) output_tokens_per_second: f64,
    pub(super) total_tokens_per_second: f64,
    pub(super) ttft_ms: Option<Percentiles>,
    pub(super) itl_ms: Option<Percentiles>,
    pub(super) tpot_ms: Option<Percentiles>,
    pub(super) goodput: Option<Goodput>,
}

/// How many requests kept the limits.
#[derive(Debug, PartialEq, serde::Serialize)]
pub(super) struct Goodput {
    pub(super) slo_ttft_ms: Option<f64>,
    pub(super) slo_itl_ms: Option<f64>,
    pub(super) good_requests: usize,
    pub(super) requests_per_second: f64,
}

impl Report {
    pub(super) fn of(args: &ServeArgs, model: &str, measured: &Measured) -> Self {
        let timings: Vec<&Timing> = measured.outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        let mut errors = BTreeMap::new();
        for kind in measured.outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            *errors.entry(kind.clone()).or_default() += 1;
        }
        let seconds = measured.wall.as_secs_f64().max(1e-9);
        let rate = |count: u64| rounded(count as f64 / seconds);
        let prompt_tokens = timings.iter().map(|timing| timing.prompt_tokens).sum();
        let completion_tokens = timings.iter().map(|timing| timing.completion_tokens).sum();
        Self {
            model: model.to_owned(),
            concurrency: args.concurrency.get(),
            requests: args.requests.get(),
            completed: timings.len(),
            failed: measured.outcomes.len() - timings.len(),
            errors,
            duration_s: rounded(seconds),
            prompt_tokens,
            completion_tokens,
            requests_per_second: rate(timings.len() as u64),
            output_tokens_per_second: rate(completion_tokens),
            total_tokens_per_second: rate(prompt_tokens + completion_tokens),
            ttft_ms: Percentiles::of(timings.iter().map(|timing| timing.ttft).collect()),
            itl_ms: Percentiles::of(timings.iter().flat_map(|timing| timing.gaps.iter().copied()).collect()),
            tpot_ms: Percentiles::of(timings.iter().filter_map(|timing| timing.tpot).collect()),
            goodput: Goodput::of(args, &timings, seconds),
        }
    }

    /// For a person.
    pub(super) fn table(&self) -> String {
        let mut table = terminal::table(&["", "p50", "p90", "p99"]);
        let rows = [
            ("time to first token, ms", &self.ttft_ms),
            ("between tokens (ITL), ms", &self.itl_ms),
            ("mean per token (TPOT), ms", &self.tpot_ms),
        ];
        for (name, percentiles) in rows {
            let percentiles = percentiles.unwrap_or_default();
            let cell = |value: f64| format!("{value:.1}");
            let cells = [cell(percentiles.p50), cell(percentiles.p90), cell(percentiles.p99)];
            table.add_row([name.to_owned()].into_iter().chain(cells));
        }
        let mut text = format!(
            "{}: {} of {} requests, {} at a time, in {:.1} s\n\n{}\n\n",
            self.model,
            self.completed,
            self.requests,
            self.concurrency,
            self.duration_s,
            table.trim_fmt()
        );
        text += &format!(
            "output tokens/s  {:.1}\ntotal tokens/s   {:.1}\nrequests/s       {:.2}",
            self.output_tokens_per_second, self.total_tokens_per_second, self.requests_per_second
        );
        if let Some(goodput) = &self.goodput {
            let (rate, good) = (goodput.requests_per_second, goodput.good_requests);
            text += &format!("\ngoodput          {rate:.2} requests/s ({good} of {} keep the limits)", self.requests);
        }
        text
    }
}

impl Goodput {
    /// `None` if no limit was asked for.
    fn of(args: &ServeArgs, timings: &[&Timing], seconds: f64) -> Option<Self> {
        let (slo_ttft_ms, slo_itl_ms) = (args.slo_ttft_ms, args.slo_itl_ms);
        if slo_ttft_ms.is_none() && slo_itl_ms.is_none() {
            return None;
        }
        let keeps = |span: Duration, limit: Option<f64>| limit.is_none_or(|limit| span.as_secs_f64() * 1e3 <= limit);
        let good = |timing: &&&Timing| {
            keeps(timing.ttft, slo_ttft_ms) && timing.tpot.is_none_or(|tpot| keeps(tpot, slo_itl_ms))
        };
        let good_requests = timings.iter().filter(good).count();
        let requests_per_second = rounded(good_requests as f64 / seconds);
        Some(Self { slo_ttft_ms, slo_itl_ms, good_requests, requests_per_second })
    }
}

/// To three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn timing(ttft_ms: u64, tpot_ms: u64) -> Result<Timing, String> {
        Ok(Timing {
            ttft: Duration::from_millis(ttft_ms),
            gaps: vec![Duration::from_millis(tpot_ms); 9],
            tpot: Some(Duration::from_millis(tpot_ms)),
            prompt_tokens: 100,
            completion_tokens: 10,
        })
    }

    #[test]
    fn rates_percentiles_errors_and_goodput_come_from_what_was_measured() {
        let line = ["x", "--requests", "4", "--slo-ttft-ms", "50", "--slo-itl-ms", "20"];
        let args = Line::parse_from(line).args;
        let outcomes = vec![timing(10, 5), timing(40, 30), timing(60, 5), Err("429: full".to_owned())];
        let measured = Measured { wall: Duration::from_secs(2), outcomes };
        let report = Report::of(&args, "m", &measured);
        assert_eq!((report.completed, report.failed), (3, 1));
        assert_eq!(report.errors["429: full"], 1);
        assert!((report.output_tokens_per_second - 15.0).abs() < 1e-9);
        assert!((report.total_tokens_per_second - 165.0).abs() < 1e-9);
        assert_eq!(report.ttft_ms.unwrap().p50, 40.0);
        assert_eq!(report.tpot_ms.unwrap().p90, 25.0);
        assert_eq!(report.goodput.as_ref().unwrap().good_requests, 1);
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert!(json["itl_ms"]["p99"].is_number());
        assert!(report.table().contains("goodput          0.50 requests/s (1 of 4 keep the limits)"));
    }
}
