//! What of a body arrives at the cluster.

use relevo_wire::{GenerateRequest, SamplingParams};
use serde_json::{Value, json};

use crate::harness::{END, MAX_CONTEXT, World, chat_body, completion_body, says, within};

/// The sequences that a body makes.
async fn sequences(path: &str, body: Value, count: usize) -> Vec<GenerateRequest> {
    let (world, mut submissions) = World::manual().await;
    let reply = world.post(path, &body);
    let play = async {
        let mut requests = Vec::new();
        for _ in 0..count {
            let submission = submissions.recv().await.unwrap();
            for event in says(&submission.request, "x") {
                submission.events.send(event).await.unwrap();
            }
            requests.push(submission.request);
        }
        requests
    };
    let (reply, requests) = tokio::join!(reply, within(play));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(submissions.try_recv().is_err(), "more sequences than {count}");
    requests
}

async fn completion(more: Value) -> GenerateRequest {
    sequences("/v1/completions", completion_body(more), 1).await.remove(0)
}

async fn chat(more: Value) -> GenerateRequest {
    sequences("/v1/chat/completions", chat_body(more), 1).await.remove(0)
}

#[tokio::test]
async fn defaults_change_nothing() {
    let request = completion(json!({})).await;
    let seed = request.sampling.seed;
    assert_eq!(request.sampling, SamplingParams { seed, ..SamplingParams::default() });
    assert_eq!(request.max_tokens as usize, MAX_CONTEXT - 2, "the rest of the context");
    assert_eq!(*request.stop_ids, [END]);
    assert_eq!((request.top_logprobs, request.prompt_logprobs), (None, None));
    assert_eq!((request.sequence.attempt, request.generated.len()), (0, 0));
    assert!(request.deadline.is_some());
}

#[tokio::test]
async fn every_sampling_field_arrives() {
    let fields = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": -1, "frequency_penalty": 0.5,
        "presence_penalty": -0.5, "repetition_penalty": 1.5, "logit_bias": {"9": -1, "3": 2}, "max_tokens": 5,
    });
    for request in [completion(fields.clone()).await, chat(fields.clone()).await] {
        assert_eq!(
            request.sampling,
            SamplingParams {
                temperature: 0.5,
                top_p: 0.25,
                top_k: 7,
                min_p: 0.125,
                seed: u64::MAX,
                frequency_penalty: 0.5,
                presence_penalty: -0.5,
                repetition_penalty: 1.5,
                logit_bias: [(3, 2.0), (9, -1.0)].into(),
            }
        );
        assert_eq!(request.max_tokens, 5);
    }
}

#[tokio::test]
async fn edge_values_arrive_in_the_clusters_ranges() {
    let request = completion(json!({"top_p": 0, "top_k": -1})).await;
    assert!(request.sampling.top_p > 0.0 && request.sampling.top_p < 1e-30);
    assert_eq!(request.sampling.top_k, 0);
    assert!(completion(json!({"ignore_eos": true})).await.stop_ids.is_empty());
    assert_eq!(chat(json!({"max_completion_tokens": 3})).await.max_tokens, 3);
}

#[tokio::test]
async fn seeds_that_are_left_out_are_drawn() {
    let (first, second) = (completion(json!({})).await, completion(json!({})).await);
    assert_ne!(first.sampling.seed, second.sampling.seed);
}

#[tokio::test]
async fn log_probabilities_are_asked_for_as_the_body_says() {
    assert_eq!(completion(json!({"logprobs": 3})).await.top_logprobs, Some(3));
    assert_eq!(completion(json!({"logprobs": 0})).await.top_logprobs, Some(0));
    let echo = completion(json!({"logprobs": 2, "echo": true, "max_tokens": 0})).await;
    assert_eq!((echo.prompt_logprobs, echo.max_tokens), (Some(2), 0));
    assert_eq!(completion(json!({"echo": true})).await.prompt_logprobs, None);
    assert_eq!(chat(json!({"logprobs": true})).await.top_logprobs, Some(0));
    assert_eq!(chat(json!({"logprobs": true, "top_logprobs": 20})).await.top_logprobs, Some(20));
}

#[tokio::test]
async fn prompts_come_in_four_shapes() {
    let prompts = |prompt: Value, count| async move {
        let requests = sequences("/v1/completions", json!({ "prompt": prompt }), count).await;
        requests.iter().map(|request| request.prompt.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(prompts(json!("ab"), 1).await, [[97, 98]]);
    assert_eq!(prompts(json!([5, 6]), 1).await, [[5, 6]]);
    assert_eq!(prompts(json!(["a", "b"]), 2).await, [[97], [98]]);
    assert_eq!(prompts(json!([[1], [2]]), 2).await, [[1], [2]]);
    assert_eq!(prompts(json!(""), 1).await, [[257]], "an empty prompt is the beginning of a document");
}

#[tokio::test]
async fn each_prompt_gets_n_sequences_of_one_request() {
    let body = json!({"prompt": ["a", "b"], "n": 3, "seed": 1});
    let requests = sequences("/v1/completions", body, 6).await;
    let prompts: Vec<_> = requests.iter().map(|request| request.prompt[0]).collect();
    assert_eq!(prompts, [97, 97, 97, 98, 98, 98]);
    let choices: Vec<_> = requests.iter().map(|request| request.sequence.choice).collect();
    assert_eq!(choices, [0, 1, 2, 3, 4, 5]);
    assert!(requests.iter().all(|request| request.sequence.request == requests[0].sequence.request));
    assert!(requests.iter().all(|request| request.sampling.seed == 1));
}

#[tokio::test]
async fn a_conversation_is_rendered_by_the_template() {
    let messages = json!([
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]);
    let request = chat(json!({ "messages": messages })).await;
    let text: String = request.prompt.iter().map(|&token| char::from_u32(token).unwrap()).collect();
    assert_eq!(text, "<system>S\n<user>a\nb\n<assistant>");
}
