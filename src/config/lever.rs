//! Levers: what makes a replica fast, each of which a measurement can pull back to show its worth.
//!
//! Owns their names, which stand nowhere else: in `LASTWORD_ABLATE` and `lastword bench --ablate`. A
//! lever that is pulled back changes how fast the same things happen, never what is promised. Refuses
//! unknown names, or a comparison would compare nothing.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One thing that is done for speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lever {
    /// A turn is claimed in the commit that accepts it, where its replica has room.
    ClaimedWithAccept,
    /// Turns that are posted in the same moment share a commit.
    AcceptedTogether,
    /// Events and last words of many turns share a commit.
    GroupCommit,
    /// A replica's readers are shown what it has committed itself, and read only what others have.
    ShownFromMemory,
    /// What many readers ask for in the same moment is one statement.
    ReadTogether,
    /// A plan is made once a connection, and goes by indexes.
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
        known.ok_or_else(|| format!("no such lever; there is {}", Lever::ALL.map(Lever::as_str).join(", ")))
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
