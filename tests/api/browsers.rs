//! Browsers: cursors and tickets in the query, other origins, and temporary errors that an `EventSource` survives.

use lastword::{config::Config, event::Kind};
use lastword_devkit::postgres::StopMode;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::world::{Frames, OPERATOR, Replica, World, kinds, problem};

const CLIENT: &str = "client-token-of-a-test";
const OTHER: &str = "another-client-token-of-a-test";

/// Every route needs a token.
fn closed(config: &mut Config) {
    config.insecure = false;
    config.client_tokens = vec![CLIENT.to_owned(), OTHER.to_owned()];
}

fn as_client(replica: &Replica, method: Method, path: &str) -> RequestBuilder {
    replica.request(method, path).bearer_auth(CLIENT)
}

/// An event stream, as `EventSource` asks for one.
async fn event_source(replica: &Replica, path: &str) -> Response {
    replica.request(Method::GET, path).header("accept", "text/event-stream").send().await.unwrap()
}

/// A turn of a client, and its conversation.
async fn turn_of(world: &World) -> (String, String) {
    let body = json!({"agent": "demo", "input": "hello"});
    let made = as_client(world, Method::POST, "/v1/turns").json(&body).send().await.unwrap();
    let turn: Value = made.json().await.unwrap();
    let text = |field: &str| turn[field].as_str().unwrap().to_owned();
    (text("id"), text("conversation_id"))
}

async fn ticket(replica: &Replica, token: &str, path: &str) -> String {
    let made = replica.request(Method::POST, path).bearer_auth(token).send().await.unwrap();
    assert_eq!(made.status(), 200, "{path}");
    let made: Value = made.json().await.unwrap();
    assert!(made["expires_at"].is_string() && made["events_url"].is_string(), "{made}");
    made["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_in_the_query_resumes_a_stream_and_the_header_beats_it() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let run = world.run_next().await;
    let turn = run.turn.to_string();
    run.complete("done").await;
    let of_turn = format!("/v1/turns/{turn}/events");
    let body: Value = world.get(&format!("/v1/turns/{turn}")).await.json().await.unwrap();
    let of_conversation = format!("/v1/conversations/{}/events", body["conversation_id"].as_str().unwrap());
    for (path, header, told) in [
        (format!("{of_turn}?lastEventId=0"), None, vec!["started", "completed"]),
        (format!("{of_turn}?after=-1&lastEventId=1"), None, vec!["completed"]),
        (format!("{of_turn}?lastEventId="), None, vec!["accepted", "started", "completed"]),
        (format!("{of_turn}?lastEventId=0"), Some("1"), vec!["completed"]),
        (format!("{of_turn}?lastEventId=1"), Some(""), vec!["completed"]),
        // What is added against caches is passed over.
        (format!("{of_turn}?_=1764500000&lastEventId=1&r=0.3"), None, vec!["completed"]),
    ] {
        let asked = world.request(Method::GET, &path).header("accept", "text/event-stream");
        let asked = header.into_iter().fold(asked, |asked, id| asked.header("last-event-id", id));
        let text = Frames::of(asked.send().await.unwrap()).end().await.unwrap();
        assert_eq!(kinds(&text), told, "{path} {header:?}");
    }
    let mut frames =
        Frames::of(event_source(&world, &format!("{of_conversation}?lastEventId=1.1&_=7")).await);
    frames.until("event: completed").await;
    assert_eq!(kinds(&frames.text), ["completed"]);
    // Pages of JSON stay strict, and know the cursor.
    let page = |query: &str| {
        world.request(Method::GET, &format!("{of_turn}?{query}")).header("accept", "application/json")
    };
    let refused = problem(page("_=1").send().await.unwrap()).await;
    assert_eq!((&refused["status"], &refused["field"]), (&json!(400), &json!("_")));
    let page: Value = page("lastEventId=0").send().await.unwrap().json().await.unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    let wrong = problem(event_source(&world, &format!("{of_turn}?lastEventId=x")).await).await;
    assert_eq!((&wrong["status"], &wrong["field"]), (&json!(400), &json!("lastEventId")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_own_stream_on_every_replica_and_nothing_else() {
    let world = World::with(closed).await;
    let other = world.another(closed).await;
    let ((turn, conversation), (next, _)) = (turn_of(&world).await, turn_of(&world).await);
    let (of_turn, of_conversation) =
        (format!("/v1/turns/{turn}"), format!("/v1/conversations/{conversation}"));
    let ticket_of_turn = ticket(&world, CLIENT, &format!("{of_turn}/ticket")).await;
    let ticket_of_conversation = ticket(&world, OPERATOR, &format!("{of_conversation}/ticket")).await;
    for replica in [&world.replica, &other] {
        for (path, ticket) in [(&of_turn, &ticket_of_turn), (&of_conversation, &ticket_of_conversation)] {
            let mut frames =
                Frames::of(event_source(replica, &format!("{path}/events?ticket={ticket}&_=1")).await);
            frames.until("event: accepted").await;
        }
    }
    let ticket = &ticket_of_turn;
    let cut = &ticket[..ticket.len() - 1];
    for path in [
        format!("{of_turn}/events"),
        format!("{of_turn}/events?ticket="),
        format!("{of_turn}/events?ticket={cut}"),
        format!("{of_turn}/events?ticket={ticket_of_conversation}"),
        format!("{of_conversation}/events?ticket={ticket}"),
        format!("/v1/turns/{next}/events?ticket={ticket}"),
        format!("{of_turn}?ticket={ticket}"),
        format!("/v1/turns?ticket={ticket}"),
    ] {
        assert_eq!(event_source(&world, &path).await.status(), 401, "{path}");
    }
    // Elsewhere it is a parameter that nobody knows, and it is no token.
    let refused = as_client(&world, Method::GET, &format!("{of_turn}?ticket={ticket}")).send().await.unwrap();
    assert_eq!(problem(refused).await["field"], "ticket");
    let as_token = world.request(Method::GET, &of_turn).bearer_auth(ticket).send().await.unwrap();
    assert_eq!(as_token.status(), 401);
    // Who has nothing makes none, nor for what is not there.
    let made = world.request(Method::POST, &format!("{of_turn}/ticket")).send().await.unwrap();
    assert_eq!(made.status(), 401);
    let nowhere = format!("/v1/turns/turn_{}/ticket", "0".repeat(32));
    assert_eq!(as_client(&world, Method::POST, &nowhere).send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_ends_with_its_time_and_with_the_token_that_made_it() {
    let world = World::with(closed).await;
    let (turn, _) = turn_of(&world).await;
    let ticket = ticket(&world, OTHER, &format!("/v1/turns/{turn}/ticket")).await;
    let path = format!("/v1/turns/{turn}/events?ticket={ticket}");
    assert_eq!(event_source(&world, &path).await.status(), 200);
    let without = world.another(|config| {
        closed(config);
        config.client_tokens.truncate(1);
    });
    assert_eq!(event_source(&without.await, &path).await.status(), 401, "its token is configured no longer");
    let later = world.another(closed).await;
    let clock = later.store.clock();
    clock.set_database_time(clock.now() + chrono::TimeDelta::minutes(11));
    let refused = problem(event_source(&later, &path).await).await;
    assert_eq!((&refused["status"], &refused["code"]), (&json!(401), &json!("ticket_expired")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_origins_that_are_named_may_use_the_gateway_and_no_others() {
    let named = "https://chat.example";
    let world = World::with(|config| {
        closed(config);
        config.cors_origins = vec![named.to_owned()];
    })
    .await;
    let preflight = async |replica: &Replica, origin: &str, path: &str| {
        let asked = replica.request(Method::OPTIONS, path).header("origin", origin);
        let asked = asked.header("access-control-request-method", "POST");
        asked.header("access-control-request-headers", "authorization,last-event-id").send().await.unwrap()
    };
    let header = |answer: &Response, name: &str| {
        answer.headers().get(name).map(|value| value.to_str().unwrap().to_lowercase())
    };
    for path in ["/v1/turns", "/v1/turns/turn_x/events", "/v1/agents/demo"] {
        let answer = preflight(&world, named, path).await;
        assert_eq!(answer.status(), 200, "no token is asked for");
        assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some(named));
        let allowed = header(&answer, "access-control-allow-headers").unwrap();
        for name in ["authorization", "content-type", "last-event-id", "idempotency-key", "prefer"] {
            assert!(allowed.contains(name), "{name}: {allowed}");
        }
    }
    let answer = preflight(&world, "https://evil.example", "/v1/turns").await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None);
    // An answer, a refusal and a stream.
    let (turn, _) = turn_of(&world).await;
    for (path, status) in
        [("/v1/turns", 200), ("/v1/nothing", 404), (&format!("/v1/turns/{turn}/events"), 200)]
    {
        let answer = as_client(&world, Method::GET, path).header("origin", named).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some(named), "{path}");
        let exposed = header(&answer, "access-control-expose-headers").unwrap();
        assert!(exposed.contains("location") && exposed.contains("retry-after"), "{exposed}");
    }
    let refused = world.request(Method::GET, "/v1/turns").header("origin", named).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(
        header(&refused, "access-control-allow-origin").as_deref(),
        Some(named),
        "a page can read why"
    );
    // Off by default.
    let silent = world.another(closed).await;
    let answer = preflight(&silent, named, "/v1/turns").await;
    assert_eq!((answer.status().as_u16(), header(&answer, "access-control-allow-origin")), (405, None));
    // Where routes are open a page that is named is answered, and no other.
    let open = world.another(|config| config.cors_origins = vec![named.to_owned()]).await;
    for (origin, status) in [(named, 200), ("https://evil.example", 403)] {
        let asked = open.request(Method::GET, "/v1/turns").header("origin", origin);
        let answer = asked.header("sec-fetch-site", "cross-site").send().await.unwrap();
        assert_eq!(answer.status(), status, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_a_stream_is_put_off_within_one_and_never_told_a_status_that_passes() {
    let world = World::alone(|config| {
        closed(config);
        config.streams_max = 2;
        config.token_share = 50;
    })
    .await;
    let (turn, conversation) = turn_of(&world).await;
    let of_turn = format!("/v1/turns/{turn}/events");
    let ticket = ticket(&world, CLIENT, &format!("/v1/turns/{turn}/ticket")).await;
    let ask = async |path: &str, headers: &[(&'static str, &str)]| {
        let asked = as_client(&world, Method::GET, path).header("accept", "text/event-stream");
        headers.iter().fold(asked, |asked, (name, value)| asked.header(*name, *value)).send().await.unwrap()
    };
    let put_off = async |answer: Response, code: &str| {
        assert_eq!(answer.status(), 200, "{code}");
        assert!(answer.headers().contains_key("retry-after"), "{code}");
        let (text, _) = Frames::of(answer).end().await.expect_err("no clean end");
        assert_eq!(kinds(&text), ["reconnect"], "{text}");
        let retry = text.lines().find_map(|line| line.strip_prefix("retry: ")).unwrap();
        assert!((1000..10_000).contains(&retry.parse::<u64>().unwrap()), "{text}");
        assert!(text.contains(&format!("data: {{\"code\":\"{code}\"}}")) && !text.contains("id: "), "{text}");
    };
    let seat = ask(&of_turn, &[]).await;
    assert_eq!(seat.status(), 200);
    let resumed = [("last-event-id", "0")];
    put_off(ask(&of_turn, &resumed).await, "share_exceeded").await;
    put_off(ask(&format!("{of_turn}?lastEventId=0"), &[]).await, "share_exceeded").await;
    put_off(event_source(&world, &format!("{of_turn}?ticket={ticket}")).await, "share_exceeded").await;
    let of_conversation = format!("/v1/conversations/{conversation}/events");
    put_off(ask(&of_conversation, &[("last-event-id", "1.0")]).await, "share_exceeded").await;
    // Who comes for the first time, or for a page, is told a status; what does not pass stays one.
    assert_eq!(ask(&of_turn, &[]).await.status(), 429);
    assert_eq!(ask(&of_turn, &[("last-event-id", "900")]).await.status(), 400);
    let nowhere = format!("/v1/turns/turn_{}/events", "0".repeat(32));
    assert_eq!(ask(&nowhere, &resumed).await.status(), 404);
    let unknown = world.request(Method::GET, &of_turn).bearer_auth("x").header("last-event-id", "0");
    assert_eq!(unknown.send().await.unwrap().status(), 401);
    drop(seat);
    world.server.lock().unwrap().stop(StopMode::Fast).unwrap();
    put_off(ask(&of_turn, &resumed).await, "postgres_unavailable").await;
    assert_eq!(ask(&of_turn, &[]).await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_last_words_without_text_gets_all_but_that() {
    let world = World::start().await;
    let body = json!({"agent": "demo", "input": "hello", "stream": true});
    let first = Frames::of(world.post("/v1/turns?text=omit", &body).await);
    let mut run = world.run_next().await;
    let turn = run.turn.to_string();
    run.say(Kind::Delta, json!({"text": "héllo"}).to_string()).await;
    run.complete("héllo").await;
    let body: Value = world.get(&format!("/v1/turns/{turn}")).await.json().await.unwrap();
    let conversation = body["conversation_id"].as_str().unwrap().to_owned();
    assert_eq!(body["text"], "héllo");
    let last = |text: &str| -> Value {
        serde_json::from_str(text.lines().rfind(|line| line.starts_with("data: ")).unwrap().split_at(6).1)
            .unwrap()
    };
    let is_short = |word: &Value| {
        assert_eq!((&word["kind"], &word["stop_reason"]), (&json!("completed"), &json!("end")), "{word}");
        assert_eq!((&word["text_bytes"], word.get("text")), (&json!(6), None), "{word}");
    };
    let text = first.end().await.unwrap();
    assert!(text.contains("héllo"), "the pieces have it: {text}");
    is_short(&last(&text));
    let events = format!("/v1/turns/{turn}/events");
    let short = Frames::of(world.get(&format!("{events}?text=omit")).await).end().await.unwrap();
    is_short(&last(&short));
    let whole = last(&Frames::of(world.get(&events).await).end().await.unwrap());
    assert_eq!((&whole["text"], whole.get("text_bytes")), (&json!("héllo"), None));
    let page = async |path: String| world.get(&path).await.json::<Value>().await.unwrap();
    is_short(page(format!("{events}?wait=0&text=omit")).await["events"].as_array().unwrap().last().unwrap());
    let of_conversation = format!("/v1/conversations/{conversation}/events?text=omit");
    is_short(page(format!("{of_conversation}&wait=0")).await["events"].as_array().unwrap().last().unwrap());
    let mut frames = Frames::of(world.get(&of_conversation).await);
    frames.until("text_bytes").await;
    assert_eq!(page(format!("/v1/turns/{turn}?text=omit")).await["text"], Value::Null);
    for list in
        ["/v1/turns?text=omit".to_owned(), format!("/v1/conversations/{conversation}/turns?text=omit")]
    {
        assert_eq!(page(list).await["items"][0]["text"], Value::Null);
    }
    for path in [format!("{events}?text=none"), format!("/v1/turns/{turn}?text=")] {
        let refused = problem(world.get(&path).await).await;
        assert_eq!((&refused["status"], &refused["field"]), (&json!(400), &json!("text")), "{path}");
    }
}
