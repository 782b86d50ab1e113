//! The groups of layers that a model's KV is made of, read from its `config.json` alone. Main type: [`KvGroups`].
//!
//! Field names and defaults are those of Hugging Face transformers' configurations. What a field means to vLLM's cache is decided
//! here and nowhere else: a model whose groups are not *one* group of full attention or of MLA is refused by name, with what its
//! configuration says. So is a kind of model that is not listed, since what it leaves out of its configuration is not known.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::KvShape;
use super::kv_state::{WITH_CONVOLUTIONS, has_known_convolutions};

/// Kinds of models (`model_type`) whose layers all have full attention, with a key and a value for each KV head, unless a field
/// says otherwise.
const DENSE: [&str; 34] = [
    "arcee",
    "baichuan",
    "cohere",
    "deepseek",
    "ernie4_5",
    "ernie4_5_moe",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_neox",
    "granite",
    "granitemoe",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "llama",
    "minicpm",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
];
/// The others of one kind of layer whose window or absence of one is told by their fields.
const WINDOWED: [&str; 9] = [
    "cohere2",
    "exaone4",
    "gemma2",
    "gemma3_text",
    "ministral",
    "olmo3",
    "starcoder2",
    "vaultgemma",
    "gpt_oss",
];
/// Kinds of models whose layers all have multi-head latent attention in vLLM, unless a field says otherwise.
const MLA: [&str; 3] = ["deepseek_v2", "deepseek_v3", "kimi_k2"];

/// Fields that say of attention what no group here can, with what each stands for.
const UNKNOWN_FIELDS: [(&str, &str); 26] = [
    ("index_topk", "a sparse indexer with keys of its own"),
    ("sparse_attention_config", "sparse attention"),
    ("sparse_config", "sparse attention"),
    ("compress_ratios", "compressed attention"),
    ("dual_chunk_attention_config", "dual chunk attention"),
    ("cross_attention_layers", "cross attention"),
    ("num_kv_shared_layers", "layers that share KV"),
    ("use_cla", "layers that share KV"),
    ("add_swa_attention_sink_bias", "attention sinks"),
    ("attn_type_list", "linear attention"),
    ("linear_attn_config", "linear attention"),
    ("linear_num_key_heads", "linear attention"),
    ("hybrid_override_pattern", "recurrent layers"),
    ("layers_block_type", "recurrent layers"),
    ("block_types", "recurrent layers"),
    ("attn_layer_period", "recurrent layers"),
    ("attn_layer_indices", "recurrent layers"),
    ("mamba_d_state", "recurrent layers"),
    ("mamba_n_heads", "recurrent layers"),
    ("mamba_num_heads", "recurrent layers"),
    ("ssm_cfg", "recurrent layers"),
    ("state_size", "recurrent layers"),
    ("conv_L_cache", "recurrent layers"),
    ("conv_kernel", "recurrent layers"),
    ("attention_window_size", "local attention"),
    ("attention_types", "local attention"),
];

/// Layers that keep the same kind of KV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvGroup {
    /// How many.
    pub layers: u64,
    /// What each keeps.
    pub kind: KvKind,
}

/// What a layer keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KvKind {
    /// A key and a value for each token and KV head.
    Full {
        /// KV heads.
        kv_heads: u64,
        /// Elements of a key, and of a value.
        head_size: u64,
    },
    /// The same, of the last tokens alone.
    SlidingWindow {
        /// KV heads.
        kv_heads: u64,
        /// Elements of a key, and of a value.
        head_size: u64,
        /// Tokens that are kept.
        width: u64,
    },
    /// The same, of the tokens since the last multiple of a width.
    Chunked {
        /// KV heads.
        kv_heads: u64,
        /// Elements of a key, and of a value.
        head_size: u64,
        /// Tokens of a chunk of attention.
        width: u64,
    },
    /// One latent vector for each token, with the rotary part of the key.
    MlaLatent {
        /// Elements of the latent vector.
        latent: u64,
        /// Elements of the rotary part.
        rotary: u64,
    },
    /// A state of fixed size for each sequence, in the configuration's own word: `mamba`, `conv`, `linear_attention`.
    Recurrent {
        /// The word.
        name: String,
    },
}

impl fmt::Display for KvKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { .. } => formatter.write_str("full attention"),
            Self::SlidingWindow { width, .. } => write!(formatter, "a sliding window of {width} tokens"),
            Self::Chunked { width, .. } => write!(formatter, "attention in chunks of {width} tokens"),
            Self::MlaLatent { .. } => formatter.write_str("MLA"),
            Self::Recurrent { name } => write!(formatter, "recurrent state ({name})"),
        }
    }
}

/// The groups of a model's KV, in the order of their kinds; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvGroups(Vec<KvGroup>);

/// Why a model's KV is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownKv {
    /// The text is not the JSON of a model with attention.
    #[error("{0}")]
    NoModel(String),
    /// Its attention is not known.
    #[error("its attention is not known: {model_type} has {found}")]
    Attention {
        /// `model_type`.
        model_type: String,
        /// What its configuration says.
        found: String,
    },
}

impl KvGroups {
    /// Reads the groups from the text of a model's `config.json`.
    ///
    /// # Errors
    /// When the text is not the JSON of a model with attention, or says something of attention that no group stands for.
    pub fn from_config(text: &str) -> Result<Self, UnknownKv> {
        Config(&parse(text)?).groups()
    }

    /// The groups.
    #[must_use]
    pub fn groups(&self) -> &[KvGroup] {
        &self.0
    }

    /// The shape of a model whose layers are all alike.
    #[must_use]
    pub fn uniform(&self) -> Option<KvShape> {
        match self.0.as_slice() {
            [KvGroup { layers, kind: KvKind::Full { kv_heads, head_size } }] => {
                Some(KvShape::Dense { layers: *layers, kv_heads: *kv_heads, head_size: *head_size })
            }
            [KvGroup { layers, kind: KvKind::MlaLatent { latent, rotary } }] => {
                Some(KvShape::Mla { layers: *layers, latent: *latent, rotary: *rotary })
            }
            _ => None,
        }
    }

    /// The shape of a model some of whose layers see a window alone, where vLLM's hybrid KV cache manager is off: each
    /// layer then keeps every token, as those with full attention do.
    fn with_whole_windows(&self) -> Option<KvShape> {
        let [KvGroup { layers, kind: KvKind::Full { kv_heads, head_size } }, windows @ ..] =
            self.0.as_slice()
        else {
            return None;
        };
        let is_like = |kind: &KvKind| match kind {
            KvKind::SlidingWindow { kv_heads: heads, head_size: size, .. } => {
                (heads, size) == (kv_heads, head_size)
            }
            _ => false,
        };
        let alike = !windows.is_empty() && windows.iter().all(|group| is_like(&group.kind));
        let layers = layers + windows.iter().map(|group| group.layers).sum::<u64>();
        alike.then_some(KvShape::Dense { layers, kv_heads: *kv_heads, head_size: *head_size })
    }

    /// The shape of a model some of whose layers keep a state, none of which takes more in vLLM's cache than KV of all tokens: it is
    /// kept in blocks of the same size.
    fn with_states(&self) -> Option<KvShape> {
        let [KvGroup { layers, kind: KvKind::Full { kv_heads, head_size } }, states @ ..] = self.0.as_slice()
        else {
            return None;
        };
        let alike =
            !states.is_empty() && states.iter().all(|group| matches!(group.kind, KvKind::Recurrent { .. }));
        let layers = layers + states.iter().map(|group| group.layers).sum::<u64>();
        alike.then_some(KvShape::Dense { layers, kv_heads: *kv_heads, head_size: *head_size })
    }

    /// Whether vLLM's hybrid KV cache manager must be off for this program to know what is kept.
    #[must_use]
    pub fn need_whole_windows(&self) -> bool {
        self.with_whole_windows().is_some()
    }

    /// How many tokens those of the layers see that see a window, each width once, beside others that see all.
    #[must_use]
    pub fn windows(&self) -> Vec<u64> {
        let width = |group: &KvGroup| match group.kind {
            KvKind::SlidingWindow { width, .. } => Some(width),
            _ => None,
        };
        if self.need_whole_windows() { self.0.iter().filter_map(width).collect() } else { Vec::new() }
    }

    /// Groups of so many layers; those of none are left out, and those of one kind put together.
    fn of(counted: impl IntoIterator<Item = (u64, KvKind)>) -> Self {
        let mut counts: BTreeMap<KvKind, u64> = BTreeMap::new();
        for (layers, kind) in counted.into_iter().filter(|(layers, _)| *layers > 0) {
            *counts.entry(kind).or_default() += layers;
        }
        Self(counts.into_iter().map(|(kind, layers)| KvGroup { layers, kind }).collect())
    }
}

impl KvShape {
    /// Reads the shape from the text of a model's `config.json`.
    ///
    /// # Errors
    /// When the text is not the JSON of a model with attention, or its layers are not all of one kind that is known.
    pub fn from_config(text: &str) -> Result<Self, UnknownKv> {
        let value = parse(text)?;
        let config = Config(&value);
        config.admit(&config.groups()?)
    }
}

fn parse(text: &str) -> Result<Value, UnknownKv> {
    serde_json::from_str(text).map_err(|error| UnknownKv::NoModel(error.to_string()))
}

/// `4 layers of full attention and 20 layers of a sliding window of 512 tokens`.
impl fmt::Display for KvGroups {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, group) in self.0.iter().enumerate() {
            let plural = if group.layers == 1 { "" } else { "s" };
            let and = if place == 0 { "" } else { " and " };
            write!(formatter, "{and}{} layer{plural} of {}", group.layers, group.kind)?;
        }
        Ok(())
    }
}

/// A `config.json`.
struct Config<'a>(&'a Value);

impl Config<'_> {
    /// A field that is there and not null.
    fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.as_u64()
    }

    fn required(&self, name: &'static str) -> Result<u64, UnknownKv> {
        let missing = || match self.field("text_config") {
            Some(_) => format!("missing field `{name}`: models of more than text are not known"),
            None => format!("missing field `{name}`"),
        };
        self.number(name).ok_or_else(|| UnknownKv::NoModel(missing()))
    }

    fn model_type(&self) -> &str {
        self.field("model_type").and_then(Value::as_str).unwrap_or("a model without `model_type`")
    }

    fn unknown(&self, found: impl Into<String>) -> UnknownKv {
        UnknownKv::Attention { model_type: self.model_type().to_owned(), found: found.into() }
    }

    fn groups(&self) -> Result<KvGroups, UnknownKv> {
        // Some of these have no attention at all, and so none of its fields.
        let known = |field| field == "conv_L_cache" && has_known_convolutions(self.0);
        for (field, meaning) in UNKNOWN_FIELDS.into_iter().filter(|(field, _)| !known(*field)) {
            if self
                .field(field)
                .is_some_and(|value| value.as_u64() != Some(0) && *value != Value::Bool(false))
            {
                return Err(self.unknown(format!("{meaning} (`{field}`)")));
            }
        }
        if self.field("is_encoder_decoder") == Some(&Value::Bool(true)) {
            return Err(self.unknown("cross attention (`is_encoder_decoder`)"));
        }
        let layers = self.required("num_hidden_layers")?;
        let heads = self.required("num_attention_heads")?;
        self.counted(layers, heads)
    }

    /// The shape, if it is known what vLLM and LMCache make of these groups.
    fn admit(&self, groups: &KvGroups) -> Result<KvShape, UnknownKv> {
        let kind = self.model_type();
        let is_listed = DENSE.contains(&kind) || WINDOWED.contains(&kind) || MLA.contains(&kind);
        let with_states = WITH_CONVOLUTIONS.contains(&kind).then(|| groups.with_states()).flatten();
        let is_listed = is_listed || with_states.is_some();
        match groups.uniform().or_else(|| groups.with_whole_windows()).or(with_states) {
            None => Err(self.unknown(groups.to_string())),
            Some(_) if self.field("model_type").is_some() && !is_listed => Err(self
                .unknown(format!("no attention that is known by this name; its fields speak of {groups}"))),
            Some(shape) => Ok(shape),
        }
    }

    /// How many layers keep what.
    fn counted(&self, layers: u64, heads: u64) -> Result<KvGroups, UnknownKv> {
        if let (Some(latent), Some(rotary)) = (self.number("kv_lora_rank"), self.number("qk_rope_head_dim")) {
            if self.field("model_type").is_some() && !MLA.contains(&self.model_type()) {
                return Err(
                    self.unknown("a latent vector (`kv_lora_rank`) that vLLM may keep in another form")
                );
            }
            return Ok(KvGroups::of([(layers, KvKind::MlaLatent { latent, rotary })]));
        }
        let kv_heads = self.number("num_key_value_heads").unwrap_or(heads);
        let head_size = match self.number("head_dim") {
            Some(size) => size,
            None => self.required("hidden_size")? / heads.max(1),
        };
        let full = KvKind::Full { kv_heads, head_size };
        let sliding = |width| KvKind::SlidingWindow { kv_heads, head_size, width };
        let chunked = |width| KvKind::Chunked { kv_heads, head_size, width };
        let window = self.number("sliding_window");
        if let Some(names) = self.field("layer_types").and_then(Value::as_array) {
            let kind = |name: &Value| match name.as_str().unwrap_or_default() {
                "full_attention" | "attention" => Ok(full.clone()),
                "sliding_attention" => Ok(sliding(window.unwrap_or(0))),
                "chunked_attention" => Ok(chunked(self.number("attention_chunk_size").unwrap_or(0))),
                name @ ("linear_attention" | "mamba" | "conv") => {
                    Ok(KvKind::Recurrent { name: name.to_owned() })
                }
                other => Err(self.unknown(format!("layers of {other:?} (`layer_types`)"))),
            };
            let kinds: Vec<KvKind> = names.iter().map(kind).collect::<Result<_, _>>()?;
            return if kinds.len() as u64 == layers {
                Ok(KvGroups::of(kinds.into_iter().map(|kind| (1, kind))))
            } else {
                Err(self.unknown(format!("{} `layer_types` for {layers} layers", kinds.len())))
            };
        }
        if let Some(width) = self.number("attention_chunk_size") {
            // Layers that have a rotary embedding (1 in `no_rope_layers`) are chunked; every fourth has none.
            let with_rotary = match self.field("no_rope_layers").and_then(Value::as_array) {
                Some(list) if !list.is_empty() => {
                    list.iter().filter(|rotary| rotary.as_u64() == Some(1)).count() as u64
                }
                _ => layers - layers / 4,
            };
            return Ok(KvGroups::of([
                (with_rotary, chunked(width)),
                (layers.saturating_sub(with_rotary), full),
            ]));
        }
        let Some(width) = window.filter(|_| self.uses_window()) else {
            return Ok(KvGroups::of([(layers, full)]));
        };
        let without_window =
            self.pattern().map_or(self.first_windowed_layer().min(layers), |every| layers / every);
        Ok(KvGroups::of([(without_window, full), (layers - without_window, sliding(width))]))
    }

    fn is_qwen(&self) -> bool {
        self.model_type().starts_with("qwen")
    }

    /// Whether `sliding_window` counts: Qwen's does only where it is said to.
    fn uses_window(&self) -> bool {
        self.field("use_sliding_window").map_or(!self.is_qwen(), |used| *used == Value::Bool(true))
    }

    /// Every how many layers one has full attention, where some have none: `sliding_window_pattern`, or the model's own.
    fn pattern(&self) -> Option<u64> {
        let own = match self.model_type() {
            "gemma2" | "vaultgemma" => Some(2),
            "gemma3_text" => Some(6),
            "cohere2" | "exaone4" | "olmo3" => Some(4),
            _ => None,
        };
        self.number("sliding_window_pattern")
            .or_else(|| self.number("_sliding_window_pattern"))
            .or(own)
            .filter(|every| *every > 0)
    }

    /// Qwen's windows begin at a layer.
    fn first_windowed_layer(&self) -> u64 {
        if self.is_qwen() { self.number("max_window_layers").unwrap_or(28) } else { 0 }
    }
}

#[cfg(test)]
#[path = "kv_groups_tests.rs"]
mod tests;
