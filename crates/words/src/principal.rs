//! Principals: who stands behind a request, as far as tokens tell.
//!
//! Owns the number of each, and the mark that it leaves in the ids of its turns. Who takes a share of what all must share
//! is a principal.

use uuid::Uuid;

/// Who takes a share: a configured client token, by its place in the configuration.
///
/// A turn's id bears the principal that asked for it in its last 16 bits, so that every replica knows whose a turn is
/// without a column that is written for each turn. The place says nothing of the token; a part of its hash would
/// help whoever guesses tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(u16);

impl Principal {
    /// Everybody without a token, where client routes are open.
    pub const ANONYMOUS: Principal = Principal(0);
    /// Whoever has an operator's token: no share bounds an operator.
    pub const OPERATOR: Principal = Principal(u16::MAX);

    /// The client token at this place of the configuration, from 0. Places that have no number of their own share
    /// the last one.
    pub fn client(place: usize) -> Principal {
        Principal(u16::try_from(place + 1).unwrap_or(u16::MAX).min(u16::MAX - 1))
    }

    /// The principal whose mark this id bears.
    pub fn of(id: Uuid) -> Principal {
        let [.., high, low] = id.into_bytes();
        Principal(u16::from_be_bytes([high, low]))
    }

    /// The id with this principal's mark, in place of random bits.
    #[must_use]
    pub fn mark(self, id: Uuid) -> Uuid {
        let low = u128::from(u16::MAX);
        Uuid::from_u128(id.as_u128() & !low | u128::from(self.0))
    }

    /// An idempotency key as it is stored: each principal has keys of its own. Those of anybody without a token and of the
    /// first client token are stored as they come, as releases did that had all keys in common; the line break of the
    /// others cannot come by a header.
    pub fn own_key(self, key: String) -> String {
        match self.0 {
            0 | 1 => key,
            number => format!("{number}\n{key}"),
        }
    }

    /// The number, as SQL compares it.
    pub fn number(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_whose_it_is_and_is_the_same_otherwise() {
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_abcd);
        for principal in
            [Principal::ANONYMOUS, Principal::client(0), Principal::client(7), Principal::OPERATOR]
        {
            let marked = principal.mark(id);
            assert_eq!(Principal::of(marked), principal);
            assert_eq!(marked.as_u128() >> 16, id.as_u128() >> 16);
            assert_eq!(marked.get_version_num(), 7);
        }
        let numbers = [0, 1, 65_533, 65_534, 1_000_000].map(|place| Principal::client(place).number());
        assert_eq!(numbers, [1, 2, 65_534, 65_534, 65_534], "none is the operators'");
    }
}
