//! The end of a run: buffered events and the last word are committed together, or the turn goes back to the queue.

use super::{
    run::{End, Run},
    terminal::speak_after,
};
use crate::{
    failure::Code,
    host::{Fate, Link},
    store::warn_of,
    telemetry::metrics,
    turn::LastWord,
};

impl Run<'_> {
    /// Writes the buffered events and the end. Messages the worker sent before its death were read before this
    /// call.
    pub(super) async fn finish(mut self, end: End, link: &mut impl Link) -> Fate {
        link.hang_up(matches!(end, End::Word(_, Fate::Keep)));
        // A failed write replaces the end: the log lacks part of the answer.
        let end = match end {
            End::Lost | End::Moved => end,
            end => self.settle(matches!(end, End::Rerun(_)), link).await.unwrap_or(end),
        };
        let (word, fate) = match end {
            End::Lost => {
                metrics::leases_lost();
                tracing::warn!(
                    "lease lost: the worker is killed, or told to stop this turn if it has others"
                );
                return kill(link);
            }
            End::Moved => {
                tracing::debug!("the turn goes on elsewhere");
                return kill(link);
            }
            End::Rerun(word) => {
                // First: the next attempt may begin at once, and this one's process may still be there.
                link.kill();
                if self.give_back(&word).await {
                    return Fate::End;
                }
                (word, Fate::End)
            }
            End::Word(word, fate) => (word, fate),
        };
        let mut said = self.buffer.take_gathered();
        said.extend(self.transcript.take_half());
        let is_told = speak_after(self.deps, &self.job.claim, self.buffer.base, said, word).await;
        if is_told {
            link.note_end((fate == Fate::Keep).then_some(self.heard));
        }
        if !is_told || fate == Fate::End {
            // Authority ends with the turn (I11).
            return kill(link);
        }
        fate
    }

    /// Waits for the write in flight. With `is_all` the buffered events are written too, since the turn may end
    /// without a last word; otherwise they are committed with it. Returns the end to use instead if a write fails.
    async fn settle(&mut self, is_all: bool, link: &mut impl Link) -> Option<End> {
        loop {
            if is_all {
                self.write();
            }
            if !self.buffer.is_writing() {
                return None;
            }
            let written = self.buffer.written().await;
            if let Some(end) = self.failed_write(written) {
                self.buffer.take_gathered();
                return Some(end);
            }
            self.note_written(link);
        }
    }

    async fn give_back(&mut self, word: &LastWord) -> bool {
        let claim = &self.job.claim;
        let is_released = match self.deps.store.release(claim.turn, claim.epoch, false).await {
            Ok(is_released) => is_released,
            Err(why) => {
                // The turn does not run here any more, so the next `settle` pass disowns the claim.
                warn_of!(why, turn_id = %claim.turn, "not given back yet");
                return true;
            }
        };
        if is_released {
            metrics::requeued(if word.label == Code::Interrupted.as_str() {
                "drain"
            } else {
                "worker_exited"
            });
            tracing::info!(code = %word.label, "the attempt ended without any output; the turn is run again");
        }
        is_released
    }
}

fn kill(link: &mut impl Link) -> Fate {
    link.kill();
    Fate::End
}
