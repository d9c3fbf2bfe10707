//! What the router's decisions cost: block events, look-ups of a long prompt, and whole cycles of a request.
//!
//! `cargo run --release -p relevo-actors --example router_bench`. Each figure is the best of many rounds, since others may use the machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for a person at a terminal")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::coordinator::{ClusterMap, DeviceFacts, MapEntry, Standing};
use relevo_actors::device::DeviceRole;
use relevo_actors::policy::hint_keys::{HintKey, HintKeyer};
use relevo_actors::policy::hints::{Heard, PrefixHints};
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_actors::policy::prefix_news::{PrefixBatch, PrefixChange, PrefixNews, PrefixWords};
use relevo_actors::policy::routing::{Disaggregate, LOCAL_PREFILL_BELOW_TOKENS};
use relevo_actors::router::{RouterCore, RouterEffect, RouterEvent, RouterLimits};
use relevo_wire::{
    BLOCK_TOKENS, DeviceId, Epoch, GenerateRequest, Instant64, MapVersion, RequestId, SamplingParams, SequenceId,
    TenantId, TokenId,
};

/// Tokens of a long prompt.
const LONG: u32 = 32_768;

/// Blocks that each worker holds: 1.6 million tokens.
const POOL: usize = 100_000;

/// Prompts that are looked up in turn, so that what one leaves in the CPU's caches does not help the next.
const NUM_PROMPTS: usize = 32;

const ROUNDS: usize = 30;

/// A batch of news.
const BATCH: usize = 1024;

fn main() {
    block_events();
    for num_workers in [1, 8, 64] {
        look_ups(num_workers);
    }
    for num_tokens in [1024, LONG] {
        cycles(num_tokens);
    }
}

/// The least time that a round takes.
fn best(mut round: impl FnMut()) -> Duration {
    let time = |()| {
        let begin = clock::now();
        round();
        clock::now().since(begin)
    };
    std::iter::repeat_n((), ROUNDS).map(time).min().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

fn prompt(index: usize, num_tokens: u32) -> Vec<TokenId> {
    (0..num_tokens).map(|place| place ^ (u32::try_from(index).unwrap() << 16)).collect()
}

fn change(seq: u64, added: Vec<HintKey>, removed: Vec<HintKey>) -> PrefixBatch {
    PrefixBatch { from_seq: seq - 1, seq, words: PrefixWords::Changed(PrefixChange { added, removed }) }
}

/// A worker with a full pool: half of each batch comes, and as many of the oldest go.
fn block_events() {
    let mut numbers = Numbers(1);
    let keys: Vec<HintKey> = (0..POOL + ROUNDS * 5 * BATCH).map(|_| HintKey(numbers.next())).collect();
    let mut hints = PrefixHints::default();
    hints.heard(&change(1, keys[..POOL].to_vec(), Vec::new()));
    let mut seq = 1;
    let half = BATCH / 2;
    let halves = keys[POOL..].chunks_exact(half).zip(keys.chunks_exact(half));
    let batches: Vec<_> = halves
        .map(|(added, removed)| {
            seq += 1;
            change(seq, added.to_vec(), removed.to_vec())
        })
        .collect();
    let mut rounds = batches.chunks_exact(10);
    let time = best(|| {
        let round = rounds.next().unwrap();
        assert!(round.iter().all(|batch| hints.heard(batch) == Heard::Applied));
    });
    let per_second = |time: Duration, num_events: usize| num_events as f64 / time.as_secs_f64() / 1e6;
    println!(
        "block events, router:    {:6.1} million/s  ({} blocks held)",
        per_second(time, 10 * BATCH),
        hints.num_held()
    );
    let mut news = PrefixNews::default();
    let time = best(|| {
        let mut said = Vec::new();
        keys[..10 * BATCH].iter().for_each(|&key| news.note(key, key.0 % 2 == 0));
        news.changes(BATCH, &mut said);
        black_box(said);
    });
    println!("block events, device:    {:6.1} million/s", per_second(time, 10 * BATCH));
}

/// How far each worker holds each prompt.
#[derive(Clone, Copy)]
enum Held {
    /// One holds all of it, the others nothing.
    ByOne,
    /// All hold the first 4096 tokens, one of them all.
    Begun,
    /// Everyone holds another part: the worst case.
    Anyhow,
}

fn look_ups(num_workers: usize) {
    let keyer = HintKeyer::new([7; 32]);
    let tokens: Vec<Vec<TokenId>> = (0..NUM_PROMPTS).map(|index| prompt(index, LONG)).collect();
    let keys: Vec<Vec<HintKey>> = tokens.iter().map(|tokens| keyer.keys(TenantId(1), tokens)).collect();
    let making = best(|| tokens.iter().for_each(|tokens| _ = black_box(keyer.keys(TenantId(1), tokens))));
    let making = making / u32::try_from(NUM_PROMPTS).unwrap();
    if num_workers == 1 {
        println!("keys of {LONG} tokens:    {:6.1} us", micros(making));
        let salt = PrefixIdentity { secret: [7; 32], content: String::new() }.salt(TenantId(1));
        let time = best(|| salt.extend(black_box(&mut Vec::new()), &tokens[0]));
        println!("  those of the device:   {:6.1} us", micros(time));
    }
    for (held, name) in
        [(Held::ByOne, "one holds it all"), (Held::Begun, "all hold 4096 tokens"), (Held::Anyhow, "each another part")]
    {
        let workers = workers(num_workers, &keys, held);
        let time = best(|| {
            for keys in &keys {
                let mut num_held = 0;
                for hints in &workers {
                    num_held = black_box(hints.leading_blocks(keys, num_held));
                }
            }
        });
        let time = time / u32::try_from(NUM_PROMPTS).unwrap();
        let (without, with) = (micros(time), micros(time + making));
        println!("look-up, {num_workers:2} workers:     {without:6.1} us, {with:6.1} us with the keys  ({name})");
    }
}

fn workers(num_workers: usize, prompts: &[Vec<HintKey>], held: Held) -> Vec<PrefixHints> {
    let mut numbers = Numbers(2);
    let worker = |worker| {
        let mut known = Vec::new();
        for (index, keys) in prompts.iter().enumerate() {
            let len = match held {
                _ if index % num_workers == worker => keys.len(),
                Held::ByOne => 0,
                Held::Begun => 4096 / BLOCK_TOKENS,
                Held::Anyhow => numbers.below(keys.len() + 1),
            };
            known.extend(&keys[..len]);
        }
        known.extend((known.len()..POOL).map(|_| HintKey(numbers.next())));
        let mut hints = PrefixHints::default();
        hints.heard(&change(1, known, Vec::new()));
        hints
    };
    (0..num_workers).map(worker).collect()
}

/// Submit, dispatch, first token and end of requests, 16 of them in flight on 4 workers.
fn cycles(num_tokens: u32) {
    const IN_FLIGHT: usize = 16;
    let limits = RouterLimits {
        max_waiting: 64,
        max_running: 256,
        max_prefilling: 32,
        disaggregate: Disaggregate::Auto,
        local_prefill_below_tokens: LOCAL_PREFILL_BELOW_TOKENS,
        slow_factor: 0,
    };
    let mut core = RouterCore::new(limits, HintKeyer::new([7; 32]));
    let mut effects = Vec::new();
    core.handle(RouterEvent::Map(map()), Instant64(0), &mut effects);
    let prompts: Vec<Arc<[TokenId]>> = (0..NUM_PROMPTS).map(|index| prompt(index, num_tokens).into()).collect();
    let keys = prompts.iter().flat_map(|prompt| HintKeyer::new([7; 32]).keys(TenantId(1), prompt));
    let batch = change(1, keys.collect(), Vec::new());
    core.handle(RouterEvent::PrefixChanged { device: DeviceId(2), epoch: Epoch(1), batch }, Instant64(0), &mut effects);
    effects.clear();
    let requests: Vec<_> =
        (0..ROUNDS * 100 + IN_FLIGHT).map(|id| request(id as u64, &prompts[id % NUM_PROMPTS])).collect();
    let mut next = 0;
    let mut cycle = |core: &mut RouterCore| {
        let request = Arc::clone(&requests[next]);
        core.handle(RouterEvent::Submit { request, admitted: false, suspect: false }, Instant64(0), &mut effects);
        assert!(matches!(effects.pop(), Some(RouterEffect::Dispatch { .. })));
        core.handle(RouterEvent::Started(requests[next].sequence), Instant64(0), &mut effects);
        if let Some(oldest) = next.checked_sub(IN_FLIGHT) {
            core.handle(RouterEvent::Ended(requests[oldest].sequence), Instant64(0), &mut effects);
        }
        next += 1;
    };
    (0..IN_FLIGHT).for_each(|_| cycle(&mut core));
    let time = best(|| (0..100).for_each(|_| cycle(&mut core)));
    let num = core.num_in_flight();
    println!(
        "cycle of a request:      {:6.1} us  (prompt of {num_tokens} tokens, 4 workers, {num} in flight)",
        micros(time) / 100.0
    );
}

fn map() -> ClusterMap {
    let device = |device| MapEntry {
        facts: DeviceFacts {
            device: DeviceId(device),
            name: format!("cpu{device}"),
            able: vec![DeviceRole::Prefill, DeviceRole::Decode],
            roles: vec![DeviceRole::Prefill, DeviceRole::Decode],
            epoch: Epoch(1),
            num_blocks: 1_000_000,
            max_context: 1_000_000,
        },
        standing: Standing::Serving,
    };
    ClusterMap { term: 1, version: MapVersion(1), devices: (0..4).map(device).collect(), nodes: Vec::new() }
}

fn request(id: u64, prompt: &Arc<[TokenId]>) -> Arc<GenerateRequest> {
    Arc::new(GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId(1),
        prompt: Arc::clone(prompt),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: Arc::from([]),
        max_tokens: 16,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    })
}
