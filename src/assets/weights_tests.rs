use super::*;

/// A file of one tensor of `bytes` bytes under each of these names.
fn safetensors(names: &[&str], bytes: usize) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    for (place, name) in names.iter().enumerate() {
        let (start, end) = (place * bytes, (place + 1) * bytes);
        let tensor = serde_json::json!({"dtype": "U8", "shape": [bytes], "data_offsets": [start, end]});
        header.insert((*name).to_owned(), tensor);
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = u64::try_from(header.len()).unwrap().to_le_bytes();
    [length.as_slice(), header.as_bytes(), &vec![7; names.len() * bytes]].concat()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    fn refusal(&self) -> String {
        let error = check_weights(self.path()).unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap()).replace(self.path().as_str(), "[MODEL]")
    }
}

fn refusal(files: &[(&str, &[u8])]) -> String {
    Folder::new(files).refusal()
}

#[test]
fn whole_weights_are_taken_in_one_file_in_shards_and_with_a_list_of_them() {
    let whole = safetensors(&["a", "b"], 16);
    for files in [
        vec![("model.safetensors", whole.as_slice())],
        vec![("model.safetensors", whole.as_slice()), ("._model.safetensors", b"\0\x05\x16\x07")],
        vec![
            ("model-00001-of-000002.safetensors", whole.as_slice()),
            ("model-00002-of-000002.safetensors", &whole),
        ],
        vec![
            ("one.safetensors", whole.as_slice()),
            ("two.safetensors", &whole),
            (INDEX, br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#),
        ],
    ] {
        let folder = Folder::new(&files);
        check_weights(folder.path()).unwrap();
    }
}

#[test]
fn what_stands_for_weights_or_is_half_of_them_is_told_with_what_gets_them() {
    let whole = safetensors(&["a"], 64);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    insta::assert_snapshot!(refusal(&[("model.safetensors", pointer)]), @r"
    use [MODEL]/model.safetensors: it is a pointer of Git LFS, not the file itself
    hint: run `git lfs pull` in [MODEL], or get it again: `hf download OWNER/MODEL --revision COMMIT --local-dir [MODEL]`
    ");
    insta::assert_snapshot!(refusal(&[("model.safetensors", b"")]), @r"
    use [MODEL]/model.safetensors: it is empty
    hint: get it again: `hf download OWNER/MODEL --revision COMMIT --local-dir [MODEL]`
    ");
    let first =
        |content: &[u8]| refusal(&[("model.safetensors", content)]).lines().next().unwrap().to_owned();
    insta::assert_snapshot!(first(&whole[..whole.len() - 1]),
        @"use [MODEL]/model.safetensors: it is cut off: 127 bytes by its header, 126 here");
    insta::assert_snapshot!(first(&whole[..20]),
        @"use [MODEL]/model.safetensors: it is cut off: 63 bytes by its header, 20 here");
    insta::assert_snapshot!(first(b"abc"),
        @"use [MODEL]/model.safetensors: it is cut off: 8 bytes by its header, 3 here");
    insta::assert_snapshot!(first(b"<!DOCTYPE html><html></html>"),
        @"use [MODEL]/model.safetensors: it is no safetensors file: its first bytes are no header's length");
    insta::assert_snapshot!(first(&[whole.as_slice(), b"more"].concat()),
        @"use [MODEL]/model.safetensors: it is no safetensors file: 4 bytes follow its last tensor");
    insta::assert_snapshot!(first(b"\x02\0\0\0\0\0\0\0{}"),
        @"use [MODEL]/model.safetensors: it is no safetensors file: it holds no tensor");
    assert!(first(b"\x02\0\0\0\0\0\0\0[}").contains("it is no safetensors file: "));
}

#[test]
fn a_shard_that_is_missing_or_lacks_a_tensor_is_named() {
    let whole = safetensors(&["a"], 8);
    let first = |files: &[(&str, &[u8])]| refusal(files).lines().next().unwrap().to_owned();
    insta::assert_snapshot!(first(&[("model-00001-of-00003.safetensors", &whole), ("model-00003-of-00003.safetensors", &whole)]),
        @"use [MODEL]/model-00002-of-00003.safetensors: it is not there, and model-00001-of-00003.safetensors is one of several");
    let index = |text: &'static str| first(&[("one.safetensors", &whole), (INDEX, text.as_bytes())]);
    insta::assert_snapshot!(index(r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#),
        @"use [MODEL]/two.safetensors: it is not there, and model.safetensors.index.json names it");
    insta::assert_snapshot!(index(r#"{"weight_map": {"b": "one.safetensors"}}"#),
        @"use [MODEL]/one.safetensors: it lacks b, which model.safetensors.index.json says it holds");
    insta::assert_snapshot!(index(r#"{"weight_map": {"b": "../one.safetensors"}}"#),
        @r#"use [MODEL]/model.safetensors.index.json: it is no list of shards: "../one.safetensors" is no file's name"#);
    insta::assert_snapshot!(index(r#"{"weight_map": {}}"#),
        @"use [MODEL]/model.safetensors.index.json: it is no list of shards: it names no tensor");
    insta::assert_snapshot!(index("{}"),
        @"use [MODEL]/model.safetensors.index.json: it is no list of shards: missing field `weight_map` at line 1 column 2");
    let dangling = Folder::new(&[("model-00001-of-00002.safetensors", &whole)]);
    let link = dangling.path().join("model-00002-of-00002.safetensors");
    fs::os::unix::fs::symlink("../../blobs/0", link).unwrap();
    insta::assert_snapshot!(dangling.refusal(), @r"
    use [MODEL]/model-00002-of-00002.safetensors: it is a link to ../../blobs/0, which is not there
    hint: copy the folder with `cp -rL`, which follows links, or get it again: `hf download OWNER/MODEL --revision COMMIT --local-dir [MODEL]`
    ");
}

#[test]
fn an_adapter_and_a_folder_without_weights_are_told_apart() {
    let whole = safetensors(&["lora_A"], 8);
    insta::assert_snapshot!(refusal(&[("adapter_model.safetensors", &whole), ("adapter_config.json", b"{}")]), @r"
    find a model in the folder [MODEL]: it holds an adapter (LoRA) and no model
    hint: merge it into its base model (with peft: `model.merge_and_unload().save_pretrained(FOLDER)`), and name that folder
    ");
    let none = refusal(&[("._model.safetensors", &whole)]);
    assert!(none.starts_with("find weights in the folder [MODEL]: it holds no *.safetensors\n"), "{none}");
    assert!(refusal(&[]).starts_with("find weights in the folder [MODEL]"));
}
