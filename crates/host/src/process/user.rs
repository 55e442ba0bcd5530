//! The user that worker processes run as, if not the gateway's own.
//!
//! Owns the meaning of `worker_user`, and whether this process may start programs as another user. Refuses root
//! and this process's own user: neither would protect the gateway's data from a worker.

use std::fmt;

use nix::unistd::{Gid, Uid, User as Account};
use serde::{Deserialize, Serialize};

/// Capabilities needed to change the user, give files away, and signal processes of another user.
const CAPABILITIES: [(u32, &str); 4] =
    [(0, "CAP_CHOWN"), (5, "CAP_KILL"), (6, "CAP_SETGID"), (7, "CAP_SETUID")];

/// A user with one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The numeric user id.
    pub uid: u32,
    /// The numeric group id.
    pub gid: u32,
}

impl User {
    /// The user given by a name, a number, or `UID:GID`.
    ///
    /// # Errors
    /// What is wrong with the text, to be appended to the key's name.
    pub fn find(text: &str) -> Result<User, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let user = match text.split_once(':') {
            Some((uid, gid)) => number(uid).zip(number(gid)).map(|(uid, gid)| User { uid, gid }),
            None => match number(text) {
                Some(uid) => {
                    let account = Account::from_uid(Uid::from_raw(uid)).ok().flatten();
                    Some(User { uid, gid: account.map_or(uid, |account| account.gid.as_raw()) })
                }
                None => Account::from_name(text)
                    .ok()
                    .flatten()
                    .map(|account| User { uid: account.uid.as_raw(), gid: account.gid.as_raw() }),
            },
        };
        let Some(user) = user else {
            return Err(format!("`{text}` is neither a user of this machine nor UID nor UID:GID"));
        };
        if user.uid == 0 {
            return Err(
                "is root, who may read and end everything: leave the key unset, or name another user"
                    .to_owned(),
            );
        }
        if user.uid == Uid::effective().as_raw() {
            return Err(
                "is the gateway's own user, from whom the gateway can keep nothing secret: name another user"
                    .to_owned(),
            );
        }
        Ok(user)
    }

    /// Whether this process may start, and signal, processes of another user.
    ///
    /// # Errors
    /// What it lacks, to be appended to the key's name.
    pub fn may_become() -> Result<(), String> {
        // A started program keeps root's capabilities, but only the ambient ones of any other user.
        let set = if Uid::effective().is_root() { "CapEff:" } else { "CapAmb:" };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix(set));
        let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        let lacking: Vec<&str> =
            CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(format!(
            "cannot be used: this process may not start others as another user (it lacks {}): run it as root, \
             give it those as ambient capabilities, or leave the key unset",
            lacking.join(", ")
        ))
    }

    /// The user id for system calls.
    pub fn as_uid(self) -> Uid {
        Uid::from_raw(self.uid)
    }

    /// The group id for system calls.
    pub fn as_gid(self) -> Gid {
        Gid::from_raw(self.gid)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let nobody = User::find("nobody").unwrap();
        assert_eq!(User::find(&nobody.uid.to_string()), Ok(nobody));
        assert_eq!(User::find(&nobody.to_string()), Ok(nobody));
        assert_eq!(User::find("4000001"), Ok(User { uid: 4_000_001, gid: 4_000_001 }));
        assert_eq!(User::find("4000001:7"), Ok(User { uid: 4_000_001, gid: 7 }));
        for wrong in ["no-such-user", "1:x", ":", "", "-1"] {
            assert!(User::find(wrong).unwrap_err().contains("neither"), "{wrong}");
        }
        assert!(User::find("root").unwrap_err().contains("is root"));
        assert!(User::find("0:7").unwrap_err().contains("is root"));
    }
}
