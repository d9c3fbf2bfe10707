//! Who gets in: keys, names, methods, paths, content types; and what every answer carries.

use bytes::Bytes;
use http_body_util::Full;
use relevo::http::{ApiKeys, HttpOptions, ServeError, Service, bind, check_listen_address, serve};
use relevo_wire::TenantId;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Reply, World, chat_body, says, within};
use crate::schema::OWN;

const KEY: &str = "sk-0123456789abcdef";
const OTHER_KEY: &str = "sk-fedcba9876543210";

fn keyed() -> HttpOptions {
    let keys = format!("# two keys\n{KEY}\n\n  {OTHER_KEY}  \n");
    HttpOptions { api_keys: Some(ApiKeys::parse(&keys).unwrap()), ..HttpOptions::default() }
}

async fn world() -> World {
    World::scripted(|request| says(request, "ok")).await
}

/// Every route of `/openapi.json`, as (method, path).
async fn routes() -> Vec<(String, String)> {
    drop(world().await);
    let paths = OWN.get().unwrap()["paths"].as_object().unwrap();
    let routes: Vec<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| (method.to_uppercase(), path.replace("{model}", "byte-model")))
        })
        .collect();
    assert!(routes.len() >= 11, "{routes:?}");
    routes
}

/// vLLM left routes open beside its key (`/invocations`, CVE-2026-22778): here no route is open but by its own declaration.
#[tokio::test]
async fn every_route_but_the_probes_needs_a_key_where_keys_are_set() {
    let routes = routes().await;
    let world = World::scripted_with(keyed(), |request| says(request, "ok")).await;
    for (method, path) in &routes {
        let ask = async |authorization: Option<&str>| {
            let mut request = world.request(method, path);
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            Reply::read(world.raw(request.body(Full::default()).unwrap()).await).await
        };
        let is_probe = ["/health", "/ready"].contains(&path.as_str());
        for wrong in [None, Some("Bearer sk-0123456789abcdeX"), Some("Bearer"), Some(KEY), Some("Basic a")] {
            let reply = ask(wrong).await;
            assert_eq!(reply.status == 401, !is_probe, "{method} {path} {wrong:?}");
            if !is_probe {
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                assert!(["missing_api_key", "invalid_api_key"].contains(&&*reply.error().1));
            }
        }
        for right in [format!("Bearer {KEY}"), format!("bearer {OTHER_KEY}")] {
            assert_ne!(ask(Some(&right)).await.status, 401, "{method} {path}");
        }
    }
    for (method, path) in
        [("GET", "/"), ("GET", "/v2"), ("POST", "/health2"), ("DELETE", "/v1/models"), ("PUT", "/metrics")]
    {
        let request = world.request(method, path).body(Full::default()).unwrap();
        assert_eq!(Reply::read(world.raw(request).await).await.status, 401, "{method} {path}");
    }
}

#[tokio::test]
async fn each_key_is_a_tenant_of_its_own() {
    let (world, mut submissions) = World::manual_with(keyed()).await;
    for (key, tenant) in [(KEY, 1), (OTHER_KEY, 2)] {
        let mut request = world.post_request("/v1/chat/completions", chat_body(json!({})));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let play = async {
            let submission = submissions.recv().await.unwrap();
            assert_eq!(submission.request.tenant, TenantId(tenant));
            for event in says(&submission.request, "a") {
                submission.events.send(event).await.unwrap();
            }
        };
        let (response, ()) = tokio::join!(world.raw(request), within(play));
        assert_eq!(response.status(), 200);
    }
}

#[test]
fn key_files_with_bad_keys_are_refused() {
    assert!(ApiKeys::parse("").is_err());
    assert!(ApiKeys::parse("# only a comment\n").is_err());
    let short = ApiKeys::parse("short").unwrap_err().to_string();
    assert!(short.contains("line 1") && !short.contains("short"), "{short}");
    assert!(ApiKeys::parse("sk-0123456789 abcdef").is_err());
    assert!(ApiKeys::parse(&"a".repeat(513)).is_err());
    assert!(ApiKeys::load(std::path::Path::new("/nonexistent")).is_err());
    assert!(!format!("{:?}", ApiKeys::parse(KEY).unwrap()).contains("sk-"));
}

#[tokio::test]
async fn an_address_that_others_reach_needs_keys() {
    for open in ["0.0.0.0:80", "192.168.1.1:80", "[::]:80"] {
        assert!(matches!(check_listen_address(open.parse().unwrap(), false), Err(ServeError::OpenDoor(_))));
        assert!(check_listen_address(open.parse().unwrap(), true).is_ok());
    }
    for local in ["127.0.0.1:80", "127.8.8.8:80", "[::1]:80"] {
        assert!(check_listen_address(local.parse().unwrap(), false).is_ok());
    }
    let listener = bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let service = Service::new(HttpOptions::default(), String::new);
    let served = serve(listener, service.into(), CancellationToken::new()).await;
    assert!(served.unwrap_err().to_string().contains("--api-key-file"));
}

/// DNS rebinding, Ollama's CVE-2024-28224.
#[tokio::test]
async fn a_page_of_another_site_cannot_reach_a_loopback_address() {
    let options = HttpOptions { allowed_hosts: vec!["llm.example".to_owned()], ..HttpOptions::default() };
    let world = World::scripted_with(options, |request| says(request, "ok")).await;
    let ask = async |name: &'static str, value: String| {
        let request = world.request("GET", "/v1/models").header(name, value).body(Full::default()).unwrap();
        Reply::read(world.raw(request).await).await
    };
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:80", "llm.example:8080"] {
        assert_eq!(ask("host", host.to_owned()).await.status, 200, "{host}");
        assert_eq!(ask("origin", format!("http://{host}")).await.status, 200, "{host}");
    }
    for host in
        ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "192.168.1.1", "[::2]", "[", "a:b:c"]
    {
        assert_eq!(ask("host", host.to_owned()).await.error().1, "foreign_host", "{host}");
    }
    for origin in ["https://evil.example", "null", "http://evil.example:80", "", "evil"] {
        assert_eq!(ask("origin", origin.to_owned()).await.error().1, "foreign_host", "{origin}");
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_get_error_objects() {
    let world = world().await;
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/foo",
        "/v1/chat",
        "/v1/models/",
        "/metrics/x",
        "/%2e%2e/etc/passwd",
        "/v1/chat/completions/",
    ] {
        let reply = world.get(path).await;
        assert_eq!(reply.error().0, 404, "{path}");
    }
    for (method, path) in routes().await {
        for other in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"].into_iter().filter(|other| *other != method) {
            let reply = world.send(world.request(other, &path).body(Full::default()).unwrap()).await;
            assert_eq!((reply.status.as_u16(), &*reply.error().1), (405, "method_not_allowed"), "{other} {path}");
            let allow = reply.header("allow").unwrap_or_default();
            assert!(allow.split(',').any(|allowed| allowed.trim() == method), "{other} {path}: {allow}");
        }
    }
}

#[tokio::test]
async fn bodies_must_be_plain_json_by_their_type() {
    let world = world().await;
    let ask = async |content_type: Option<&'static str>, encoding: Option<&'static str>| {
        let mut request = world.request("POST", "/v1/chat/completions");
        if let Some(value) = content_type {
            request = request.header("content-type", value);
        }
        if let Some(value) = encoding {
            request = request.header("content-encoding", value);
        }
        world.send(request.body(Full::new(Bytes::from(chat_body(json!({})).to_string()))).unwrap()).await
    };
    for right in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "application/vnd.x+json",
    ] {
        assert_eq!(ask(Some(right), None).await.status, 200, "{right}");
    }
    for wrong in [
        None,
        Some(""),
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/json; charset=utf-16"),
    ] {
        assert_eq!(ask(wrong, None).await.error(), (415, "unsupported_content_type".to_owned(), None), "{wrong:?}");
    }
    assert_eq!(ask(Some("application/json"), Some("gzip")).await.error().1, "unsupported_content_encoding");
    assert_eq!(ask(Some("application/json"), Some("identity")).await.status, 200);
}

#[tokio::test]
async fn a_sane_request_id_comes_back_and_another_does_not() {
    let world = world().await;
    let ask = async |id: Option<&str>| {
        let mut request = world.request("GET", "/v1/nowhere");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        world.send(request.body(Full::default()).unwrap()).await.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask(Some("trace-1:2/3_4.5")).await, "trace-1:2/3_4.5");
    for insane in [None, Some(""), Some("a b"), Some("<script>"), Some(&*"a".repeat(129))] {
        let id = ask(insane).await;
        assert!(id.starts_with("req-") && Some(&*id) != insane, "{id}");
    }
    assert_ne!(ask(None).await, ask(None).await);
}

#[tokio::test]
async fn a_request_that_nobody_knows_is_a_404() {
    let reply = world().await.get("/relevo/trace/team/7").await;
    assert_eq!((reply.status.as_u16(), &*reply.error().1), (404, "request_not_found"));
    assert!(reply.message().contains("'team/7'"), "{}", reply.message());
}

#[tokio::test]
async fn the_cluster_is_administered_on_a_loopback_address_only() {
    let service = Service::new(keyed(), String::new);
    let listener = bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let mut world = world().await;
    world.address.set_port(listener.local_addr().unwrap().port());
    let shutdown = world.shutdown.clone();
    world.tasks.spawn(async move { serve(listener, service.into(), shutdown).await.unwrap() });
    for (method, path) in
        [("GET", "/relevo/trace/request-1"), ("POST", "/relevo/order"), ("POST", "/relevo/bench/link")]
    {
        let request = world.request(method, path).header("authorization", format!("Bearer {KEY}"));
        let reply = world.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((reply.status.as_u16(), &*reply.error().1), (403, "not_from_here"), "{path}");
    }
}

#[tokio::test]
async fn a_server_without_a_model_says_so() {
    let world = World::unready(HttpOptions::default()).await;
    assert_eq!(world.get("/health").await.json(), json!({"status": "ok"}));
    for reply in [world.get("/ready").await, world.get("/v1/models").await, world.chat(json!({})).await] {
        assert_eq!((reply.status.as_u16(), &*reply.error().1), (503, "not_ready"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    let ready = self::world().await;
    assert_eq!(ready.get("/ready").await.json(), json!({"status": "ready"}));
    assert_eq!(ready.get("/metrics").await.body, "# metrics\n");
    assert_eq!(ready.get("/relevo/status").await.json(), json!({"nodes": [], "supervision": [], "queues": []}));
}

/// One request may not kill the process (vLLM's CVE-2025-48944), nor tell what it died of (CVE-2026-22778).
#[tokio::test]
async fn a_panic_in_a_handler_is_a_500_and_the_next_request_is_served() {
    let service = Service::new(HttpOptions::default(), || panic!("secret {}", 1));
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut world = world().await;
    world.address = address;
    let shutdown = world.shutdown.clone();
    world.tasks.spawn(async move { serve(listener, service.into(), shutdown).await.unwrap() });
    let reply = world.get("/metrics").await;
    assert_eq!((reply.status.as_u16(), &*reply.error().1), (500, "internal_error"));
    assert!(!reply.message().contains("secret"));
    assert_eq!(world.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_gateway_whose_queue_is_full_says_when_to_come_again() {
    let (world, submissions) = World::manual().await;
    // 64 places, 65 sequences.
    let reply = world.post("/v1/completions", json!({"prompt": "a", "n": 65})).await;
    assert_eq!((reply.status.as_u16(), &*reply.error().1), (429, "rate_limit_exceeded"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(submissions);
    assert_eq!(world.complete(json!({})).await.error().1, "shutting_down");
}
