//! Valid names of the database schema.

/// Whether the name can be used as a schema without quotes.
pub(super) fn is_name(name: &str) -> bool {
    let is_word = |letter: u8| letter.is_ascii_lowercase() || letter == b'_';
    let (first, len) = (name.as_bytes().first(), name.len());
    first.is_some_and(|first| is_word(*first))
        && len <= 40
        && !name.starts_with("pg_")
        && name.bytes().all(|letter| is_word(letter) || letter.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn a_schema_has_a_name_that_needs_no_quotes() {
        assert!(["lastword", "_", "team_1", &"a".repeat(40)].into_iter().all(is_name));
        assert!(
            !["", "1a", "Team", "a-b", "a.b", "pg_a", "a b", "ä", &"a".repeat(41)].into_iter().any(is_name)
        );
    }
}
