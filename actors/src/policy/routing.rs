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

/// Uncached prompt tokens below which `auto` prefills where it decodes.
///
/// A chunk this short rides along with the decode rows of a step that reads all the weights anyway, so moving it saves nothing.
const SHORT_PROMPT_TOKENS: usize = 64;

/// What a running sequence costs the one that joins it, in prompt tokens: a decode row reads the weights with the others but its KV alone.
const TOKENS_PER_RUNNING: usize = 4;

/// What moving a block costs, in prompt tokens.
const TOKENS_PER_MOVED_BLOCK: usize = 1;

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
pub fn choose(candidates: &[Candidate], prompt_tokens: usize, mode: Disaggregate) -> Option<Route> {
    let pairs = candidates
        .iter()
        .filter(|worker| worker.can_decode)
        .flat_map(|decode| candidates.iter().filter(|worker| worker.can_prefill).map(move |prefill| (prefill, decode)));
    let cheapest = pairs
        .map(|(prefill, decode)| {
            let preference = preference(prefill, decode, prompt_tokens, mode);
            ((preference, cost(prefill, decode, prompt_tokens), prefill.device, decode.device), (prefill, decode))
        })
        .min_by_key(|(key, _)| *key);
    let (_, (prefill, decode)) = cheapest?;
    let skipped = skipped(candidates, prefill, decode, prompt_tokens);
    Some(Route {
        prefill: prefill.device,
        decode: decode.device,
        skipped: skipped.filter(|_| mode != Disaggregate::Never),
    })
}

/// 0 for the pairs that the mode wants, 1 for the others.
fn preference(prefill: &Candidate, decode: &Candidate, prompt_tokens: usize, mode: Disaggregate) -> u8 {
    let apart = prefill.device != decode.device;
    let stays = match mode {
        Disaggregate::Always => false,
        Disaggregate::Never => true,
        Disaggregate::Auto if decode.can_prefill => {
            prompt_tokens.saturating_sub(decode.cached_tokens) < SHORT_PROMPT_TOKENS
        }
        Disaggregate::Auto => return 0,
    };
    match mode {
        // Beyond what stays, `auto` lets the cost decide.
        Disaggregate::Auto => u8::from(stays && apart),
        _ => u8::from(stays == apart),
    }
}

fn cost(prefill: &Candidate, decode: &Candidate, prompt_tokens: usize) -> usize {
    let compute = prompt_tokens.saturating_sub(prefill.cached_tokens);
    let moved = if prefill.device == decode.device {
        // Its decode rows wait for the chunks of this prompt, and its chunks for them.
        compute / 2 + prefill.num_running * TOKENS_PER_RUNNING
    } else {
        prompt_tokens.saturating_sub(decode.cached_tokens).div_ceil(BLOCK_TOKENS) * TOKENS_PER_MOVED_BLOCK
    };
    compute + prefill.pending_prompt_tokens + decode.num_running * TOKENS_PER_RUNNING + moved
}

fn skipped(candidates: &[Candidate], prefill: &Candidate, decode: &Candidate, prompt_tokens: usize) -> Option<Skip> {
    if prefill.device != decode.device {
        return None;
    }
    Some(if candidates.len() < 2 {
        Skip::SingleDevice
    } else if prompt_tokens < SHORT_PROMPT_TOKENS {
        Skip::ShortPrompt
    } else if prompt_tokens.saturating_sub(decode.cached_tokens) < SHORT_PROMPT_TOKENS {
        Skip::Cached
    } else {
        Skip::Busy
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(device: u32, roles: &str) -> Candidate {
        Candidate {
            device: DeviceId(device),
            can_prefill: roles.contains('p'),
            can_decode: roles.contains('d'),
            cached_tokens: 0,
            pending_prompt_tokens: 0,
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
            assert_eq!(pair(choose(&workers, 3, mode)), Some((0, 1)));
        }
    }

    #[test]
    fn a_short_prompt_is_prefilled_where_it_decodes_and_a_long_one_elsewhere() {
        let workers = [worker(0, "pd"), worker(1, "pd")];
        let short = choose(&workers, 20, Disaggregate::Auto).unwrap();
        assert_eq!((short.prefill, short.decode, short.skipped), (DeviceId(0), DeviceId(0), Some(Skip::ShortPrompt)));
        let long = choose(&workers, 2000, Disaggregate::Auto).unwrap();
        assert_ne!(long.prefill, long.decode);
        assert_eq!(long.skipped, None);
    }

    #[test]
    fn a_cached_prompt_stays_where_it_lies() {
        let mut workers = [worker(0, "pd"), worker(1, "pd")];
        workers[1].cached_tokens = 1984;
        let route = choose(&workers, 2000, Disaggregate::Auto).unwrap();
        assert_eq!((route.prefill, route.decode, route.skipped), (DeviceId(1), DeviceId(1), Some(Skip::Cached)));
    }

    #[test]
    fn always_is_apart_even_for_a_short_prompt_and_never_is_together_even_for_a_long_one() {
        let workers = [worker(0, "pd"), worker(1, "pd")];
        let always = choose(&workers, 3, Disaggregate::Always).unwrap();
        assert_ne!(always.prefill, always.decode);
        let never = choose(&workers, 3000, Disaggregate::Never).unwrap();
        assert_eq!((never.prefill, never.skipped), (never.decode, None));
    }

    #[test]
    fn a_full_worker_is_left_alone_and_a_busy_one_avoided() {
        let mut workers = [worker(0, "p"), worker(1, "pd"), worker(2, "pd")];
        workers[0].can_prefill = false;
        workers[1].pending_prompt_tokens = 5000;
        assert_eq!(pair(choose(&workers, 1000, Disaggregate::Never)), Some((2, 2)));
        assert_eq!(choose(&workers[..1], 1000, Disaggregate::Auto), None);
    }
}
