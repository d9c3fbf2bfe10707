//! Answers as server-sent events.

use std::time::Duration;

use http_body_util::BodyExt;
use relevo_wire::{RequestError, StreamEvent};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Event, Reply, World, chat_body, says, within};

#[tokio::test]
async fn a_chat_stream_is_a_role_then_text_then_the_reason_then_done() {
    let world = World::scripted(|request| says(request, "hi")).await;
    let reply = world.chat(json!({"stream": true})).await;
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    let chunks = reply.chunks();
    let choices: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0].clone()).collect();
    assert_eq!(
        choices,
        [
            json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": "h"}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": "i"}, "finish_reason": null}),
            json!({"index": 0, "delta": {}, "finish_reason": "stop"}),
        ]
    );
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["created"] == chunks[0]["created"]));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "usage is absent unless asked for");
}

#[tokio::test]
async fn a_text_stream_ends_with_the_reason() {
    let world = World::scripted(|request| says(request, "hi")).await;
    let chunks = world.complete(json!({"stream": true})).await.chunks();
    let choices: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0].clone()).collect();
    let choice =
        |text: &str, reason: Value| json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason});
    assert_eq!(choices, [choice("h", Value::Null), choice("i", Value::Null), choice("", json!("stop"))]);
}

#[tokio::test]
async fn usage_comes_in_a_last_chunk_without_choices() {
    let world = World::scripted(|request| says(request, "hi")).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    for reply in [world.chat(options.clone()).await, world.complete(options).await] {
        let mut chunks = reply.chunks();
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 3);
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
        assert!(chunks.iter().all(|chunk| chunk["choices"].as_array().unwrap().len() == 1));
    }
}

#[tokio::test]
async fn a_stream_says_what_the_answer_in_one_piece_says() {
    let world = World::scripted(|request| says(request, format!("{} né", request.sequence.choice))).await;
    let body = json!({"prompt": ["a", "b"], "n": 2, "echo": true, "logprobs": 2});
    let whole = world.post("/v1/completions", &body).await.json();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let reply = world.post("/v1/completions", &streamed).await;
    for (index, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
        let (text, reason) = reply.streamed(index);
        assert_eq!((json!(text), json!(reason)), (choice["text"].clone(), choice["finish_reason"].clone()));
        for list in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
            let pieces = reply.chunks().into_iter().filter(|chunk| chunk["choices"][0]["index"] == index);
            let joined: Vec<Value> = pieces
                .flat_map(|chunk| chunk["choices"][0]["logprobs"][list].as_array().cloned().unwrap_or_default())
                .collect();
            assert_eq!(json!(joined), choice["logprobs"][list], "{list}");
        }
    }
}

#[tokio::test]
async fn several_answers_interleave_as_their_tokens_come() {
    let (world, mut submissions) = World::manual().await;
    let body = json!({"prompt": "a", "n": 2, "stream": true});
    let request = world.post_request("/v1/completions", &body);
    let play = async {
        let (first, second) = (submissions.recv().await.unwrap(), submissions.recv().await.unwrap());
        let (mut ones, mut twos) = (says(&first.request, "ab").into_iter(), says(&second.request, "cd").into_iter());
        // The second begins, the first overtakes it.
        second.events.send(twos.next().unwrap()).await.unwrap();
        for event in ones.by_ref() {
            first.events.send(event).await.unwrap();
        }
        for event in twos {
            second.events.send(event).await.unwrap();
        }
    };
    let (response, ()) = tokio::join!(world.raw(request), within(play));
    let reply = Reply::read(response).await;
    reply.validate("/v1/completions");
    assert_eq!(reply.streamed(0), ("ab".to_owned(), "stop".to_owned()));
    assert_eq!(reply.streamed(1), ("cd".to_owned(), "stop".to_owned()));
}

#[tokio::test]
async fn each_token_leaves_at_once_and_ready_ones_leave_together() {
    let (world, mut submissions) = World::manual().await;
    let request = world.post_request("/v1/completions", json!({"prompt": "a", "stream": true}));
    let (response, submission) = tokio::join!(world.raw(request), async {
        let submission = within(submissions.recv()).await.unwrap();
        submission.events.send(says(&submission.request, "abc")[0].clone()).await.unwrap();
        submission
    });
    let mut body = response.into_body();
    let mut frame = async || within(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame().await.windows(6).filter(|window| window == b"data: ").count(), 1);
    for event in says(&submission.request, "abc").into_iter().skip(1) {
        submission.events.try_send(event).unwrap();
    }
    let rest = frame().await;
    assert_eq!(rest.windows(6).filter(|window| window == b"data: ").count(), 4, "b, c, the reason, the end: {rest:?}");
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_event_and_ends_the_connection() {
    let world = World::scripted(|request| {
        let mut events = says(request, "abc")[..2].to_vec();
        events.push(StreamEvent::Failed(RequestError::Poisoned { num_deaths: 2 }));
        events
    })
    .await;
    let body = chat_body(json!({"stream": true})).to_string();
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut text = String::new();
    within(socket.read_to_string(&mut text)).await.unwrap();
    assert!(text.contains("event: error\ndata: {\"error\":{"), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");

    let reply = world.chat(json!({"stream": true})).await;
    let last = reply.events().pop().unwrap();
    assert_eq!(last.name.as_deref(), Some("error"));
    let error: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["type"]), (&json!("worker_failure"), &json!("server_error")));
}

#[tokio::test]
async fn a_refusal_of_one_of_several_sequences_is_a_status() {
    let world = World::scripted(|request| match request.sequence.choice {
        1 => vec![StreamEvent::Failed(RequestError::NoWorker { retry_after: Duration::from_secs(1) })],
        _ => says(request, "a"),
    })
    .await;
    let reply = world.chat(json!({"n": 2, "stream": true})).await;
    // Either the refusal was there with the first token, or it comes as an event.
    let refused =
        reply.status == 503 || reply.events().last().is_some_and(|event| event.name.as_deref() == Some("error"));
    assert!(refused, "{reply:?}");
}

#[tokio::test]
async fn a_client_that_leaves_aborts_its_sequences() {
    for stream in [true, false] {
        let (world, mut submissions) = World::manual().await;
        let request = world.post_request("/v1/chat/completions", chat_body(json!({"stream": stream, "n": 2})));
        let (first, second) = {
            let response = world.raw(request);
            tokio::pin!(response);
            let mut next = async || {
                tokio::select! {
                    biased;
                    submission = submissions.recv() => submission.unwrap(),
                    _ = &mut response => panic!("no answer yet"),
                }
            };
            let (first, second) = (next().await, next().await);
            if stream {
                first.events.send(says(&first.request, "a")[0].clone()).await.unwrap();
                // The response has begun, and is dropped with its connection.
                let begun = response.await;
                assert_eq!(begun.status(), 200);
            }
            (first, second)
        };
        drop(world.get("/health").await);
        within(async { tokio::join!(first.events.closed(), second.events.closed()) }).await;
    }
}

#[tokio::test]
async fn a_stop_string_aborts_the_rest_of_the_sequence() {
    let (world, mut submissions) = World::manual().await;
    let request = world.chat(json!({"stop": "b", "stream": true}));
    let play = async {
        let submission = submissions.recv().await.unwrap();
        for event in says(&submission.request, "abc").into_iter().take(2) {
            submission.events.send(event).await.unwrap();
        }
        submission.events.closed().await;
    };
    let (reply, ()) = tokio::join!(request, within(play));
    assert_eq!(reply.streamed(0), ("a".to_owned(), "stop".to_owned()));
}

#[tokio::test]
async fn done_is_the_last_event() {
    let world = World::scripted(|request| says(request, "a")).await;
    let events = world.complete(json!({"stream": true})).await.events();
    assert_eq!(events.last(), Some(&Event { name: None, data: "[DONE]".to_owned() }));
}
