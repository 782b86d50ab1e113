//! A server for tests that behaves like the hub, well or badly. Main type: [`Server`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

/// What a request said: its path and its headers, names in lower case.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What a server does about one request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Serves content with an `ETag`, and a range of it if one is asked for.
    Serve(Vec<u8>, &'static str),
    /// Serves content whole, whatever is asked for.
    IgnoreRange(Vec<u8>),
    /// Cuts the connection after so many bytes.
    CutAfter(Vec<u8>, &'static str, usize),
    /// Serves content once so many requests wait for it as the barrier says.
    Together(Vec<u8>, Arc<Barrier>),
    /// Sends one byte at a time, with this pause.
    Trickle(Vec<u8>, Duration),
    /// Sends a `Content-Length` that is not the content's.
    Length(Vec<u8>, usize),
    /// Answers with a status and headers, and nothing else.
    Status(u16, Vec<(&'static str, String)>),
}

/// Listens on a port of its own for as long as the test runs, and answers requests with its acts, the last one for ever.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), requests: Arc::default() };
        let requests = server.requests.clone();
        std::thread::spawn(move || {
            let mut acts = acts.into_iter().peekable();
            let mut last = None;
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let act = acts.next().or(last.clone()).unwrap();
                last = Some(act.clone());
                let requests = requests.clone();
                std::thread::spawn(move || answer(stream, &act, &requests));
            }
        });
        server
    }

    /// A server of one file over TLS, with a certificate that it signed itself; returns the certificate, too.
    pub(super) fn start_tls(content: Vec<u8>) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), requests: Arc::default() };
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let secret = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret)
            .unwrap();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut stream);
                let mut lines = BufReader::new(&mut stream).lines().map_while(Result::ok);
                if lines.any(|line| line.is_empty()) {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
                    stream.write_all(&[head.as_bytes(), &content].concat()).ok();
                }
            }
        });
        (server, key.cert.pem())
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers one request; that the other side has gone is no error.
fn answer(mut stream: TcpStream, act: &Act, requests: &Mutex<Vec<Request>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let request = Request { path, headers };
    requests.lock().unwrap().push(request.clone());
    let head = |status: &str, length: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    match act {
        Act::Serve(content, etag) => stream.write_all(&ranged(&request, content, etag, head)).ok()?,
        Act::IgnoreRange(content) => {
            stream.write_all(head("200 OK", content.len(), "").as_bytes()).ok()?;
            stream.write_all(content).ok()?;
        }
        Act::CutAfter(content, etag, count) => {
            let answer = ranged(&request, content, etag, head);
            let body = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            stream.write_all(&answer[..answer.len().min(body + count)]).ok()?;
        }
        Act::Trickle(content, pause) => {
            stream.write_all(head("200 OK", content.len(), "").as_bytes()).ok()?;
            for byte in content {
                std::thread::sleep(*pause);
                stream.write_all(&[*byte]).ok()?;
            }
        }
        Act::Together(content, barrier) => {
            barrier.wait();
            stream.write_all(&ranged(&request, content, "", head)).ok()?;
        }
        Act::Length(content, length) => {
            stream.write_all(head("200 OK", *length, "").as_bytes()).ok()?;
            stream.write_all(content).ok()?;
        }
        Act::Status(status, headers) => {
            let more: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            stream.write_all(head(&format!("{status} X"), 0, &more.concat()).as_bytes()).ok()?;
        }
    }
    stream.flush().ok()
}

/// The whole content, or the rest of it from where the request says if its `If-Range` still holds.
fn ranged(
    request: &Request,
    content: &[u8],
    etag: &str,
    head: impl Fn(&str, usize, &str) -> String,
) -> Vec<u8> {
    let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start = start.map(|start| start.parse::<usize>().unwrap());
    let changed = request.header("if-range").is_some_and(|wanted| wanted != etag);
    let etag = format!("ETag: {etag}\r\n");
    match start.filter(|_| !changed) {
        Some(start) if start >= content.len() => head("416 X", 0, "").into_bytes(),
        Some(start) => {
            let range =
                format!("Content-Range: bytes {start}-{}/{}\r\n{etag}", content.len() - 1, content.len());
            [head("206 X", content.len() - start, &range).as_bytes(), &content[start..]].concat()
        }
        None => [head("200 OK", content.len(), &etag).as_bytes(), content].concat(),
    }
}
