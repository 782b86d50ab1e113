//! What is built from source: a folder as it is, or a revision of a git checkout. Main type: [`SourceTree`].

use std::io;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::BuildError;
use super::identity::short_revision;
use crate::digest::{Digest, digest_tree, list_tree};

/// A copy of a source tree, less what git ignores, and where it came from. It is removed when this is dropped.
#[derive(Debug)]
pub struct SourceTree {
    folder: tempfile::TempDir,
    /// The commit, where it came out of a git repository.
    pub revision: Option<String>,
    /// Whether it differs from that commit.
    pub dirty: bool,
    /// Digest of the copy.
    pub tree: Digest,
    /// The version that a build of it bears.
    pub version: String,
}

impl SourceTree {
    /// The files that lie in a folder now: in a git checkout those that git knows or would add, else all that no build made.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds no Python project.
    pub fn of_folder(path: &Utf8Path) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Io { what: path.to_string(), source };
        let path = path.canonicalize_utf8().map_err(failed)?;
        let copy = tempfile::tempdir().map_err(failed)?;
        let folder = utf8(&copy).map_err(failed)?;
        let is_checkout = path.join(".git").exists();
        let (files, revision, dirty) = if is_checkout {
            let listed = git(&path, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
            let files = listed.split('\0').filter(|file| !file.is_empty()).map(Utf8PathBuf::from).collect();
            let revision = git(&path, &["rev-parse", "--verify", "HEAD"])?.trim().to_owned();
            (files, Some(revision), !git(&path, &["status", "--porcelain"])?.trim().is_empty())
        } else {
            let entries = list_tree(&path).map_err(failed)?;
            let files = entries.into_iter().filter(|(file, kind)| !kind.is_dir() && !is_built(file));
            (files.map(|(file, _)| file).collect::<Vec<_>>(), None, false)
        };
        for file in files {
            copy_entry(&path.join(&file), &folder.join(&file)).map_err(failed)?;
        }
        let versions_of = is_checkout.then_some((path.as_path(), "HEAD"));
        Self::of_copy(copy, &path, versions_of, revision, dirty)
    }

    /// A revision of a git checkout, whatever lies in its working tree.
    ///
    /// # Errors
    /// When git does not know the revision, or it holds no Python project.
    pub fn of_revision(checkout: &Utf8Path, revision: &str) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Io { what: format!("{checkout} at {revision}"), source };
        let checkout = checkout.canonicalize_utf8().map_err(failed)?;
        let revision = resolve_revision(&checkout, revision)?;
        let copy = tempfile::tempdir().map_err(failed)?;
        let index = tempfile::tempdir().map_err(failed)?;
        let index = utf8(&index).map_err(failed)?.join("index");
        let prefix = format!("--prefix={}/", utf8(&copy).map_err(failed)?);
        // With an index of its own, git writes the tree down and the checkout stays as it is.
        for arguments in [&["read-tree", &revision][..], &["checkout-index", "--all", "--force", &prefix]] {
            let mut command = git_command(&checkout, arguments);
            run_git(command.env("GIT_INDEX_FILE", &index), arguments)?;
        }
        Self::of_copy(copy, &checkout, Some((&checkout, &revision)), Some(revision.clone()), false)
    }

    fn of_copy(
        copy: tempfile::TempDir,
        path: &Utf8Path,
        described_by: Option<(&Utf8Path, &str)>,
        revision: Option<String>,
        dirty: bool,
    ) -> Result<Self, BuildError> {
        let folder = utf8(&copy).map_err(|source| BuildError::Io { what: path.to_string(), source })?;
        if !folder.join("setup.py").exists() && !folder.join("pyproject.toml").exists() {
            return Err(BuildError::NoSource { path: path.to_owned() });
        }
        let tree = digest_tree(&folder)?;
        let version = published_version(&folder).or_else(|| described_version(described_by?));
        let version = version.unwrap_or_else(|| "0.0.0".to_owned());
        Ok(Self { folder: copy, revision, dirty, tree, version })
    }

    /// The copy's folder.
    ///
    /// # Panics
    /// Never: it was made with a UTF-8 path.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        Utf8Path::from_path(self.folder.path()).expect("the copy has a UTF-8 path")
    }

    /// In words: `LMCache at 1a2b3c4d5e6f`, `LMCache from a dirty tree at …`, `LMCache from tree …`.
    #[must_use]
    pub fn describe(&self) -> String {
        let tree = self.tree.short();
        match (&self.revision, self.dirty) {
            (Some(revision), false) => format!("LMCache at {}", short_revision(revision)),
            (Some(revision), true) => {
                format!("LMCache from a dirty tree ({tree}) on {}", short_revision(revision))
            }
            (None, _) => format!("LMCache from tree {tree}"),
        }
    }
}

/// The full name of a commit.
///
/// # Errors
/// When git does not know it.
pub fn resolve_revision(checkout: &Utf8Path, revision: &str) -> Result<String, BuildError> {
    let commit = format!("{revision}^{{commit}}");
    let name = git(checkout, &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]);
    name.map(|name| name.trim().to_owned()).map_err(|error| match error {
        BuildError::Git { .. } => BuildError::Git {
            what: format!("find revision {revision} in {checkout}"),
            said: "git knows no such commit there".to_owned(),
        },
        other => other,
    })
}

/// A commit of a line of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its full name.
    pub revision: String,
    /// The first line of its message.
    pub subject: String,
    /// Whether it has several parents.
    pub is_merge: bool,
}

/// The commits from `good` to `bad`, both included, along first parents, oldest first.
///
/// # Errors
/// When git does not know one of them, or `good` is no ancestor of `bad`.
pub fn first_parents(checkout: &Utf8Path, good: &str, bad: &str) -> Result<Vec<Commit>, BuildError> {
    let (good, bad) = (resolve_revision(checkout, good)?, resolve_revision(checkout, bad)?);
    let format = ["log", "--first-parent", "--reverse", "--format=%H%x09%P%x09%s"];
    let parse = |line: &str| {
        let mut fields = line.splitn(3, '\t').map(str::to_owned);
        let (revision, parents) = (fields.next()?, fields.next()?);
        Some(Commit { revision, is_merge: parents.contains(' '), subject: fields.next().unwrap_or_default() })
    };
    let range = format!("{good}..{bad}");
    let later = git(checkout, &[&format[..], &[&range]].concat())?;
    let first = git(checkout, &[&format[..], &["-1", &good]].concat())?;
    let commits: Vec<Commit> = first.lines().chain(later.lines()).filter_map(parse).collect();
    // The oldest of the range must follow directly on `good`, or `good` is not on this line.
    let follows = match commits.get(1) {
        Some(next) => {
            git(checkout, &["rev-parse", "--verify", &format!("{}^1", next.revision)])?.trim() == good
        }
        None => false,
    };
    if follows {
        Ok(commits)
    } else {
        let what = format!("find the commits from {} to {}", short_revision(&good), short_revision(&bad));
        Err(BuildError::Git { what, said: "the first is no first-parent ancestor of the second".to_owned() })
    }
}

fn git(checkout: &Utf8Path, arguments: &[&str]) -> Result<String, BuildError> {
    run_git(&mut git_command(checkout, arguments), arguments)
}

fn git_command(checkout: &Utf8Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(checkout).args(arguments);
    // As a command of `git bisect run` this runs with git's own variables set.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(variable);
    }
    command
}

fn run_git(command: &mut Command, arguments: &[&str]) -> Result<String, BuildError> {
    let what = format!("run `git {}`", arguments.join(" "));
    let output = command.output().map_err(|source| BuildError::Io { what: what.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().lines().last().unwrap_or_default().to_owned();
    Err(BuildError::Git { what, said })
}

fn utf8(folder: &tempfile::TempDir) -> io::Result<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(folder.path().to_owned())
        .map_err(|path| io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// Whether a file of a folder without git was made by a build in it.
fn is_built(file: &Utf8Path) -> bool {
    let top = file.components().next().map(|part| part.as_str().to_owned()).unwrap_or_default();
    let made = |part: &str| part == "__pycache__" || part.ends_with(".egg-info");
    top == "build"
        || top == ".git"
        || file.components().any(|part| made(part.as_str()))
        || file.extension() == Some("so")
}

/// Copies a file or a link; what git lists and is not there, is left out.
fn copy_entry(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(from) else { return Ok(()) };
    if metadata.is_dir() {
        return Ok(()); // a submodule
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    if metadata.is_symlink() {
        return fs_err::os::unix::fs::symlink(from.read_link_utf8()?, to);
    }
    fs::copy(from, to).map(|_| ())
}

/// The version in a source distribution's `PKG-INFO`.
fn published_version(folder: &Utf8Path) -> Option<String> {
    let info = fs::read_to_string(folder.join("PKG-INFO")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Version: ")).map(|version| version.trim().to_owned())
}

/// The newest release that is tagged at or before a revision.
fn described_version((checkout, revision): (&Utf8Path, &str)) -> Option<String> {
    let tag =
        git(checkout, &["describe", "--tags", "--abbrev=0", "--match=v[0-9]*.[0-9]*", revision]).ok()?;
    let numbers: String =
        tag.trim().trim_start_matches('v').chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let version = numbers.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}
