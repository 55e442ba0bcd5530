//! Whether somebody who calls over HTTP is heard.
//!
//! Counted in ticks of whoever listens, never by clocks: a listener that stood still accuses nobody. An open
//! request is a sign of life. A beat that broke off says that the worker is gone, or its network is, until
//! another beat comes: what else it sent may have been on its way already. So does the end of the connection
//! that beats come by, between two of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

/// Ticks without a word after which a worker whose request broke off is given up: 2.5 s.
const CUT_OFF_TICKS: u32 = 10;
/// Ticks after which any other is: 10 s.
const SILENT_TICKS: u32 = 40;
/// Between two ticks.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// Whether a worker is heard, or is for one of its turns.
#[derive(Debug, Default)]
pub struct Liveness {
    open: AtomicUsize,
    ticks: AtomicU32,
    is_cut_off: AtomicBool,
    beats: AtomicU64,
    /// By which connection the newest beat came that told; 0 before the first.
    came_by: AtomicU64,
}

impl Liveness {
    /// A beat has come; its drop says that it broke off, unless it was answered.
    pub fn beat(self: &Arc<Self>) -> OpenRequest {
        self.beats.fetch_add(1, Ordering::AcqRel);
        self.is_cut_off.store(false, Ordering::Release);
        self.open(false)
    }

    /// If two consecutive beats used one connection, returns a callback for its close: the worker then counts as
    /// disconnected, unless a newer beat has arrived.
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

    /// Any other request has come.
    pub fn request(self: &Arc<Self>) -> OpenRequest {
        self.open(true)
    }

    fn open(self: &Arc<Self>, is_answered: bool) -> OpenRequest {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.ticks.store(0, Ordering::Release);
        OpenRequest { liveness: self.clone(), is_answered }
    }

    /// Its worker was given up.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::Release);
    }

    /// Whether its last beat broke off.
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Acquire)
    }

    /// Counts a tick; whether the worker is given up. A turn's liveness is cut off with its worker's: the beat
    /// that broke off may have been older than the turn.
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

/// A request that is under way.
#[derive(Debug)]
pub struct OpenRequest {
    liveness: Arc<Liveness>,
    /// Whether its end says nothing.
    is_answered: bool,
}

impl OpenRequest {
    /// The request has its answer.
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
        // What was on its way before says nothing.
        liveness.request().answered();
        assert_eq!(ticks_until_given_up(&liveness), CUT_OFF_TICKS);
        // Another beat came through: what broke was a connection.
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
