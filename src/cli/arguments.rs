//! Refuses secrets among the arguments.
//!
//! Every user of the machine can read the arguments of every process, so secrets come from files or variables.

use std::{borrow::Cow, ffi::OsString};

use crate::secret;

/// Flags that take a URL, and what to do if it holds a secret.
const ADDRESSES: [(&str, &str); 2] = [
    ("--url", "set LASTWORD_URL"),
    ("--database-url", "set DATABASE_URL, or name a file that holds it in LASTWORD_DATABASE_URL_FILE"),
];

/// Refuses flags that contain a secret.
///
/// # Errors
/// What to do instead.
pub fn refuse_secrets(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    // Arguments after `--` belong to the worker's command.
    let mut arguments = arguments.take_while(|argument| argument != "--").peekable();
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    while let Some(argument) = arguments.next().as_ref().map(text) {
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), value.to_owned()),
            None => (argument, arguments.peek().map(text).unwrap_or_default()),
        };
        if flag == "--token" {
            return Err(refusal(
                "--token",
                "the token",
                "set LASTWORD_TOKEN, or name a file with --token-file",
            ));
        }
        let address = ADDRESSES.iter().find(|(known, _)| *known == flag);
        if let Some((flag, instead)) = address
            && matches!(secret::hidden(&value), Cow::Owned(_))
        {
            return Err(refusal(flag, "the password in it", instead));
        }
    }
    Ok(())
}

fn refusal(flag: &str, what: &str, instead: &str) -> String {
    format!("{flag} shows {what} to every user of this machine, who can list its processes: {instead}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_among_the_arguments_is_refused_and_not_repeated() {
        let seen = |words: &[&str]| refuse_secrets(words.iter().map(OsString::from));
        for words in [
            &["turns", "list", "--token", "s3cret"][..],
            &["chat", "--token=s3cret", "hello"],
            &["serve", "--database-url", "postgres://me:s3cret@db/app"],
            &["verify", "--database-url=postgres://db/app?password=s3cret"],
            &["chat", "--url", "http://one,http://me:s3cret@two", "hello"],
        ] {
            let why = seen(words).unwrap_err();
            assert!(!why.contains("s3cret") && why.contains(": set "), "{why}");
        }
        for words in [
            &["turns", "list", "--token-file", "token"][..],
            &["serve", "--database-url", "postgres://me@db/app?host=/run/postgresql"],
            &["chat", "postgres://me:s3cret@db/app"],
            &["chat", "--url", "http://127.0.0.1:8080", "--", "--token"],
            &["work", "--", "program", "--token", "s3cret"],
        ] {
            assert_eq!(seen(words), Ok(()), "{words:?}");
        }
    }
}
