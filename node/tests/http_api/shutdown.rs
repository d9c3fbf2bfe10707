//! The server stops: open answers go on for a while, then end with an error event; nothing new begins.

use std::time::Duration;

use relevo::http::{HttpOptions, Limits};
use serde_json::json;

use crate::harness::{Reply, World, chat_body, says, within};

fn quick() -> HttpOptions {
    HttpOptions {
        limits: Limits { drain_timeout: Duration::from_millis(100), ..Limits::default() },
        ..HttpOptions::default()
    }
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let mut world = World::scripted(|request| says(request, "a")).await;
    assert_eq!(world.get("/health").await.status, 200);
    world.shutdown.cancel();
    within(world.tasks.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_stream_ends_well_if_it_ends_in_time() {
    let (mut world, mut submissions) = World::manual().await;
    let request = world.post_request("/v1/chat/completions", chat_body(json!({"stream": true})));
    let (response, submission) = tokio::join!(world.raw(request), async {
        let submission = within(submissions.recv()).await.unwrap();
        submission.events.send(says(&submission.request, "ab")[0].clone()).await.unwrap();
        submission
    });
    world.shutdown.cancel();
    for event in says(&submission.request, "ab").into_iter().skip(1) {
        submission.events.send(event).await.unwrap();
    }
    assert_eq!(Reply::read(response).await.streamed(0), ("ab".to_owned(), "stop".to_owned()));
    within(world.tasks.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_stream_that_goes_on_ends_with_an_error_event() {
    let (mut world, mut submissions) = World::manual_with(quick()).await;
    let request = world.post_request("/v1/chat/completions", chat_body(json!({"stream": true})));
    let (response, submission) = tokio::join!(world.raw(request), async {
        let submission = within(submissions.recv()).await.unwrap();
        submission.events.send(says(&submission.request, "ab")[0].clone()).await.unwrap();
        submission
    });
    world.shutdown.cancel();
    let reply = Reply::read(response).await;
    let last = reply.events().pop().unwrap();
    assert_eq!(last.name.as_deref(), Some("error"));
    assert!(last.data.contains("shutting_down"), "{last:?}");
    within(submission.events.closed()).await;
    within(world.tasks.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_waiting_request_gets_a_503_and_a_new_one_no_connection() {
    let (mut world, mut submissions) = World::manual_with(quick()).await;
    let stop = world.shutdown.clone();
    let (reply, ()) = tokio::join!(world.chat(json!({})), async {
        let _submission = within(submissions.recv()).await.unwrap();
        stop.cancel();
        // Until the gateway gives up on it.
        within(_submission.events.closed()).await;
    });
    assert_eq!((reply.status.as_u16(), &*reply.error().1), (503, "shutting_down"));
    within(world.tasks.join_next()).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
}
