//! `/openapi.json`: the OpenAPI document.
//!
//! Each route is described next to its handler. Owns what is common to all routes: the form of an error, the errors
//! that are always possible, and the forms of ids, names and cursors.

use serde_json::{Map, Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

use super::request::WAIT_MAX_S;

const AGENT_NAME: &str = "^[a-z0-9][a-z0-9._-]{0,63}$";
const PLACE: &str = "^[1-9][0-9]{0,17}\\.(-1|[0-9]{1,9})$";
const PROBLEM_TYPE: &str = "application/problem+json";

/// The OpenAPI document; the routes are added to it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "lastword",
        description = "A gateway for chat agents: every accepted turn gets exactly one last word."
    ),
    modifiers(&TokenScheme),
    security(("token" = [])),
    tags(
        (name = "turns"), (name = "events"), (name = "conversations"), (name = "agents"),
        (name = "operators", description = "These need an operator's token."),
        (name = "remote workers", description = "These need a worker's token, or the token of its turn."),
        (name = "health"),
    )
)]
pub(super) struct Document;

struct TokenScheme;

impl Modify for TokenScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The finished document.
pub(super) fn finished(document: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    for (path, item) in fields(&mut document["paths"]) {
        for (_, operation) in fields(item) {
            if path.starts_with("/v1/") {
                refusals(&mut operation["responses"]);
            } else {
                // Health routes need no token.
                operation["security"] = json!([]);
                for (_, refusal) in fields(&mut operation["responses"]).filter(|(status, _)| *status == "401")
                {
                    as_problem(refusal);
                }
            }
            // A stream is not one string, and this version of OpenAPI cannot describe its frames.
            if let Some(stream) = operation.pointer_mut("/responses/200/content/text~1event-stream") {
                *stream = json!({});
            }
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
            parameters.into_iter().flatten().for_each(|parameter| form(path, parameter));
        }
    }
    bodies(&mut document["components"]["schemas"]);
    // The body is optional, but must not be `null`.
    document["paths"]["/v1/turns/{id}/retry"]["post"]["requestBody"] =
        json!({"content": {"application/json": {"schema": {"$ref": "#/components/schemas/RetryRequest"}}}});
    document
}

fn fields(object: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    object.as_object_mut().into_iter().flat_map(Map::iter_mut)
}

/// Describes every error as a problem, and adds the errors that any request can get.
fn refusals(responses: &mut Value) {
    for (status, response) in fields(responses) {
        if status.starts_with('4') {
            as_problem(response);
        }
    }
    for (status, description) in [
        ("4XX", "Refused; nothing was changed"),
        (
            "503",
            "`postgres_unavailable`, `too_many_streams`, `too_many_connections`, `too_many_waits`, `too_much_unread`, \
             `bodies_full`: try again after `Retry-After`",
        ),
    ] {
        if responses.get(status).is_none() {
            responses[status] = json!({"description": description});
            responses[status]["content"][PROBLEM_TYPE] = problem();
        }
    }
}

/// Describes an error by its body, which is a problem on every route.
fn as_problem(response: &mut Value) {
    if let Some(content) = response["content"].as_object_mut() {
        content.clear();
    }
    response["content"][PROBLEM_TYPE] = problem();
}

fn problem() -> Value {
    json!({"schema": {"$ref": "#/components/schemas/ProblemDocument"}})
}

/// The form of a parameter.
fn form(path: &str, parameter: &mut Value) {
    let pattern = match parameter["name"].as_str().unwrap_or_default() {
        "id" | "cursor" => match path.split('/').nth(2).unwrap_or_default() {
            _ if path.ends_with("{id}/turns") && parameter["name"] == "cursor" => id("turn_"),
            "turns" | "worker" => id("turn_"),
            "conversations" => id("conv_"),
            "workers" => id("wrk_"),
            "worker-tokens" => id("wtk_"),
            "replicas" => id("rep_"),
            _ => AGENT_NAME.to_owned(),
        },
        "conversation_id" => id("conv_"),
        "name" | "agent" => AGENT_NAME.to_owned(),
        "Idempotency-Key" => "^[!-~]{1,255}$".to_owned(),
        "Last-Event-ID" if path.starts_with("/v1/conversations") => format!("^$|{PLACE}"),
        "after" if path.starts_with("/v1/conversations") => PLACE.to_owned(),
        "Last-Event-ID" => "^(|-1|[0-9]{1,9})$".to_owned(),
        "after" => {
            parameter["schema"]["minimum"] = (-1).into();
            return;
        }
        "wait" => {
            parameter["schema"]["maximum"] = WAIT_MAX_S.into();
            return;
        }
        _ => return,
    };
    parameter["schema"] = json!({"type": "string", "pattern": pattern});
}

fn id(prefix: &str) -> String {
    format!("^{prefix}[0-9a-f]{{32}}$")
}

/// Rules for bodies that their Rust types do not express.
fn bodies(schemas: &mut Value) {
    let text = json!({"type": "string", "pattern": "\\S"});
    schemas["Input"]["properties"]["text"]["pattern"] = text["pattern"].clone();
    schemas["Input"]["additionalProperties"] = false.into();
    schemas["Input"] = json!({"oneOf": [text, schemas["Input"]]});
    for request in ["TurnRequest", "ConversationRequest"] {
        schemas[request]["properties"]["agent"]["pattern"] = AGENT_NAME.into();
    }
    schemas["TurnRequest"]["properties"]["conversation_id"]["pattern"] = id("conv_").into();
    for guard in schemas["Guard"]["oneOf"].as_array_mut().into_iter().flatten() {
        guard["additionalProperties"] = false.into();
    }
    // Unsigned 32-bit integers, for which OpenAPI has no format.
    for (number, least) in [
        ("/History/properties/turns", 0),
        ("/Limits/properties/processes", 1),
        ("/Guard/oneOf/0/properties/limit", 0),
    ] {
        if let Some(number) = schemas.pointer_mut(number).and_then(Value::as_object_mut) {
            number.remove("format");
            number.insert("minimum".to_owned(), least.into());
            number.insert("maximum".to_owned(), u32::MAX.into());
        }
    }
    let command = &mut schemas["AgentSpec"]["properties"]["command"];
    command["prefixItems"] = json!([{"type": "string", "minLength": 1}]);
    for (schema, field, prefix) in [
        ("RegisterRequest", "conversation_id", "conv_"),
        ("WorkerTokenRequest", "conversation_id", "conv_"),
        ("RegisterRequest", "worker_id", "wrk_"),
        ("ClaimsRequest", "worker_id", "wrk_"),
        ("BeatRequest", "worker_id", "wrk_"),
        ("Named", "turn_id", "turn_"),
    ] {
        schemas[schema]["properties"][field]["pattern"] = id(prefix).into();
    }
    schemas["RegisterRequest"]["properties"]["agent"]["pattern"] = AGENT_NAME.into();
    schemas["WorkerTokenRequest"]["properties"]["agent"]["pattern"] = AGENT_NAME.into();
    schemas["AnswerRequest"]["properties"]["answer"]["not"] = json!({"type": "null"});
}
