//! The environment of this process, read once; its secrets are then taken out of it.
//!
//! Owns the copy that a configuration is read from. What a process was started with stays readable in
//! `/proc/PID/environ`, for whoever may look into its memory, also after a variable was removed: so the bytes
//! are overwritten where they lie.

use std::{ffi::OsString, sync::OnceLock};

use super::keys;
use crate::telemetry::wishes;

static KEPT: OnceLock<Vec<(OsString, OsString)>> = OnceLock::new();

/// Keeps a copy of the environment, and takes the secrets of a replica's configuration out of the original.
///
/// # Safety
/// No other thread may run yet.
#[allow(unsafe_code, reason = "an environment has no safe form of forgetting")]
pub unsafe fn keep() {
    if KEPT.set(std::env::vars_os().collect()).is_err() {
        return;
    }
    let keys = wishes::SECRET_VARIABLES.map(str::to_owned);
    for name in keys::secret_variables().into_iter().chain(keys) {
        // SAFETY: this is the only thread, as the caller promises.
        unsafe {
            overwrite(&name);
            std::env::remove_var(&name);
        }
    }
}

/// The environment that this process was started with.
pub fn variables() -> Vec<(OsString, OsString)> {
    KEPT.get().cloned().unwrap_or_else(|| std::env::vars_os().collect())
}

/// Overwrites a variable's value where the system put it.
#[allow(unsafe_code, reason = "an environment has no safe form of forgetting")]
unsafe fn overwrite(name: &str) {
    // SAFETY: `environ` is a list of texts that ends with a null pointer, each ends with a null byte, and
    // nothing changes them meanwhile.
    unsafe {
        let mut at = nix::libc::environ;
        while !at.is_null() && !(*at).is_null() {
            let length = std::ffi::CStr::from_ptr(*at).count_bytes();
            let variable = std::slice::from_raw_parts_mut((*at).cast::<u8>(), length);
            if variable.starts_with(name.as_bytes()) && variable.get(name.len()) == Some(&b'=') {
                variable[name.len() + 1..].fill(b'*');
            }
            at = at.add(1);
        }
    }
}
