//! Builds LMCache from source beside an environment. Main function: [`build_lmcache`].

use std::collections::BTreeMap;
use std::io;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::install::{Target, builds};
use super::layer::{Layer, LayerKind};
use super::make::PATIENCE;
use super::{BuildError, Environment, Package, SourceTree, Stack, install_beside};
use crate::digest::{Digest, digest_bytes, digest_file, digest_json, list_tree};
use crate::event::Events;
use crate::lock::FileLock;

const SCHEMA: u32 = 1;
const TOOLS: &str = include_str!("../../../nix/stacks/build.txt");
/// Folders at the top of LMCache's tree that no build reads.
const UNREAD: [&str; 8] =
    ["asset", "benchmarks", "docker", "docs", "examples", "operator", "tests", ".github"];

/// LMCache built from a source tree; a tree that was built before beside an equal environment is found again.
///
/// # Errors
/// When the build fails: a compiler is missing, or the tree is broken.
pub fn build_lmcache(
    environment: &Environment,
    source: &SourceTree,
    stack: Stack,
    cache: &Utf8Path,
    events: &Events,
) -> Result<Layer, BuildError> {
    let (wanted, tree) = (source.describe(), source.folder());
    let failed = |error| BuildError::Io { what: wanted.clone(), source: error };
    let variables = build_variables(stack);
    let recipe = serde_json::json!({
        "schema": SCHEMA,
        "variables": variables,
        "tools": digest_bytes(TOOLS.as_bytes()),
        "environment": digest_json(&environment.identity_of_baseline()),
        "version": source.version,
    });
    let id = digest_json(&serde_json::json!({ "recipe": recipe, "tree": source.tree }));
    let target = Target {
        kind: LayerKind::Lmcache,
        name: "lmcache",
        id: &id.short(),
        wanted: &wanted,
        environment,
        cache,
        events,
    };
    let mut layer = target.provide(|installer, uv, folder| {
        let tools = install_beside(environment, "build", TOOLS, cache, events)?;
        let native = digest_native(tree).map_err(failed)?;
        let work = digest_json(&serde_json::json!({ "recipe": recipe, "native": native }));
        let work = builds(cache).join(format!("work-{}", work.short()));
        let lock = work.with_added_extension("lock");
        let _lock =
            FileLock::take(&lock, work.as_str(), PATIENCE, events).map_err(super::EnvironmentError::from)?;
        synchronise(tree, &work).map_err(failed)?;
        let mut command = Command::new(uv);
        command.args(["pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache"]);
        command.args(["--target", folder.as_str(), "--python", environment.python().as_str(), work.as_str()]);
        command
            .envs(&variables)
            .env("PYTHONPATH", &tools)
            .env("SETUPTOOLS_SCM_PRETEND_VERSION", &source.version);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{}:{path}", tools.join("bin"), environment.folder().join("bin")));
        target.run(installer, command)?;
        let (_, version) = target.find_package(folder)?;
        Ok(Package { version, content: Some(id), revision: None, tree: Some(source.tree), dirty: false })
    })?;
    // The same tree may be known by several revisions, and none of them is part of what was built.
    layer.package.revision.clone_from(&source.revision);
    layer.package.dirty = source.dirty;
    Ok(layer)
}

/// What LMCache's build is told: without a GPU its kernels for one are left out.
fn build_variables(stack: Stack) -> BTreeMap<&'static str, &'static str> {
    match stack {
        Stack::Cpu => BTreeMap::from([("NO_GPU_EXT", "1")]),
        Stack::Cuda => BTreeMap::new(),
    }
}

/// Digest of all that may go into compiled objects: everything but LMCache's own Python modules and what no build reads.
fn digest_native(tree: &Utf8Path) -> io::Result<Digest> {
    let mut files = BTreeMap::new();
    for (path, kind) in list_tree(tree)? {
        let top = path.components().next().map(|part| part.as_str().to_owned()).unwrap_or_default();
        let module = top == "lmcache" && path.extension() == Some("py");
        if kind.is_file() && !module && !UNREAD.contains(&top.as_str()) && path.extension() != Some("md") {
            let (digest, _) = digest_file(tree.join(&path))?;
            files.insert(path, digest);
        }
    }
    Ok(digest_json(&files))
}

/// Makes a work folder hold a tree. A file that is there with the same content keeps its time, so that nothing is compiled
/// again for it; of what earlier builds left only compiled objects stay, so that no removed module is installed.
fn synchronise(tree: &Utf8Path, work: &Utf8Path) -> io::Result<()> {
    fs::create_dir_all(work)?;
    let wanted: BTreeMap<Utf8PathBuf, _> = list_tree(tree)?.into_iter().collect();
    for (path, kind) in list_tree(work)? {
        let compiled = path.starts_with("build") && matches!(path.extension(), Some("so" | "o" | "ninja"));
        let ninja = path.file_name().is_some_and(|name| name.starts_with(".ninja_"));
        if !kind.is_dir() && !wanted.contains_key(&path) && !compiled && !ninja {
            fs::remove_file(work.join(path))?;
        }
    }
    for (path, kind) in wanted {
        let (from, to) = (tree.join(&path), work.join(&path));
        if kind.is_dir() {
            fs::create_dir_all(&to)?;
        } else if kind.is_symlink() {
            if to.symlink_metadata().is_ok() {
                fs::remove_file(&to)?;
            }
            fs_err::os::unix::fs::symlink(from.read_link_utf8()?, &to)?;
        } else if !to.is_file() || fs::read(&from)? != fs::read(&to)? {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        (keep, path)
    }

    fn write(root: &Utf8Path, name: &str, text: &str) {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), text).unwrap();
    }

    #[test]
    fn only_python_modules_and_documents_leave_compiled_objects_valid() {
        let (_keep, tree) = folder();
        for name in ["lmcache/a.py", "lmcache/data.json", "csrc/a.cpp", "setup.py", "docs/a.cpp", "README.md"]
        {
            write(&tree, name, "1");
        }
        let before = digest_native(&tree).unwrap();
        for name in ["lmcache/a.py", "docs/a.cpp", "README.md", "lmcache/new.py"] {
            write(&tree, name, "2");
            assert_eq!(digest_native(&tree).unwrap(), before, "{name}");
        }
        for name in ["lmcache/data.json", "csrc/a.cpp", "setup.py", "csrc/new.h"] {
            let before = digest_native(&tree).unwrap();
            write(&tree, name, "2");
            assert_ne!(digest_native(&tree).unwrap(), before, "{name}");
        }
    }

    #[test]
    fn a_work_folder_keeps_compiled_objects_and_the_times_of_equal_files_and_nothing_else() {
        let ((_one, tree), (_two, work)) = (folder(), folder());
        for name in ["lmcache/kept.py", "lmcache/changed.py", "csrc/a.cpp"] {
            write(&tree, name, "1");
        }
        synchronise(&tree, &work).unwrap();
        for left in [
            "build/lib/lmcache/removed.py",
            "build/lib/lmcache/native.so",
            "lmcache/removed.py",
            "build/temp/a.o",
        ] {
            write(&work, left, "left");
        }
        let time = |name: &str| fs::metadata(work.join(name)).unwrap().modified().unwrap();
        let before = ["lmcache/kept.py", "csrc/a.cpp"].map(time);
        std::thread::sleep(std::time::Duration::from_millis(20));
        write(&tree, "lmcache/changed.py", "2");
        synchronise(&tree, &work).unwrap();
        assert_eq!(["lmcache/kept.py", "csrc/a.cpp"].map(time), before);
        assert_eq!(fs::read_to_string(work.join("lmcache/changed.py")).unwrap(), "2");
        let there = |name: &str| work.join(name).exists();
        assert!(there("build/lib/lmcache/native.so") && there("build/temp/a.o"));
        assert!(!there("build/lib/lmcache/removed.py") && !there("lmcache/removed.py"));
    }
}
