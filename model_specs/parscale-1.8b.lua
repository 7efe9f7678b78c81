-- The shape of the published ParScale-1.8B, P = 1, 2, 4 and 8 in one engine, for weights that are
-- random; the pack takes 3.9 GB.
--     make model FROM=random SPEC=model_specs/parscale-1.8b.lua
return {
    name = "parscale-1.8b-random",
    model_type = "qwen2_parscale",
    hidden_size = 1536,
    intermediate_size = 8320,
    num_hidden_layers = 36,
    num_attention_heads = 16,
    num_key_value_heads = 2,
    vocab_size = 151936,
    rms_norm_eps = 1e-6,
    rope_theta = 10000,
    tie_word_embeddings = true,
    max_position_embeddings = 2048,
    parscale_n = { 1, 2, 4, 8 },
    parscale_attn_smooth = 0.1,
}
