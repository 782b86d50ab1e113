//! One request to the hub or another server: redirects, token, and which answers are worth another try.
//! Main type: [`Client`].

use std::fmt;
use std::io;
use std::time::Duration;

use camino::Utf8Path;
use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::FetchError;
use super::pins::HUB;
use crate::certificates::read_certificates;
use crate::http::agent;

const REDIRECTS: usize = 10;
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// A secret that no message shows.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes a token, without white space around it. None if nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// Asks servers. Redirects are followed here and not by the HTTP library, which compares hosts without ports when it
/// decides whether a token may go along.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    hub: Uri,
    token: Option<Token>,
}

/// A file, and who asks for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// Its address.
    pub(super) address: &'a str,
    /// Where its licence is accepted.
    pub(super) licence_page: &'a str,
}

/// Where to go on with a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resume {
    /// Bytes that are there already.
    pub(super) offset: u64,
    /// The file's strong `ETag` when they came.
    pub(super) etag: Option<String>,
}

/// An answer with content.
#[derive(Debug)]
pub(super) struct Content {
    /// Which byte of the file it begins with.
    pub(super) offset: u64,
    /// The whole file's size, if it was told.
    pub(super) size: Option<u64>,
    /// The file's strong `ETag`.
    pub(super) etag: Option<String>,
    /// The bytes.
    pub(super) body: Body,
}

/// Why there is no content.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may pass.
    Passing {
        /// In words.
        problem: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
        /// Whether the server limits how often it is asked.
        rate_limited: bool,
    },
    /// The server has no bytes from this offset on.
    OutOfRange,
    /// It will not pass.
    Lasting(FetchError),
}

impl Trouble {
    pub(super) fn passing(problem: impl Into<String>) -> Self {
        Self::Passing { problem: problem.into(), wait: None, rate_limited: false }
    }
}

impl Client {
    /// A client for the hub at `endpoint`, whose silence counts as a cut connection after `stall`.
    pub(super) fn new(
        endpoint: &str,
        token: Option<Token>,
        certificates: Option<&Utf8Path>,
        stall: Duration,
    ) -> Result<Self, FetchError> {
        let wrong = |problem: String| FetchError::Setting { variable: "HF_ENDPOINT", problem };
        let hub: Uri =
            endpoint.parse().map_err(|error| wrong(format!("{endpoint:?} is no address ({error})")))?;
        if hub.host().is_none() || !matches!(hub.scheme_str(), Some("http" | "https")) {
            return Err(wrong(format!("{endpoint:?} does not begin with https://")));
        }
        let untrusted = |problem| FetchError::Setting { variable: "SSL_CERT_FILE", problem };
        let roots = certificates.map(read_certificates).transpose().map_err(untrusted)?;
        let tls = TlsConfig::builder().root_certs(roots.unwrap_or(RootCerts::WebPki)).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_PATIENCE.min(stall)))
            .timeout_connect(Some(CONNECT_PATIENCE.min(stall)))
            .timeout_per_read(Some(stall))
            .timeout_recv_response(Some(2 * stall))
            .user_agent(concat!("kv-correctness/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Ok(Self { agent: agent(config), hub, token })
    }

    /// An address with the hub's place in it taken by the mirror, if one is set.
    pub(super) fn rebase(&self, address: &str) -> String {
        let own = self.hub.to_string();
        match address.strip_prefix(HUB) {
            Some(path) if path.starts_with('/') => own.trim_end_matches('/').to_owned() + path,
            _ => address.to_owned(),
        }
    }

    /// Asks for a file, or for the rest of it.
    pub(super) fn get(&self, target: Target<'_>, resume: &Resume) -> Result<Content, Trouble> {
        let unexpected = |problem: String| {
            Trouble::Lasting(FetchError::Unexpected { address: target.address.to_owned(), problem })
        };
        let mut uri: Uri =
            target.address.parse().map_err(|error| unexpected(format!("no address ({error})")))?;
        for _ in 0..=REDIRECTS {
            let at_hub = origin(&uri) == origin(&self.hub);
            let mut request = self.agent.get(&uri).header(header::ACCEPT_ENCODING, "identity");
            if let (true, Some(Token(token))) = (at_hub, &self.token) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if resume.offset > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", resume.offset));
                if let Some(etag) = &resume.etag {
                    request = request.header(header::IF_RANGE, etag);
                }
            }
            let answer = request.call().map_err(|error| judge_failure(target.address, &error))?;
            let (parts, body) = answer.into_parts();
            if !parts.status.is_redirection() {
                return self.judge(target, at_hub, resume.offset, parts.status, &parts.headers, body);
            }
            let location = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location
                .and_then(|location| follow(&uri, location))
                .ok_or_else(|| unexpected(format!("status {} leads nowhere", parts.status.as_u16())))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(unexpected("it leads from https to http".to_owned()));
            }
            uri = next;
        }
        Err(unexpected(format!("it leads on more than {REDIRECTS} times")))
    }

    fn judge(
        &self,
        target: Target<'_>,
        at_hub: bool,
        wanted: u64,
        status: StatusCode,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Content, Trouble> {
        let address = target.address.to_owned();
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text(header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned);
        match status.as_u16() {
            200 => Ok(Content { offset: 0, size: body.content_length(), etag, body }),
            206 => match text(header::CONTENT_RANGE).and_then(parse_content_range) {
                Some((offset, size)) if offset == wanted => Ok(Content { offset, size, etag, body }),
                _ => Err(Trouble::OutOfRange),
            },
            416 => Err(Trouble::OutOfRange),
            401 | 403 if at_hub => Err(Trouble::Lasting(FetchError::Refused {
                address,
                status: status.as_u16(),
                with_token: self.token.is_some(),
                licence_page: target.licence_page.to_owned(),
            })),
            404 | 410 => Err(Trouble::Lasting(FetchError::NotFound { address, status: status.as_u16() })),
            // A signed address to which the hub leads expires; the hub makes a new one.
            401 | 403 | 408 | 429 | 500..=599 => Err(Trouble::Passing {
                problem: format!("status {}", status.as_u16()),
                wait: text(header::RETRY_AFTER)
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs),
                rate_limited: status == StatusCode::TOO_MANY_REQUESTS,
            }),
            other => {
                Err(Trouble::Lasting(FetchError::Unexpected { address, problem: format!("status {other}") }))
            }
        }
    }
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> (Option<&str>, Option<&str>, u16) {
    let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    (uri.scheme_str(), uri.host(), uri.port_u16().unwrap_or(default))
}

/// Where a redirect leads: to an address, or a path on the same server.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    (location.starts_with('/') && !location.starts_with("//"))
        .then(|| format!("{scheme}://{authority}{location}").parse().ok())?
}

/// `bytes 100-199/200` to first byte and size of the file; the size may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()))
}

/// A request without an answer: lasting where the other side is not who it says, else passing.
fn judge_failure(address: &str, error: &ureq::Error) -> Trouble {
    match error {
        ureq::Error::Timeout(_) => Trouble::passing("no answer in time"),
        ureq::Error::HostNotFound => Trouble::passing("its host is not found"),
        ureq::Error::Io(error) => judge_io(address, error),
        ureq::Error::Rustls(error) => Trouble::Lasting(FetchError::Certificate {
            address: address.to_owned(),
            problem: error.to_string(),
        }),
        error => Trouble::passing(error.to_string()),
    }
}

/// The same of an error while content is read.
pub(super) fn judge_io(address: &str, error: &io::Error) -> Trouble {
    // rustls speaks through I/O errors of this kind: a wrong certificate, or no TLS at all.
    if error.kind() == io::ErrorKind::InvalidData && address.starts_with("https:") {
        return Trouble::Lasting(FetchError::Certificate {
            address: address.to_owned(),
            problem: error.to_string(),
        });
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(inner) => judge_failure(address, inner),
        None => Trouble::passing(error.to_string()),
    }
}
