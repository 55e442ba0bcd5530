//! Races of the store on a real Postgres that flushes its commits in order: many connections, several replicas, the
//! same turns at the same moment.
//!
//! Owns four kinds of race, and the account of each: how often each side won, and what must never happen: two winners,
//! a loser that learns anything but that it lost, a turn without exactly one last word, a gap. The results are read
//! from the tables by SQL of its own. A race that one side always wins is no race, and fails as well.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "races tasks, and asks Postgres by SQL of its own")]

mod claims;
mod field;
#[allow(dead_code, reason = "the races use a part of it")]
#[path = "../../store/ground.rs"]
mod ground;
mod words;

use std::{collections::BTreeMap, fmt, time::Duration};

use self::{field::Field, ground::Server};

/// Each side must win at least one race in so many.
const RARE: usize = 100;
/// How much of the noise is kept in words.
const NOISE_KEPT: usize = 10;

/// What the races of one kind came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Which kind.
    pub kind: &'static str,
    /// Races that were run.
    pub races: usize,
    /// How often each side won.
    pub wins: BTreeMap<&'static str, usize>,
    /// Races that two sides were told to have won.
    pub double_winners: usize,
    /// What a loser, or a winner, was told that is not so.
    pub noise_count: usize,
    /// The first of it, in words.
    pub noise: Vec<String>,
    /// Turns that have not exactly one terminal event, of their status, as their last.
    pub not_one_last_word: i64,
    /// Turns whose events do not count from 0 without gaps.
    pub gaps: i64,
    /// In-flight rows that were left.
    pub left_open: i64,
    /// How long it took.
    pub took: Duration,
}

impl Tally {
    fn of(kind: &'static str, sides: &[&'static str]) -> Tally {
        Tally { kind, wins: sides.iter().map(|side| (*side, 0)).collect(), ..Tally::default() }
    }

    fn win(&mut self, side: &'static str) {
        *self.wins.entry(side).or_default() += 1;
    }

    fn noise(&mut self, what: String) {
        self.noise_count += 1;
        if self.noise.len() < NOISE_KEPT {
            self.noise.push(what);
        }
    }

    /// What is wrong, a line each.
    pub fn wrongs(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut none = |what: &str, count: usize| {
            if count > 0 {
                wrong.push(format!("{}: {what}: {count}", self.kind));
            }
        };
        none("double winners", self.double_winners);
        none("false answers", self.noise_count);
        none("turns without exactly one last word", usize::try_from(self.not_one_last_word).unwrap());
        none("turns with gaps", usize::try_from(self.gaps).unwrap());
        none("rows left in flight", usize::try_from(self.left_open).unwrap());
        let total: usize = self.wins.values().sum();
        if total != self.races {
            wrong.push(format!("{}: {} races, but {total} were won", self.kind, self.races));
        }
        for (side, wins) in &self.wins {
            if wins * RARE < self.races {
                wrong.push(format!("{}: {side} won only {wins} of {}: no race", self.kind, self.races));
            }
        }
        wrong.extend(self.noise.iter().map(|what| format!("{}: {what}", self.kind)));
        wrong
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wins: Vec<String> = self.wins.iter().map(|(side, wins)| format!("{side} {wins}")).collect();
        write!(
            f,
            "{:<17} {:>6} races in {:>5.1} s; won by {}; double winners {}, false answers {}, \
             not one last word {}, gaps {}, left open {}",
            self.kind,
            self.races,
            self.took.as_secs_f64(),
            wins.join(", "),
            self.double_winners,
            self.noise_count,
            self.not_one_last_word,
            self.gaps,
            self.left_open,
        )
    }
}

/// What all the races came to.
#[derive(Debug)]
pub struct RaceReport {
    /// One a kind.
    pub tallies: Vec<Tally>,
}

impl RaceReport {
    /// What is wrong, a line each; none where every race had one winner, and every loser knew.
    pub fn wrongs(&self) -> Vec<String> {
        self.tallies.iter().flat_map(Tally::wrongs).collect()
    }
}

impl fmt::Display for RaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tallies.iter().try_for_each(|tally| writeln!(f, "{tally}"))
    }
}

/// Runs `count` races of each kind. The same seed gives the same head starts; the rest is chance.
pub async fn run(count: usize, seed: u64) -> RaceReport {
    run_over(count, seed, "select").await
}

/// The same over a schema that `change` was run on: what shows that the races notice a broken one.
pub async fn run_over(count: usize, seed: u64, change: &str) -> RaceReport {
    let server = Server::start().await;
    let mut tallies = Vec::new();
    let field = async || Field::new(&server, seed, change).await;
    tallies.push(claims::run(&mut field().await, count).await);
    tallies.push(words::finish_against_close(&mut field().await, count).await);
    tallies.push(words::cancel_against_finish(&mut field().await, count).await);
    tallies.push(words::append_against_close(&mut field().await, count).await);
    RaceReport { tallies }
}
