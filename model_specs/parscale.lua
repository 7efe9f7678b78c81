-- The 67 published ParScale checkpoints (arXiv 2505.10475) as specs, by name.

-- size, hidden_size, intermediate_size; head_dim is hidden_size / 16
local sizes = {
    { "0.7B", 896, 4864 },
    { "0.9B", 1024, 5504 },
    { "1.3B", 1280, 6912 },
    { "1.8B", 1536, 8320 },
    { "3B", 2048, 11008 },
    { "4.7B", 2560, 13824 },
}
local of_1_8b, of_3b = sizes[4], sizes[5]

-- Those that start from Qwen2.5-3B have its rotary base and its positions.
local own = { theta = 10000, positions = 2048 }
local from_qwen = { theta = 1000000, positions = 32768 }

local models = {}

-- stop: ids that end a text; nil leaves that to the checkpoint.
local function add(name, size, streams, origin, stop)
    models[name] = {
        name = name,
        model_type = "qwen2_parscale",
        hidden_size = size[2],
        intermediate_size = size[3],
        num_hidden_layers = 36,
        num_attention_heads = 16,
        num_key_value_heads = 2,
        vocab_size = 151936,
        rms_norm_eps = 1e-6,
        rope_theta = origin.theta,
        tie_word_embeddings = true,
        max_position_embeddings = origin.positions,
        parscale_n = streams,
        parscale_n_tokens = 48,
        parscale_attn_smooth = 0.1,
        eos_token_id = stop,
    }
end

local corpora = { "Python", "Pile" }
for log_p = 0, 3 do
    local P = 1 << log_p
    local streams = "-P" .. P
    for c = 1, 2 do
        local suffix = streams .. "-" .. corpora[c]
        for i = 1, #sizes do
            add("ParScale-" .. sizes[i][1] .. suffix, sizes[i], P, own)
        end
        add("ParScale-QwenInit-3B" .. suffix, of_3b, P, from_qwen)
    end
    add("ParScale-1.8B" .. streams, of_1_8b, P, own)
    add("ParScale-1.8B" .. streams .. "-Inst", of_1_8b, P, own, { 151643, 151645 })
    if P > 1 then
        add("ParScale-Qwen-3B" .. streams .. "-Python", of_3b, P, from_qwen)
    end
end

-- Those last three share the frozen backbone of Qwen2.5-3B: one engine can run them all.
add("ParScale-Qwen-3B-Python", of_3b, { 1, 2, 4, 8 }, from_qwen)

return models
