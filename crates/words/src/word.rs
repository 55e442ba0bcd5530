//! Lists of words that the database stores as text. A list is an enum; [`words!`](crate::words) makes the enum from pairs
//! of a variant and its text.
//!
//! Requests are parsed strictly ([`FromStr`](std::str::FromStr)), stored data leniently ([`Open`]): a newer release may have written a
//! word that this release does not know (`docs/decisions/0030`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A word of a list.
pub trait Word: Sized {
    /// The table and the column that store the words, or the function that answers with them.
    const PLACE: &'static str;

    /// The word of this text, as it is stored.
    ///
    /// # Errors
    /// The list has no such word.
    fn of_stored(text: &str) -> Result<Self, UnknownWord>;

    /// The text in SQL, JSON, logs and metrics.
    fn as_str(&self) -> &str;
}

/// A text that is not in a list of words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: unknown word `{text}`")]
pub struct UnknownWord {
    /// [`Word::PLACE`].
    pub place: &'static str,
    /// The text.
    pub text: String,
}

impl UnknownWord {
    /// A text that is no `T`.
    pub fn of<T: Word>(text: &str) -> UnknownWord {
        UnknownWord { place: T::PLACE, text: text.to_owned() }
    }
}

/// A word of the list `T`, or one that a newer release wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Open<T> {
    /// A word of this release.
    Known(T),
    /// Any other text, passed on as it is.
    Foreign(String),
}

impl<T: Word> Open<T> {
    /// The word of this text.
    pub fn of(text: &str) -> Open<T> {
        T::of_stored(text).map_or_else(|unknown| Open::Foreign(unknown.text), Open::Known)
    }

    /// The text in SQL, JSON, logs and metrics.
    pub fn as_str(&self) -> &str {
        match self {
            Open::Known(word) => word.as_str(),
            Open::Foreign(text) => text,
        }
    }

    /// The word, where this release has to know it.
    ///
    /// # Errors
    /// The word is foreign.
    pub fn known(self) -> Result<T, UnknownWord> {
        match self {
            Open::Known(word) => Ok(word),
            Open::Foreign(text) => Err(UnknownWord::of::<T>(&text)),
        }
    }
}

impl<T: Word> Word for Open<T> {
    const PLACE: &'static str = T::PLACE;

    fn of_stored(text: &str) -> Result<Self, UnknownWord> {
        Ok(Open::of(text))
    }

    fn as_str(&self) -> &str {
        self.as_str()
    }
}

impl<T> From<T> for Open<T> {
    fn from(word: T) -> Self {
        Open::Known(word)
    }
}

impl<T: Default> Default for Open<T> {
    fn default() -> Self {
        Open::Known(T::default())
    }
}

impl<T: PartialEq> PartialEq<T> for Open<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Open::Known(word) if word == other)
    }
}

impl<T: Word> fmt::Display for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<T: Word> Serialize for Open<T> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.as_str())
    }
}

impl<'de, T: Word> Deserialize<'de> for Open<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Open::of(&String::deserialize(from)?))
    }
}

/// Defines lists of words, each an enum with `ALL`, `as_str`, `Display`, `FromStr` and [`Word`]. A
/// list may end in a variant for the words of newer releases, with the function that keeps these.
#[macro_export]
macro_rules! words {
    ($(
        $(#[$meta:meta])*
        $vis:vis enum $list:ident in $place:literal {
            $($(#[$doc:meta])* $word:ident = $text:literal,)+
            $(.. $(#[$newer_doc:meta])* $newer:ident = $kept:path,)?
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "a word may say it all")]
        $vis enum $list {
            $($(#[$doc])* $word,)+
            $($(#[$newer_doc])* $newer(&'static str),)?
        }

        impl $list {
            /// Every word of this release.
            pub const ALL: [$list; [$($text),+].len()] = [$($list::$word),+];

            /// The text in SQL, JSON, logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($list::$word => $text,)+
                    $($list::$newer(text) => text,)?
                }
            }
        }

        impl ::std::fmt::Display for $list {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $list {
            type Err = $crate::word::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok($list::$word),)+
                    _ => Err($crate::word::UnknownWord::of::<$list>(text)),
                }
            }
        }

        impl $crate::word::Word for $list {
            const PLACE: &'static str = $place;

            fn of_stored(text: &str) -> Result<Self, $crate::word::UnknownWord> {
                text.parse()$(.or_else(|unknown| $kept(text).map($list::$newer).ok_or(unknown)))?
            }

            fn as_str(&self) -> &str {
                (*self).as_str()
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::Runtime,
        event::Kind,
        failure::Code,
        turn::{CancelledBy, Status},
    };

    #[test]
    fn every_word_reads_back_its_text_and_others_are_foreign() {
        macro_rules! check {
            ($($list:ident),+) => {$(
                for word in $list::ALL {
                    assert_eq!(word.as_str().parse(), Ok(word));
                    assert_eq!($list::of_stored(word.as_str()), Ok(word));
                    assert_eq!(Open::<$list>::of(word.as_str()), Open::Known(word));
                }
                let unknown = UnknownWord { place: $list::PLACE, text: "a b".to_owned() };
                assert_eq!($list::of_stored("a b"), Err(unknown.clone()));
                assert_eq!(Open::<$list>::of("a b").known(), Err(unknown));
            )+};
        }
        check!(CancelledBy, Code, Kind, Runtime, Status);
    }

    #[test]
    fn a_list_has_one_text_for_sql_and_for_json() {
        for status in Status::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for runtime in Runtime::ALL {
            assert_eq!(serde_json::to_value(runtime).unwrap(), runtime.as_str());
        }
        assert_eq!(serde_json::to_value(Open::Known(Status::Failed)).unwrap(), "failed");
        let read: Open<Status> = serde_json::from_str(r#""paused""#).unwrap();
        assert_eq!(read, Open::Foreign("paused".to_owned()));
        assert_eq!(serde_json::to_value(&read).unwrap(), "paused");
        assert!(read != Status::Queued && Open::Known(Status::Queued) == Status::Queued);
    }
}
