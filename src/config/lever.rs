//! Levers: optimisations that a measurement can switch off to show their effect.
//!
//! Owns their names, used only in `LASTWORD_ABLATE` and `lastword bench --ablate`. Without a lever everything is
//! slower, and every promise still holds. Refuses unknown names: the comparison would compare nothing.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One optimisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lever {
    /// A turn is claimed in the commit that accepts it, if its replica has capacity.
    ClaimedWithAccept,
    /// Turns posted at the same time share a commit.
    AcceptedTogether,
    /// Events and last words of many turns share a commit.
    GroupCommit,
    /// A replica's readers get events it committed itself from memory, and read only other replicas' events.
    ShownFromMemory,
    /// Reads requested at the same time share a statement.
    ReadTogether,
    /// Statements are planned once a connection, and use indexes.
    KeptPlans,
}

impl Lever {
    /// All of them.
    pub const ALL: [Lever; 6] = [
        Lever::ClaimedWithAccept,
        Lever::AcceptedTogether,
        Lever::GroupCommit,
        Lever::ShownFromMemory,
        Lever::ReadTogether,
        Lever::KeptPlans,
    ];

    /// The name in `LASTWORD_ABLATE`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Lever::ClaimedWithAccept => "claimed_with_accept",
            Lever::AcceptedTogether => "accepted_together",
            Lever::GroupCommit => "group_commit",
            Lever::ShownFromMemory => "shown_from_memory",
            Lever::ReadTogether => "read_together",
            Lever::KeptPlans => "kept_plans",
        }
    }
}

impl FromStr for Lever {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Lever::ALL.into_iter().find(|lever| lever.as_str() == name);
        known.ok_or_else(|| {
            format!("no such lever; the levers are {}", Lever::ALL.map(Lever::as_str).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lever_has_one_name_wherever_it_is_written() {
        for lever in Lever::ALL {
            assert_eq!(lever.as_str().parse(), Ok(lever));
            assert_eq!(serde_json::to_value(lever).unwrap(), lever.as_str());
        }
        assert!("group_comit".parse::<Lever>().is_err());
    }
}
