//! A ring: what one replica tells the others by NOTIFY.

use std::collections::HashSet;

use uuid::Uuid;

/// Postgres takes payloads below 8,000 bytes.
const PAYLOAD_MAX: usize = 7900;
/// Kept turns in one payload.
const KEPT_MAX: usize = 120;

/// What one NOTIFY says: look at these.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Turns with new events, and conversations with new turns: no two of all these ids are alike.
    pub turns: HashSet<Uuid>,
    /// The sender has readers of whole conversations.
    pub follows: bool,
    /// The first turn that was queued since the last ring.
    pub first_queued: Option<Uuid>,
    /// Something that was queued before may be claimed.
    pub queue: bool,
    /// Turns that are held for the workers of their conversations, each with its conversation.
    pub kept: HashSet<(Uuid, Uuid)>,
    /// Somebody left orders for a holder.
    pub orders: bool,
    /// Somebody was judged or left: there may be something to close.
    pub closing: bool,
    /// A probe of our own, to be heard by ourselves.
    pub probe: Option<i64>,
}

impl Ring {
    pub(in crate::store) fn is_empty(&self) -> bool {
        *self == Ring::default()
    }
}

/// A ring as texts: the sender's mark, flags, then ids of 32 hex digits each, one after another. With the flag `n` the
/// first is that of the first turn that was queued; all others are of turns with events and of conversations with
/// turns: the release before wakes nobody for an id of those, and passes over a flag that it does not know. With the flag `k` they are
/// turns that are kept for a worker, each before its conversation; a release that does not know this flag heeds the `n`
/// beside it, and looks at its queue.
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

/// The first of two, where there is one.
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
