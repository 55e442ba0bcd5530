//! A ring: the content of one NOTIFY between replicas.

use std::collections::HashSet;

use uuid::Uuid;

/// Postgres takes payloads below 8,000 bytes.
const PAYLOAD_MAX: usize = 7900;
/// Reserved turns in one payload.
const KEPT_MAX: usize = 120;

/// The content of one NOTIFY: where to look, never the data itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Turns with new events, and conversations with new turns. Ids are unique across both.
    pub turns: HashSet<Uuid>,
    /// Whether the sender has subscribers of whole conversations.
    pub follows: bool,
    /// The first turn queued since the last ring.
    pub first_queued: Option<Uuid>,
    /// Whether a turn that was queued before may have become claimable.
    pub queue: bool,
    /// Turns reserved for their conversations' workers, each with its conversation.
    pub kept: HashSet<(Uuid, Uuid)>,
    /// Whether orders were stored for some holder.
    pub orders: bool,
    /// Whether a replica was lost or left, so that turns may have to be closed.
    pub closing: bool,
    /// The sender's own probe, in microseconds since its session began; only the sender reads it.
    pub probe: Option<i64>,
}

impl Ring {
    pub(in crate::store) fn is_empty(&self) -> bool {
        *self == Ring::default()
    }
}

/// The payloads of a ring: sender id, flags, then ids of 32 hex digits each without separators. With the flag `n` the
/// first id is the first queued turn; all other ids are turns with new events or conversations with new turns. The
/// previous release wakes nobody for a conversation's id, and ignores flags that it does not know. With the flag `k`
/// the ids are pairs of a reserved turn and its conversation; a release that does not know `k` obeys the `n` beside it
/// and looks at its queue.
pub(in crate::store) fn payloads(sender: Uuid, ring: &Ring) -> Vec<String> {
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

/// The payload, sent in the name of `sender`, for newly queued turns; `first_queued` is the first of them.
pub(in crate::store) fn queue_payload(sender: Uuid, first_queued: Option<Uuid>) -> String {
    payloads(sender, &Ring { first_queued, ..Ring::default() }).concat()
}

/// Parses a payload; `None` if the format is unknown.
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

/// The smaller of two optional values; `None` counts as absent.
pub fn first<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

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
