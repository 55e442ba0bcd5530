//! One thing that the doctor looks at.

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing to do.
    Fine,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Fault,
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub remedy: Option<&'static str>,
}

pub(super) fn fine(name: &'static str, finding: impl Into<String>) -> Check {
    Check { name, severity: Severity::Fine, finding: finding.into(), remedy: None }
}

pub(super) fn check(
    name: &'static str,
    severity: Severity,
    finding: impl Into<String>,
    remedy: &'static str,
) -> Check {
    Check { name, severity, finding: finding.into(), remedy: Some(remedy) }
}
