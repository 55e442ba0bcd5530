//! Principals: the caller behind a request, identified by its token.
//!
//! Owns the number of each principal, and the mark that a principal leaves in the ids of its turns. Shares of common
//! limits are counted by principal.

use uuid::Uuid;

/// A caller that takes a share: a configured client token, identified by its index in the configuration.
///
/// The last 16 bits of a turn's id are the principal that made the turn, so every replica knows a turn's owner
/// without a column that is written for each turn. The index reveals nothing of the token; part of its hash would
/// help an attacker who guesses tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(u16);

impl Principal {
    /// Every caller without a token, if client routes are open.
    pub const ANONYMOUS: Principal = Principal(0);
    /// Every caller with an operator's token. No share limits operators.
    pub const OPERATOR: Principal = Principal(u16::MAX);

    /// The client token at this index of the configuration, from 0. Tokens beyond the last free number share that
    /// number.
    pub fn client(place: usize) -> Principal {
        Principal(u16::try_from(place + 1).unwrap_or(u16::MAX).min(u16::MAX - 1))
    }

    /// The principal that an id is marked with.
    pub fn of(id: Uuid) -> Principal {
        let [.., high, low] = id.into_bytes();
        Principal(u16::from_be_bytes([high, low]))
    }

    /// The id with this principal's mark in place of 16 random bits.
    #[must_use]
    pub fn mark(self, id: Uuid) -> Uuid {
        let low = u128::from(u16::MAX);
        Uuid::from_u128(id.as_u128() & !low | u128::from(self.0))
    }

    /// An idempotency key as it is stored: each principal has its own keys. The keys of anonymous callers and of the
    /// first client token are stored unchanged, because older releases stored the keys of all callers so. All other
    /// keys get a prefix with a line break, which no HTTP header can contain.
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
