//! Where descriptions come from: those that this program brings, and files of users. Main type: [`Described`].

use std::collections::BTreeMap;

use camino::Utf8Path;
use include_dir::{Dir, include_dir};

use super::description::{Description, Flaw, module_of};
use crate::carrier::RouteError;
use crate::engine::environment::EnvironmentIdentity;
use crate::files::{MOST_TEXT, read_text};
use crate::suite::place_of;

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/connectors");
/// The locks that embedded descriptions name.
const LOCKS: [(&str, &str); 3] = [
    ("p2p.txt", include_str!("../../../nix/stacks/p2p.txt")),
    ("s3.txt", include_str!("../../../nix/stacks/s3.txt")),
    ("valkey.txt", include_str!("../../../nix/stacks/valkey.txt")),
];

/// A connector that a file describes, with the files that it names.
#[derive(Debug)]
pub(in crate::carrier) struct Described {
    pub(super) description: Description,
    /// The text of the Python file that has the class, if it is one.
    pub(super) code: Option<String>,
    /// The requirements of its packages, if they can be installed.
    pub(super) lock: Option<String>,
    /// LMCache's name of the tier, kept for as long as the program runs.
    pub(super) tier: Option<&'static str>,
    /// vLLM's name of where the connector's KV comes from, likewise.
    pub(super) source: Option<&'static str>,
}

/// Those that this program brings.
pub(in crate::carrier) fn embedded() -> impl Iterator<Item = Described> {
    EMBEDDED.files().map(|file| {
        let text = file.contents_utf8().expect("an embedded description is text");
        let lock = |name: &str| {
            let lock = LOCKS.into_iter().find(|(known, _)| *known == name);
            Ok(lock.expect("an embedded description names an embedded lock").1.to_owned())
        };
        Described::parse(text, &file.path().display().to_string(), lock)
            .expect("an embedded description is right")
    })
}

/// The one that a file describes.
///
/// # Errors
/// When the file, or one that it names, cannot be read, or what it says cannot be.
pub(in crate::carrier) fn read(path: &Utf8Path) -> Result<Described, RouteError> {
    let read = |path: &Utf8Path| {
        read_text(path, MOST_TEXT).map_err(|source| RouteError::Unreadable { path: path.to_owned(), source })
    };
    let folder = path.parent().unwrap_or(Utf8Path::new(""));
    Described::parse(&read(path)?, path.as_str(), |name| read(&folder.join(name)))
}

impl Described {
    pub(super) fn parse(
        text: &str,
        name: &str,
        read: impl Fn(&str) -> Result<String, RouteError>,
    ) -> Result<Self, RouteError> {
        let malformed = |problem: String| RouteError::Malformed { file: name.to_owned(), problem };
        let description: Description =
            toml::from_str(text).map_err(|error| malformed(error.to_string().trim_end().to_owned()))?;
        if let Some(Flaw { path, problem }) = description.first_flaw() {
            let place = place_of(text, &path).map_or_else(String::new, |place| format!("{place}: "));
            return Err(malformed(format!("{place}{problem}")));
        }
        let file = description.connector.as_ref().and_then(|connector| connector.file.as_deref());
        let code = file.map(&read).transpose()?;
        let lock = description.packages.as_ref().and_then(|packages| packages.lock.as_deref());
        let lock = lock.map(&read).transpose()?;
        let kept = |name: &str| &*Box::leak(name.to_owned().into_boxed_str());
        let tier = description.tier.as_ref().map(|tier| kept(&tier.name));
        let connector = description.connector.as_ref();
        let source = connector.and_then(|connector| connector.served_from.as_deref()).map(kept);
        Ok(Self { description, code, lock, tier, source })
    }

    pub(super) fn lacks_packages(&self, environment: &EnvironmentIdentity) -> bool {
        self.description
            .packages
            .as_ref()
            .is_some_and(|packages| environment.version(&packages.name).is_none())
    }
}

/// The folder and the module of a connector's own code, written where a run keeps its notes.
pub(super) fn place_code(
    described: &Described,
    notes: &Utf8Path,
) -> std::io::Result<BTreeMap<&'static str, String>> {
    let connector = described.description.connector.as_ref();
    let file = connector.and_then(|connector| connector.file.as_ref());
    let (Some(file), Some(code)) = (file, &described.code) else { return Ok(BTreeMap::new()) };
    let module = module_of(file).expect("a description names a file that can be imported");
    let folder = notes.join("connector");
    fs_err::create_dir_all(&folder)?;
    fs_err::write(folder.join(format!("{module}.py")), code)?;
    Ok(BTreeMap::from([("folder", folder.into_string()), ("module", module.to_owned())]))
}
