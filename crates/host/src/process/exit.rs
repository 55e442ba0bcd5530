//! How a worker ended, in data and in words.

use std::{fmt, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::guard_protocol::AgentEnd;
use lastword_words::{failure::Code, units::Size};

/// How long a descriptor that leaked out of a dead worker's tree is waited for.
const LEAK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a worker is gone that is no child of this program, as its host reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// What its turn's last word says.
    pub code: Code,
    /// For a person.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

/// How a worker ended. Its tree is gone by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its tree went over its memory.
    pub oom: bool,
    /// Whether its tree had too many processes.
    pub too_many_processes: bool,
    /// Whether it was ended because this replica had been silent for too long.
    pub silence: bool,
    /// The memory it was allowed.
    pub memory: Size,
    /// The processes it was allowed.
    pub processes: u32,
}

impl Exit {
    /// The end as the guard told it; without a word from the guard the worker was killed with it.
    pub(crate) fn new(told: Option<AgentEnd>, memory: Size, processes: u32) -> Self {
        let killed = || AgentEnd { signal: Some(Signal::SIGKILL as i32), ..AgentEnd::default() };
        let ended = told.unwrap_or_else(killed);
        Exit {
            code: ended.code,
            signal: ended.signal,
            oom: ended.oom,
            too_many_processes: ended.processes,
            silence: ended.silence,
            memory,
            processes,
        }
    }

    /// Whether it ended by itself and without an error.
    pub fn is_clean(&self) -> bool {
        self.code == Some(0)
    }

    /// The end in a few words for a person, such as `exit code 1` or `signal SIGKILL`.
    pub fn describe(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            _ if self.oom => write!(f, "out of memory (limit {})", self.memory),
            _ if self.too_many_processes => write!(f, "too many processes (limit {})", self.processes),
            _ if self.silence => f.write_str("stopped because its server was unresponsive"),
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "signal {signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
            (None, None) => f.write_str("unknown reason"),
        }
    }
}

/// Returns when the worker has been gone for [`LEAK_TIMEOUT`]. Cancel-safe through `ends`.
pub(super) async fn leak_timeout(exit: &mut watch::Receiver<Option<Exit>>, ends: &mut Option<Instant>) {
    // An error means that nobody watches any more: gone as well.
    let _ = exit.wait_for(Option::is_some).await;
    let ends = *ends.get_or_insert_with(|| Instant::now() + LEAK_TIMEOUT);
    sleep_until(ends).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_named_before_the_signal_that_carried_it_out() {
        let told = |ended| Exit::new(Some(ended), Size::mib(1024), 64).describe();
        let killed = AgentEnd { signal: Some(9), ..AgentEnd::default() };
        assert_eq!(told(AgentEnd { code: Some(1), ..AgentEnd::default() }), "exit code 1");
        assert_eq!(told(killed), "signal SIGKILL");
        assert_eq!(told(AgentEnd { signal: Some(40), ..killed }), "signal 40");
        assert_eq!(told(AgentEnd { oom: true, ..killed }), "out of memory (limit 1GiB)");
        assert_eq!(told(AgentEnd { processes: true, ..killed }), "too many processes (limit 64)");
        assert_eq!(Exit::new(None, Size::mib(1), 1).describe(), "signal SIGKILL");
    }
}
