-- The shape of the smallest published ParScale models, 0.7B, but with three streams, which none of
-- them has: a P that fills no register evenly. For weights that are random:
--     make model FROM=random SPEC=model_specs/parscale-0.7b-p3.lua
return {
    name = "parscale-0.7b-p3-random",
    model_type = "qwen2_parscale",
    hidden_size = 896,
    intermediate_size = 4864,
    num_hidden_layers = 36,
    num_attention_heads = 16,
    num_key_value_heads = 2,
    vocab_size = 151936,
    rms_norm_eps = 1e-6,
    rope_theta = 10000,
    tie_word_embeddings = true,
    max_position_embeddings = 2048,
    parscale_n = 3,
    parscale_attn_smooth = 0.1,
}
