//! Variables of this process that its workers receive: those an operator names, such as a proxy's or a CA file's.
//!
//! Refuses the gateway's own variables, since they may hold its secrets.

use std::collections::BTreeMap;

/// Never passed to a worker.
const OWN_PREFIX: &str = "LASTWORD_";
const OWN: &str = "DATABASE_URL";

/// What is wrong with these names; `None` if nothing is.
pub fn wrong_with(names: &[String]) -> Option<String> {
    let is_own = |name: &str| name.starts_with(OWN_PREFIX) || name == OWN;
    names.iter().find_map(|name| match name.as_str() {
        "" => Some("has an empty name".to_owned()),
        name if name.contains(['=', '\0', '*']) || name.chars().any(char::is_whitespace) => {
            Some(format!("takes names of variables, and `{name}` is not a name"))
        }
        name if is_own(name) => Some(format!("cannot pass on `{name}`: this variable is the gateway's own")),
        _ => None,
    })
}

/// Those of the named variables that are set.
pub fn passed(names: &[String]) -> BTreeMap<String, String> {
    let value = |name: &String| Some((name.clone(), std::env::var_os(name)?.into_string().ok()?));
    names.iter().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_nobody_elses() {
        let wrong =
            |names: &[&str]| wrong_with(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(wrong(&["HTTPS_PROXY", "no_proxy"]), None);
        for name in ["", "A=1", "*_PROXY", "A B", "LASTWORD_CLIENT_TOKENS", "DATABASE_URL"] {
            assert!(wrong(&["HTTPS_PROXY", name]).is_some(), "{name}");
        }
    }
}
