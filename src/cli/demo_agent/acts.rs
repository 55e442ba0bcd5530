//! What the demo agent does with a message: the friendly answer, and each misdeed by name.
//!
//! Owns the commands at the start of a message; `HELP` describes the effect of each on the host.

use std::{process::Stdio, time::Duration};

use nix::{sys::signal, unistd::Pid};
use serde_json::{Value, json};
use tokio::signal::unix::SignalKind;

use super::stage::{StageTurn, Stop, TurnStage, say, write};

/// The commands, for people.
pub const HELP: &str = "\
A message may begin with a command:
  /echo TEXT     TEXT, at once
  /slow N        N words, one every 100 ms
  /recall        everything the agent knows of this conversation
  /ask QUESTION  asks, waits for the answer, echoes it
  /notice TEXT   a whole message; /ephemeral TEXT and /status TEXT likewise
  /error TEXT    reports an error
  /flood N       N pieces as fast as they go
  /emoji         characters of many bytes
  /crash [CODE]  one piece, then it exits with CODE (1)
  /kill          one piece, then it kills itself
  /hang          beats for ever, no progress
  /freeze        nothing for ever; deaf to cancel, shutdown, SIGTERM
  /silent        completes without a word
  /orphan        leaves a process behind, and says its pid
  /garbage /badutf8 /nul /rawnul /longline /unknown
                 a line that is not JSON, not UTF-8, has an escaped or a raw NUL,
                 is 2 MiB long, has an unknown type
  /wrongturn /noturn /badfield /twoends /afterend
                 speaks for another turn, for none, leaves out a field, completes twice,
                 goes on after its end
  /help          this";

/// Pause between two words of a friendly answer.
const WORD_PAUSE: Duration = Duration::from_millis(15);
/// Pause between two beats of `/hang`.
const BEAT_PAUSE: Duration = Duration::from_millis(200);
/// Length of a line that the protocol refuses.
const LONG_LINE_BYTES: usize = 2 * 1024 * 1024;

/// Runs one turn to its end, or until it is stopped.
pub async fn perform(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    let text = turn.input.text.trim();
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    match command {
        "/help" => stage.delta(turn, HELP)?,
        "/echo" => stage.delta(turn, or(rest, "Echo."))?,
        "/slow" => slow(stage, turn, count(rest, 10)).await?,
        "/recall" => recall(stage, turn)?,
        "/ask" => ask(stage, turn, rest).await?,
        "/notice" => stage.text(turn, "content", or(rest, "Please note."))?,
        "/ephemeral" => {
            stage.text(turn, "ephemeral", or(rest, "Just a moment."))?;
            stage.delta(turn, "That was for the moment only.")?;
        }
        "/status" => {
            let state = or(rest, "working");
            say(&json!({"type": "status", "turn_id": turn.turn_id, "state": state}))?;
            stage.delta(turn, "That was my status.")?;
        }
        "/error" => {
            let message = or(rest, "The demo agent was asked to fail.");
            return say(&json!({"type": "error", "turn_id": turn.turn_id, "message": message}));
        }
        "/flood" => flood(stage, turn, count(rest, 1000)).await?,
        "/emoji" => emoji(stage, turn)?,
        "/silent" => {}
        "/orphan" => orphan(stage, turn)?,
        "/afterend" => return after_end(stage, turn),
        "/crash" | "/kill" | "/hang" | "/freeze" => return die(stage, turn, command, rest).await,
        _ if is_mangled(command) => mangle(stage, turn, command)?,
        _ => greet(stage, turn).await?,
    }
    stage.complete(turn)
}

/// A friendly answer, word by word.
async fn greet(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    let mut answer = match turn.input.text.trim() {
        "" => "Hello! You said nothing at all.".to_owned(),
        text => format!("Hello! You said: {text}"),
    };
    if !turn.input.attachments.is_empty() {
        answer.push_str(&format!(" (and sent {} attachments)", turn.input.attachments.len()));
    }
    for word in answer.split_inclusive(' ') {
        stage.delta(turn, word)?;
        stage.wait(WORD_PAUSE).await?;
    }
    Ok(())
}

async fn slow(stage: &mut TurnStage<'_>, turn: &StageTurn, words: u64) -> Result<(), Stop> {
    for n in 1..=words {
        stage.wait(Duration::from_millis(100)).await?;
        stage.delta(turn, &format!("word{n} "))?;
    }
    Ok(())
}

fn recall(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    let known = stage.recall(turn);
    let lines: Vec<String> = known
        .iter()
        .enumerate()
        .map(|(n, said)| format!("{}. {}: {}", n + 1, said.role, said.text))
        .collect();
    match lines.is_empty() {
        true => stage.delta(turn, "I know nothing of this conversation yet."),
        false => stage.delta(turn, &lines.join("\n")),
    }
}

async fn ask(stage: &mut TurnStage<'_>, turn: &StageTurn, question: &str) -> Result<(), Stop> {
    let prompt = or(question, "Shall I go on?");
    let ask_id = format!("ask_{:032x}", rand::random::<u128>());
    say(&json!({"type": "ask", "turn_id": turn.turn_id, "ask_id": ask_id, "prompt": prompt}))?;
    let answer = match stage.answer().await? {
        Value::String(text) => text,
        other => other.to_string(),
    };
    stage.delta(turn, &format!("You answered: {answer}"))
}

async fn flood(stage: &mut TurnStage<'_>, turn: &StageTurn, pieces: u64) -> Result<(), Stop> {
    for n in 1..=pieces {
        stage.delta(turn, &format!("{n} "))?;
        if n % 64 == 0 {
            stage.pause().await?;
        }
    }
    Ok(())
}

/// Splits a character of several code points between two pieces.
fn emoji(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    for piece in ["Grüße, 世界! ", "🦀🎉 ", "\u{1F469}\u{200D}", "\u{1F680}", " \u{2028}é\u{301}"] {
        stage.delta(turn, piece)?;
    }
    Ok(())
}

/// The process left behind keeps this one's stdout open, as stray processes do in practice.
fn orphan(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    let child = std::process::Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn()?;
    stage.delta(turn, &child.id().to_string())
}

/// Ends a turn without a last message, in several ways.
#[allow(clippy::disallowed_methods, reason = "to exit in the middle of everything is what was asked for")]
async fn die(stage: &mut TurnStage<'_>, turn: &StageTurn, way: &str, rest: &str) -> Result<(), Stop> {
    match way {
        "/crash" => {
            stage.delta(turn, "About to crash.")?;
            let code = rest.parse().unwrap_or(1);
            eprintln!("demo agent: crashing with exit code {code}, as asked");
            std::process::exit(code);
        }
        "/kill" => {
            stage.delta(turn, "About to be killed.")?;
            eprintln!("demo agent: killing itself, as asked");
            signal::kill(Pid::this(), signal::Signal::SIGKILL).map_err(|_| Stop::Leave)?;
            Ok(())
        }
        "/hang" => loop {
            say(&json!({"type": "beat", "turn_id": turn.turn_id}))?;
            stage.wait(BEAT_PAUSE).await?;
        },
        _ => {
            // tokio never restores the signal's default action, so SIGTERM no longer ends the process.
            let _deaf = tokio::signal::unix::signal(SignalKind::terminate())?;
            stage.freeze().await
        }
    }
}

fn is_mangled(command: &str) -> bool {
    const MANGLED: [&str; 10] = [
        "/garbage",
        "/badutf8",
        "/nul",
        "/rawnul",
        "/longline",
        "/wrongturn",
        "/noturn",
        "/badfield",
        "/twoends",
        "/unknown",
    ];
    MANGLED.contains(&command)
}

/// Breaks the protocol in one place; the caller completes the turn.
fn mangle(stage: &mut TurnStage<'_>, turn: &StageTurn, command: &str) -> Result<(), Stop> {
    let id = &turn.turn_id;
    let raw = |text: &[u8]| {
        let head = format!(r#"{{"type":"delta","turn_id":"{id}","text":""#);
        [head.as_bytes(), text, br#""}"#].concat()
    };
    match command {
        "/garbage" => write(b"this is no JSON {"),
        "/badutf8" => write(&raw(b"bad \xff\xfe bytes")),
        "/nul" => stage.delta(turn, "before\u{0}after"),
        "/rawnul" => write(&raw(b"before\x00after")),
        "/longline" => write(&raw(&vec![b'x'; LONG_LINE_BYTES])),
        "/wrongturn" => {
            let other = "turn_00000000000070008000000000000000";
            say(&json!({"type": "delta", "turn_id": other, "text": "for somebody else"}))?;
            stage.delta(turn, "for you")
        }
        "/noturn" => say(&json!({"type": "delta", "text": "for whom?"})),
        "/badfield" => say(&json!({"type": "delta", "turn_id": id})),
        "/twoends" => {
            stage.delta(turn, "I end twice.")?;
            stage.complete(turn)
        }
        _ => say(&json!({"type": "sparkle", "turn_id": id, "colour": "gold", "n": [1, 2]})),
    }
}

fn after_end(stage: &mut TurnStage<'_>, turn: &StageTurn) -> Result<(), Stop> {
    stage.delta(turn, "I go on after my end.")?;
    stage.complete(turn)?;
    stage.delta(turn, "Still here.")
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn count(text: &str, default: u64) -> u64 {
    text.parse().unwrap_or(default)
}
