//! What `/openapi.json` promises of every route.

use serde_json::{Value, json};

use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_described_as_a_problem() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").await.json().await.unwrap();
    let problem = json!({"$ref": "#/components/schemas/ProblemDocument"});
    let mut count = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            if path.starts_with("/v1/") {
                assert!(responses.contains_key("4XX") && responses.contains_key("503"), "{method} {path}");
            }
            for (status, response) in responses.iter().filter(|(status, _)| status.starts_with('4')) {
                let content = response["content"].as_object().unwrap();
                assert_eq!(content.keys().collect::<Vec<_>>(), ["application/problem+json"], "{path}");
                assert_eq!(content["application/problem+json"]["schema"], problem, "{status} {path}");
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_described_as_it_is_read() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").await.json().await.unwrap();
    let schemas = &document["components"]["schemas"];
    // A text, or an object with one; nothing else beside.
    assert_eq!(schemas["Input"]["oneOf"][0]["type"], "string");
    assert_eq!(schemas["Input"]["oneOf"][1]["additionalProperties"], false);
    assert!(
        schemas["Guard"]["oneOf"].as_array().unwrap().iter().all(|it| it["additionalProperties"] == false)
    );
    // Any JSON but null: a cursor is a number or a text, an answer what the question asks for.
    assert_eq!(schemas["EventPage"]["properties"]["next_after"]["type"], Value::Null);
    assert_eq!(schemas["AnswerRequest"]["properties"]["answer"]["type"], Value::Null);
    assert_eq!(schemas["AnswerRequest"]["properties"]["answer"]["not"], json!({"type": "null"}));
    let processes = &schemas["Limits"]["properties"]["processes"];
    assert_eq!((&processes["minimum"], &processes["maximum"]), (&json!(1), &json!(u32::MAX)));
    for (path, prefix) in [("turns", "turn_"), ("conversations", "conv_"), ("workers", "wrk_")] {
        let parameters = &document["paths"][format!("/v1/{path}/{{id}}")]["get"]["parameters"];
        assert_eq!(parameters[0]["schema"]["pattern"], format!("^{prefix}[0-9a-f]{{32}}$"), "{path}");
    }
    for path in ["/v1/turns/{id}/events", "/v1/conversations/{id}/events"] {
        let content = &document["paths"][path]["get"]["responses"]["200"]["content"];
        assert!(
            content["text/event-stream"].is_object() && content["application/json"].is_object(),
            "{path}"
        );
    }
}
