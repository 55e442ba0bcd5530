//! Liveness of a remote worker that calls over HTTP.
//!
//! Silence is counted in ticks of the listening task, never by a clock: a replica that was suspended declares no worker
//! dead (I8). An open request is a sign of life. A beat whose connection broke means that the worker or its network is
//! gone, until the next beat: other requests that arrive later may have been sent before the break. The close of the
//! connection that carries a worker's beats, between two of them, means the same.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

/// Ticks of silence until a worker is given up after a broken beat or connection: 2.5 s.
const CUT_OFF_TICKS: u32 = 10;
/// Ticks of silence until any other worker is given up: 10 s.
const SILENT_TICKS: u32 = 40;
/// Interval between two ticks.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// Liveness of one worker, or of one worker for one turn.
#[derive(Debug, Default)]
pub struct Liveness {
    open: AtomicUsize,
    ticks: AtomicU32,
    is_cut_off: AtomicBool,
    beats: AtomicU64,
    /// The connection of the newest beat that named its connection; 0 before the first.
    came_by: AtomicU64,
}

impl Liveness {
    /// Counts a beat as an open request. A drop without [`OpenRequest::answered`] means that the connection broke.
    pub fn beat(self: &Arc<Self>) -> OpenRequest {
        self.beats.fetch_add(1, Ordering::AcqRel);
        self.is_cut_off.store(false, Ordering::Release);
        self.open(false)
    }

    /// If two consecutive beats used one connection, returns a callback for its close: the worker then counts as
    /// disconnected, unless a newer beat has arrived. Does not apply to clients that open a connection per beat.
    pub fn came_by(self: &Arc<Self>, connection: u64) -> Option<impl FnOnce() + Send + use<>> {
        let is_kept_open = self.came_by.swap(connection, Ordering::AcqRel) == connection;
        let (liveness, newest) = (self.clone(), self.beats.load(Ordering::Acquire));
        is_kept_open.then_some(move || {
            if liveness.beats.load(Ordering::Acquire) == newest {
                liveness.ticks.store(0, Ordering::Release);
                liveness.cut_off();
            }
        })
    }

    /// Counts any other request as an open request. Its break proves nothing.
    pub fn request(self: &Arc<Self>) -> OpenRequest {
        self.open(true)
    }

    fn open(self: &Arc<Self>, is_answered: bool) -> OpenRequest {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.ticks.store(0, Ordering::Release);
        OpenRequest { liveness: self.clone(), is_answered }
    }

    /// Marks the worker as disconnected: silence now counts against the shorter limit.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::Release);
    }

    /// Whether the newest beat broke off, or its connection closed after it.
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Acquire)
    }

    /// Counts one tick; true when the worker is to be given up. `is_worker_cut_off`: the worker itself is disconnected.
    /// The turn then counts as disconnected too, since the beat that broke may be older than the turn.
    pub fn tick(&self, is_worker_cut_off: bool) -> bool {
        if self.open.load(Ordering::Acquire) > 0 {
            self.ticks.store(0, Ordering::Release);
            return false;
        }
        let ticks = self.ticks.fetch_add(1, Ordering::AcqRel) + 1;
        let is_cut_off = is_worker_cut_off || self.is_cut_off();
        ticks >= if is_cut_off { CUT_OFF_TICKS } else { SILENT_TICKS }
    }
}

/// A request in progress: a sign of life until it is dropped.
#[derive(Debug)]
pub struct OpenRequest {
    liveness: Arc<Liveness>,
    /// Whether the drop of this request proves nothing.
    is_answered: bool,
}

impl OpenRequest {
    /// Notes that the request is answered: its drop is no sign of a broken connection.
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if !self.is_answered {
            self.liveness.is_cut_off.store(true, Ordering::Release);
        }
        self.liveness.ticks.store(0, Ordering::Release);
        self.liveness.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks_until_given_up(liveness: &Liveness) -> u32 {
        (1..).find(|_| liveness.tick(false)).unwrap()
    }

    #[test]
    fn who_broke_off_is_given_up_sooner_than_who_fell_silent() {
        let liveness = Arc::new(Liveness::default());
        liveness.beat().answered();
        assert_eq!(ticks_until_given_up(&liveness), SILENT_TICKS);
        drop(liveness.beat());
        assert_eq!(ticks_until_given_up(&liveness), CUT_OFF_TICKS);
        // A request that was already on its way proves nothing.
        liveness.request().answered();
        assert_eq!(ticks_until_given_up(&liveness), CUT_OFF_TICKS);
        // A later beat arrived: only a connection had broken.
        liveness.beat().answered();
        drop(liveness.request());
        assert_eq!(ticks_until_given_up(&liveness), SILENT_TICKS);
        liveness.request().answered();
        assert_eq!((1..).find(|_| liveness.tick(true)), Some(CUT_OFF_TICKS), "a turn that no beat has named");
    }

    #[test]
    fn who_falls_silent_with_its_connection_is_given_up_sooner() {
        let liveness = Arc::new(Liveness::default());
        let beat_by = |connection| {
            let open = liveness.beat();
            let at_end = liveness.came_by(connection);
            open.answered();
            at_end
        };
        assert!(beat_by(1).is_none(), "it may open one for each beat");
        let early = beat_by(1).unwrap();
        let late = beat_by(1).unwrap();
        early();
        assert_eq!(ticks_until_given_up(&liveness), SILENT_TICKS, "another beat has come since");
        late();
        assert_eq!(ticks_until_given_up(&liveness), CUT_OFF_TICKS);
        assert!(beat_by(2).is_none(), "another connection");
        assert_eq!(ticks_until_given_up(&liveness), SILENT_TICKS);
    }

    #[test]
    fn nobody_is_given_up_whose_request_is_open() {
        let liveness = Arc::new(Liveness::default());
        let open = liveness.beat();
        assert!((0..1000).all(|_| !liveness.tick(true)));
        drop(open);
        assert_eq!(ticks_until_given_up(&liveness), CUT_OFF_TICKS);
    }
}
