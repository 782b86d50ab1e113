//! Whether vLLM can read a model's weights, as far as names and headers tell. Main function: [`check_weights`].
//!
//! A safetensors file is eight bytes (the header's length, little endian), the header as JSON (each tensor's type, shape
//! and place), and the tensors, one behind the other to the file's last byte. Nothing but headers is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use camino::Utf8Path;
use fs_err as fs;
use serde::Deserialize;
use serde_json::Value;

use super::error::{AssetError, FileProblem, INDEX, io_error};
use super::folder::what_it_is;

/// The library's own limit.
const MOST_HEADER_BYTES: u64 = 100_000_000;
/// Configurations, tokenizers and lists of shards have some tens of megabytes at most.
const MOST_SMALL_BYTES: u64 = 512 << 20;
/// How a file begins that stands for another one in a repository.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Fails where vLLM would not find whole weights in a folder.
///
/// # Errors
/// When the folder cannot be read, holds no `*.safetensors`, or one that is not whole.
pub(super) fn check_weights(folder: &Utf8Path) -> Result<(), AssetError> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let entry = entry.map_err(|source| io_error(folder, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // As in vLLM's own search, a name that begins with a dot is no weights: macOS leaves `._model.safetensors`.
        if !name.starts_with('.') && name.ends_with(".safetensors") {
            names.insert(name);
        }
    }
    let is_adapter = |name: &&String| name.starts_with("adapter_");
    if names.iter().all(|name| is_adapter(&name)) {
        let adapter = folder.join("adapter_config.json").is_file() || !names.is_empty();
        let folder = folder.to_owned();
        return Err(if adapter { AssetError::Adapter(folder) } else { AssetError::NoWeights(folder) });
    }
    let wrong = |name: &str, problem| AssetError::File { path: folder.join(name), problem };
    if let Some(index) = read_index(folder).map_err(|problem| wrong(INDEX, problem))? {
        for (shard, tensors) in index {
            let stated = format!("{INDEX} names it");
            let header =
                header_of(&folder.join(&shard), &stated).map_err(|problem| wrong(&shard, problem))?;
            if let Some(lacking) = tensors.iter().find(|tensor| !header.contains_key(*tensor)) {
                return Err(wrong(&shard, FileProblem::LacksTensor(lacking.clone())));
            }
        }
        return Ok(());
    }
    for name in &names {
        if let Some(missing) = missing_sibling(name, &names) {
            let problem = FileProblem::Missing(format!("{name} is one of several"));
            return Err(wrong(&missing, problem));
        }
        header_of(&folder.join(name), "it was a moment ago").map_err(|problem| wrong(name, problem))?;
    }
    Ok(())
}

/// The shape of each tensor of a model's weights, by its name.
///
/// # Errors
/// When the folder or a header cannot be read.
pub(crate) fn weight_shapes(folder: &Utf8Path) -> Result<BTreeMap<String, Vec<u64>>, AssetError> {
    let mut shapes = BTreeMap::new();
    for entry in folder.read_dir_utf8().map_err(|source| io_error(folder, source))? {
        let path = entry.map_err(|source| io_error(folder, source))?.path().to_owned();
        let is_weights = path.extension() == Some("safetensors");
        if is_weights && path.file_name().is_some_and(|name| !name.starts_with('.')) {
            let header = header_of(&path, "it was a moment ago");
            shapes.extend(header.map_err(|problem| AssetError::File { path, problem })?);
        }
    }
    Ok(shapes)
}

/// The tensors of each shard, where there is a list of shards.
fn read_index(folder: &Utf8Path) -> Result<Option<BTreeMap<String, Vec<String>>>, FileProblem> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = folder.join(INDEX);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let text = read_small(&path)?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| FileProblem::NoIndex(error.to_string()))?;
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in index.weight_map {
        if shard.is_empty() || shard.contains('/') {
            return Err(FileProblem::NoIndex(format!("{shard:?} is no file's name")));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(FileProblem::NoIndex("it names no tensor".to_owned()));
    }
    Ok(Some(shards))
}

/// Of `model-00001-of-00004.safetensors`, a sibling that is not among `names`.
fn missing_sibling(name: &str, names: &BTreeSet<String>) -> Option<String> {
    let (start, rest) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = start.rsplit_once('-')?;
    let digits =
        |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(number) || !digits(rest) {
        return None;
    }
    let count: usize = rest.parse().ok().filter(|count| *count <= 10_000)?;
    let width = number.len();
    (1..=count)
        .map(|number| format!("{stem}-{number:0width$}-of-{rest}.safetensors"))
        .find(|sibling| !names.contains(sibling))
}

/// Sees that a path is a file; `stated` completes "it is not there, and …".
fn require_file(path: &Utf8Path, stated: &str) -> Result<u64, FileProblem> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(metadata) => Err(FileProblem::NotAFile(what_it_is(&metadata))),
        Err(error) => Err(match fs::read_link(path) {
            Ok(target) => FileProblem::DanglingLink(target.to_string_lossy().escape_debug().to_string()),
            Err(_) if error.kind() == io::ErrorKind::NotFound => FileProblem::Missing(stated.to_owned()),
            Err(_) => FileProblem::Unreadable(error.to_string()),
        }),
    }
}

/// The tensors of a whole safetensors file, with their shapes.
fn header_of(path: &Utf8Path, stated: &str) -> Result<BTreeMap<String, Vec<u64>>, FileProblem> {
    let found = require_file(path, stated)?;
    if found == 0 {
        return Err(FileProblem::Empty);
    }
    let no_header = |problem: &dyn std::fmt::Display| FileProblem::NoHeader(problem.to_string());
    let mut file = fs::File::open(path).map_err(|error| no_header(&error))?;
    let mut start = Vec::new();
    file.by_ref()
        .take(LFS_POINTER.len() as u64)
        .read_to_end(&mut start)
        .map_err(|error| no_header(&error))?;
    if start.starts_with(LFS_POINTER) {
        return Err(FileProblem::LfsPointer);
    }
    let Some(length) = start.first_chunk::<8>() else {
        return Err(FileProblem::CutOff { wanted: 8, found });
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER_BYTES {
        return Err(no_header(&"its first bytes are no header's length"));
    }
    if found < 8 + length {
        return Err(FileProblem::CutOff { wanted: 8 + length, found });
    }
    let mut header = start.split_off(8);
    let rest = length.saturating_sub(header.len() as u64);
    file.take(rest).read_to_end(&mut header).map_err(|error: io::Error| no_header(&error))?;
    header.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    let tensors: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|error| no_header(&error))?;
    let mut end_of_last = 0;
    let mut shapes = BTreeMap::new();
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| name != "__metadata__") {
        let end = end_of(&tensor).ok_or_else(|| no_header(&format!("{name} has no place in it")))?;
        end_of_last = end_of_last.max(end);
        let shape = tensor.get("shape").and_then(Value::as_array).into_iter().flatten();
        shapes.insert(name, shape.filter_map(Value::as_u64).collect());
    }
    if shapes.is_empty() {
        return Err(no_header(&"it holds no tensor"));
    }
    let wanted = end_of_last.saturating_add(8 + length);
    if wanted > found {
        return Err(FileProblem::CutOff { wanted, found });
    }
    if wanted < found {
        return Err(no_header(&format!("{} bytes follow its last tensor", found - wanted)));
    }
    Ok(shapes)
}

/// Where a tensor ends, if what is said of it fits together.
fn end_of(tensor: &Value) -> Option<u64> {
    let [start, end] = tensor.get("data_offsets")?.as_array()?.as_slice() else { return None };
    let (start, end) = (start.as_u64()?, end.as_u64()?);
    let shape = tensor.get("shape")?.as_array()?;
    let elements = shape.iter().try_fold(1_u64, |product, size| product.checked_mul(size.as_u64()?))?;
    let bits = match tensor.get("dtype")?.as_str()? {
        "BOOL" | "U8" | "I8" => 8,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F32" | "I32" | "U32" => 32,
        "F64" | "I64" | "U64" | "C64" => 64,
        other if other.starts_with("F8_") => 8,
        // Types of fewer bits than eight, and what is yet to come.
        _ => return (start <= end).then_some(end),
    };
    (end.checked_sub(start)? == elements.checked_mul(bits)? / 8).then_some(end)
}

/// A file beside the weights, whole.
pub(super) fn read_small(path: &Utf8Path) -> Result<Vec<u8>, FileProblem> {
    if require_file(path, "it was a moment ago")? > MOST_SMALL_BYTES {
        return Err(FileProblem::TooLarge);
    }
    let content = fs::read(path).map_err(|error| FileProblem::Unreadable(error.to_string()))?;
    if content.starts_with(LFS_POINTER) { Err(FileProblem::LfsPointer) } else { Ok(content) }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
