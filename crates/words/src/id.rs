//! Ids: a UUIDv7 behind a prefix that names the type.
//!
//! Owns the text form (`turn_` + 32 lower-case hex digits) and refuses all other forms, so an id of one type is never
//! taken for an id of another. Only [`crate::clock::Clock`] mints ids.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A text that is not an id of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {wanted} id: expected `{prefix}` and 32 hexadecimal digits")]
pub struct NotAnId {
    /// The expected type, such as `turn`.
    pub wanted: &'static str,
    /// The expected prefix, such as `turn_`.
    pub prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The prefix before the digits.
            pub const PREFIX: &'static str = $prefix;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_simple())
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let refused = NotAnId { wanted: $wanted, prefix: $prefix };
                let digits = text.strip_prefix($prefix).ok_or(refused.clone())?;
                let canonical = digits.len() == 32
                    && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if !canonical {
                    return Err(refused);
                }
                Uuid::try_parse(digits).map(Self).map_err(|_| refused)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// One user message and everything the agent answers to it.
    TurnId, "turn", "turn_"
);
id!(
    /// A thread of turns with one agent.
    ConversationId, "conversation", "conv_"
);
id!(
    /// One worker: a process that runs turns.
    WorkerId, "worker", "wrk_"
);
id!(
    /// A worker token, named without its secret.
    WorkerTokenId, "worker token", "wtk_"
);
id!(
    /// One boot of one gateway process.
    ReplicaId, "replica", "rep_"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_wrote() {
        let id = TurnId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ab));
        assert_eq!(id.to_string(), "turn_019000000000700080000000000000ab");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let digits = "019000000000700080000000000000ab";
        for text in [
            format!("conv_{digits}"),
            digits.to_owned(),
            format!("turn_{}", digits.to_uppercase()),
            format!("turn_{digits}0"),
            "turn_".to_owned(),
        ] {
            assert!(text.parse::<TurnId>().is_err(), "{text}");
        }
    }
}
