//! The result of one check of the doctor.

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing to do.
    Fine,
    /// Works, but could work better.
    Warning,
    /// Does not work.
    Fault,
}

/// The result of one check.
#[derive(Debug, Clone)]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// How bad the finding is.
    pub severity: Severity,
    /// The finding.
    pub finding: String,
    /// The remedy; `None` if nothing has to be done.
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
