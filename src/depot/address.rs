//! From an address to an object store, with credentials from where each kind's own tools look. Main type: [`DepotAddress`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use super::aws_profile::AwsProfile;
use super::connector::Connector;
use super::error::DepotError;
use super::folder::Folder;

/// What lies below it carries the number of the layout.
const LAYOUT: &str = "kv-correctness-depot-1";

/// Where a depot is. Shown without anything secret, since nothing secret is allowed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepotAddress(Url);

/// Whether a depot may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// What is made goes there.
    ReadWrite,
    /// It is looked into, and never changed.
    ReadOnly,
}

/// How long a depot is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// One request, of at most 4 MiB.
    pub request: Duration,
    /// Further tries of a request that failed; the pause before them doubles from a fifth of a second.
    pub retries: usize,
    /// A step as a whole, besides a second for each MiB: looking up a key, bringing or putting an artifact.
    pub step: Duration,
}

impl Patience {
    /// One whose requests take so long at most.
    #[must_use]
    pub fn of(request: Duration) -> Self {
        Self { request, retries: 4, step: 2 * request }
    }
}

impl FromStr for DepotAddress {
    type Err = DepotError;

    fn from_str(text: &str) -> Result<Self, DepotError> {
        let wrong = |problem: &str| DepotError::Address(problem.to_owned());
        let url = Url::parse(text).map_err(|error| DepotError::Address(error.to_string()))?;
        if url.password().is_some() || url.query().is_some() {
            return Err(wrong("it holds a secret or a query, and neither belongs there"));
        }
        match (url.scheme(), url.host_str()) {
            ("file", None | Some("")) | ("az", Some(_)) => Ok(Self(url)),
            ("s3" | "gs", Some(_)) if url.username().is_empty() => Ok(Self(url)),
            ("file", Some(_)) => Err(wrong("a folder of this machine begins with file:/// and its path")),
            ("s3" | "gs" | "az", _) => Err(wrong("it names no bucket, or a user beside it")),
            (scheme, _) => Err(DepotError::Address(format!("{scheme}:// is no kind of depot"))),
        }
    }
}

impl fmt::Display for DepotAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl DepotAddress {
    /// Opens it; nothing is asked yet. Returns the object store and the path in it under which everything lies.
    pub(super) fn open(
        &self,
        access: Access,
        patience: Patience,
    ) -> Result<(Box<dyn ObjectStore>, Path), DepotError> {
        if self.0.scheme() == "file" {
            return self.open_folder(access);
        }
        let failing = |error: object_store::Error| DepotError::Failing {
            depot: self.to_string(),
            problem: error.to_string(),
        };
        let connector = Connector::new(patience.request)
            .map_err(|problem| DepotError::Failing { depot: self.to_string(), problem })?;
        let retry = RetryConfig {
            backoff: object_store::BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: patience.retries,
            retry_timeout: patience.step,
        };
        let url = self.0.as_str();
        let store: Box<dyn ObjectStore> = match self.0.scheme() {
            "s3" => {
                let mut builder = AmazonS3Builder::from_env();
                for (key, value) in AwsProfile::from_variables().settings() {
                    builder = builder.with_config(key, value);
                }
                // What arrives otherwise than it was sent is then refused by the server already.
                builder = builder.with_checksum_algorithm(Checksum::SHA256);
                Box::new(
                    builder
                        .with_url(url)
                        .with_http_connector(connector)
                        .with_retry(retry)
                        .build()
                        .map_err(failing)?,
                )
            }
            "gs" => Box::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_url(url)
                    .with_http_connector(connector)
                    .with_retry(retry)
                    .build()
                    .map_err(failing)?,
            ),
            _ => Box::new(
                MicrosoftAzureBuilder::from_env()
                    .with_url(url)
                    .with_http_connector(connector)
                    .with_retry(retry)
                    .build()
                    .map_err(failing)?,
            ),
        };
        let below =
            Path::from_url_path(self.0.path()).map_err(|error| DepotError::Address(error.to_string()))?;
        Ok((store, below.join(LAYOUT)))
    }

    /// A folder is made if need be, and if it may be.
    fn open_folder(&self, access: Access) -> Result<(Box<dyn ObjectStore>, Path), DepotError> {
        let folder = self
            .0
            .to_file_path()
            .map_err(|()| DepotError::Address("it is no path of a folder".to_owned()))?;
        let failing = |problem: String| DepotError::Failing { depot: self.to_string(), problem };
        if access == Access::ReadWrite {
            std::fs::create_dir_all(&folder).map_err(|error| failing(format!("make the folder: {error}")))?;
        }
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| failing(error.to_string()))?;
        Ok((Box::new(Folder::new(store)), Path::from(LAYOUT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_each_kind_are_understood_and_secrets_in_them_refused_without_repeating_them() {
        for good in ["file:///srv/depot", "s3://bucket/a/b", "gs://bucket", "az://container/x"] {
            assert_eq!(good.parse::<DepotAddress>().unwrap().to_string(), good);
        }
        for bad in [
            "s3://AKIA:hunter2@bucket",
            "s3://hunter2@bucket",
            "https://host/x?sig=hunter2",
            "s3:///x",
            "ftp://x",
            "file://host/x",
            "depot",
        ] {
            let error = bad.parse::<DepotAddress>().unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
