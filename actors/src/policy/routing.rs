//! Which prefill and which decode worker serve a request: the cheapest pair, in tokens of work.
//!
//! cost = prompt tokens not cached at the prefill worker + prompt tokens waiting there + sequences running at the decode worker +
//! blocks to move. A wrong hint costs a recompute, never correctness.

use relevo_wire::{BLOCK_TOKENS, DeviceId};

/// Whether prefill and decode of a request may be on two devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disaggregate {
    /// Where it pays: a long prompt that the decode worker does not hold.
    #[default]
    Auto,
    /// Wherever there are two devices for it.
    Always,
    /// Only where no device plays both roles.
    Never,
}

/// Uncached prompt tokens below which `auto` prefills where it decodes, unless told otherwise.
///
/// A chunk this short rides along with the decode rows of a step that reads all the weights anyway, so moving it saves nothing.
pub const LOCAL_PREFILL_BELOW_TOKENS: usize = 64;

/// What a router goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Whether prefill and decode may be on two devices.
    pub disaggregate: Disaggregate,
    /// Uncached prompt tokens below which `auto` prefills where it decodes.
    pub local_prefill_below_tokens: usize,
}

/// What a running sequence costs the one that joins it, in prompt tokens: a decode row reads the weights with the others but its KV alone.
const TOKENS_PER_RUNNING: usize = 4;

/// What moving a block costs, in prompt tokens.
const TOKENS_PER_MOVED_BLOCK: usize = 1;

/// What prompt tokens cost where everything takes several times as long.
const SLOW_TOKENS: usize = 4;

/// A worker as it stands for the request at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The device.
    pub device: DeviceId,
    /// It plays prefill and has room for one more.
    pub can_prefill: bool,
    /// It plays decode, has room for one more, and has not refused this request.
    pub can_decode: bool,
    /// Leading prompt tokens that it probably holds.
    pub cached_tokens: usize,
    /// Prompt tokens that wait there.
    pub pending_prompt_tokens: usize,
    /// Sequences there.
    pub num_running: usize,
    /// It is far slower than its peers: others are preferred.
    pub is_slow: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Runs the prompt.
    pub prefill: DeviceId,
    /// Generates.
    pub decode: DeviceId,
    /// Why it is one device, if two were wanted.
    pub skipped: Option<Skip>,
}

/// Why a request is not disaggregated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// There is one device.
    SingleDevice,
    /// The prompt is short.
    ShortPrompt,
    /// The decode worker holds most of the prompt.
    Cached,
    /// Every other prefill worker is full or costs more.
    Busy,
}

impl Skip {
    /// The label in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::SingleDevice => "single_device",
            Self::ShortPrompt => "short_prompt",
            Self::Cached => "cached",
            Self::Busy => "busy",
        }
    }
}

/// The cheapest route, ties to the lower device ids; nothing if no pair has room.
///
/// What a pair costs is the sum of what its two workers do, but for pairs that are one device; so of the prefill workers only the two cheapest
/// (one of them may be the decode worker itself) and the decode worker itself can be in a cheapest pair, and not all pairs are looked at.
pub fn choose(candidates: &[Candidate], prompt_tokens: usize, rule: RoutingRule) -> Option<Route> {
    let job = Job { prompt_tokens, rule };
    let cheapest_prefills = job.cheapest_prefills(candidates);
    let pairs = candidates.iter().filter(|worker| worker.can_decode).flat_map(|decode| {
        let apart = cheapest_prefills.into_iter().flatten().filter(|prefill| prefill.device != decode.device);
        apart.chain(decode.can_prefill.then_some(decode)).map(move |prefill| (prefill, decode))
    });
    let (prefill, decode) = pairs.min_by_key(|(prefill, decode)| job.rank(prefill, decode))?;
    let skipped = job.skipped(candidates, prefill, decode).filter(|_| rule.disaggregate != Disaggregate::Never);
    Some(Route { prefill: prefill.device, decode: decode.device, skipped })
}

/// What is to be routed, by which rule.
#[derive(Clone, Copy)]
struct Job {
    prompt_tokens: usize,
    rule: RoutingRule,
}

impl Job {
    /// The two that are cheapest for all decode workers that are not they.
    fn cheapest_prefills(self, candidates: &[Candidate]) -> [Option<&Candidate>; 2] {
        let rank = |worker: &Candidate| (self.prompts(worker), worker.device);
        let mut cheapest: [Option<&Candidate>; 2] = [None; 2];
        for worker in candidates.iter().filter(|worker| worker.can_prefill) {
            if cheapest[0].is_none_or(|first| rank(worker) < rank(first)) {
                cheapest = [Some(worker), cheapest[0]];
            } else if cheapest[1].is_none_or(|second| rank(worker) < rank(second)) {
                cheapest[1] = Some(worker);
            }
        }
        cheapest
    }

    /// The least is taken.
    fn rank(self, prefill: &Candidate, decode: &Candidate) -> (u8, usize, DeviceId, DeviceId) {
        (self.preference(prefill, decode), self.cost(prefill, decode), prefill.device, decode.device)
    }

    /// 0 for the pairs that the mode wants, 1 for the others; more for those whose streams would be slow.
    fn preference(self, prefill: &Candidate, decode: &Candidate) -> u8 {
        let apart = prefill.device != decode.device;
        let slow = 2 * u8::from(decode.is_slow);
        slow + match self.rule.disaggregate {
            Disaggregate::Always => u8::from(!apart),
            Disaggregate::Never => u8::from(apart),
            // Beyond what stays, the cost decides.
            Disaggregate::Auto => u8::from(decode.can_prefill && self.is_short(decode.cached_tokens) && apart),
        }
    }

    fn cost(self, prefill: &Candidate, decode: &Candidate) -> usize {
        let compute = self.compute(prefill);
        let moved = if prefill.device == decode.device {
            // Its decode rows wait for the chunks of this prompt, and its chunks for them.
            compute / 2 + prefill.num_running * TOKENS_PER_RUNNING
        } else {
            self.compute(decode).div_ceil(BLOCK_TOKENS) * TOKENS_PER_MOVED_BLOCK
        };
        self.prompts(prefill) + decode.num_running * TOKENS_PER_RUNNING + moved
    }

    /// What there is to be prefilled there, this prompt included.
    fn prompts(self, worker: &Candidate) -> usize {
        let tokens = self.compute(worker) + worker.pending_prompt_tokens;
        if worker.is_slow { tokens.saturating_mul(SLOW_TOKENS) } else { tokens }
    }

    /// Prompt tokens that are not there.
    fn compute(self, worker: &Candidate) -> usize {
        self.prompt_tokens.saturating_sub(worker.cached_tokens)
    }

    /// Whether a prompt of which so much is cached is prefilled where it decodes.
    fn is_short(self, cached_tokens: usize) -> bool {
        self.prompt_tokens.saturating_sub(cached_tokens) < self.rule.local_prefill_below_tokens
    }

    fn skipped(self, candidates: &[Candidate], prefill: &Candidate, decode: &Candidate) -> Option<Skip> {
        if prefill.device != decode.device {
            return None;
        }
        Some(if candidates.len() < 2 {
            Skip::SingleDevice
        } else if self.is_short(0) {
            Skip::ShortPrompt
        } else if self.is_short(decode.cached_tokens) {
            Skip::Cached
        } else {
            Skip::Busy
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(disaggregate: Disaggregate) -> RoutingRule {
        RoutingRule { disaggregate, local_prefill_below_tokens: LOCAL_PREFILL_BELOW_TOKENS }
    }

    fn worker(device: u32, roles: &str) -> Candidate {
        Candidate {
            device: DeviceId(device),
            can_prefill: roles.contains('p'),
            can_decode: roles.contains('d'),
            cached_tokens: 0,
            pending_prompt_tokens: 0,
            is_slow: false,
            num_running: 0,
        }
    }

    fn pair(route: Option<Route>) -> Option<(u32, u32)> {
        route.map(|route| (route.prefill.0, route.decode.0))
    }

    #[test]
    fn roles_on_two_devices_are_always_apart() {
        let workers = [worker(0, "p"), worker(1, "d")];
        for mode in [Disaggregate::Auto, Disaggregate::Always, Disaggregate::Never] {
            assert_eq!(pair(choose(&workers, 3, rule(mode))), Some((0, 1)));
        }
    }

    #[test]
    fn a_short_prompt_is_prefilled_where_it_decodes_and_a_long_one_elsewhere() {
        let workers = [worker(0, "pd"), worker(1, "pd")];
        let short = choose(&workers, 20, rule(Disaggregate::Auto)).unwrap();
        assert_eq!((short.prefill, short.decode, short.skipped), (DeviceId(0), DeviceId(0), Some(Skip::ShortPrompt)));
        let long = choose(&workers, 2000, rule(Disaggregate::Auto)).unwrap();
        assert_ne!(long.prefill, long.decode);
        assert_eq!(long.skipped, None);
    }

    #[test]
    fn a_cached_prompt_stays_where_it_lies() {
        let mut workers = [worker(0, "pd"), worker(1, "pd")];
        workers[1].cached_tokens = 1984;
        let route = choose(&workers, 2000, rule(Disaggregate::Auto)).unwrap();
        assert_eq!((route.prefill, route.decode, route.skipped), (DeviceId(1), DeviceId(1), Some(Skip::Cached)));
    }

    #[test]
    fn always_is_apart_even_for_a_short_prompt_and_never_is_together_even_for_a_long_one() {
        let workers = [worker(0, "pd"), worker(1, "pd")];
        let always = choose(&workers, 3, rule(Disaggregate::Always)).unwrap();
        assert_ne!(always.prefill, always.decode);
        let never = choose(&workers, 3000, rule(Disaggregate::Never)).unwrap();
        assert_eq!((never.prefill, never.skipped), (never.decode, None));
    }

    #[test]
    fn a_full_worker_is_left_alone_and_a_busy_one_avoided() {
        let mut workers = [worker(0, "p"), worker(1, "pd"), worker(2, "pd")];
        workers[0].can_prefill = false;
        workers[1].pending_prompt_tokens = 5000;
        assert_eq!(pair(choose(&workers, 1000, rule(Disaggregate::Never))), Some((2, 2)));
        assert_eq!(choose(&workers[..1], 1000, rule(Disaggregate::Auto)), None);
    }

    #[test]
    fn how_short_is_short_can_be_told() {
        let workers = [worker(0, "pd"), worker(1, "pd")];
        for (below, is_apart) in [(0, true), (20, true), (21, false)] {
            let rule = RoutingRule { local_prefill_below_tokens: below, ..rule(Disaggregate::Auto) };
            let route = choose(&workers, 20, rule).unwrap();
            assert_eq!(route.prefill != route.decode, is_apart, "{below}");
        }
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0..4_u8, 0..4_usize, 0..4_usize, 0..3_usize);
        prop::collection::vec(one, 0..7).prop_map(|workers| {
            let candidate = |(device, (roles, cached, pending, num_running))| Candidate {
                is_slow: cached % 3 == 1,
                device: DeviceId(device),
                can_prefill: roles & 1 != 0,
                can_decode: roles & 2 != 0,
                cached_tokens: 40 * cached,
                pending_prompt_tokens: 40 * pending,
                num_running: 10 * num_running,
            };
            (0..).zip(workers).map(candidate).collect()
        })
    }

    proptest! {
        #[test]
        fn the_choice_is_the_least_of_all_pairs(
            candidates in candidates(),
            prompt_tokens in 0..200_usize,
            mode in prop::sample::select(vec![Disaggregate::Auto, Disaggregate::Always, Disaggregate::Never]),
        ) {
            let job = Job { prompt_tokens, rule: rule(mode) };
            let all = candidates.iter().flat_map(|decode| candidates.iter().map(move |prefill| (prefill, decode)));
            let can = all.filter(|(prefill, decode)| prefill.can_prefill && decode.can_decode);
            let least = can.min_by_key(|(prefill, decode)| job.rank(prefill, decode));
            let least = least.map(|(prefill, decode)| (prefill.device.0, decode.device.0));
            prop_assert_eq!(pair(choose(&candidates, prompt_tokens, rule(mode))), least);
        }
    }
}
