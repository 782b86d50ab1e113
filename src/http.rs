//! HTTP clients that look up names on threads which may be refused. Main function: [`agent`].

use std::sync::mpsc::sync_channel;
use std::thread;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

/// A client with these settings.
pub(crate) fn agent(config: Config) -> Agent {
    Agent::with_parts(config, DefaultConnector::new(), Names)
}

/// The library's own look-up starts a thread where it may take only so long, and panics where the system refuses that.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (sender, receiver) = sync_channel(1);
        let (uri, config) = (uri.clone(), config.clone());
        let unlimited = NextTimeout { after: Duration::NotHappening, ..timeout };
        let look_up = move || {
            // Nobody receives it any more where it has taken too long.
            sender.send(DefaultResolver::default().resolve(&uri, &config, unlimited)).ok();
        };
        thread::Builder::new().spawn(look_up).map_err(Error::Io)?;
        receiver.recv_timeout(*timeout.after).unwrap_or(Err(Error::Timeout(timeout.reason)))
    }
}
