//! The life of one conversation's process on this host: started for a turn, kept warm, ended.
//!
//! A warm process serves the turn after the one that it served, and no other: where somebody else served one
//! between, it does not know what was said. A turn that finds it dead gets a fresh one.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    crew::Crew,
    outbox::Posted,
    turn::{self, Fate, Hand, Job},
};
use crate::{
    id::ConversationId,
    worker::{
        process::{Heard, Process},
        ready::NotReady,
        wire::Message,
    },
};

/// A process between two turns.
struct Warm {
    process: Process,
    /// The turn that it served last, by its place in the conversation.
    ordinal: i64,
    idle_ttl: Duration,
}

/// Serves a conversation's turns, from the first to the end of its process.
pub async fn live(crew: &Crew, first: Job, mut jobs: mpsc::Receiver<Job>, this: mpsc::WeakSender<Job>) {
    let conversation = first.offer.conversation_id;
    let (mut warm, mut next) = (None, Some(first));
    while let Some(job) = next {
        warm = serve(crew, warm, job).await;
        next = match &mut warm {
            Some(warm) if !crew.leaving().is_cancelled() => idle(crew, conversation, warm, &mut jobs).await,
            _ => jobs.try_recv().ok(),
        };
        if next.is_none() {
            // From here on a turn finds another life; what came in before is served by this one.
            crew.forget(conversation, &this);
            next = jobs.try_recv().ok();
        }
    }
    if let Some(mut warm) = warm {
        crew.end(&mut warm.process).await;
    }
}

/// Runs one turn; the process that may serve the next.
async fn serve(crew: &Crew, warm: Option<Warm>, mut job: Job) -> Option<Warm> {
    if job.outbox.take().await == Posted::Over {
        return warm;
    }
    let ordinal = job.offer.ordinal;
    let idle_ttl = Duration::from_millis(job.registered.idle_ttl_ms);
    let mut has_history = false;
    let mut process = match warm {
        Some(warm) if warm.ordinal + 1 == ordinal && warm.process.is_there() => {
            has_history = true;
            warm.process
        }
        other => {
            if let Some(mut stale) = other {
                crew.end(&mut stale.process).await;
            }
            match start(crew, &mut job).await {
                Some(process) => process,
                None => return None,
            }
        }
    };
    let fate = turn::run(&mut Hand::Own(&mut process), job, has_history).await;
    if fate == Fate::End {
        crew.kill(&mut process).await;
        return None;
    }
    Some(Warm { process, ordinal, idle_ttl })
}

/// Starts a process for a turn; `None` where there is none, and the gateway was told why.
async fn start(crew: &Crew, job: &mut Job) -> Option<Process> {
    let registered = job.registered.clone();
    let started = tokio::select! {
        started = crew.start(&registered, Some(job.offer.conversation_id)) => started,
        // Nothing was begun, so there is nothing to be stopped.
        why = job.called_off() => {
            turn::call_off(job, why).await;
            return None;
        }
    };
    match started {
        Ok(process) => Some(process),
        Err(NotReady { message, detail }) => {
            turn::not_started(job, &message, detail.as_deref()).await;
            None
        }
    }
}

/// Waits for the next turn; `None` when the process should end, or has.
async fn idle(
    crew: &Crew,
    conversation: ConversationId,
    warm: &mut Warm,
    jobs: &mut mpsc::Receiver<Job>,
) -> Option<Job> {
    let idle = crew.idle(conversation)?;
    let until = Instant::now() + warm.idle_ttl;
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => return job,
            heard = warm.process.recv() => {
                if !matches!(&heard, Heard::Message(from) if from.message == Message::Beat) {
                    tracing::info!(pid = warm.process.pid(), "an idle worker ended, or spoke between turns");
                    return None;
                }
            }
            () = sleep_until(until) => return None,
            () = crew.leaving().cancelled() => return None,
            () = idle.unwanted.cancelled() => return None,
        }
    }
}
