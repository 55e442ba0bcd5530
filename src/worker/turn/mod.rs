//! One turn, from its claim to its last word.
//!
//! ```text
//! prepare: its agent, its input checked ─► handover ─► run: transcript, timers, write_buffer ─► finish ─► terminal
//!                                                       ▲ replay: what the log tells of a turn that began elsewhere
//! ```

mod finish;
mod handover;
mod history;
mod input_guards;
mod job;
mod prepare;
mod replay;
mod run;
mod terminal;
mod timers;
pub mod transcript;
mod write_buffer;

pub(super) use self::{
    handover::{deliver, history, start, undelivered},
    input_guards::{InputGuards, stopped_by},
    job::{Fit, Job},
    prepare::{block, give_back, job_of, prepare},
    replay::Replay,
    run::{begin, resume},
    terminal::{Account, cancelled, speak},
};
