//! Tokens: what lets somebody in who has it.
//!
//! Owns how one is made and how it is kept: as its SHA-256, compared in constant time. Refuses to print one.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// A fresh token of 256 random bits, as 64 hexadecimal digits.
pub fn mint() -> String {
    digits(&rand::random())
}

/// Bytes as hexadecimal digits.
pub fn digits(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash that was written as [`digits`].
pub fn hash_from(digits: &str) -> Option<TokenHash> {
    let mut hash = TokenHash::default();
    if digits.len() != 2 * hash.len() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// How a token is kept; what else must be told apart without being kept is hashed alike.
pub fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether two hashes are the same, in a time that does not tell where they differ.
pub fn is_same(one: &TokenHash, other: &TokenHash) -> bool {
    one.ct_eq(other).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_the_same() {
        let (one, other) = (mint(), mint());
        assert_eq!(one.len(), 64);
        assert!(!is_same(&hash(&one), &hash(&other)) && is_same(&hash(&one), &hash(&one)));
        assert_eq!(hash_from(&digits(&hash(&one))), Some(hash(&one)));
        for wrong in ["", "ab", &one[1..], &"+f".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(hash_from(wrong), None, "{wrong}");
        }
    }
}
