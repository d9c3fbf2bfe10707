//! Same bits through the actors, with real weights: an answer's tokens and log-probabilities depend neither on the layout of the cluster, nor on
//! threads, instruction sets, chunks, neighbours, cached prefixes, preemption, or the death of a worker in its middle.
//!
//! Every test also shows by the cluster's own counters that what it is about has happened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helper fails as its test does")]

mod counters;
#[path = "../../../gpu/tests/default_model/mod.rs"]
mod default_model;
mod gate;
mod serving;
#[path = "../world/mod.rs"]
mod world;

use std::time::Duration;

use counters::{Since, turn};
use gate::Gate;
use relevo_actors::cluster::Cluster;
use relevo_gpu::cpu::Isa;
use relevo_wire::{BLOCK_TOKENS, GenerateRequest, Numerics, Usage, blocks_for_tokens};
use serving::{Manner, Subject, plain};
use world::{LAYOUTS, Layout, Outcome, at_rest, read_with_usage, until};

const SHUTDOWN: Duration = Duration::from_secs(5);

/// Below, at and above a block; several blocks and a bit.
const LENGTHS: [usize; 5] = [1, 15, 16, 17, 200];

/// Threads and rows of a step: prompts whole and in chunks of 80, 48 and 32.
const SIZES: [(usize, usize); 4] = [(1, 512), (2, 80), (3, 48), (2, 32)];

async fn start(subject: &Subject, manner: Manner) -> Cluster {
    Cluster::start(subject.options(manner, None)).await.unwrap()
}

/// Asks all at once; every answer with what it took.
async fn ask(cluster: &Cluster, questions: &[GenerateRequest]) -> Vec<(Outcome, Usage)> {
    let mut streams: Vec<_> =
        questions.iter().map(|question| cluster.gateway().submit(question.clone()).unwrap()).collect();
    let mut answers = Vec::new();
    for stream in &mut streams {
        answers.push(read_with_usage(stream).await);
    }
    answers
}

/// Asks one after the other.
async fn ask_one_by_one(cluster: &Cluster, questions: &[GenerateRequest]) -> Vec<(Outcome, Usage)> {
    let mut answers = Vec::new();
    for question in questions {
        answers.extend(ask(cluster, std::slice::from_ref(question)).await);
    }
    answers
}

/// What the plainest manner answers.
async fn reference(subject: &Subject, questions: &[GenerateRequest]) -> Vec<Outcome> {
    let cluster = start(subject, plain()).await;
    let answers = ask_one_by_one(&cluster, questions).await;
    cluster.shutdown(SHUTDOWN).await;
    outcomes(answers)
}

fn outcomes(answers: Vec<(Outcome, Usage)>) -> Vec<Outcome> {
    answers.into_iter().map(|(outcome, _)| outcome).collect()
}

/// The same questions once more: request ids are never used twice.
fn again(questions: &[GenerateRequest]) -> Vec<GenerateRequest> {
    let mut questions = questions.to_vec();
    questions.iter_mut().for_each(|question| question.sequence.request.0 += 1000);
    questions
}

#[track_caller]
fn assert_same(answers: &[(Outcome, Usage)], expected: &[Outcome], what: impl std::fmt::Debug) {
    assert_eq!(answers.len(), expected.len());
    for (index, ((answer, _), expected)) in answers.iter().zip(expected).enumerate() {
        assert_eq!(answer.tokens, expected.tokens, "{what:?}: tokens of answer {index}");
        assert!(answer == expected, "{what:?}: bits of answer {index}");
    }
}

/// Every layout with every instruction set, and each of these with sizes in turn.
fn manners() -> Vec<Manner> {
    let mut manners = Vec::new();
    for layout in LAYOUTS {
        for isa in Isa::available() {
            let (num_threads, step_rows) = SIZES[manners.len() % SIZES.len()];
            manners.push(Manner { layout, isa, num_threads, step_rows, ..plain() });
        }
    }
    manners
}

/// Steps that prompts and answers take one after the other: chunks end where blocks do, but for a prompt's last.
fn steps_one_by_one(questions: &[GenerateRequest], step_rows: usize) -> u64 {
    let steps = |question: &GenerateRequest| {
        let (mut left, mut chunks) = (question.prompt.len(), 1);
        while left > step_rows {
            left -= step_rows / BLOCK_TOKENS * BLOCK_TOKENS;
            chunks += 1;
        }
        chunks + u64::from(question.max_tokens) - 1
    };
    questions.iter().map(steps).sum()
}

/// Waits until the carrier of the layout, and no other, has handed over so many bytes: it counts a frame after its answer.
async fn assert_handed_over(cluster: &Cluster, since: &Since, layout: Layout, expected: u64) {
    let used = match layout {
        Layout::Combined | Layout::SameDevice => "same-pool",
        Layout::TwoDevices | Layout::Crossed => "in-process",
        Layout::OverQuic => "quic",
    };
    let what = format!("{layout:?}: {expected} bytes are handed over by {used}");
    until(&what, &|| since.handed_over(used) >= expected, cluster).await;
    for carrier in ["same-pool", "in-process", "quic"] {
        let expected = if carrier == used { expected } else { 0 };
        assert_eq!(since.handed_over(carrier), expected, "{layout:?}: bytes by {carrier}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layouts_threads_instruction_sets_chunks_and_neighbours_do_not_show() {
    let _turn = turn().await;
    let subject = Subject::tiny("llama", Numerics::Default);
    let questions = subject.questions(&LENGTHS);
    let expected = reference(&subject, &questions).await;
    for manner in manners() {
        let cluster = start(&subject, manner).await;
        let since = Since::now();
        assert_same(&ask_one_by_one(&cluster, &questions).await, &expected, manner);
        at_rest(&cluster).await;
        assert_handed_over(&cluster, &since, manner.layout, subject.prompt_bytes(&questions)).await;
        let num_steps = since.count("relevo_steps_total", "");
        assert_eq!(num_steps, steps_one_by_one(&questions, manner.step_rows), "{manner:?}");

        let since = Since::now();
        assert_same(&ask(&cluster, &again(&questions)).await, &expected, manner);
        at_rest(&cluster).await;
        assert_handed_over(&cluster, &since, manner.layout, subject.prompt_bytes(&questions)).await;
        // How many depends on how busy the machine is.
        assert!(since.count("relevo_steps_total", "") < num_steps, "{manner:?}: no step served two of them");
        cluster.shutdown(SHUTDOWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_part_of_a_model_or_of_a_request_shows_how_it_was_served() {
    let _turn = turn().await;
    for name in ["llama", "llama3_rope", "mistral", "qwen2", "qwen3"] {
        for numerics in [Numerics::Default, Numerics::Exact] {
            let subject = Subject::tiny(name, numerics);
            let mut questions = subject.questions(&[15, 200]);
            questions.iter_mut().skip(1).step_by(2).for_each(|question| question.prompt_logprobs = Some(1));
            let expected = reference(&subject, &questions).await;
            for (layout, (num_threads, step_rows)) in [(Layout::SameDevice, SIZES[3]), (Layout::OverQuic, SIZES[2])] {
                let manner = Manner { layout, num_threads, step_rows, ..plain() };
                let cluster = start(&subject, manner).await;
                assert_same(&ask(&cluster, &questions).await, &expected, (name, numerics, manner));
                cluster.shutdown(SHUTDOWN).await;
            }
        }
    }
}

/// Asks, asks what begins alike, and asks all of it again.
async fn check_cached_prefixes(subject: &Subject, manner: Manner, lengths: &[usize]) {
    let mut questions = subject.questions(lengths);
    let num_alone = questions.len();
    let [.., other, longest] = &questions[..] else { panic!("no questions") };
    let shared = &longest.prompt[..longest.prompt.len() / 2 / BLOCK_TOKENS * BLOCK_TOKENS];
    // One's first block, and after it another's second: it has been computed, but not after this one.
    let crossed = [&longest.prompt[..BLOCK_TOKENS], &other.prompt[BLOCK_TOKENS..2 * BLOCK_TOKENS]].concat();
    let heads = [(90, shared, shared.len()), (91, shared, shared.len()), (92, &crossed, BLOCK_TOKENS)];
    let found = heads.map(|(_, _, num_found)| num_found);
    let following = heads.map(|(id, head, _)| subject.beginning_with(id, head));
    questions.extend(following);
    let expected = reference(subject, &questions).await;

    let cluster = start(subject, manner).await;
    let answers = ask_one_by_one(&cluster, &questions).await;
    assert_same(&answers, &expected, (manner, "cold"));
    let cached: Vec<usize> = answers.iter().map(|(_, usage)| usage.cached_tokens as usize).collect();
    assert_eq!(cached[..num_alone], vec![0; num_alone], "{manner:?}");
    assert_eq!(cached[num_alone..], found, "{manner:?}: what begins alike is found");

    at_rest(&cluster).await;
    let since = Since::now();
    let answers = ask(&cluster, &again(&questions)).await;
    assert_same(&answers, &expected, (manner, "warm"));
    for (question, (_, usage)) in questions.iter().zip(&answers) {
        let length = question.prompt.len();
        // A prompt's last token is computed in any case.
        assert_eq!(usage.cached_tokens as usize, (length - 1) / BLOCK_TOKENS * BLOCK_TOKENS, "{manner:?}: {length}");
    }
    at_rest(&cluster).await;
    // Full blocks of the prompt are on the decode device already.
    let is_new = |length: usize| blocks_for_tokens(length) - length / BLOCK_TOKENS;
    let num_new: usize = questions.iter().map(|question| is_new(question.prompt.len())).sum();
    let moved = match manner.layout {
        Layout::Combined | Layout::SameDevice => subject.prompt_bytes(&questions),
        Layout::TwoDevices | Layout::Crossed | Layout::OverQuic => subject.kv_bytes(num_new),
    };
    assert_handed_over(&cluster, &since, manner.layout, moved).await;
    cluster.shutdown(SHUTDOWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_prefixes_do_not_show() {
    let _turn = turn().await;
    let subject = Subject::tiny("llama", Numerics::Default);
    for layout in [Layout::Combined, Layout::SameDevice, Layout::TwoDevices, Layout::OverQuic] {
        for (num_threads, step_rows) in SIZES {
            let manner = Manner { layout, num_threads, step_rows, prefix_cache: true, ..plain() };
            check_cached_prefixes(&subject, manner, &LENGTHS).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preemption_does_not_show() {
    let _turn = turn().await;
    let subject = Subject::tiny("llama", Numerics::Default);
    let questions = subject.questions(&LENGTHS);
    let expected = reference(&subject, &questions).await;
    for layout in [Layout::SameDevice, Layout::TwoDevices] {
        for prefix_cache in [false, true] {
            let manner = Manner { layout, kv_blocks: 24, prefix_cache, ..plain() };
            let since = Since::now();
            let cluster = start(&subject, manner).await;
            assert_same(&ask(&cluster, &questions).await, &expected, manner);
            at_rest(&cluster).await;
            if layout == Layout::SameDevice {
                assert!(since.count("vllm:num_preemptions_total", "") > 0, "{manner:?}: the pool was large enough");
            }
            cluster.shutdown(SHUTDOWN).await;
        }
    }
}

/// A worker that dies while a step of a device stands at the gate.
#[derive(Clone, Copy, Debug)]
struct Death {
    layout: Layout,
    victim: &'static str,
    gated: &'static str,
    /// Steps of the gated device before it: in the middle of the prompts, or of the answers.
    num_free: usize,
}

const DEATHS: [Death; 10] = [
    Death { layout: Layout::Combined, victim: "device-0/engine", gated: "cpu0", num_free: 2 },
    Death { layout: Layout::SameDevice, victim: "device-0/engine", gated: "cpu0", num_free: 20 },
    Death { layout: Layout::SameDevice, victim: "device-0/prefill", gated: "cpu0", num_free: 2 },
    Death { layout: Layout::SameDevice, victim: "device-0/decode", gated: "cpu0", num_free: 20 },
    Death { layout: Layout::TwoDevices, victim: "device-0/engine", gated: "cpu0", num_free: 2 },
    Death { layout: Layout::TwoDevices, victim: "device-0/prefill", gated: "cpu0", num_free: 2 },
    Death { layout: Layout::TwoDevices, victim: "device-1/engine", gated: "cpu1", num_free: 8 },
    Death { layout: Layout::TwoDevices, victim: "device-1/decode", gated: "cpu1", num_free: 8 },
    Death { layout: Layout::OverQuic, victim: "device-0/prefill", gated: "cpu0", num_free: 2 },
    Death { layout: Layout::OverQuic, victim: "device-1/engine", gated: "cpu1", num_free: 8 },
];

async fn check_death(
    subject: &Subject,
    manner: Manner,
    death: Death,
    questions: &[GenerateRequest],
    expected: &[Outcome],
) {
    let gate = Gate::after(death.num_free);
    let cluster = Cluster::start(subject.options(manner, Some((death.gated, &gate)))).await.unwrap();
    let since = Since::now();
    let dies = async {
        until("a step stands at the gate", &|| gate.is_reached(), &cluster).await;
        cluster.kill(death.victim).unwrap();
        let restarted =
            || cluster.status().supervision.iter().any(|actor| actor.name == death.victim && actor.restarts == 1);
        // An engine dies at its next step; an actor now, and is seen to while its sequences stand still.
        if !death.victim.ends_with("engine") {
            until("the worker is restarted", &restarted, &cluster).await;
        }
        gate.open();
        until("the worker is restarted", &restarted, &cluster).await;
    };
    let (answers, ()) = tokio::join!(ask(&cluster, questions), dies);
    assert_same(&answers, expected, (death, manner));
    at_rest(&cluster).await;
    assert!(since.count("relevo_replays_total", "") > 0, "{death:?}: it met no stream");
    assert_eq!(since.count("relevo_contradicted_tokens_total", ""), 0, "{death:?}");
    cluster.shutdown(SHUTDOWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_worker_does_not_show() {
    let _turn = turn().await;
    let subject = Subject::tiny("llama", Numerics::Default);
    let questions = subject.questions(&LENGTHS);
    let expected = reference(&subject, &questions).await;
    for death in DEATHS {
        for prefix_cache in [false, true] {
            let manner = Manner { layout: death.layout, step_rows: 48, prefix_cache, ..plain() };
            check_death(&subject, manner, death, &questions, &expected).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_model_answers_the_same_however_it_is_served() {
    let _turn = turn().await;
    let subject = Subject::default_model(8);
    let questions = subject.questions(&[17, 40]);
    let expected = reference(&subject, &questions).await;
    let slowest = Isa::available().last().unwrap();
    let chunked = Manner { layout: Layout::SameDevice, isa: slowest, num_threads: 2, step_rows: 32, ..plain() };
    let cluster = start(&subject, chunked).await;
    let since = Since::now();
    assert_same(&ask(&cluster, &questions).await, &expected, chunked);
    at_rest(&cluster).await;
    assert_handed_over(&cluster, &since, chunked.layout, subject.prompt_bytes(&questions)).await;
    cluster.shutdown(SHUTDOWN).await;

    let apart = Manner { layout: Layout::TwoDevices, isa: Isa::available().nth(1).unwrap_or(slowest), ..plain() };
    check_cached_prefixes(&subject, Manner { prefix_cache: true, ..apart }, &[17, 70]).await;
    let dies = Death { layout: apart.layout, victim: "device-1/engine", gated: "cpu1", num_free: 2 };
    check_death(&subject, Manner { num_threads: 2, ..apart }, dies, &questions, &expected).await;
    let connected = Manner { layout: Layout::OverQuic, prefix_cache: true, ..apart };
    check_cached_prefixes(&subject, connected, &[17, 70]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_answer_does_depend_on_shows() {
    let _turn = turn().await;
    let subject = Subject::tiny("llama", Numerics::Default);
    let questions = subject.questions(&LENGTHS);
    let mut others = questions.clone();
    for other in &mut others {
        match other.sampling.temperature {
            0.0 => other.prompt = other.prompt.iter().map(|token| token ^ 1).collect(),
            _ => other.sampling.seed += 1,
        }
    }
    let (ours, theirs) = (reference(&subject, &questions).await, reference(&subject, &others).await);
    for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_ne!(ours.tokens, theirs.tokens, "answer {index}: another prompt or seed, the same tokens");
    }
}
