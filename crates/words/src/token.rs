//! Tokens: bearer credentials of workers and turns.
//!
//! Owns how a token is minted and stored: as its SHA-256, compared in constant time. Refuses to print a token.
//!
//! A minted token names its purpose and carries a checksum, so a mistyped, truncated or invented token is refused
//! without a database query. The checksum is no secret: an attacker can compute one, and the token is then looked up
//! and refused.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// Bytes of the SHA-256 in the checksum of a minted token.
const CHECKSUM_BYTES: usize = 4;
/// Characters of the checksum in base64.
const CHECKSUM_CHARS: usize = 6;

/// What a minted token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Lets a worker call the gateway.
    Worker,
    /// Authorises the messages of one attempt of a turn.
    Turn,
}

impl Purpose {
    const ALL: [Purpose; 2] = [Purpose::Worker, Purpose::Turn];

    /// The prefix of the purpose's tokens.
    const fn prefix(self) -> &'static str {
        match self {
            Purpose::Worker => "lww_",
            Purpose::Turn => "lwt_",
        }
    }
}

/// A new token of 256 random bits: purpose, bits and checksum, as 53 letters, digits, `-` and `_`.
pub fn mint(purpose: Purpose) -> String {
    let secret: [u8; 32] = rand::random();
    let token = purpose.prefix().to_owned() + &URL_SAFE_NO_PAD.encode(secret);
    let checksum = checksum(&token);
    token + &checksum
}

/// Whether a text may be a token of this purpose. False is certain; true must be looked up. A token without a known
/// prefix may come from an older release.
pub fn may_be(purpose: Purpose, token: &str) -> bool {
    match Purpose::ALL.into_iter().find(|known| token.starts_with(known.prefix())) {
        Some(found) => found == purpose && is_whole(token),
        None => true,
    }
}

/// Whether a text ends with its own checksum.
fn is_whole(token: &str) -> bool {
    let parts = token.len().checked_sub(CHECKSUM_CHARS).and_then(|at| token.split_at_checked(at));
    parts.is_some_and(|(said, end)| checksum(said) == end)
}

fn checksum(said: &str) -> String {
    URL_SAFE_NO_PAD.encode(&hash(said)[..CHECKSUM_BYTES])
}

/// Bytes as hexadecimal digits.
pub fn digits(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash from its [`digits`]; `None` if the text has another form.
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

/// The hash under which a token is stored. Also used for other texts that must be compared but not stored.
pub fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether two hashes are equal, in constant time.
pub fn is_same(one: &TokenHash, other: &TokenHash) -> bool {
    one.ct_eq(other).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_the_same() {
        let (one, other) = (mint(Purpose::Worker), mint(Purpose::Worker));
        assert!(!is_same(&hash(&one), &hash(&other)) && is_same(&hash(&one), &hash(&one)));
        assert_eq!(hash_from(&digits(&hash(&one))), Some(hash(&one)));
        for wrong in ["", "ab", &digits(&hash(&one))[1..], &"+f".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(hash_from(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_minted_token_is_known_by_its_form() {
        for (purpose, other) in [(Purpose::Worker, Purpose::Turn), (Purpose::Turn, Purpose::Worker)] {
            let token = mint(purpose);
            assert_eq!(token.len(), 53, "{token}");
            assert!(
                token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
                "{token}"
            );
            assert!(may_be(purpose, &token) && !may_be(other, &token), "{token}");
            for at in 0..token.len() {
                let changed = if token.as_bytes()[at] == b'x' { "y" } else { "x" };
                let mut mistyped = token.clone();
                mistyped.replace_range(at..=at, changed);
                // A token without its prefix may come from an older release.
                assert_eq!(may_be(purpose, &mistyped), at < 4, "{mistyped}");
            }
            for made_up in
                [purpose.prefix(), &token[..52], &format!("{token}x"), &format!("{}é", &token[..51])]
            {
                assert!(!may_be(purpose, made_up), "{made_up}");
            }
            assert!(may_be(purpose, &digits(&hash("of an older release"))) && may_be(purpose, ""));
        }
    }
}
