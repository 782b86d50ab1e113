//! Why a depot cannot be used. Main type: [`DepotError`]. During a run none of these costs a verdict.

/// A failure of the depot.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// Its address is none.
    #[error("understand the depot's address: {0}")]
    Address(String),
    /// It did not do what it was asked for.
    #[error("use the depot {depot}: {problem}")]
    Failing {
        /// Its address.
        depot: String,
        /// What it was asked for, and what came instead. Holds no secret.
        problem: String,
    },
    /// What lies there is not what it must be.
    #[error("use what lies in the depot {depot}: {problem}")]
    Damaged {
        /// Its address.
        depot: String,
        /// What, and why.
        problem: String,
    },
}

impl DepotError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Address(_) => "name a depot as file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; \
                 credentials come from the variables of each (AWS_…, GOOGLE_…, AZURE_…)"
                .to_owned(),
            Self::Failing { .. } => "check address, network and credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, \
                 GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and the like); a run goes on without it"
                .to_owned(),
            Self::Damaged { .. } => {
                "run again what made it with this depot: it puts it anew; or remove it with `depot gc --older-than 0`".to_owned()
            }
        }
    }
}

/// What went wrong in one step, before it is told with the depot's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The depot did not answer as it must, or not in time.
    Failing(String),
    /// It may not be written to.
    ReadOnly(String),
    /// What lies there is wrong.
    Damaged(String),
}

impl Trouble {
    /// Words for what an object store says, without addresses that may hold a signature, and cut short.
    pub(super) fn of(what: &str, error: &object_store::Error) -> Self {
        use object_store::Error;
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Self::ReadOnly(format!("{what} is not allowed with these credentials"))
            }
            Error::NotFound { .. } => Self::Failing(format!("{what}: it is not there")),
            error => Self::Failing(format!("{what}: {}", words(error))),
        }
    }

    /// With the depot's name.
    pub(super) fn named(self, depot: &str) -> DepotError {
        let depot = depot.to_owned();
        match self {
            Self::Failing(problem) | Self::ReadOnly(problem) => DepotError::Failing { depot, problem },
            Self::Damaged(problem) => DepotError::Damaged { depot, problem },
        }
    }
}

/// The innermost cause, which names a status or a broken connection; the outer ones repeat addresses and settings.
fn words(error: &object_store::Error) -> String {
    const LIMIT: usize = 160;
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text: String = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.split_once('<').map_or(text.as_str(), |(before, _)| before.trim_end_matches([':', ' ']));
    text.chars().take(LIMIT).collect()
}
