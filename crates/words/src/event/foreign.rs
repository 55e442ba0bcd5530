//! Names of event kinds that a newer release wrote. They are kept and shown as they are.
//!
//! An event kind is a `Copy` value, so a kept name is never freed. Refuses text that is not a valid kind name, and
//! more names than a few releases could add.

use parking_lot::Mutex;

/// Names that one process keeps, at most.
const NAMES_MAX: usize = 128;
/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// The name with the lifetime of the process. `None` if the text is no valid kind name, or if [`NAMES_MAX`] is
/// reached.
pub(super) fn kept(name: &str) -> Option<&'static str> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_allowed) {
        return None;
    }
    let mut names = NAMES.lock();
    if let Some(known) = names.iter().find(|known| **known == name) {
        return Some(known);
    }
    if names.len() >= NAMES_MAX {
        return None;
    }
    let kept: &'static str = Box::leak(name.into());
    names.push(kept);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once_and_what_is_no_name_is_refused() {
        let (one, other) = (kept("reasoning").unwrap(), kept("reasoning").unwrap());
        assert!(std::ptr::eq(one, other));
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for text in ["", "a b", "Upper", "a\nevent: completed", &long] {
            assert_eq!(kept(text), None, "{text}");
        }
    }
}
