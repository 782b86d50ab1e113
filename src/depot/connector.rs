//! HTTP for object stores over the client that this program has anyway. Main type: [`Connector`].
//!
//! No request and no answer is larger than a part and a little, so both are held whole, and a request has one time limit.

use std::io::Read;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::seal::PART_BYTES;
use crate::certificates::read_certificates;
use crate::http::agent;
use crate::thread::on_thread;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Lists of objects are as long as an object store makes them.
const LONGEST_ANSWER: u64 = PART_BYTES as u64 + (8 << 20);

/// Sends requests, each on a thread of its own: the runtime's for such panic where the system refuses them.
#[derive(Debug, Clone)]
pub(super) struct Connector(Agent);

impl Connector {
    /// A connector whose requests take at most so long each.
    pub(super) fn new(patience: Duration) -> Result<Self, String> {
        let path = std::env::var("SSL_CERT_FILE").ok().filter(|path| !path.is_empty());
        let roots = path.map(|path| read_certificates(path.as_ref())).transpose()?;
        let tls = TlsConfig::builder().root_certs(roots.unwrap_or(RootCerts::WebPki)).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .allow_non_standard_methods(true)
            .timeout_connect(Some(CONNECT_PATIENCE.min(patience)))
            .timeout_global(Some(patience))
            .user_agent(concat!("kv-correctness/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Ok(Self(agent(config)))
    }

    fn ask(&self, request: ureq::http::Request<Vec<u8>>) -> Result<HttpResponse, HttpError> {
        let (parts, mut body) = self.0.run(request).map_err(fault)?.into_parts();
        // In one piece: a buffer that grows takes twice what it holds.
        let size = body.content_length().unwrap_or_default().min(LONGEST_ANSWER);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        let mut reader = body.with_config().limit(LONGEST_ANSWER).reader();
        reader.read_to_end(&mut bytes).map_err(|error| fault(error.into()))?;
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let request = ureq::http::Request::from_parts(parts, Vec::from(bytes));
        let connector = self.clone();
        let answer = on_thread(move || connector.ask(request)).await;
        answer.map_err(|refused| HttpError::new(HttpErrorKind::Unknown, refused))?
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Which failures the object store's client tries again: all but those that say the same each time.
fn fault(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            HttpErrorKind::Connect
        }
        ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}
