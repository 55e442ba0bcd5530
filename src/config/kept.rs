//! The environment of this process, read once; then its secrets are removed.
//!
//! Owns the copy that the configuration is read from. The original environment stays readable in
//! `/proc/PID/environ`, even after `remove_var`, so the bytes of secret values are overwritten in place.

use std::{ffi::OsString, sync::OnceLock};

use super::keys;
use crate::telemetry::wishes;

static KEPT: OnceLock<Vec<(OsString, OsString)>> = OnceLock::new();

/// Copies the environment, then removes the configuration's secrets from the original.
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

/// Overwrites a variable's value in place.
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
