//! Hints help: each refusal below is followed as it says, and what was refused is then right.

use camino::Utf8Path;
use fs_err as fs;

use crate::lab::{Lab, archive, at_once, weights};

/// Something wrong, words of the hint, and what a reader of the hint would do.
struct Case {
    wrong: fn(&Lab),
    hint: &'static str,
    follow: fn(&Lab),
}

const CASES: &[Case] = &[
    Case {
        wrong: |lab| setting(lab, "chunk_tokens = 16", "chunk_tokens = 0"),
        hint: "`lmcache.chunk_tokens` must be at least 1",
        follow: |lab| setting(lab, "chunk_tokens = 0", "chunk_tokens = 16"),
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "dtype = \"float16\""),
        hint: "write `engine.dtype`",
        follow: |lab| {
            setting(lab, "dtype = \"float16\"", "swap_space = 0");
            setting(lab, "dtype = \"bfloat16\"", "dtype = \"float16\"");
        },
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "max_logprobs = 6"),
        hint: "write `engine.top`",
        follow: |lab| {
            setting(lab, "max_logprobs = 6", "swap_space = 0");
            setting(lab, "top = 8", "top = 6");
        },
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "gpu_memory_utilization = 0.5"),
        hint: "write `engine.kv_cache_gib`",
        follow: |lab| {
            setting(lab, "gpu_memory_utilization = 0.5", "swap_space = 0");
            setting(lab, "kv_cache_gib = 1", "kv_cache_gib = 2");
        },
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "tensor_parallel_size = 2"),
        hint: "beside the model's `source`",
        follow: |lab| {
            setting(lab, "tensor_parallel_size = 2", "swap_space = 0");
            setting(lab, "source = \"model\"", "source = \"model\"\ntensor_parallel_size = 2");
        },
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "kv_transfer_config = {}"),
        hint: "leave it out, and name the ways for KV to travel in `routes`",
        follow: |lab| {
            setting(lab, "kv_transfer_config = {}", "");
            setting(lab, "[\"mp\"]", "[\"mp\", \"mp+fs\"]");
        },
    },
    Case {
        wrong: |lab| setting(lab, "margin = 0.005", "margin = 0.5"),
        hint: "at most 0.075",
        follow: |lab| setting(lab, "margin = 0.5", "margin = 0.075"),
    },
    Case {
        wrong: |lab| setting(lab, "single-letter/1", "single-letter/2"),
        hint: "the built-in template is `single-letter/1`",
        follow: |lab| setting(lab, "single-letter/2", "single-letter/1"),
    },
    Case {
        wrong: |lab| setting(lab, "max_model_len = 1024", "max_model_len = 60"),
        hint: "raise the model's length",
        follow: |lab| setting(lab, "max_model_len = 60", "max_model_len = 512"),
    },
    Case {
        wrong: |lab| setting(lab, "swap_space = 0", "num_gpu_blocks_override = 40"),
        hint: "raise that, and name `block_size` beside it unless that is 16",
        follow: |lab| {
            setting(lab, "num_gpu_blocks_override = 40", "num_gpu_blocks_override = 41\nblock_size = 32");
        },
    },
    Case {
        wrong: |lab| setting(lab, "max_model_len = 1024", "max_model_len = 10000000"),
        hint: "set `engine.max_model_len` to 349525 or less",
        follow: |lab| setting(lab, "max_model_len = 10000000", "max_model_len = 349525"),
    },
    Case {
        wrong: |lab| setting(lab, "memory_gib = 1", "memory_gib = 1\noptions = { serde = \"fp8\" }"),
        hint: "leave `serde` out of the suite",
        follow: |lab| setting(lab, "options = { serde = \"fp8\" }", ""),
    },
    Case {
        wrong: |lab| setting(lab, "source = \"model\"", "source = \"cannary-dense\""),
        hint: "did you mean canary-dense?",
        follow: |lab| setting(lab, "cannary-dense", "canary-dense"),
    },
    Case {
        wrong: |lab| setting(lab, "source = \"model\"", "source = \"model/config.json\""),
        hint: "name the folder that holds config.json",
        follow: |lab| setting(lab, "model/config.json", "model"),
    },
    Case {
        wrong: |lab| fs::write(lab.path("model/model.safetensors"), "version https://git-lfs").unwrap(),
        hint: "git lfs pull",
        follow: whole_weights,
    },
    Case {
        wrong: |lab| fs::write(lab.path("model/model.safetensors"), &weights(b"weights")[..40]).unwrap(),
        hint: "get it again",
        follow: whole_weights,
    },
    Case {
        wrong: |lab| lab.write("model/tokenizer.json", "{}"),
        hint: "the file must be the `tokenizer.json` of the model",
        follow: |lab| {
            let own =
                Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models/canary-dense/tokenizer.json");
            fs::copy(own, lab.path("model/tokenizer.json")).unwrap();
        },
    },
    Case {
        wrong: |lab| {
            folder(lab);
            fs::rename(lab.path("data/dev/botany_dev.csv"), lab.path("data/dev/Botany-dev.CSV")).unwrap();
        },
        hint: "rename it to `botany_dev.csv`",
        follow: |lab| {
            fs::rename(lab.path("data/dev/Botany-dev.CSV"), lab.path("data/dev/botany_dev.csv")).unwrap();
        },
    },
    Case {
        wrong: |lab| {
            folder(lab);
            fs::remove_dir_all(lab.path("data/val")).unwrap();
        },
        hint: "add `data/val/botany_val.csv` with at least one row",
        follow: |lab| {
            lab.write("data/val/botany_val.csv", ROW);
            lab.write("data/val/zoology_val.csv", ROW);
        },
    },
    Case {
        wrong: |lab| table(lab, "question,A,B,C,D,answer\nq,1,2,3,4,A\n"),
        hint: "a header line is not expected",
        follow: |lab| table(lab, ROW),
    },
    Case {
        wrong: |lab| table(lab, "q,1,2,3,4,\n"),
        hint: "the last column holds the letter of the right option: A, B, C or D",
        follow: |lab| table(lab, "q,1,2,3,4,C\n"),
    },
    Case {
        wrong: |lab| table(lab, "q,1,,3,4,A\n"),
        hint: "write `None` for none",
        follow: |lab| table(lab, "q,1,None,3,4,A\n"),
    },
    Case {
        wrong: |lab| table(lab, "q, with a comma,1,2,3,4,A\n"),
        hint: "a field with a comma, quote or line end stands in double quotes",
        follow: |lab| table(lab, "\"q, with a comma\",1,2,3,4,A\n"),
    },
    Case {
        wrong: |lab| {
            folder(lab);
            let utf16 = "\u{feff}q,1,2,3,4,A\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
            fs::write(lab.path("data/val/botany_val.csv"), utf16).unwrap();
        },
        hint: "iconv -f utf-16 -t utf-8 FILE > NEW",
        follow: |lab| {
            let script = "iconv -f utf-16 -t utf-8 botany_val.csv > new && mv new botany_val.csv";
            let mut command = std::process::Command::new("sh");
            assert!(
                command.args(["-c", script]).current_dir(lab.path("data/val")).status().unwrap().success()
            );
        },
    },
    Case {
        wrong: |lab| {
            folder(lab);
            fs::create_dir_all(lab.path("copy")).unwrap();
            tar::Archive::new(archive(2).as_slice()).unpack(lab.path("copy/old")).unwrap();
            fs::rename(lab.path("data"), lab.path("copy/data")).unwrap();
            setting(lab, "\"data\"", "\"copy\"");
        },
        hint: "name the one that is meant",
        follow: |lab| setting(lab, "\"copy\"", "\"copy/data\""),
    },
    Case {
        wrong: |lab| packed(lab, "ln -s botany_dev.csv data/dev/law_dev.csv; tar -cf data.tar data"),
        hint: "tar --dereference --hard-dereference -cf data.tar data",
        follow: |lab| {
            packed(lab, "rm data/dev/law_dev.csv; tar --dereference --hard-dereference -cf data.tar data");
        },
    },
    Case {
        wrong: |lab| {
            packed(
                lab,
                "cp -r data backup; mv backup/dev/botany_dev.csv backup/dev/law_dev.csv; tar -cf data.tar data backup",
            );
        },
        hint: "pack only the folder that is meant: `tar -cf data.tar data`",
        follow: |lab| packed(lab, "tar -cf data.tar data"),
    },
    Case {
        wrong: |lab| packed(lab, "tar -Pcf data.tar $PWD/data"),
        hint: "pack it again from the folder above `data`: `tar -cf data.tar data`",
        follow: |lab| packed(lab, "tar -cf data.tar data"),
    },
];

const ROW: &str = "q,1,2,3,4,A\n";

fn setting(lab: &Lab, before: &str, after: &str) {
    lab.edit("suite.toml", before, after);
}

fn whole_weights(lab: &Lab) {
    fs::write(lab.path("model/model.safetensors"), weights(b"weights")).unwrap();
}

/// The lab's questions as the folder `data`.
fn folder(lab: &Lab) {
    tar::Archive::new(archive(2).as_slice()).unpack(lab.path("")).unwrap();
    setting(lab, "facts.tar", "data");
}

/// The same with another table of one split.
fn table(lab: &Lab, rows: &str) {
    if !lab.path("data").exists() {
        folder(lab);
    }
    lab.write("data/val/botany_val.csv", rows);
}

/// The same as the archive that a script makes of the folder.
fn packed(lab: &Lab, script: &str) {
    if !lab.path("data").exists() {
        folder(lab);
        setting(lab, "\"data\"", "\"data.tar\"");
    }
    let mut command = std::process::Command::new("sh");
    assert!(command.args(["-c", script]).current_dir(lab.path("")).status().unwrap().success(), "{script}");
}

#[test]
fn each_refusal_is_mended_by_what_its_hint_says() {
    assert!(CASES.len() >= 20);
    at_once(CASES, |Case { wrong, hint, follow }| {
        let lab = Lab::new();
        let check = || lab.end(lab.driver("suite check suite.toml"));
        wrong(&lab);
        let message = lab.error(&check());
        assert!(message.contains(hint), "{hint}: {message}");
        follow(&lab);
        let mended = check();
        assert_eq!(mended.code, 0, "{hint}: {}", mended.err);
    });
}
