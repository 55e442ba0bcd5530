//! The ringing side of the doorbell: one connection, one NOTIFY at a time.
//!
//! Rings at once, and gathers while a ring is under way. Where it rings all the time it gathers for longer, the longer the
//! more there are whom it wakes. NOTIFY never rides in a writing transaction: there it would serialise all
//! commits. A ring that meets a broken connection is rung again over a new one: the listener waits for its
//! own probe, and would take a lost one for its own deafness. Whoever misses a ring looks by itself.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{ring::Ring, subscriptions::Wake};
use crate::{
    store::{
        Store, StoreError,
        pool::{conn::Conn, session::Purpose},
    },
    telemetry::metrics,
};

/// Postgres takes payloads below 8,000 bytes.
const PAYLOAD_MAX: usize = 7900;
/// Kept turns in one payload.
const KEPT_MAX: usize = 120;
const RING_MAX: Duration = Duration::from_secs(2);
/// From one ring to the next, on average, for each replica that is woken, up to ten: each ring costs every replica
/// something.
const GAP_EACH: Duration = Duration::from_micros(2200);
const GAP_MAX: Duration = Duration::from_millis(22);
/// So many may come sooner, as long as others before them came later.
const RINGS_AHEAD: u32 = 10;
const RECONNECT_GAP: Duration = Duration::from_millis(200);

/// Rings what is pending until cancelled, then once more: nothing committed goes unrung.
pub async fn ring_on(store: Store, until: CancellationToken) {
    let mut conn: Option<Conn> = None;
    let mut pace = Pace { due: Instant::now() };
    loop {
        let is_last = tokio::select! {
            () = store.wake.rung.notified() => false,
            () = until.cancelled() => true,
        };
        let pending = store.wake.take_pending();
        if !pending.is_empty()
            && let Err(why) = ring(&store, &mut conn, &pending).await
        {
            tracing::debug!(%why, "the doorbell could not be rung");
            if !is_last {
                conn = None;
                tokio::time::sleep(RECONNECT_GAP).await;
                if why.is_away() {
                    store.wake.put_back(pending);
                }
            }
        }
        if is_last {
            return;
        }
        tokio::time::sleep(pace.rest(Instant::now(), store.wake.peers() + 1)).await;
    }
}

/// How fast rings may follow each other.
struct Pace {
    /// When the next one would be due if all came at the average.
    due: Instant,
}

impl Pace {
    /// How long to gather after a ring that woke so many replicas.
    fn rest(&mut self, now: Instant, replicas: usize) -> Duration {
        let gap = GAP_EACH.saturating_mul(u32::try_from(replicas).unwrap_or(u32::MAX)).min(GAP_MAX);
        self.due = self.due.max(now) + gap;
        self.due.saturating_duration_since(now + gap * RINGS_AHEAD)
    }
}

async fn ring(store: &Store, slot: &mut Option<Conn>, pending: &Ring) -> Result<(), StoreError> {
    let lost = |why: String| StoreError::Away { op: "ring", why };
    let work = async {
        let conn = match slot {
            Some(conn) => conn,
            None => slot.insert(store.listener_sessions.open("ring", Purpose::Task(RING_MAX)).await?),
        };
        for payload in payloads(store.wake.sender(), pending) {
            sqlx::query_scalar!("select pg_notify($1, $2)::text", &*conn.schema.channel(), payload)
                .fetch_one(&mut *conn)
                .await
                .map_err(|why| StoreError::from_sqlx("ring", why))?;
            metrics::doorbell_rings();
        }
        Ok(())
    };
    match tokio::time::timeout(RING_MAX, work).await {
        Ok(done) => done,
        Err(_) => Err(lost(format!("no answer within {RING_MAX:?}"))),
    }
}

/// A ring as texts: the sender's mark, flags, then ids of 32 hex digits each, one after another. With the flag `n` the
/// first is that of the first turn that was queued; all others are of turns with events and of conversations with
/// turns: the release before wakes nobody for an id of those, and passes over a flag that it does not know. With the flag `k` they are
/// turns that are kept for a worker, each before its conversation; a release that does not know this flag heeds the `n`
/// beside it, and looks at its queue.
fn payloads(sender: Uuid, ring: &Ring) -> Vec<String> {
    let mut flags = String::new();
    let flag_of = [
        (ring.first_queued.is_some(), 'n'),
        (ring.queue, 'q'),
        (ring.orders, 'o'),
        (ring.closing, 'c'),
        (ring.follows, 'f'),
    ];
    for (is_set, flag) in flag_of {
        if is_set {
            flags.push(flag);
        }
    }
    if let Some(nonce) = ring.probe {
        flags.push_str(&format!("p{nonce}"));
    }
    let head = |flags: &str| format!("{} {flags} ", sender.as_simple());
    let mut out = vec![head(&flags)];
    for turn in ring.first_queued.iter().chain(&ring.turns) {
        if out.last().is_some_and(|payload| payload.len() + 32 > PAYLOAD_MAX) {
            out.push(head(""));
        }
        if let Some(payload) = out.last_mut() {
            push_id(payload, *turn);
        }
    }
    let kept: Vec<&(Uuid, Uuid)> = ring.kept.iter().collect();
    for some in kept.chunks(KEPT_MAX) {
        let mut payload = head("nk");
        for (turn, conversation) in some {
            push_id(&mut payload, *turn);
            push_id(&mut payload, *conversation);
        }
        out.push(payload);
    }
    out
}

fn push_id(payload: &mut String, id: Uuid) {
    payload.push_str(id.as_simple().encode_lower(&mut Uuid::encode_buffer()));
}

/// What says in the name of `sender` that turns were queued, the first of which is this one.
pub(in crate::store) fn queue_payload(sender: Uuid, first_queued: Option<Uuid>) -> String {
    payloads(sender, &Ring { first_queued, ..Ring::default() }).concat()
}

/// Reads a payload back; `None` for one that is not ours to read.
pub(in crate::store) fn read(payload: &str) -> Option<(Uuid, Ring)> {
    let mut parts = payload.splitn(3, ' ');
    let sender = Uuid::try_parse(parts.next()?).ok()?;
    let flags = parts.next()?;
    let ids = parts.next()?;
    let (flags, probe) = match flags.split_once('p') {
        Some((flags, nonce)) => (flags, nonce.parse().ok()),
        None => (flags, None),
    };
    let mut ids = ids.as_bytes().chunks(32).map(|digits| Uuid::try_parse_ascii(digits).ok());
    if flags.contains('k') {
        let mut kept = HashSet::new();
        while let Some(turn) = ids.next() {
            kept.insert((turn?, ids.next()??));
        }
        return Some((sender, Ring { kept, ..Ring::default() }));
    }
    let first_queued = if flags.contains('n') { Some(ids.next()??) } else { None };
    let turns = ids.collect::<Option<HashSet<_>>>()?;
    let [queue, orders, closing, follows] = ['q', 'o', 'c', 'f'].map(|flag| flags.contains(flag));
    let kept = HashSet::new();
    Some((sender, Ring { turns, first_queued, queue, kept, orders, closing, follows, probe }))
}

impl Wake {
    /// Rings for ourselves, to measure how long it takes to be heard.
    pub(in crate::store) fn ring_probe(&self, started: Instant, now: Instant) {
        let nonce = i64::try_from(now.duration_since(started).as_micros()).unwrap_or(i64::MAX);
        let follows = self.threads.say();
        self.ring(|ring| (ring.probe, ring.follows) = (Some(nonce), follows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it rings in a second if there is always something to ring for, and each ring takes 1 ms.
    fn rings_a_second(replicas: usize) -> u32 {
        let began = Instant::now();
        let (mut pace, mut now, mut rings) = (Pace { due: began }, began, 0);
        while now < began + Duration::from_secs(10) {
            now += Duration::from_millis(1);
            now += pace.rest(now, replicas);
            rings += 1;
        }
        rings / 10
    }

    #[test]
    fn rings_have_a_rate_that_goes_with_the_number_of_replicas() {
        assert_eq!([1, 2, 10, 100].map(rings_a_second), [455, 228, 46, 46]);
    }

    #[test]
    fn who_rings_now_and_then_never_rests() {
        let began = Instant::now();
        let mut pace = Pace { due: began };
        // Five at once, each 50 ms: 100 a second of two replicas.
        for n in 0..200 {
            let now = began + Duration::from_millis(50) * (n / 5);
            assert_eq!(pace.rest(now, 2), Duration::ZERO, "{n}");
        }
    }

    #[test]
    fn a_ring_is_heard_as_it_was_rung() {
        let turns: HashSet<_> = (0..1000u128).map(Uuid::from_u128).collect();
        let kept = (0..300u128).map(|n| (Uuid::from_u128(n), Uuid::from_u128(1000 + n))).collect();
        let first_queued = Some(Uuid::from_u128(12));
        let (queue, orders, closing, follows, probe) = (true, false, true, true, Some(17));
        let ring = Ring { turns, first_queued, queue, kept, orders, closing, follows, probe };
        let sender = Uuid::from_u128(7);
        let texts = payloads(sender, &ring);
        assert!(texts.len() > 1 && texts.iter().all(|text| text.len() < 8000));
        let mut heard = Ring::default();
        for text in texts {
            let (from, part) = read(&text).unwrap();
            assert_eq!(from, sender);
            heard.turns.extend(part.turns);
            heard.first_queued = heard.first_queued.or(part.first_queued);
            heard.queue |= part.queue;
            heard.kept.extend(part.kept);
            heard.orders |= part.orders;
            heard.closing |= part.closing;
            heard.follows |= part.follows;
            heard.probe = heard.probe.or(part.probe);
        }
        assert_eq!(heard, ring);
    }

    #[test]
    fn a_payload_of_another_program_is_no_ring() {
        for text in [
            "",
            "hello",
            "hello q ",
            "00000000000000000000000000000007 q zz",
            "00000000000000000000000000000007 n ",
            "00000000000000000000000000000007 nk 00000000000000000000000000000008",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
