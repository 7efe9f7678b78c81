-- Writes small checkpoints for tests, right in every detail unless told otherwise: safetensors and
-- GGUF files and Hugging Face folders. Shares no code with the readers in codegen/.

local cjson = require("cjson")
local lfs = require("lfs")

local M = {}

function M.write(path, text)
    local file = assert(io.open(path, "wb"))
    assert(file:write(text))
    assert(file:close())
    return path
end

-- A file of `size` bytes that starts with text and takes no room on the disk.
function M.write_sparse(path, text, size)
    local file = assert(io.open(path, "wb"))
    file:write(text)
    file:seek("set", size - 1)
    file:write("\0")
    assert(file:close())
    return path
end

-- ---- a tiny model ------------------------------------------------------------------------------

M.config = {
    model_type = "qwen2_parscale", hidden_size = 32, intermediate_size = 48, num_hidden_layers = 2,
    num_attention_heads = 2, num_key_value_heads = 1, vocab_size = 64, rms_norm_eps = 1e-6,
    rope_theta = 10000.0, rope_scaling = cjson.null, sliding_window = 4096,
    use_sliding_window = false, tie_word_embeddings = true, hidden_act = "silu",
    max_position_embeddings = 128, torch_dtype = "bfloat16", eos_token_id = 0, parscale_n = 1,
    parscale_n_tokens = 5, parscale_attn_smooth = 0.1,
}

-- The prefixes and the aggregation network of P streams, as lists of { name, shape }.
function M.adapter_tensors(P, T, layers)
    local list = {}
    for layer = 0, (layers or 2) - 1 do
        for _, name in ipairs({ "prefix_k", "prefix_v" }) do
            list[#list + 1] =
                { ("model.layers.%d.self_attn.%s"):format(layer, name), { P, 1, T, 16 } }
        end
    end
    list[#list + 1] = { "model.aggregate_layer.0.weight", { 32, P * 32 } }
    list[#list + 1] = { "model.aggregate_layer.0.bias", { 32 } }
    list[#list + 1] = { "model.aggregate_layer.2.weight", { P, 32 } }
    list[#list + 1] = { "model.aggregate_layer.2.bias", { P } }
    return list
end

local LAYER = {
    { "input_layernorm.weight", { 32 } }, { "post_attention_layernorm.weight", { 32 } },
    { "self_attn.q_proj.weight", { 32, 32 } }, { "self_attn.q_proj.bias", { 32 }, true },
    { "self_attn.k_proj.weight", { 16, 32 } }, { "self_attn.k_proj.bias", { 16 }, true },
    { "self_attn.v_proj.weight", { 16, 32 } }, { "self_attn.v_proj.bias", { 16 }, true },
    { "self_attn.o_proj.weight", { 32, 32 } }, { "mlp.gate_proj.weight", { 48, 32 } },
    { "mlp.up_proj.weight", { 48, 32 } }, { "mlp.down_proj.weight", { 32, 48 } },
}

-- The backbone's tensors of M.config: { name, shape, is a bias }.
function M.backbone_tensors()
    local list = { { "model.embed_tokens.weight", { 64, 32 } }, { "model.norm.weight", { 32 } } }
    for layer = 0, 1 do
        for _, entry in ipairs(LAYER) do
            list[#list + 1] = { ("model.layers.%d.%s"):format(layer, entry[1]), entry[2], entry[3] }
        end
    end
    return list
end

-- What the plan asks for, in the form of plan.tensors.
function M.plan(streams, T)
    local tensors = {}
    for _, entry in ipairs(M.backbone_tensors()) do
        tensors[#tensors + 1] = { name = entry[1], shape = entry[2], optional = entry[3] }
    end
    for _, P in ipairs(streams) do
        for _, entry in ipairs(P > 1 and M.adapter_tensors(P, T) or {}) do
            tensors[#tensors + 1] = { name = ("p%d:%s"):format(P, entry[1]), shape = entry[2] }
        end
    end
    return { digest = "0123456789abcdef", tensors = tensors }
end

-- ---- safetensors -------------------------------------------------------------------------------

function M.header_text(header)
    return string.pack("<I8", #header) .. header
end

local DTYPE_BYTES = { BF16 = 2, F16 = 2, F32 = 4, I64 = 8 }

local function product(shape)
    local n = 1
    for _, dimension in ipairs(shape) do
        n = n * dimension
    end
    return n
end

-- list of { name, shape, dtype = "BF16" } -> the bytes of a safetensors file, the offset of each
-- tensor in it.
function M.safetensors(list, dtype)
    local parts, offsets, at = {}, {}, 0
    for i, entry in ipairs(list) do
        local kind = entry.dtype or dtype or "BF16"
        local last = at + product(entry[2]) * DTYPE_BYTES[kind]
        parts[i] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(
            entry[1], kind, table.concat(entry[2], ","), at, last)
        offsets[entry[1]], at = at, last
    end
    local head = M.header_text("{" .. table.concat(parts, ",") .. "}")
    for name, offset in pairs(offsets) do
        offsets[name] = offset + #head
    end
    return head .. ("\0"):rep(at), offsets
end

-- The same with bf16 weights that look random, from -0.5 to 0.5.
function M.random_safetensors(list, seed)
    local text = M.safetensors(list)
    local first, state, parts = 8 + string.unpack("<I8", text), seed, {}
    for i = 1, (#text - first) // 2 do
        state = state * 6364136223846793005 + 1442695040888963407
        parts[i] = string.pack("<f", (state >> 33) / 2 ^ 31 - 0.5):sub(3)
    end
    return text:sub(1, first) .. table.concat(parts)
end

-- A folder with config.json (changed by `changes`; cjson.null removes a key) and model.safetensors
-- with `list`, or the backbone's tensors and those of P streams.
function M.folder(path, changes, list)
    lfs.mkdir(path)
    local config = {}
    for key, value in pairs(M.config) do
        config[key] = value
    end
    for key, value in pairs(changes or {}) do
        config[key] = value ~= cjson.null and value or nil
    end
    M.write(path .. "/config.json", cjson.encode(config))
    if not list then
        list = M.backbone_tensors()
        local P = config.parscale_n
        if math.type(P) and P > 1 then
            table.move(M.adapter_tensors(P, 5), 1, 8, #list + 1, list)
        end
    end
    M.write(path .. "/model.safetensors", (M.safetensors(list)))
    return path
end

-- ---- GGUF --------------------------------------------------------------------------------------

local U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
M.type = { U32 = U32, F32 = F32, BOOL = BOOL, STRING = STRING, ARRAY = ARRAY }

local function text(s)
    return string.pack("<s8", s)
end

-- A metadata entry: key, value type, packed value.
function M.entry(key, kind, packed)
    return text(key) .. string.pack("<I4", kind) .. packed
end

function M.u32(key, n)
    return M.entry(key, U32, string.pack("<I4", n))
end

function M.f32(key, x)
    return M.entry(key, F32, string.pack("<f", x))
end

function M.string(key, s)
    return M.entry(key, STRING, text(s))
end

function M.strings(key, list)
    local parts = { string.pack("<I4I8", STRING, #list) }
    for i, s in ipairs(list) do
        parts[i + 1] = text(s)
    end
    return M.entry(key, ARRAY, table.concat(parts))
end

-- A tensor's description; dims fastest first, as GGUF has them.
function M.tensor_info(name, dims, type_id, offset)
    local parts = { text(name), string.pack("<I4", #dims) }
    for _, n in ipairs(dims) do
        parts[#parts + 1] = string.pack("<i8", n)
    end
    return table.concat(parts) .. string.pack("<I4i8", type_id, offset)
end

function M.gguf_text(metadata, infos, data, version)
    local head = "GGUF" .. string.pack("<I4I8I8", version or 3, #infos, #metadata)
        .. table.concat(metadata) .. table.concat(infos)
    return head .. ("\0"):rep(-#head % 32) .. data, #head + -#head % 32
end

-- Metadata of the tiny model as an architecture ("llama", "qwen2"); `changes` replaces entries by
-- key (false removes one).
function M.gguf_metadata(architecture, changes)
    local a = architecture .. "."
    local list = {
        { "general.architecture", M.string("general.architecture", architecture) },
        { a .. "embedding_length", M.u32(a .. "embedding_length", 32) },
        { a .. "feed_forward_length", M.u32(a .. "feed_forward_length", 48) },
        { a .. "block_count", M.u32(a .. "block_count", 2) },
        { a .. "attention.head_count", M.u32(a .. "attention.head_count", 2) },
        { a .. "attention.head_count_kv", M.u32(a .. "attention.head_count_kv", 1) },
        { a .. "attention.layer_norm_rms_epsilon",
            M.f32(a .. "attention.layer_norm_rms_epsilon", 1e-5) },
        { a .. "rope.freq_base", M.f32(a .. "rope.freq_base", 100000) },
        { a .. "rope.dimension_count", M.u32(a .. "rope.dimension_count", 16) },
        { a .. "context_length", M.u32(a .. "context_length", 128) },
        { a .. "vocab_size", M.u32(a .. "vocab_size", 64) },
        { "tokenizer.ggml.eos_token_id", M.u32("tokenizer.ggml.eos_token_id", 2) },
    }
    local entries = {}
    for _, entry in ipairs(list) do
        local change = changes and changes[entry[1]]
        if change ~= false then
            entries[#entries + 1] = change or entry[2]
        end
    end
    for _, extra in ipairs(changes or {}) do
        entries[#entries + 1] = extra
    end
    return entries
end

local GGUF_LAYER = {
    ["input_layernorm.weight"] = "attn_norm.weight",
    ["post_attention_layernorm.weight"] = "ffn_norm.weight",
    ["self_attn.q_proj.weight"] = "attn_q.weight", ["self_attn.q_proj.bias"] = "attn_q.bias",
    ["self_attn.k_proj.weight"] = "attn_k.weight", ["self_attn.k_proj.bias"] = "attn_k.bias",
    ["self_attn.v_proj.weight"] = "attn_v.weight", ["self_attn.v_proj.bias"] = "attn_v.bias",
    ["self_attn.o_proj.weight"] = "attn_output.weight",
    ["mlp.gate_proj.weight"] = "ffn_gate.weight",
    ["mlp.up_proj.weight"] = "ffn_up.weight", ["mlp.down_proj.weight"] = "ffn_down.weight",
}
local GGUF_GLOBAL = {
    ["model.embed_tokens.weight"] = "token_embd.weight",
    ["model.norm.weight"] = "output_norm.weight",
}

-- The tiny model's tensors as descriptions, F32 without biases (or with: `biases`), and the data.
-- change(name, info) may return another description.
function M.gguf_tensors(biases, change)
    local infos, at = {}, 0
    for _, entry in ipairs(M.backbone_tensors()) do
        if biases or not entry[3] then
            local layer, rest = entry[1]:match("^model%.layers%.(%d)%.(.*)$")
            local name = layer and ("blk.%s.%s"):format(layer, GGUF_LAYER[rest])
                or GGUF_GLOBAL[entry[1]]
            local dims = { entry[2][2] or entry[2][1], entry[2][2] and entry[2][1] }
            local info = M.tensor_info(name, dims, 0, at)
            infos[#infos + 1] = change and change(name, dims, at) or info
            at = at + product(dims) * 4
            at = at + -at % 32
        end
    end
    return infos, ("\0"):rep(at)
end

-- The tiny model as GGUF: its bytes, and where its data starts.
function M.gguf(architecture, changes, biases, change)
    local infos, data = M.gguf_tensors(biases, change)
    return M.gguf_text(M.gguf_metadata(architecture, changes), infos, data)
end

return M
