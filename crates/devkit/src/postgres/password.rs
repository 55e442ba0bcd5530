//! The superuser's password of a private Postgres, and its verifier for the server.
//!
//! Owns the verifier of SCRAM-SHA-256 (RFC 5802, in the format of `pg_authid`), with one iteration: iterations slow
//! guessing down, 128 random bits cannot be guessed, and each connection of a test would pay for them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

/// A password that nobody guesses.
pub(super) fn random() -> String {
    rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the server keeps of a password of ASCII characters; it takes this form for the password itself.
pub(super) fn verifier(password: &str) -> String {
    salted_verifier(password, &rand::random::<[u8; 16]>())
}

fn salted_verifier(password: &str, salt: &[u8]) -> String {
    let salted = hmac(password.as_bytes(), &[salt, &1_u32.to_be_bytes()].concat());
    let stored_key = Sha256::digest(hmac(&salted, b"Client Key"));
    let server_key = hmac(&salted, b"Server Key");
    let text = |bytes: &[u8]| STANDARD.encode(bytes);
    format!("SCRAM-SHA-256$1:{}${}:{}", text(salt), text(&stored_key), text(&server_key))
}

/// HMAC-SHA-256 (RFC 2104) under a key of at most one block.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| -> Vec<u8> {
        let bytes = key.iter().copied().chain(std::iter::repeat(0)).take(64);
        bytes.map(|byte| byte ^ with).collect()
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_its_rfc() {
        // RFC 4231, test case 2.
        let seen: String =
            hmac(b"Jefe", b"what do ya want for nothing?").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seen, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn no_two_passwords_or_salts_are_the_same() {
        let password = random();
        assert_eq!(password.len(), 32);
        assert_ne!(password, random());
        assert_ne!(verifier(&password), verifier(&password));
    }
}
