-- Specs out of published files: a Hugging Face config.json and a GGUF's metadata.
-- What they may ask for and the engine does not compute is refused by name.

local failure = require("codegen.fail")
local spec = require("codegen.spec")

local fail, quote = failure.fail, failure.quote
local M = {}

-- What a configuration may ask for that this engine does not compute: the only value allowed.
local UNSUPPORTED = {
    { key = "rope_scaling", allowed = nil },
    { key = "use_sliding_window", allowed = false },
    { key = "mlp_bias", allowed = false },
    { key = "partial_rotary_factor", allowed = 1 },
    { key = "quantization_config", allowed = nil },
}

local function refuse_unsupported(config, where)
    for _, entry in ipairs(UNSUPPORTED) do
        local value = config[entry.key]
        if value ~= nil and value ~= entry.allowed then
            local found = type(value) == "table" and "an object" or quote(value)
            fail("%s: %s: found %s, which is not supported, expected %s", where, entry.key, found,
                entry.allowed == nil and "null" or tostring(entry.allowed))
        end
    end
    local layer_types = config.layer_types
    for _, layer_type in ipairs(type(layer_types) == "table" and layer_types or {}) do
        if layer_type ~= "full_attention" then
            fail('%s: layer_types: found %s, which is not supported, expected "full_attention"',
                where, quote(layer_type))
        end
    end
end

-- Transformers 5 writes rope_parameters = { rope_type, rope_theta }, older ones rope_theta.
local function rope_theta(config, where)
    local rope = config.rope_parameters
    if type(rope) ~= "table" then
        return config.rope_theta
    end
    if rope.rope_type ~= nil and rope.rope_type ~= "default" then
        fail('%s: rope_parameters: found rope_type %s, which is not supported, expected "default"',
            where, spec.show(rope.rope_type))
    end
    return rope.rope_theta
end

-- float16 and float32 carry more bits than one bf16 holds.
local WEIGHT_DTYPE = {
    bfloat16 = "bf16", float16 = "bf16x2", float32 = "bf16x2",
    BF16 = "bf16", F16 = "bf16x2", F32 = "bf16x2",
}

-- A torch dtype or a safetensors dtype -> the weight_dtype that keeps it; nil for any other.
function M.weight_dtype(dtype)
    return WEIGHT_DTYPE[dtype]
end

local function config_weight_dtype(config, where)
    for _, key in ipairs({ "torch_dtype", "dtype" }) do
        local dtype = config[key]
        if dtype ~= nil then
            if not WEIGHT_DTYPE[dtype] then
                fail('%s: %s: found %s, expected "bfloat16", "float16" or "float32"',
                    where, key, spec.show(dtype))
            end
            return WEIGHT_DTYPE[dtype]
        end
    end
end

-- A published config.json, as a table, -> the keys it gives. Keys we do not know are not ours to
-- judge; those that would change the computation are refused.
function M.from_config(config, where)
    refuse_unsupported(config, where)
    local given = {}
    for _, entry in ipairs(spec.schema) do
        if not entry.ours then
            given[entry.key] = config[entry.key]
        end
    end
    given.rope_theta = rope_theta(config, where)
    given.weight_dtype = config_weight_dtype(config, where)
    return spec.check(given, where)
end

-- GGUF keys below "ARCHITECTURE.".
local GGUF_KEYS = {
    hidden_size = "embedding_length",
    intermediate_size = "feed_forward_length",
    num_hidden_layers = "block_count",
    num_attention_heads = "attention.head_count",
    num_key_value_heads = "attention.head_count_kv",
    head_dim = "attention.key_length",
    vocab_size = "vocab_size",
    rms_norm_eps = "attention.layer_norm_rms_epsilon",
    rope_theta = "rope.freq_base",
    max_position_embeddings = "context_length",
}

-- The shortest decimal of a float32: 1e-05, not 9.9999997473788e-06, as config.json would have it.
local function shortest_float32(value)
    for digits = 1, 8 do
        local short = tonumber(("%%.%dg"):format(digits):format(value))
        if short and string.pack("<f", short) == string.pack("<f", value) then
            return short
        end
    end
    return value -- infinity, NaN and the rare value that takes nine digits
end

local function refuse_unsupported_gguf(metadata, architecture, head_dim, where)
    local scaling = metadata[architecture .. ".rope.scaling.type"]
    if scaling ~= nil and scaling ~= "none" then
        fail('%s: %s.rope.scaling.type: found %s, which is not supported, expected "none"',
            where, architecture, spec.show(scaling))
    end
    local rotary = metadata[architecture .. ".rope.dimension_count"]
    if rotary ~= nil and rotary ~= head_dim then
        fail("%s: %s.rope.dimension_count: found %s, expected the head's whole width %s",
            where, architecture, spec.show(rotary), spec.show(head_dim))
    end
    if (metadata["split.count"] or 1) ~= 1 then
        fail("%s: split.count: found %s, expected a GGUF in one file", where,
            spec.show(metadata["split.count"]))
    end
end

local function gguf_stop_ids(metadata)
    local ids = {}
    for _, name in ipairs({ "eos", "eot", "eom" }) do
        ids[#ids + 1] = metadata["tokenizer.ggml." .. name .. "_token_id"]
    end
    return ids
end

local function gguf_keys(metadata, architecture, where)
    local given, labels = { model_type = architecture }, {}
    for key, name in pairs(GGUF_KEYS) do
        labels[key] = architecture .. "." .. name
        local value = metadata[labels[key]]
        given[key] = math.type(value) == "float" and shortest_float32(value) or value
    end
    local tokens = metadata["tokenizer.ggml.tokens"]
    given.vocab_size = given.vocab_size or type(tokens) == "table" and #tokens or nil
    given.rope_theta = given.rope_theta or 10000
    given.eos_token_id = gguf_stop_ids(metadata)
    labels.eos_token_id = "tokenizer.ggml.eos_token_id"
    for _, entry in ipairs(spec.schema) do
        local label = labels[entry.key]
        if label and given[entry.key] == nil and entry.key ~= "head_dim" then
            fail("%s: %s: missing, expected %s", where, label, spec.allowed(entry))
        end
    end
    return spec.check(given, where, labels)
end

-- GGUF metadata -> the keys it gives. Whether the head is tied only the tensors tell.
function M.from_gguf(metadata, where)
    local architecture = metadata["general.architecture"]
    if architecture ~= "llama" and architecture ~= "qwen2" then
        fail('%s: general.architecture: found %s, expected "llama" or "qwen2"',
            where, spec.show(architecture))
    end
    local given = gguf_keys(metadata, architecture, where)
    refuse_unsupported_gguf(metadata, architecture,
        given.head_dim or given.hidden_size / given.num_attention_heads, where)
    return given
end

return M
