//! Configurations of published models, as far as they speak of attention.

use super::*;

/// What the configuration of a model of this kind comes to.
fn read(model_type: &str, layers: u64, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { "," };
    let text = format!(
        r#"{{"model_type":"{model_type}","num_hidden_layers":{layers},"num_attention_heads":16,"hidden_size":2048,
        "num_key_value_heads":4{comma}{more}}}"#
    );
    match KvShape::from_config(&text) {
        Ok(_) => KvGroups::from_config(&text).unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn models_whose_layers_are_all_alike_are_known() {
    let dense = |model_type: &str, more: &str| {
        assert_eq!(read(model_type, 8, more), "8 layers of full attention", "{model_type}");
    };
    dense("llama", r#""head_dim":128"#);
    dense("mistral", r#""sliding_window":null"#); // v0.2 and later
    dense("mixtral", r#""sliding_window":null"#);
    dense("qwen2", r#""sliding_window":131072,"use_sliding_window":false,"max_window_layers":6"#);
    dense("qwen2", r#""sliding_window":4096"#); // not used unless said
    dense("qwen2_moe", r#""sliding_window":4096,"use_sliding_window":false"#);
    dense("qwen3", r#""sliding_window":null,"use_sliding_window":false,"max_window_layers":36"#);
    dense("qwen3_moe", r#""sliding_window":null,"use_sliding_window":false,"decoder_sparse_step":1"#);
    dense("phi3", r#""sliding_window":null"#);
    dense("gemma", r#""head_dim":256"#);
    dense(
        "smollm3",
        r#""use_sliding_window":false,"no_rope_layers":[1,1,1,0,1,1,1,0],"no_rope_layer_interval":4"#,
    );
    dense("hunyuan_v1_dense", r#""use_cla":false,"cla_share_factor":2"#);
    let every = [r#""full_attention""#; 8].join(",");
    dense("qwen3", &format!(r#""layer_types":[{every}]"#));
    for model_type in ["deepseek_v2", "deepseek_v3", "kimi_k2"] {
        assert_eq!(read(model_type, 8, r#""kv_lora_rank":512,"qk_rope_head_dim":64"#), "8 layers of MLA");
    }
}

#[test]
fn windows_are_told_by_layer_and_width() {
    let cases = [
        ("mistral", r#""sliding_window":4096"#),
        ("phi3", r#""sliding_window":2047"#),
        ("starcoder2", r#""sliding_window":4096"#),
        ("llama4_text", r#""attention_chunk_size":8192,"no_rope_layers":[]"#),
    ];
    let told: Vec<String> = cases.into_iter().map(|(model_type, more)| read(model_type, 12, more)).collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    its attention is not known: mistral has 12 layers of a sliding window of 4096 tokens
    its attention is not known: phi3 has 12 layers of a sliding window of 2047 tokens
    its attention is not known: starcoder2 has 12 layers of a sliding window of 4096 tokens
    its attention is not known: llama4_text has 3 layers of full attention and 9 layers of attention in chunks of 8192 tokens
    ");
}

#[test]
fn windows_beside_full_attention_are_kept_whole() {
    let cases = [
        ("qwen2", r#""sliding_window":4096,"use_sliding_window":true,"max_window_layers":8"#),
        ("gemma2", r#""sliding_window":4096"#),
        ("gemma3_text", r#""sliding_window":512,"sliding_window_pattern":6"#),
        ("cohere2", r#""sliding_window":4096"#),
        // Its sinks are weights of the layers.
        (
            "gpt_oss",
            r#""sliding_window":128,"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention",
            "sliding_attention","full_attention","sliding_attention","full_attention","sliding_attention","full_attention",
            "sliding_attention","full_attention"]"#,
        ),
    ];
    let told: Vec<String> = cases.into_iter().map(|(model_type, more)| read(model_type, 12, more)).collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    8 layers of full attention and 4 layers of a sliding window of 4096 tokens
    6 layers of full attention and 6 layers of a sliding window of 4096 tokens
    2 layers of full attention and 10 layers of a sliding window of 512 tokens
    3 layers of full attention and 9 layers of a sliding window of 4096 tokens
    6 layers of full attention and 6 layers of a sliding window of 128 tokens
    ");
    let text = include_str!("../../data/models/canary-swa/config.json");
    let every_token = KvShape::Dense { layers: 6, kv_heads: 2, head_size: 64 };
    assert_eq!(KvShape::from_config(text).unwrap(), every_token);
    assert!(KvGroups::from_config(text).unwrap().need_whole_windows());
    let dense = include_str!("../../data/models/canary-dense/config.json");
    assert!(!KvGroups::from_config(dense).unwrap().need_whole_windows());
}

#[test]
fn states_beside_full_attention_take_no_more_than_it() {
    let layers = r#""layer_types":["conv","conv","full_attention","conv"]"#;
    let told = read("lfm2", 4, &format!(r#"{layers},"conv_L_cache":3"#));
    assert_eq!(told, "1 layer of full attention and 3 layers of recurrent state (conv)");
    let text = format!(
        r#"{{"model_type":"lfm2","num_hidden_layers":4,"num_attention_heads":32,"hidden_size":1024,"num_key_value_heads":1,
        "conv_L_cache":3,{layers}}}"#
    );
    let every_token = KvShape::Dense { layers: 4, kv_heads: 1, head_size: 32 };
    assert_eq!(KvShape::from_config(&text).unwrap(), every_token);
    // Which layers those are must be said.
    assert_eq!(
        read("lfm2", 4, r#""conv_L_cache":3,"full_attn_idxs":[2]"#),
        "its attention is not known: lfm2 has recurrent layers (`conv_L_cache`)"
    );
}

#[test]
fn what_is_no_attention_of_tokens_is_refused_by_its_field() {
    let mla = r#""kv_lora_rank":512,"qk_rope_head_dim":64"#;
    let cases = [
        ("deepseek_v32", format!(r#"{mla},"index_topk":2048,"index_n_heads":64"#)),
        ("minicpm3", mla.to_owned()),
        ("qwen3_next", r#""full_attention_interval":4,"linear_num_key_heads":16"#.to_owned()),
        ("jamba", r#""attn_layer_period":8,"attn_layer_offset":4,"mamba_d_state":16"#.to_owned()),
        ("mamba2", r#""state_size":128,"conv_kernel":4"#.to_owned()),
        ("nemotron_h", r#""hybrid_override_pattern":"M-M*""#.to_owned()),
        ("granitemoehybrid", r#""layer_types":["mamba","mamba","attention","mamba"]"#.to_owned()),
        ("lfm2_moe", r#""layer_types":["conv","conv","full_attention","conv"]"#.to_owned()),
        ("minimax_text_01", r#""attn_type_list":[0,0,0,1]"#.to_owned()),
        (
            "minimax",
            r#""layer_types":["linear_attention","full_attention","linear_attention","full_attention"]"#
                .to_owned(),
        ),
        ("kimi_linear", r#""linear_attn_config":{"kda_layers":[1,2,3]}"#.to_owned()),
        ("recurrent_gemma", r#""block_types":["recurrent","recurrent","attention"]"#.to_owned()),
        ("mllama_text_model", r#""cross_attention_layers":[3]"#.to_owned()),
        ("gemma3n_text", r#""num_kv_shared_layers":2"#.to_owned()),
        ("t5", r#""is_encoder_decoder":true"#.to_owned()),
        ("falcon", r#""multi_query":true"#.to_owned()),
        (
            "llama",
            r#""layer_types":["full_attention","dilated_attention","full_attention","full_attention"]"#
                .to_owned(),
        ),
    ];
    let told: Vec<String> = cases.into_iter().map(|(model_type, more)| read(model_type, 4, &more)).collect();
    insta::assert_snapshot!(told.join("\n").replace("its attention is not known: ", ""), @r#"
    deepseek_v32 has a sparse indexer with keys of its own (`index_topk`)
    minicpm3 has a latent vector (`kv_lora_rank`) that vLLM may keep in another form
    qwen3_next has linear attention (`linear_num_key_heads`)
    jamba has recurrent layers (`attn_layer_period`)
    mamba2 has recurrent layers (`state_size`)
    nemotron_h has recurrent layers (`hybrid_override_pattern`)
    granitemoehybrid has 1 layer of full attention and 3 layers of recurrent state (mamba)
    lfm2_moe has 1 layer of full attention and 3 layers of recurrent state (conv)
    minimax_text_01 has linear attention (`attn_type_list`)
    minimax has 2 layers of full attention and 2 layers of recurrent state (linear_attention)
    kimi_linear has linear attention (`linear_attn_config`)
    recurrent_gemma has recurrent layers (`block_types`)
    mllama_text_model has cross attention (`cross_attention_layers`)
    gemma3n_text has layers that share KV (`num_kv_shared_layers`)
    t5 has cross attention (`is_encoder_decoder`)
    falcon has no attention that is known by this name; its fields speak of 4 layers of full attention
    llama has layers of "dilated_attention" (`layer_types`)
    "#);
}

#[test]
fn what_is_no_model_is_told_in_words() {
    let told = |text: &str| KvShape::from_config(text).unwrap_err().to_string();
    assert_eq!(told("{}"), "missing field `num_hidden_layers`");
    assert_eq!(
        told(r#"{"model_type":"gemma3","text_config":{}}"#),
        "missing field `num_hidden_layers`: models of more than text are not known"
    );
    assert!(told("[").starts_with("EOF while parsing"));
}
