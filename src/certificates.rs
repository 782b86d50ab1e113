//! Certificate authorities of the user's own, for whatever speaks TLS. Main function: [`read_certificates`].

use camino::Utf8Path;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

/// The authorities of a PEM file, as `SSL_CERT_FILE` names one; the error says what is wrong with it.
pub(crate) fn read_certificates(path: &Utf8Path) -> Result<RootCerts, String> {
    let text = fs_err::read(path).map_err(|error| error.to_string())?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("{path} holds no certificate"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
