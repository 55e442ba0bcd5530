//! The end of a run: what was said and the last word go together, or the turn goes back.

use super::{End, Run};
use crate::{
    telemetry::metrics,
    worker::{ending::speak_after, life::Fate},
};

impl Run<'_> {
    /// Writes what was said, and the end with it. What a worker said before it died is heard first.
    pub(super) async fn tell(mut self, end: End) -> Fate {
        self.line.hang_up(matches!(end, End::Word(_, Fate::Keep)));
        // What cannot be written is no part of an answer: it takes the end's place.
        let end = match end {
            End::Lost | End::Moved => end,
            end => self.settle(matches!(end, End::Rerun(_))).await.unwrap_or(end),
        };
        let (word, fate) = match end {
            End::Lost => {
                metrics::leases_lost();
                tracing::warn!("lease lost: the worker is ended, or told to stop where it has other turns");
                return self.kill();
            }
            End::Moved => {
                tracing::debug!("the turn goes on elsewhere");
                return Fate::End;
            }
            End::Rerun(_) if self.give_back().await => return Fate::End,
            End::Rerun(word) => (word, Fate::End),
            End::Word(word, fate) => (word, fate),
        };
        let mut said = self.pen.take_gathered();
        said.extend(self.transcript.take_half());
        let is_told = speak_after(self.host, &self.job.claim, self.pen.base, said, word).await;
        if is_told {
            self.line.note_end((fate == Fate::Keep).then_some(self.heard));
        }
        if !is_told || fate == Fate::End {
            // Authority ends with the turn (I11).
            return self.kill();
        }
        fate
    }

    /// Waits for the write that is under way; what is gathered goes with the last word, or, where there may
    /// be none, is written too. The end to take where that is not possible.
    async fn settle(&mut self, is_all: bool) -> Option<End> {
        loop {
            if is_all {
                self.write();
            }
            if !self.pen.is_writing() {
                return None;
            }
            let written = self.pen.written().await;
            if let Some(end) = self.written(written) {
                self.pen.take_gathered();
                return Some(end);
            }
        }
    }

    async fn give_back(&mut self) -> bool {
        let claim = &self.job.claim;
        let is_released = self.host.store().release(claim.turn, claim.epoch, false).await.unwrap_or(false);
        if is_released {
            metrics::requeued("worker_exited");
            tracing::info!("the worker died before it had said anything; the turn is run again");
        }
        is_released
    }

    fn kill(&mut self) -> Fate {
        self.line.kill();
        Fate::End
    }
}
