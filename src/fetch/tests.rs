//! The fetcher against servers that behave like the hub, well or badly.

use std::io::Write;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::client::Token;
use super::download::Wanted;
use super::server::{Act, Request, Server};
use super::{
    FetchError, FetchSettings, Fetcher, FilePin, GgufPin, ModelPin, Origin, PackageList, Patience, Verified,
};
use crate::digest::digest_bytes;
use crate::engine::environment::{EnvironmentRequest, Stack};
use crate::event::{Event, Events};

const TAG: &str = "\"tag\"";
const PATH: &str = "/org/model/resolve/abc/file.bin";

/// A cache folder, and what happened in it.
struct Lab {
    _folder: tempfile::TempDir,
    cache: Utf8PathBuf,
    content: Vec<u8>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        let content = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        Self { _folder: folder, cache, content, events: Arc::default() }
    }

    fn settings(&self, server: &Server) -> FetchSettings {
        FetchSettings {
            cache: self.cache.clone(),
            endpoint: server.url(),
            token: Token::new("hf_secret"),
            hub_cache: None,
            certificates: None,
            patience: Patience {
                tries: 3,
                first_pause: Duration::from_millis(1),
                longest_pause: Duration::from_secs(2),
                stall: Duration::from_secs(20), // a busy machine is no slow server
                least_bytes: 1000,
            },
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            addresses: vec![format!("https://huggingface.co{PATH}")],
            licence_page: "https://huggingface.co/org/model".to_owned(),
            sha256: digest_bytes(&self.content),
            size: Some(self.content.len() as u64),
            path: self.cache.join("fetched/models/org--model/file.bin"),
            cached: None,
        }
    }

    fn fetch_with(&self, settings: FetchSettings, wanted: Vec<Wanted>) -> Result<(), FetchError> {
        let events = self.events.clone();
        let events = Events::new(move |event| events.lock().unwrap().push(event));
        Fetcher::new(settings, events).unwrap().fetch_files(wanted)
    }

    fn fetch(&self, server: &Server) -> Result<(), FetchError> {
        self.fetch_with(self.settings(server), vec![self.wanted()])
    }

    /// Fetches, and asserts that the file is whole, in its place and verified, and that no part is left.
    fn fetch_whole(&self, server: &Server) {
        self.fetch(server).unwrap();
        let wanted = self.wanted();
        assert!(fs::read(&wanted.path).unwrap() == self.content);
        assert!(Verified::read(&self.cache).holds(&wanted.path, wanted.sha256));
        let left: Vec<_> = wanted.path.parent().unwrap().read_dir_utf8().unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let warning = |event: &Event| match event {
            Event::Warning { message } => Some(message.clone()),
            _ => None,
        };
        events.iter().filter_map(warning).collect()
    }

    fn part(&self) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}.part", self.wanted().path))
    }
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    server.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

fn show(error: &FetchError, server: &Server) -> String {
    let text = format!("failed to {error}\n\nhint: {}", error.hint().unwrap());
    assert!(!text.contains("hf_secret"));
    text.replace(&server.url(), "http://hub")
}

#[test]
fn a_file_comes_whole_and_is_not_asked_for_again() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    lab.fetch_whole(&server);
    lab.fetch_whole(&server);
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path, PATH);
    assert_eq!(requests[0].header("authorization"), Some("Bearer hf_secret"));
}

#[test]
fn four_files_come_at_once() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Together(lab.content.clone(), Arc::new(Barrier::new(4)))]);
    let settings = lab.settings(&server);
    let wanted = |index: usize| Wanted { path: lab.cache.join(format!("file-{index}")), ..lab.wanted() };
    lab.fetch_with(settings, (0..8).map(wanted).collect()).unwrap();
    assert_eq!(server.requests().len(), 8);
}

#[test]
fn a_token_follows_a_redirect_on_the_hub_and_not_to_another_port() {
    let lab = Lab::new();
    let elsewhere = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    let server = Server::start(vec![
        Act::Status(307, vec![("Location", "/api/resolve-cache/file.bin".to_owned())]),
        Act::Status(302, vec![("Location", format!("{}/signed?x=1", elsewhere.url()))]),
    ]);
    lab.fetch_whole(&server);
    let token = |request: &Request| request.header("authorization").map(str::to_owned);
    let sent: Vec<_> = server.requests().iter().chain(&elsewhere.requests()).map(token).collect();
    assert_eq!(sent, [Some("Bearer hf_secret".to_owned()), Some("Bearer hf_secret".to_owned()), None]);
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let lab = Lab::new();
    let half = Act::CutAfter(lab.content.clone(), TAG, 150_000);
    let server = Server::start(vec![half, Act::Serve(lab.content.clone(), TAG)]);
    lab.fetch_whole(&server);
    assert_eq!(ranges(&server), [None, Some("bytes=150000-".to_owned())]);
    assert_eq!(server.requests()[1].header("if-range"), Some(TAG));
    assert_eq!(lab.warnings().len(), 1);
}

#[test]
fn connections_that_are_cut_again_and_again_still_bring_the_file() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::CutAfter(lab.content.clone(), TAG, 50_000)]);
    lab.fetch_whole(&server);
    assert_eq!(server.requests().len(), 8, "more than the 3 tries, since each gets on");
}

#[test]
fn a_later_process_goes_on_with_the_part_of_one_that_was_killed() {
    let lab = Lab::new();
    let part = lab.part();
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &lab.content[..123_456]).unwrap();
    fs::write(format!("{part}.json"), r#"{"etag":"\"tag\""}"#).unwrap();
    let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    lab.fetch_whole(&server);
    assert_eq!(ranges(&server), [Some("bytes=123456-".to_owned())]);
}

#[test]
fn a_part_that_is_complete_is_not_asked_for() {
    let lab = Lab::new();
    fs::create_dir_all(lab.part().parent().unwrap()).unwrap();
    fs::write(lab.part(), &lab.content).unwrap();
    let server = Server::start(vec![Act::Status(500, Vec::new())]);
    lab.fetch_whole(&server);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_part_of_another_content_is_thrown_away_and_the_file_comes_whole() {
    for etag in [None, Some("\"old\"")] {
        let lab = Lab::new();
        fs::create_dir_all(lab.part().parent().unwrap()).unwrap();
        fs::write(lab.part(), vec![7; 1000]).unwrap();
        if let Some(etag) = etag {
            fs::write(format!("{}.json", lab.part()), serde_json::json!({ "etag": etag }).to_string())
                .unwrap();
        }
        let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
        lab.fetch_whole(&server);
        // With its ETag the server sees it; without, the digest does.
        assert_eq!(server.requests().len(), if etag.is_some() { 1 } else { 2 });
    }
}

#[test]
fn a_server_that_ignores_ranges_is_taken_from_the_start() {
    let lab = Lab::new();
    let half = Act::CutAfter(lab.content.clone(), TAG, 150_000);
    let server = Server::start(vec![half, Act::IgnoreRange(lab.content.clone())]);
    lab.fetch_whole(&server);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_file_of_unknown_size_that_is_all_there_is_found_so_when_the_server_has_no_more() {
    let lab = Lab::new();
    fs::create_dir_all(lab.part().parent().unwrap()).unwrap();
    fs::write(lab.part(), &lab.content).unwrap();
    let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    lab.fetch_with(lab.settings(&server), vec![Wanted { size: None, ..lab.wanted() }]).unwrap();
    assert!(fs::read(lab.wanted().path).unwrap() == lab.content);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_server_error_and_a_rate_limit_are_waited_for() {
    let lab = Lab::new();
    let server = Server::start(vec![
        Act::Status(503, Vec::new()),
        Act::Status(429, vec![("Retry-After", "1".to_owned())]),
        Act::Serve(lab.content.clone(), TAG),
    ]);
    let started = Instant::now();
    lab.fetch_whole(&server);
    assert!(started.elapsed() >= Duration::from_secs(1));
    let warnings = lab.warnings().join("\n").replace(&server.url(), "http://hub");
    insta::assert_snapshot!(warnings, @r"
        http://hub/org/model/resolve/abc/file.bin: status 503; trying again in 0 s
        http://hub/org/model/resolve/abc/file.bin: status 429; trying again in 1 s
        ");
}

#[test]
fn a_rate_limit_that_lasts_is_an_error() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(429, Vec::new())]);
    insta::assert_snapshot!(show(&lab.fetch(&server).unwrap_err(), &server), @r"
        failed to fetch http://hub/org/model/resolve/abc/file.bin: the server still asks to wait after 3 tries (status 429)

        hint: wait some minutes, or set HF_TOKEN, which raises the limit; what was fetched is kept, and the same command goes on from there
        ");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_server_that_asks_to_wait_for_an_hour_is_not_waited_for() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(429, vec![("Retry-After", "3600".to_owned())])]);
    assert!(matches!(lab.fetch(&server).unwrap_err(), FetchError::RateLimited { tries: 1, .. }));
}

#[test]
fn a_gated_model_without_a_token_names_the_licence_page_and_the_variable() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(401, Vec::new())]);
    let settings = FetchSettings { token: None, ..lab.settings(&server) };
    let error = lab.fetch_with(settings, vec![lab.wanted()]).unwrap_err();
    insta::assert_snapshot!(show(&error, &server), @r"
        failed to fetch http://hub/org/model/resolve/abc/file.bin: it may not be read without HF_TOKEN (status 401)

        hint: accept the licence at https://huggingface.co/org/model, and set HF_TOKEN to a token of that account
        ");
    assert_eq!(server.requests()[0].header("authorization"), None);
}

#[test]
fn a_token_without_access_names_the_licence_page() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(403, Vec::new())]);
    insta::assert_snapshot!(show(&lab.fetch(&server).unwrap_err(), &server), @r"
        failed to fetch http://hub/org/model/resolve/abc/file.bin: it may not be read with this HF_TOKEN (status 403)

        hint: accept the licence at https://huggingface.co/org/model, and make sure that HF_TOKEN belongs to that account and may read gated repositories
        ");
    assert_eq!(server.requests().len(), 1, "no retry helps");
}

#[test]
fn a_signed_address_that_expired_is_asked_for_anew() {
    let lab = Lab::new();
    let elsewhere = Server::start(vec![Act::Status(403, Vec::new()), Act::Serve(lab.content.clone(), TAG)]);
    let server =
        Server::start(vec![Act::Status(302, vec![("Location", format!("{}/signed", elsewhere.url()))])]);
    lab.fetch_whole(&server);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_missing_file_is_not_asked_for_twice() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(404, Vec::new())]);
    insta::assert_snapshot!(show(&lab.fetch(&server).unwrap_err(), &server), @r"
        failed to fetch http://hub/org/model/resolve/abc/file.bin: there is no such file (status 404)

        hint: is HF_ENDPOINT a mirror that lacks this repository or revision? Leave it unset to ask the hub itself
        ");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn another_address_is_tried_where_the_first_fails() {
    let lab = Lab::new();
    let elsewhere = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    let server = Server::start(vec![Act::Status(404, Vec::new())]);
    let mut wanted = lab.wanted();
    wanted.addresses.push(format!("{}/data.tar", elsewhere.url()));
    lab.fetch_with(lab.settings(&server), vec![wanted]).unwrap();
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[test]
fn other_content_is_refused_and_not_kept() {
    let lab = Lab::new();
    let mut other = lab.content.clone();
    other[77] ^= 1;
    let server = Server::start(vec![Act::Serve(other, TAG)]);
    insta::assert_snapshot!(show(&lab.fetch(&server).unwrap_err(), &server), @r"
        failed to verify http://hub/org/model/resolve/abc/file.bin: its SHA-256 is dfbb6f55fd855211aa47181b51b5cd4e8d98bfd19c08c5b7af6b4b7bba3fac86, and 20ff50e632cc575386b15d7fcd9c3842ef435388ed29ae8c30617158ee907dc5 is pinned

        hint: nothing of it is kept; a mirror (HF_ENDPOINT) or proxy (HTTPS_PROXY) may serve other content than the hub
        ");
    assert!(!lab.part().exists() && !lab.wanted().path.exists());
}

#[test]
fn other_content_in_pieces_is_fetched_once_more_and_then_refused() {
    let lab = Lab::new();
    let mut other = lab.content.clone();
    other[77] ^= 1;
    let server = Server::start(vec![Act::CutAfter(other, TAG, 300_000)]);
    assert!(matches!(lab.fetch(&server).unwrap_err(), FetchError::WrongDigest { .. }));
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_content_length_that_is_not_the_pinned_size_is_refused_at_once() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Length(lab.content.clone(), lab.content.len() + 5)]);
    insta::assert_snapshot!(show(&lab.fetch(&server).unwrap_err(), &server), @r"
        failed to verify http://hub/org/model/resolve/abc/file.bin: it has 400005 bytes, and 400000 are pinned

        hint: nothing of it is kept; a mirror (HF_ENDPOINT) or proxy (HTTPS_PROXY) may serve other content than the hub
        ");
}

#[test]
fn a_content_length_that_promises_too_much_is_a_cut_connection() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Length(lab.content.clone(), lab.content.len() + 5)]);
    let wanted = Wanted { size: None, ..lab.wanted() };
    let error = lab.fetch_with(lab.settings(&server), vec![wanted]).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
}

#[test]
fn a_trickle_and_a_silent_server_count_as_cut_connections() {
    for pause in [Duration::from_millis(20), Duration::from_mins(1)] {
        let lab = Lab::new();
        let server = Server::start(vec![Act::Trickle(lab.content.clone(), pause)]);
        let started = Instant::now();
        let mut settings = lab.settings(&server);
        settings.patience.stall = Duration::from_millis(300);
        let error = lab.fetch_with(settings, vec![lab.wanted()]).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { tries: 3, .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_what_to_check() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(500, Vec::new())]);
    let settings = FetchSettings { endpoint: "http://127.0.0.1:9".to_owned(), ..lab.settings(&server) };
    let error = lab.fetch_with(settings, vec![lab.wanted()]).unwrap_err();
    insta::assert_snapshot!(show(&error, &server), @r"
        failed to fetch http://127.0.0.1:9/org/model/resolve/abc/file.bin in 3 tries: Connection refused (os error 111)

        hint: check the network; HTTPS_PROXY names a proxy and HF_ENDPOINT a mirror; what was fetched is kept, and the same command goes on from there
        ");
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_unless_the_authority_is_named() {
    let lab = Lab::new();
    let (server, certificate) = Server::start_tls(lab.content.clone());
    let endpoint = format!("https://{}", server.address);
    let settings = FetchSettings { endpoint: endpoint.clone(), ..lab.settings(&server) };
    let error = lab.fetch_with(settings.clone(), vec![lab.wanted()]).unwrap_err();
    insta::assert_snapshot!(show(&error, &server).replace(&endpoint, "https://hub"), @r"
        failed to trust https://hub/org/model/resolve/abc/file.bin: invalid peer certificate: UnknownIssuer

        hint: a proxy or mirror of your own? Name its certificate authority, a PEM file, with SSL_CERT_FILE
        ");

    let path = lab.cache.join("authority.pem");
    fs::write(&path, certificate).unwrap();
    lab.fetch_with(FetchSettings { certificates: Some(path), ..settings }, vec![lab.wanted()]).unwrap();
    assert!(fs::read(lab.wanted().path).unwrap() == lab.content);
}

#[test]
fn a_redirect_that_goes_in_circles_is_an_error() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Status(302, vec![("Location", "/again".to_owned())])]);
    let error = lab.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::Unexpected { .. }), "{error}");
}

#[test]
fn a_full_disk_is_said_before_anything_is_asked_for() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    let wanted = Wanted { size: Some(u64::MAX / 2), ..lab.wanted() };
    let error = lab.fetch_with(lab.settings(&server), vec![wanted]).unwrap_err();
    assert!(matches!(error, FetchError::DiskSpace { .. }), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_file_in_the_hubs_cache_is_linked_to_if_it_is_as_pinned() {
    for (content, requests) in [("good", 0), ("evil", 1)] {
        let lab = Lab::new();
        let server = Server::start(vec![Act::Serve(b"good".to_vec(), TAG)]);
        let cached = lab.cache.join("hub/snapshots/abc/file.bin");
        fs::create_dir_all(cached.parent().unwrap()).unwrap();
        fs::write(&cached, content).unwrap();
        let wanted = Wanted {
            sha256: digest_bytes(b"good"),
            size: Some(4),
            cached: Some(cached.clone()),
            ..lab.wanted()
        };
        lab.fetch_with(lab.settings(&server), vec![wanted.clone()]).unwrap();
        assert_eq!(server.requests().len(), requests);
        assert_eq!(wanted.path.is_symlink(), requests == 0);
        assert_eq!(fs::read(&wanted.path).unwrap(), b"good");
        assert!(Verified::read(&lab.cache).holds(&wanted.path, wanted.sha256));
    }
}

#[test]
fn a_models_files_are_asked_for_by_revision_unless_the_hubs_cache_has_them() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Serve(b"good".to_vec(), TAG)]);
    let file = |name: &str| FilePin { name: name.to_owned(), sha256: digest_bytes(b"good"), size: None };
    let pin = ModelPin {
        name: "org/model".to_owned(),
        licence: String::new(),
        licence_page: String::new(),
        origin: Origin::Hub { revision: "abc".to_owned(), gated: false },
        files: vec![file("config.json"), file("model.safetensors")],
    };
    let hub = lab.cache.join("hub");
    let snapshot = hub.join("models--org--model/snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "good").unwrap();

    let settings = FetchSettings { hub_cache: Some(hub), ..lab.settings(&server) };
    let fetcher = Fetcher::new(settings, Events::ignored()).unwrap();
    let environment = EnvironmentRequest::from_variables(Stack::Cpu, lab.cache.clone());
    let found = fetcher.fetch(&[&pin, &pin], &[], &environment).unwrap();

    assert_eq!(found, [pin.folder(&lab.cache), pin.folder(&lab.cache)]);
    assert!(pin.is_complete(&lab.cache, &mut Verified::read(&lab.cache), &Events::ignored()));
    let asked: Vec<_> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, ["/org/model/resolve/abc/model.safetensors"]);
}

#[test]
fn a_file_that_was_touched_is_fetched_again() {
    let lab = Lab::new();
    let server = Server::start(vec![Act::Serve(lab.content.clone(), TAG)]);
    lab.fetch_whole(&server);
    fs::OpenOptions::new().append(true).open(lab.wanted().path).unwrap().write_all(b"x").unwrap();
    lab.fetch_whole(&server);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_converted_model_that_was_copied_here_is_read_and_not_converted_again() {
    let lab = Lab::new();
    let server = Server::start(Vec::new());
    let pin = ModelPin {
        name: "converted".to_owned(),
        licence: String::new(),
        licence_page: String::new(),
        origin: Origin::Packages(GgufPin {
            list: PackageList::Smollm2,
            parts: vec!["model.gguf".into()],
            size: 4,
            sha256: digest_bytes(b"gguf"),
        }),
        files: vec![FilePin { name: "config.json".to_owned(), sha256: digest_bytes(b"good"), size: None }],
    };
    let file = pin.folder(&lab.cache).join("config.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "good").unwrap();
    // As `run` and `doctor` ask, before any fetch.
    assert!(pin.is_complete(&lab.cache, &mut Verified::read(&lab.cache), &Events::ignored()));
    fs::remove_file(lab.cache.join("fetched/verified.json")).unwrap();
    let fetcher = Fetcher::new(lab.settings(&server), Events::ignored()).unwrap();
    // Converting needs an environment, and there is none.
    let mut environment = EnvironmentRequest::from_variables(Stack::Cpu, lab.cache.clone());
    environment.given = Some(lab.cache.join("none"));

    let found = fetcher.fetch(&[&pin], &[], &environment).unwrap();
    assert_eq!(found, [pin.folder(&lab.cache)]);
    assert!(pin.is_complete(&lab.cache, &mut Verified::read(&lab.cache), &Events::ignored()));

    fs::write(&file, "evil").unwrap();
    let told = lab.events.clone();
    let events = Events::new(move |event| told.lock().unwrap().push(event));
    assert!(!pin.is_complete(&lab.cache, &mut Verified::read(&lab.cache), &events));
    assert_eq!(lab.warnings(), [format!("{file} is not what is pinned")]);
    let error = fetcher.fetch(&[&pin], &[], &environment).unwrap_err();
    assert!(matches!(error, FetchError::Environment(_)), "{error}");
}

#[test]
fn no_message_shows_a_token() {
    assert_eq!(format!("{:?}", Token::new(" hf_secret\n")), "Some(Token(…))");
    assert!(Token::new(" \n").is_none());
}
