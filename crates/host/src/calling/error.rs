//! Why a host cannot call.

use lastword_client::gateway::ProblemAnswer;

/// Why a host cannot call, or may not.
#[derive(Debug, thiserror::Error)]
pub enum CallingError {
    /// A URL that is none.
    #[error("`{url}`: {why}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is none.
    #[error("no URL to call")]
    NoUrl,
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// The gateway lets this host in nowhere.
    #[error("the gateway refuses this worker: {0}")]
    Refused(ProblemAnswer),
}
