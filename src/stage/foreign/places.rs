//! Where the model of the readers lies: links to its files, a change of which leaves the model itself alone. Main type:
//! [`ModelPlaces`].

use std::io::{self, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde_json::{Map, Value, json};

use crate::cache::Bucket;
use crate::stage::StageError;

/// The bit of every second byte of the weights that is turned: of 16-bit numbers one of the mantissa.
const TURNED_BIT: u8 = 0x10;
/// By how much the rotary embeddings of a changed configuration are stretched.
const STRETCH: f64 = 4.0;
const CONFIG: &str = "config.json";

/// The folders in which a model's files are linked, under a path that no other run has, which LMCache's keys hold.
pub(super) struct ModelPlaces {
    scratch: tempfile::TempDir,
    model: Utf8PathBuf,
}

impl ModelPlaces {
    /// Those of the model in this folder.
    pub(super) fn of(model: Utf8PathBuf, cache: &Utf8Path) -> Result<Self, StageError> {
        let parent = Bucket::Models.folder(cache);
        let failed = |source| StageError::Write { path: parent.clone(), source };
        fs::create_dir_all(&parent).map_err(failed)?;
        let scratch = tempfile::tempdir_in(&parent).map_err(failed)?;
        let places = Self { scratch, model };
        places.restore()?;
        Ok(places)
    }

    /// Where it lies for the writer, and for all readers but one.
    pub(super) fn own(&self) -> Utf8PathBuf {
        self.inside("a/b")
    }

    /// Another folder, whose path a file's name of LMCache writes like that one.
    fn colliding(&self) -> Utf8PathBuf {
        self.inside("a-SEP-b")
    }

    /// A folder for something else.
    pub(super) fn inside(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::try_from(self.scratch.path().join(name)).expect("its parent is UTF-8")
    }

    /// Has the model lie at its own place as it is.
    pub(super) fn restore(&self) -> Result<(), StageError> {
        self.link(&self.own())
    }

    /// Has another model lie in its own place. False if it has no weights that can be changed.
    pub(super) fn change_weights(&self) -> Result<bool, StageError> {
        change_weights(&self.own())
    }

    /// Has another model lie in the colliding place, which is returned. None as in `change_weights`.
    pub(super) fn make_colliding(&self) -> Result<Option<Utf8PathBuf>, StageError> {
        let place = self.colliding();
        self.link(&place)?;
        Ok(change_weights(&place)?.then_some(place))
    }

    /// Has the model lie in its own place with rotary embeddings that are stretched. False if its configuration is none that
    /// says how they are.
    pub(super) fn stretch_rope(&self) -> Result<bool, StageError> {
        let path = self.own().join(CONFIG);
        let failed = |source| StageError::Write { path: path.clone(), source };
        let text = fs::read(&path).map_err(failed)?;
        let Ok(mut config) = serde_json::from_slice::<Value>(&text) else { return Ok(false) };
        if !stretch(&mut config) {
            return Ok(false);
        }
        fs::remove_file(&path).and_then(|()| fs::write(&path, config.to_string())).map_err(failed)?;
        Ok(true)
    }

    /// Makes a folder anew with a link to each of the model's files.
    fn link(&self, place: &Utf8Path) -> Result<(), StageError> {
        let link = || -> io::Result<()> {
            if place.exists() {
                fs::remove_dir_all(place)?;
            }
            fs::create_dir_all(place)?;
            for entry in self.model.read_dir_utf8()? {
                let entry = entry?;
                fs::os::unix::fs::symlink(entry.path(), place.join(entry.file_name()))?;
            }
            Ok(())
        };
        link().map_err(|source| StageError::Write { path: place.to_owned(), source })
    }
}

/// Scales the rotary embeddings of a configuration, as a model that is to read longer texts does (YaRN). False if there are none.
fn stretch(config: &mut Value) -> bool {
    let Some(longest) = config.get("max_position_embeddings").and_then(Value::as_u64) else { return false };
    let scale = |rope: &mut Map<String, Value>| {
        rope.insert("rope_type".to_owned(), json!("yarn"));
        rope.insert("factor".to_owned(), json!(STRETCH));
        rope.insert("original_max_position_embeddings".to_owned(), json!(longest));
    };
    match config.get_mut("rope_parameters") {
        Some(Value::Object(ropes)) if ropes.values().any(Value::is_object) => {
            ropes.values_mut().filter_map(Value::as_object_mut).for_each(scale);
        }
        Some(Value::Object(rope)) => scale(rope),
        _ => {
            // As transformers had it before its fifth version.
            let mut rope = Map::new();
            scale(&mut rope);
            config["rope_scaling"] = Value::Object(rope);
        }
    }
    true
}

/// Puts a changed copy in place of the link to the first file of weights. False if there is none.
fn change_weights(model: &Utf8Path) -> Result<bool, StageError> {
    let failed = |source| StageError::Write { path: model.to_owned(), source };
    let change = || -> io::Result<bool> {
        let entries = model.read_dir_utf8()?.collect::<io::Result<Vec<_>>>()?;
        let mut weights: Vec<Utf8PathBuf> = entries.iter().map(|entry| entry.path().to_owned()).collect();
        weights.retain(|path| path.extension() == Some("safetensors"));
        weights.sort();
        let Some(path) = weights.first() else { return Ok(false) };
        let mut changed = tempfile::NamedTempFile::new_in(model)?;
        turn_bits(&mut io::BufReader::new(fs::File::open(path)?), &mut io::BufWriter::new(&mut changed))?;
        changed.persist(path)?;
        Ok(true)
    };
    change().map_err(failed)
}

/// Copies weights in the format safetensors, a bit of every second byte behind the header turned.
fn turn_bits(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    to.write_all(&length)?;
    io::copy(&mut from.take(u64::from_le_bytes(length)), to)?;
    let mut buffer = vec![0; 1 << 20];
    let mut place = 0_usize;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer[..read].iter_mut().skip(place % 2).step_by(2).for_each(|byte| *byte ^= TURNED_BIT);
        to.write_all(&buffer[..read])?;
        place += read;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_changed_behind_their_header_however_they_are_read() {
        let file: Vec<u8> = [&3_u64.to_le_bytes()[..], b"{ }", &[0; 5]].concat();
        let mut changed = Vec::new();
        // One byte at a time, as a slow reader would.
        let mut slow = file.iter().fold(Box::new(io::empty()) as Box<dyn Read>, |before, byte| {
            Box::new(before.chain(io::Cursor::new([*byte])))
        });
        turn_bits(&mut slow, &mut changed).unwrap();
        assert_eq!(changed[..11], file[..11]);
        assert_eq!(changed[11..], [TURNED_BIT, 0, TURNED_BIT, 0, TURNED_BIT]);
    }

    #[test]
    fn the_weights_of_another_model_under_the_same_path_leave_the_model_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        fs::write(folder.join("own"), [0; 8 + 4]).unwrap();
        let place = folder.join("place");
        fs::create_dir(&place).unwrap();
        assert!(!change_weights(&place).unwrap());
        fs::os::unix::fs::symlink(folder.join("own"), place.join("model.safetensors")).unwrap();
        assert!(change_weights(&place).unwrap());
        assert_eq!(fs::read(folder.join("own")).unwrap(), [0; 12]);
        assert_eq!(fs::read(place.join("model.safetensors")).unwrap()[8..], [TURNED_BIT, 0, TURNED_BIT, 0]);
        assert_eq!(place.read_dir_utf8().unwrap().count(), 1);
    }

    #[test]
    fn a_change_lasts_until_the_place_is_restored_and_never_reaches_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (model, cache) = (folder.join("model"), folder.join("cache"));
        fs::create_dir(&model).unwrap();
        let config =
            r#"{"max_position_embeddings":64,"rope_parameters":{"rope_theta":1e4,"rope_type":"default"}}"#;
        fs::write(model.join(CONFIG), config).unwrap();
        fs::write(model.join("model.safetensors"), [0; 8 + 4]).unwrap();
        let places = ModelPlaces::of(model.clone(), &cache).unwrap();
        assert!(places.change_weights().unwrap() && places.stretch_rope().unwrap());
        let colliding = places.make_colliding().unwrap().unwrap();
        let as_name = |path: &Utf8Path| path.as_str().replace('/', "-SEP-");
        assert_eq!(as_name(&colliding), as_name(&places.own()));
        for (place, weights) in [(&places.own(), TURNED_BIT), (&colliding, TURNED_BIT), (&model, 0)] {
            assert_eq!(fs::read(place.join("model.safetensors")).unwrap()[8], weights, "{place}");
        }
        assert!(fs::read_to_string(places.own().join(CONFIG)).unwrap().contains("yarn"));
        assert_eq!(fs::read_to_string(model.join(CONFIG)).unwrap(), config);
        places.restore().unwrap();
        assert_eq!(fs::read(places.own().join("model.safetensors")).unwrap(), [0; 12]);
        assert_eq!(fs::read_to_string(places.own().join(CONFIG)).unwrap(), config);
    }

    #[test]
    fn rotary_embeddings_are_stretched_wherever_a_configuration_has_them() {
        let stretched = |config: Value| {
            let mut config = config;
            stretch(&mut config).then_some(config)
        };
        let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
        let one = stretched(
            json!({ "max_position_embeddings": 64, "rope_parameters": { "rope_type": "default" } }),
        );
        assert_eq!(one.unwrap()["rope_parameters"], yarn);
        let each = json!({ "max_position_embeddings": 64, "rope_parameters": { "full": {}, "window": {} } });
        assert_eq!(stretched(each).unwrap()["rope_parameters"], json!({ "full": yarn, "window": yarn }));
        let older = stretched(json!({ "max_position_embeddings": 64, "rope_scaling": null }));
        assert_eq!(older.unwrap()["rope_scaling"], yarn);
        assert_eq!(stretched(json!({ "hidden_size": 64 })), None);
    }
}
