//! What a person reads of a turn.
//!
//! Owns the split: the agent's answer (`delta`, `content`) goes to stdout unchanged, everything else to stderr as
//! one line each, so that `lastword chat … > answer.txt` holds only the answer. A `content` message stands on
//! lines of its own. Control characters are escaped on a terminal, so an agent cannot move the reader's cursor; a
//! file or a pipe gets the answer byte for byte.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use serde_json::Value;

use crate::text;
use lastword_client::follow::FollowedEvent;

/// Both outputs, and what stands on them.
pub struct TranscriptView {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    out_is_terminal: bool,
    is_coloured: bool,
    is_json: bool,
    /// Whether stdout's last character was not a line end.
    is_mid_line: bool,
    /// The deltas of this turn, to find the part of the whole answer not printed yet.
    streamed: String,
    contents: Vec<String>,
    /// Whether the turn's first event was printed.
    is_whole: bool,
}

impl TranscriptView {
    /// On this process's stdout and stderr. With `is_json`, prints every event as one line of JSON.
    pub fn stdio(is_json: bool) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let out_is_terminal = out.is_terminal();
        let is_coloured = err.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        TranscriptView {
            out: Box::new(out),
            err: Box::new(err),
            out_is_terminal,
            is_coloured,
            is_json,
            is_mid_line: false,
            streamed: String::new(),
            contents: Vec::new(),
            is_whole: false,
        }
    }

    /// Prints one event.
    pub fn event(&mut self, event: &FollowedEvent) -> io::Result<()> {
        if self.is_json {
            writeln!(self.out, "{}", text::json_line(&event.body)?)?;
            return self.out.flush();
        }
        match event.kind.as_str() {
            "accepted" => {
                self.streamed.clear();
                self.contents.clear();
                self.is_whole = true;
                self.note(&format!("[{} in {}]", event.turn_id, event.text("conversation_id")))
            }
            "delta" => {
                self.streamed.push_str(event.text("text"));
                self.speak(event.text("text"))
            }
            "content" => {
                self.contents.push(event.text("text").to_owned());
                self.end_line()?;
                self.speak(event.text("text"))?;
                self.end_line()
            }
            "completed" => {
                let rest = self.unsaid(event.text("text")).to_owned();
                self.speak(&rest)?;
                self.end_line()
            }
            "failed" => {
                self.end_line()?;
                self.failure(event.body.get("error").unwrap_or(&Value::Null))
            }
            "cancelled" => {
                self.end_line()?;
                self.line(&format!("Cancelled by {}.", event.text("by")))
            }
            "ask" => self.line(&question(event)),
            _ => match aside(event) {
                Some(line) => self.note(&line),
                None => Ok(()),
            },
        }
    }

    /// Prints why a turn failed, from its `error` object.
    pub fn failure(&mut self, error: &Value) -> io::Result<()> {
        let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        self.line(&format!("Agent error: {}", field("message")))?;
        let is_safe = error.get("safe_to_retry").and_then(Value::as_bool) == Some(true);
        let safe = if is_safe { ", safe to try again" } else { "" };
        let trace = match field("trace_id") {
            "" => String::new(),
            trace => format!(", trace {trace}"),
        };
        self.note(&format!("[{}{safe}{trace}]", field("code")))
    }

    /// Prints a line for the person, apart from the answer.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.apart(&text::visible(text))
    }

    /// Prints a less important line.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        match self.is_coloured {
            true => self.apart(&format!("\x1b[2m{}\x1b[0m", text::visible(text))),
            false => self.line(text),
        }
    }

    fn apart(&mut self, text: &str) -> io::Result<()> {
        if self.is_mid_line && self.out_is_terminal {
            // Both outputs share the screen; stdout itself gets only the answer.
            self.err.write_all(b"\n")?;
            self.is_mid_line = false;
        }
        writeln!(self.err, "{text}")?;
        self.err.flush()
    }

    /// Prints the prompt for the next line.
    pub fn prompt(&mut self) -> io::Result<()> {
        self.err.write_all(b"> ")?;
        self.err.flush()
    }

    fn speak(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.chars().next_back() else { return Ok(()) };
        let shown = if self.out_is_terminal { text::visible(text) } else { Cow::Borrowed(text) };
        self.out.write_all(shown.as_bytes())?;
        self.is_mid_line = last != '\n';
        self.out.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        match self.is_mid_line {
            true => self.speak("\n"),
            false => Ok(()),
        }
    }

    /// The part of the whole answer that was not printed. Completes a partly streamed answer; returns an answer
    /// that came only with the last word in full.
    fn unsaid<'t>(&self, whole: &'t str) -> &'t str {
        if !self.streamed.is_empty() || !self.is_whole {
            let rest = if self.is_whole { whole.strip_prefix(self.streamed.as_str()) } else { None };
            return rest.unwrap_or_default();
        }
        let was_said = ["", "\n", "\n\n"].iter().any(|between| self.contents.join(between) == whole);
        if was_said || self.contents.iter().any(|said| said == whole) { "" } else { whole }
    }
}

/// The line for an event that is not part of the answer; `None` if there is none.
fn aside(event: &FollowedEvent) -> Option<String> {
    let text = |field| event.text(field);
    match event.kind.as_str() {
        "started" => {
            let attempt = event.body.get("attempt").and_then(Value::as_i64).unwrap_or(1);
            (attempt > 1).then(|| format!("[attempt {attempt}]"))
        }
        "ephemeral" => Some(format!("({})", text("text"))),
        "status" => {
            let waiting = match text("waiting_on") {
                "" => String::new(),
                what => format!(", waiting on {what}"),
            };
            Some(format!("[{}{waiting}]", text("state")))
        }
        "answer" => Some(match event.body.get("answer") {
            Some(Value::String(answer)) => format!("[answered: {answer}]"),
            other => format!("[answered: {}]", other.unwrap_or(&Value::Null)),
        }),
        "custom" => Some(format!("[{}] {}", text("name"), event.body.get("data").unwrap_or(&Value::Null))),
        other => Some(format!("[{other}]")),
    }
}

/// The line for a question: the prompt, and the options if there are any.
fn question(event: &FollowedEvent) -> String {
    let options = event.body.get("options").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let options = options.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned));
    match options.collect::<Vec<_>>().as_slice() {
        [] => format!("? {}", event.text("prompt")),
        options => format!("? {} [{}]", event.text("prompt"), options.join(" / ")),
    }
}
