//! A process of this host that serves many turns at once.
//!
//! Owns which turn a message is for. A turn that ends badly ends alone: the process is told to stop it, takes
//! no more turns, and is killed when its others have ended. A line that is nobody's ends them all.
//! Refuses to grow: [`UNHEARD_MAX`] messages wait for a turn at most, and the newest turns of the past are known.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep_until},
};

use super::{
    crew::Crew,
    outbox::Posted,
    turn::{self, Fate, Hand, Job},
    words::Registered,
};
use crate::{
    id::TurnId,
    task::Kind,
    worker::{
        codec::{Fault, ProtocolError},
        past::Past,
        process::{Heard, Inlet, Process},
        ready::NotReady,
        wire::{FromWorker, Message, ToWorker},
    },
};

/// Messages that may wait for one turn.
const UNHEARD_MAX: usize = 64;

/// A shared process, as its turns reach it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
    stage: watch::Sender<Stage>,
}

#[derive(Debug)]
struct State {
    lines: HashMap<TurnId, mpsc::Sender<Heard>>,
    /// Turns of the past: what comes for one is late, and not a stranger's.
    past: Past,
    is_condemned: bool,
    idle_since: Instant,
}

#[derive(Debug, Clone)]
enum Stage {
    Starting,
    Ready(Inlet),
    Refused { message: String, detail: Option<String> },
}

/// Runs a turn on the shared process.
pub async fn serve(crew: Arc<Crew>, mut job: Job) {
    if job.outbox.take().await == Posted::Over {
        return;
    }
    let turn_id = job.offer.turn_id;
    let (shared, line) = join(&crew, turn_id, &job.registered);
    let mut stage = shared.0.stage.subscribe();
    let started = async {
        let is_past_start = |stage: &Stage| !matches!(stage, Stage::Starting);
        stage.wait_for(is_past_start).await.map(|stage| stage.clone())
    };
    let ready = tokio::select! {
        ready = started => ready,
        why = job.called_off() => {
            shared.leave(turn_id, true);
            return turn::call_off(&mut job, why).await;
        }
    };
    let inlet = match ready {
        Ok(Stage::Ready(inlet)) => inlet,
        Ok(Stage::Refused { message, detail }) => {
            return turn::not_started(&mut job, &message, detail.as_deref()).await;
        }
        Ok(Stage::Starting) | Err(_) => return,
    };
    let fate = turn::run(&mut Hand::Shared(inlet.clone(), line), job, false).await;
    if fate == Fate::End {
        // One that is gone need not be told.
        let _ = inlet.send(&ToWorker::Cancel { turn_id });
    }
    shared.leave(turn_id, fate == Fate::Keep);
}

/// A line to the process that takes turns; starts one where there is none.
fn join(crew: &Arc<Crew>, turn: TurnId, registered: &Arc<Registered>) -> (Shared, mpsc::Receiver<Heard>) {
    let (line, unheard) = mpsc::channel(UNHEARD_MAX);
    let mut current = crew.shared();
    if let Some(shared) = current.as_ref() {
        let mut state = shared.state();
        // Its words of an earlier attempt would pass for those of this one.
        if !state.is_condemned && !state.past.is_known(turn) && !state.lines.contains_key(&turn) {
            state.lines.insert(turn, line);
            drop(state);
            return (shared.clone(), unheard);
        }
    }
    let state = State {
        lines: HashMap::from([(turn, line)]),
        past: Past::default(),
        is_condemned: false,
        idle_since: Instant::now(),
    };
    let (changed, stage) = (Notify::new(), watch::Sender::new(Stage::Starting));
    let shared = Shared(Arc::new(Inner { state: Mutex::new(state), changed, stage }));
    if let Some(former) = current.replace(shared.clone()) {
        former.condemn();
    }
    drop(current);
    let (living, registered) = (shared.clone(), registered.clone());
    let crew_of_it = crew.clone();
    crew.supervisor().spawn(Kind::Worker, "shared worker", async move {
        living.live(&crew_of_it, &registered).await;
    });
    (shared, unheard)
}

impl Shared {
    /// Its life: started, put through, ended.
    async fn live(&self, crew: &Crew, registered: &Registered) {
        let mut process = match crew.start(registered, None).await {
            Ok(process) => process,
            Err(NotReady { message, detail }) => {
                self.condemn();
                self.0.stage.send_replace(Stage::Refused { message, detail });
                return;
            }
        };
        self.0.stage.send_replace(Stage::Ready(process.inlet()));
        let idle_ttl = Duration::from_millis(registered.idle_ttl_ms);
        let last = self.put_through_all(crew, &mut process, idle_ttl).await;
        self.condemn();
        let lines: Vec<_> = self.state().lines.drain().map(|(_, line)| line).collect();
        for line in lines {
            // A turn that does not listen ends with its line.
            let _ = line.send(last.clone().unwrap_or(Heard::Closed)).await;
        }
        match last {
            None => crew.end(&mut process).await,
            Some(_) => crew.kill(&mut process).await,
        }
    }

    /// Puts through what it says, until it is to end; what its turns are to be told then.
    async fn put_through_all(&self, crew: &Crew, process: &mut Process, idle_ttl: Duration) -> Option<Heard> {
        loop {
            let (is_over, idle_since) = {
                let state = self.state();
                let is_idle = state.lines.is_empty();
                let is_unwanted = state.is_condemned || crew.leaving().is_cancelled();
                (is_idle && is_unwanted, is_idle.then_some(state.idle_since))
            };
            if is_over {
                return None;
            }
            let idle_until = idle_since.unwrap_or_else(Instant::now) + idle_ttl;
            let heard = tokio::select! {
                heard = process.recv() => heard,
                () = self.0.changed.notified() => continue,
                () = crew.leaving().cancelled(), if idle_since.is_some() => continue,
                () = sleep_until(idle_until), if idle_since.is_some() => {
                    self.condemn_if_idle();
                    continue;
                }
            };
            let turn = match &heard {
                Heard::Message(FromWorker { message: Message::Ready | Message::Beat, .. }) => continue,
                Heard::Message(from) => from.turn_id,
                Heard::Protocol(error) => error.turn_id,
                Heard::Closed | Heard::Gone(_) => continue,
                Heard::Exited(_) => return Some(heard),
            };
            let Some(turn) = turn else {
                // Nobody knows whose it is, so no client may see it.
                let fault = match heard {
                    Heard::Protocol(error) => error.fault,
                    _ => Fault::NoTurn,
                };
                return Some(Heard::Protocol(ProtocolError { fault, excerpt: String::new(), turn_id: None }));
            };
            let line = self.state().lines.get(&turn).cloned();
            match line {
                Some(line) => put_through(crew, &line, heard).await,
                None if self.state().past.is_known(turn) => {}
                None => {
                    let fault = Fault::OtherTurn;
                    return Some(Heard::Protocol(ProtocolError {
                        fault,
                        excerpt: String::new(),
                        turn_id: None,
                    }));
                }
            }
        }
    }

    /// A turn has ended; one that may go on with it is given no more.
    fn leave(&self, turn: TurnId, has_stopped: bool) {
        let mut state = self.state();
        state.lines.remove(&turn);
        state.past.note(turn);
        state.is_condemned |= !has_stopped;
        state.idle_since = Instant::now();
        self.0.changed.notify_one();
    }

    fn condemn(&self) {
        self.state().is_condemned = true;
        self.0.changed.notify_one();
    }

    fn condemn_if_idle(&self) {
        let mut state = self.state();
        state.is_condemned |= state.lines.is_empty();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a turn what was said of it; waits, and all that the process says with it, where too much waits for that turn
/// already. One that does not listen any more has ended.
async fn put_through(crew: &Crew, line: &mpsc::Sender<Heard>, heard: Heard) {
    if let Err(TrySendError::Full(heard)) = line.try_send(heard) {
        let _waiting = crew.waits().begin();
        drop(line.send(heard).await);
    }
}
