//! LMCache's compiled extension, loaded as an engine would, before one is started: a wheel can hold one that the installed torch
//! does not fit, and what LMCache then copies KV with only says so in a log. Main function: [`try_extension`].

use std::io;
use std::process::Command;

use serde::Deserialize;

use super::{Environment, Stack};

/// Loads what an engine on this device copies KV with, behind torch, whose libraries it refers to. `argv`: the names of its
/// file, newest first.
const SCRIPT: &str = r#"
import ctypes, glob, importlib.util, json, sys
found = importlib.util.find_spec("lmcache")
folders = list(found.submodule_search_locations) if found else []
files = [file for folder in folders for name in sys.argv[1:] for file in sorted(glob.glob(f"{folder}/{name}.*.so"))]
said = None
try:
    import torch
    if files:
        ctypes.CDLL(files[0])
except (ImportError, OSError) as error:
    said = str(error)
version = getattr(sys.modules.get("torch"), "__version__", "")
print(json.dumps({"file": files[0] if files else None, "error": said, "torch": str(version)}))
"#;

/// What came of loading LMCache's extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// It loads.
    Loads,
    /// This LMCache has none for the device.
    Absent,
    /// It does not load, in a sentence that names what is missing.
    Fails(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    file: Option<String>,
    error: Option<String>,
    torch: String,
}

impl Extension {
    /// What to do where KV is not copied by it.
    pub const HINT: &str = "name an LMCache that is built for this torch: `--lmcache-src DIR` builds one from a checkout, \
                            `--lmcache-version X` takes another release; without it a fallback in Python copies the KV";
}

/// Loads LMCache's extension for this stack in the environment's own Python.
///
/// # Errors
/// When the environment's Python does not run or says something else.
pub fn try_extension(environment: &Environment, stack: Stack) -> io::Result<Extension> {
    // `c_ops` up to 0.5.3 and `cuda_ops` since.
    let names: &[&str] = match stack {
        Stack::Cuda => &["cuda_ops", "c_ops"],
        Stack::Cpu => &["lmcache_native"],
    };
    let mut python = Command::new(environment.python());
    python.args(["-c", SCRIPT]).args(names);
    if let Some(path) = environment.python_path(None) {
        python.env("PYTHONPATH", path);
    }
    let output = python.output()?;
    let last = output.stdout.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
    let said: Said = serde_json::from_slice(last).map_err(|_| {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next_back().unwrap_or_default();
        io::Error::other(format!("{} ended with {}: {words}", environment.python(), output.status))
    })?;
    Ok(match said {
        Said { error: Some(error), torch, .. } => {
            Extension::Fails(format!("it does not load behind torch {torch}: {error}"))
        }
        Said { file: Some(_), error: None, .. } => Extension::Loads,
        Said { file: None, error: None, .. } => Extension::Absent,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use camino::Utf8Path;
    use fs_err as fs;

    use super::*;
    use crate::engine::environment::EnvironmentIdentity;

    /// An environment whose Python is this machine's, with an LMCache of these files and a torch that is nothing.
    fn tried(files: &[(&str, &[u8])], stack: Stack) -> Extension {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("packages/lmcache")).unwrap();
        fs::create_dir_all(root.join("packages/torch")).unwrap();
        fs::write(root.join("packages/lmcache/__init__.py"), "raise SystemExit('it is not to be imported')")
            .unwrap();
        fs::write(root.join("packages/torch/__init__.py"), "__version__ = '2.14.0'").unwrap();
        for (name, content) in files {
            fs::write(root.join("packages/lmcache").join(name), content).unwrap();
        }
        let python = root.join("bin/python");
        let words = format!("#!/bin/sh\nPYTHONPATH={root}/packages exec python3 \"$@\"\n");
        fs::write(&python, words).unwrap();
        fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        if files == [("loads", b"".as_slice())] {
            // A library that this process has loaded.
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let library = maps.split_whitespace().find(|word| word.contains("libc.so")).unwrap();
            symlink(library, root.join("packages/lmcache/cuda_ops.cpython.so")).unwrap();
        }
        let identity = EnvironmentIdentity {
            python: "3.11".to_owned(),
            platform: "x86_64-linux".to_owned(),
            packages: std::collections::BTreeMap::new(),
            store_path: None,
        };
        try_extension(&Environment::new(root.to_owned(), identity), stack).unwrap()
    }

    #[test]
    fn an_extension_that_does_not_load_is_told_with_the_loaders_words_and_torchs_version() {
        let Extension::Fails(words) = tried(&[("cuda_ops.cpython.so", b"no library")], Stack::Cuda) else {
            panic!("it cannot load");
        };
        assert!(words.starts_with("it does not load behind torch 2.14.0: "), "{words}");
        assert!(words.contains("cuda_ops.cpython.so"), "{words}");
        // The older name, and the one for other devices, which is not asked for here.
        assert!(matches!(tried(&[("c_ops.cpython.so", b"")], Stack::Cuda), Extension::Fails(_)));
        assert_eq!(tried(&[("cuda_ops.cpython.so", b"")], Stack::Cpu), Extension::Absent);
    }

    #[test]
    fn an_extension_that_loads_is_no_finding_and_neither_is_one_that_is_not_there() {
        assert_eq!(tried(&[("loads", b"")], Stack::Cuda), Extension::Loads);
        assert_eq!(tried(&[], Stack::Cuda), Extension::Absent);
    }
}
