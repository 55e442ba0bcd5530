//! What a spec promises.

use super::*;

#[test]
fn an_idle_worker_is_kept_for_seven_days_at_most() {
    let kept_for = |text: &str| {
        let spec = AgentSpec::process(vec!["true".to_owned()]);
        AgentSpec { idle_ttl: text.parse().unwrap(), ..spec }.validate()
    };
    assert_eq!(kept_for("0s"), Ok(()));
    assert_eq!(kept_for("7days"), Ok(()));
    for text in ["7days 1ns", "500000000000years"] {
        assert_eq!(kept_for(text).map_err(|why| why.field), Err("idle_ttl"), "{text}");
    }
}

#[test]
fn a_program_is_named_where_the_gateway_starts_it_and_nowhere_else() {
    let process = AgentSpec::process(Vec::new());
    assert_eq!(process.validate().map_err(|why| why.field), Err("command"));
    assert_eq!(AgentSpec::remote().validate(), Ok(()));
    let remote = AgentSpec { command: vec!["true".to_owned()], ..AgentSpec::remote() };
    assert_eq!(remote.validate().map_err(|why| why.field), Err("command"));
    assert_eq!(serde_json::from_str(r#"{"runtime":"remote"}"#).ok(), Some(AgentSpec::remote()));
}

#[test]
fn a_pod_is_of_the_runtime_that_has_one() {
    let field =
        |text: &str| serde_json::from_str::<AgentSpec>(text).unwrap().validate().map_err(|why| why.field);
    let pod = r#""pod":{"image":"a"}"#;
    assert_eq!(field(&format!(r#"{{"runtime":"kubernetes","command":["true"],{pod}}}"#)), Ok(()));
    assert_eq!(field(r#"{"runtime":"kubernetes","command":["true"]}"#), Err("pod"));
    assert_eq!(field(&format!(r#"{{"runtime":"process","command":["true"],{pod}}}"#)), Err("pod"));
    let shared = format!(r#"{{"runtime":"kubernetes","command":["true"],"scope":"shared",{pod}}}"#);
    assert_eq!(field(&shared), Err("scope"));
}

#[test]
fn only_a_shared_worker_serves_several_turns_at_once() {
    let spec = |fields: &str| -> AgentSpec {
        serde_json::from_str(&format!(r#"{{"runtime":"process","command":["true"]{fields}}}"#)).unwrap()
    };
    let shared = |turns: u32| spec(&format!(r#","scope":"shared","max_concurrent_turns":{turns}"#));
    assert_eq!(spec("").turns_per_worker(), 1);
    assert_eq!(spec(r#","scope":"shared""#).turns_per_worker(), 64);
    assert_eq!(shared(3).turns_per_worker(), 3);
    for sound in [spec(r#","max_concurrent_turns":1"#), shared(1), shared(10_000)] {
        assert_eq!(sound.validate(), Ok(()));
    }
    for wrong in [spec(r#","max_concurrent_turns":2"#), shared(0), shared(10_001)] {
        assert_eq!(wrong.validate().map_err(|why| why.field), Err("max_concurrent_turns"));
    }
}
