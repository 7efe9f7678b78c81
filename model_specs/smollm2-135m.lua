-- SmolLM2-135M's shape with P = 4, for weights that are random:
--     make model FROM=random SPEC=model_specs/smollm2-135m.lua
return {
    name = "smollm2-135m-random",
    model_type = "llama",
    hidden_size = 576,
    intermediate_size = 1536,
    num_hidden_layers = 30,
    num_attention_heads = 9,
    num_key_value_heads = 3,
    vocab_size = 49152,
    rms_norm_eps = 1e-5,
    rope_theta = 100000,
    tie_word_embeddings = true,
    max_position_embeddings = 8192,
    parscale_n = 4,
}
