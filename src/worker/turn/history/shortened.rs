//! Shortens a long text to its beginning and its end, with a mark between.

/// Stands for the omitted middle.
const MARK: &str = "\n[… left out …]\n";

/// The text in at most `max` bytes.
pub(super) fn shortened(text: &str, max: u64) -> String {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    if text.len() <= max {
        return text.to_owned();
    }
    let Some(kept) = max.checked_sub(MARK.len()) else {
        return text[..text.floor_char_boundary(max)].to_owned();
    };
    let head = text.floor_char_boundary(kept / 2);
    let tail = text.ceil_char_boundary(text.len() - (kept - kept / 2));
    [&text[..head], MARK, &text[tail..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_kept_and_no_character_is_cut() {
        assert_eq!(shortened("short", 5), "short");
        let long = "äöü".repeat(100);
        for max in 0..long.len() as u64 {
            let short = shortened(&long, max);
            assert!(short.len() as u64 <= max, "{max}: {short}");
            let has_room = max >= MARK.len() as u64 + 4;
            assert_eq!(
                short.starts_with('ä') && short.contains(MARK) && short.ends_with('ü'),
                has_room,
                "{max}: {short}"
            );
        }
    }
}
