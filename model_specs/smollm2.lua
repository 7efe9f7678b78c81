-- SmolLM2-135M by name: plain, with the adapters that `make demo` uses, and those on
-- the GGUF's own blocks of 4 bits.

local models = {}

local function add(name, streams, weight_dtype)
    models[name] = {
        name = name,
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
        parscale_n = streams,
        weight_dtype = weight_dtype,
    }
end

add("SmolLM2-135M", 1)
add("SmolLM2-135M-ParScale", { 1, 2, 4, 8 })
add("SmolLM2-135M-ParScale-int4", { 1, 2, 4, 8 }, "int4")

return models
