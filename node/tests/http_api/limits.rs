//! What a client may take up: bytes, headers, connections, time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use relevo::http::{HttpOptions, Limits};
use relevo_wire::{FinishReason, StreamEvent};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{World, chat_body, generates, says, within};

fn with(limits: Limits) -> HttpOptions {
    HttpOptions { limits, ..HttpOptions::default() }
}

async fn world(limits: Limits) -> World {
    World::scripted_with(with(limits), |request| says(request, "ok")).await
}

/// Sends raw bytes and reads until the server closes.
async fn talk(world: &World, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    // A reset also closes.
    let _ = within(socket.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_body_too_large_is_refused_before_and_while_it_is_read() {
    let world = world(Limits { max_body_bytes: 1000, ..Limits::default() }).await;
    let large = chat_body(json!({"user": "a".repeat(1000)}));
    let reply = world.post("/v1/chat/completions", &large).await;
    assert_eq!((reply.status.as_u16(), &*reply.error().1), (413, "request_too_large"));
    let announced = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                     connection: close\r\ncontent-length: 100000000\r\n\r\n";
    assert!(talk(&world, announced.as_bytes()).await.starts_with("HTTP/1.1 413"));
    let chunked = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n",
        "a".repeat(2000)
    );
    assert!(talk(&world, chunked.as_bytes()).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn bodies_together_keep_a_budget_and_give_it_back() {
    let world = world(Limits { body_budget_bytes: 2000, ..Limits::default() }).await;
    let large = chat_body(json!({"user": "a".repeat(1000), "metadata": {"a": "b".repeat(500), "c": "d".repeat(500)}}));
    for _ in 0..3 {
        let reply = world.post("/v1/chat/completions", &large).await;
        assert_eq!((reply.status.as_u16(), &*reply.error().1), (503, "overloaded"));
    }
    for _ in 0..3 {
        assert_eq!(world.chat(json!({"user": "a".repeat(1000)})).await.status, 200);
    }
}

#[tokio::test]
async fn headers_have_a_count_and_a_size() {
    let world = world(Limits { max_headers: 10, max_header_bytes: 2000, ..Limits::default() }).await;
    let many =
        (0..10).fold(world.request("GET", "/health"), |request, index| request.header(format!("x-{index}"), "a"));
    let long = world.request("GET", "/health").header("x-long", "a".repeat(2000));
    for request in [many, long] {
        let reply = world.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((reply.status.as_u16(), &*reply.error().1), (431, "headers_too_large"));
    }
    assert_eq!(world.get("/health").await.status, 200);
}

#[tokio::test]
async fn slow_headers_and_slow_bodies_are_cut() {
    let short = Duration::from_millis(100);
    let world = world(Limits { header_timeout: short, body_timeout: short, ..Limits::default() }).await;
    assert!(!talk(&world, b"").await.contains("200"), "an idle connection ends");
    assert!(!talk(&world, b"GET /health HTTP/1.1\r\nhost: localh").await.contains("200"));
    let half = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{";
    let answer = talk(&world, half.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let world = world(Limits { max_connections: 1, ..Limits::default() }).await;
    let mut first = TcpStream::connect(world.address).await.unwrap();
    first.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut byte = [0];
    within(first.read_exact(&mut byte)).await.unwrap();
    let refused = talk(&world, b"").await;
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        head.contains(&format!("content-length: {}\r", body.len()))
            || head.ends_with(&format!("content-length: {}", body.len())),
        "{refused}"
    );
    assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["code"], "too_many_connections");
    drop(first);
    // The place becomes free when the server has seen the end of the first connection.
    within(async {
        while !talk(&world, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .contains("200 OK")
        {}
    })
    .await;
}

#[tokio::test]
async fn a_reader_who_takes_nothing_is_cut_and_his_sequence_aborted() {
    let limits = Limits { write_timeout: Duration::from_millis(200), ..Limits::default() };
    let (world, mut submissions) = World::manual_with(with(limits)).await;
    let body = chat_body(json!({"stream": true})).to_string();
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let submission = within(submissions.recv()).await.unwrap();
    // More than all buffers between the two ends hold.
    within(async {
        for index in 0.. {
            if submission.events.send(StreamEvent::Token { index, token: 97, logprobs: None }).await.is_err() {
                break;
            }
        }
    })
    .await;
    within(submission.events.closed()).await;
    drop(socket);
}

#[tokio::test]
async fn requests_on_one_connection_are_served_in_turn() {
    let world = world(Limits::default()).await;
    let one = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answers = talk(&world, format!("{one}{one}{last}").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3);
}

#[tokio::test]
async fn a_large_body_is_read_like_a_small_one() {
    let world = world(Limits::default()).await;
    let prompts: Vec<_> = (0..100).map(|_| "a".repeat(200)).collect();
    let reply = world.post("/v1/completions", json!({"prompt": prompts, "max_tokens": 0, "echo": true})).await;
    assert_eq!(reply.json()["choices"].as_array().unwrap().len(), 100);
    let bad = world.post("/v1/completions", json!({"prompt": prompts, "max_tokens": -1})).await;
    assert_eq!(bad.error().2.as_deref(), Some("max_tokens"));
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends() {
    let limits = Limits { request_timeout: Duration::ZERO, ..Limits::default() };
    let world = World::scripted_with(with(limits), |request| {
        assert!(request.deadline.is_some());
        generates(request, &[97], FinishReason::Length)
    })
    .await;
    assert_eq!(
        world.chat(json!({})).await.status,
        200,
        "the cluster keeps the deadline, the gateway waits a little longer"
    );
}

#[tokio::test]
async fn what_is_no_http_harms_nobody() {
    let world = world(Limits::default()).await;
    for noise in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        assert!(!talk(&world, noise).await.contains("200 OK"));
    }
    let request = world.request("GET", "/health").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(world.send(request).await.status, 200);
}
