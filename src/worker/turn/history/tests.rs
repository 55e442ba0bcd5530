use uuid::Uuid;

use super::*;
use crate::{id::TurnId, units::Size};

fn turn(ordinal: i64, question: &str, answer: &str) -> PastTurn {
    PastTurn {
        id: TurnId(Uuid::from_u128(ordinal.unsigned_abs().into())),
        ordinal,
        status: Status::Completed,
        input: serde_json::json!({ "text": question }).to_string(),
        last_word: Some(serde_json::json!({ "text": answer }).to_string()),
        said: Vec::new(),
    }
}

fn limits(bytes: u64) -> History {
    History { turns: 50, bytes: Size(bytes) }
}

fn texts(told: &ToldHistory) -> Vec<&str> {
    told.said.iter().map(|said| said.text.as_str()).collect()
}

#[test]
fn a_long_answer_leaves_room_for_what_was_before() {
    let past =
        [turn(3, "short", "fine"), turn(2, "long?", &"y".repeat(3000)), turn(1, "my name is Ada", "hello")];
    let told = super::told(&past, 4, "{}", limits(1000)).unwrap();
    let texts = texts(&told);
    assert_eq!(
        (&texts[..3], &texts[4..]),
        (&["my name is Ada", "hello", "long?"][..], &["short", "fine"][..])
    );
    assert!(texts[3].starts_with('y') && texts[3].ends_with('y') && texts[3].contains("left out"));
    assert_eq!(told.omitted, Some(Omitted { turns: 0, shortened: 1 }));
    assert!(told.said.iter().map(|said| said.text.len()).sum::<usize>() <= 1000);
}

#[test]
fn the_newest_turn_is_told_whatever_its_size() {
    let past = [turn(2, &"q".repeat(5000), &"a".repeat(9000)), turn(1, "x", "y")];
    for bytes in [1, 10, 100, 1000] {
        let told = super::told(&past, 3, "{}", limits(bytes)).unwrap();
        let newest = &told.said[told.said.len() - 2..];
        assert!(newest.iter().all(|said| said.turn_id == past[0].id && said.shortened), "{bytes}");
        assert!(newest.iter().map(|said| said.text.len() as u64).sum::<u64>() <= bytes);
    }
    let told = super::told(&past, 3, "{}", limits(0)).unwrap();
    assert_eq!((told.said, told.omitted), (Vec::new(), Some(Omitted { turns: 2, shortened: 0 })));
}

#[test]
fn what_fits_is_told_whole_and_nothing_is_said_to_be_missing() {
    let past = [turn(2, "three", "four"), turn(1, "one", "two")];
    let told = super::told(&past, 3, "{}", limits(15)).unwrap();
    assert_eq!(texts(&told), ["one", "two", "three", "four"]);
    assert_eq!(told.omitted, None);
    let told = super::told(&past[..1], 3, "{}", limits(15)).unwrap();
    assert_eq!(told.omitted, Some(Omitted { turns: 1, shortened: 0 }));
}

#[test]
fn the_line_has_room_for_all_of_it() {
    // Each of these takes six bytes on a line, and three as text.
    let past = [turn(1, "x", &"\u{2028}".repeat(200_000))];
    let input = format!("{{\"text\":\"{}\"}}", "x".repeat(frame::INPUT_BYTES_MAX - 20));
    for input in ["{}", &input] {
        let told = super::told(&past, 2, input, limits(1 << 20)).unwrap();
        let size = text::json_line(&told.said).unwrap().len() + input.len();
        assert!(size + ENVELOPE <= frame::BYTES_MAX && size > frame::BYTES_MAX * 7 / 8, "{size}");
        assert_eq!(told.said.len(), 2);
    }
}

#[test]
fn a_turn_that_was_cut_off_tells_what_was_said_and_why() {
    let event = |kind, fields: serde_json::Value| (kind, fields.to_string());
    let failed = PastTurn {
        status: Status::Failed,
        input: r#"{"text":"look","attachments":[{"z":1.0,"a":2}]}"#.to_owned(),
        last_word: Some(r#"{"error":{"code":"worker_exited","message":"m"}}"#.to_owned()),
        said: vec![
            event(Kind::Delta, serde_json::json!({"text": "half "})),
            event(Kind::Ask, serde_json::json!({"ask_id": "q", "prompt": "Which?", "options": ["a"]})),
            event(Kind::Ask, serde_json::json!({"ask_id": "r", "prompt": "And?"})),
            event(Kind::Answer, serde_json::json!({"ask_id": "q", "answer": {"n": 1}})),
            event(Kind::Content, serde_json::json!({"text": "an answer"})),
        ],
        ..turn(1, "", "")
    };
    let told = super::told(&[failed], 2, "{}", limits(1000)).unwrap();
    let json = serde_json::to_string(&told.said).unwrap();
    assert!(json.contains(r#""attachments":[{"z":1.0,"a":2}]"#), "as it came: {json}");
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        read[0]["asks"],
        serde_json::json!([
            {"ask_id": "q", "prompt": "Which?", "options": ["a"], "answer": {"n": 1}}, {"ask_id": "r", "prompt": "And?"},
        ])
    );
    assert_eq!((&read[1]["role"], &read[1]["text"]), (&"assistant".into(), &"half an answer".into()));
    for said in [&read[0], &read[1]] {
        assert_eq!((&said["status"], &said["code"]), (&"failed".into(), &"worker_exited".into()));
    }
}

#[test]
fn what_does_not_read_is_no_turn_without_words() {
    let broken = [
        PastTurn { input: "x".to_owned(), ..turn(1, "", "") },
        PastTurn { last_word: Some("x".to_owned()), ..turn(1, "", "") },
        PastTurn { said: vec![(Kind::Ask, "x".to_owned())], ..turn(1, "", "") },
    ];
    for past in broken {
        assert!(super::told(&[past], 2, "{}", limits(1000)).is_err());
    }
}
