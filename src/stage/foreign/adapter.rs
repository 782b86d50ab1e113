//! LoRA adapters that are made for a model, in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`. Main
//! function: [`write_adapter`].

use std::collections::BTreeMap;
use std::io;

use camino::Utf8Path;
use fs_err as fs;
use serde_json::json;

/// Rows of the first of an adapter's two matrices. One is as good as more to tell adapters apart. With more, vLLM for processors
/// multiplies a matrix a token, and where bfloat16 is not in hardware that took a hundred times as long at 8.
pub(super) const RANK: u32 = 1;
/// Layers that an adapter changes, by what the names of their weights end with: those that make keys and values, and one whose
/// output all later layers see.
const TARGETS: [&str; 4] = ["k_proj", "v_proj", "kv_a_proj_with_mqa", "o_proj"];
/// How far it moves what a layer gives, where that takes inputs of one.
const STRENGTH: f64 = 0.5;

/// Writes an adapter for weights of these shapes, whose numbers follow from the seed. False if they have no layer that it knows.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn write_adapter(
    folder: &Utf8Path,
    shapes: &BTreeMap<String, Vec<u64>>,
    seed: u64,
) -> io::Result<bool> {
    let adapted = shapes.iter().filter_map(|(name, shape)| {
        let layer = name.strip_suffix(".weight")?;
        let target = TARGETS.into_iter().find(|target| layer.ends_with(&format!(".{target}")))?;
        let &[outputs, inputs] = shape.as_slice() else { return None };
        Some((layer, target, outputs, inputs))
    });
    let adapted: Vec<_> = adapted.collect();
    if adapted.is_empty() {
        return Ok(false);
    }
    let mut targets: Vec<&str> = adapted.iter().map(|(_, target, ..)| *target).collect();
    targets.sort_unstable();
    targets.dedup();
    fs::create_dir_all(folder)?;
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": null, "bias": "none",
        "r": RANK, "lora_alpha": RANK, "target_modules": targets, "inference_mode": true,
    });
    fs::write(folder.join("adapter_config.json"), config.to_string())?;
    let rank = u64::from(RANK);
    let mut numbers = Numbers(seed);
    let (mut header, mut content) = (serde_json::Map::new(), Vec::new());
    for (layer, _, outputs, inputs) in adapted {
        // Of inputs of one, the first gives numbers of about one, and the second `STRENGTH` of that.
        let spreads = [
            ("lora_A", [rank, inputs], (3.0 / precise(inputs)).sqrt()),
            ("lora_B", [outputs, rank], STRENGTH * (3.0 / precise(rank)).sqrt()),
        ];
        for (part, shape, spread) in spreads {
            let start = content.len();
            for _ in 0..shape[0].saturating_mul(shape[1]) {
                #[expect(clippy::cast_possible_truncation, reason = "a weight is kept in four bytes")]
                let number = (spread * numbers.draw()) as f32;
                content.extend(number.to_le_bytes());
            }
            let name = format!("base_model.model.{layer}.{part}.weight");
            header.insert(
                name,
                json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, content.len()] }),
            );
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &content].concat();
    fs::write(folder.join("adapter_model.safetensors"), file)?;
    Ok(true)
}

#[expect(clippy::cast_precision_loss, reason = "no layer is 2^52 wide")]
fn precise(count: u64) -> f64 {
    count as f64
}

/// splitmix64 (Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    /// A number between -1 and 1.
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        precise((state ^ (state >> 31)) >> 12) / precise(1 << 51) - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(names: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
        names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
    }

    fn written(seed: u64) -> (serde_json::Value, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let shapes = shapes(&[
            ("model.layers.0.self_attn.k_proj.weight", &[6, 4]),
            ("model.layers.0.self_attn.q_proj.weight", &[12, 4]),
            ("model.layers.0.self_attn.k_proj.bias", &[6]),
            ("model.norm.weight", &[4]),
        ]);
        assert!(write_adapter(folder, &shapes, seed).unwrap());
        let config = fs::read(folder.join("adapter_config.json")).unwrap();
        (
            serde_json::from_slice(&config).unwrap(),
            fs::read(folder.join("adapter_model.safetensors")).unwrap(),
        )
    }

    #[test]
    fn an_adapter_has_two_matrices_for_each_layer_that_makes_kv_and_another_seed_makes_another() {
        let (config, file) = written(1);
        assert_eq!(config["target_modules"], serde_json::json!(["k_proj"]));
        let length = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
        assert_eq!(
            header,
            serde_json::json!({
                "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight":
                    { "dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16] },
                "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight":
                    { "dtype": "F32", "shape": [6, 1], "data_offsets": [16, 40] },
            })
        );
        assert_eq!(file.len(), 8 + length + 40);
        assert_eq!(written(1).1, file);
        assert_ne!(written(2).1, file);
        // Spread evenly up to the root of three quarters, both.
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        let (first, second) = (numbers(&file[8 + length..][..16]), numbers(&file[8 + length + 16..]));
        for numbers in [first, second] {
            assert!(numbers.iter().all(|number| number.abs() < 0.867), "{numbers:?}");
            assert!(numbers.iter().any(|number| number.abs() > 0.433), "{numbers:?}");
        }
    }

    #[test]
    fn a_model_without_layers_of_known_names_gets_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap().join("adapter");
        let shapes = shapes(&[("transformer.h.0.attn.c_attn.weight", &[12, 4])]);
        assert!(!write_adapter(&folder, &shapes, 1).unwrap());
        assert!(!folder.exists());
    }
}
