-- A checkpoint as the generator sees it: a Hugging Face folder or a GGUF file, with adapters, as
-- spec keys and a list of tensors under their published names. Reads headers, never weights.
-- Relies on lua-filesystem.

local lfs = require("lfs")
local backbone = require("codegen.backbone")
local failure = require("codegen.fail")
local gguf = require("codegen.gguf")
local json = require("codegen.json")
local published = require("codegen.published")
local safetensors = require("codegen.safetensors")
local spec = require("codegen.spec")

local fail, quote = failure.fail, failure.quote
local M = {}

-- GGUF names to published names; "blk.N.X" to "model.layers.N.Y". `rope`: a llama-architecture GGUF
-- stores the rows of a head with rotary pairs side by side.
local GGUF_GLOBAL = {
    ["token_embd.weight"] = "model.embed_tokens.weight",
    ["output_norm.weight"] = "model.norm.weight",
    ["output.weight"] = "lm_head.weight",
}
local GGUF_LAYER = {
    ["attn_norm.weight"] = { "input_layernorm.weight" },
    ["attn_q.weight"] = { "self_attn.q_proj.weight", rope = true },
    ["attn_q.bias"] = { "self_attn.q_proj.bias", rope = true },
    ["attn_k.weight"] = { "self_attn.k_proj.weight", rope = true },
    ["attn_k.bias"] = { "self_attn.k_proj.bias", rope = true },
    ["attn_v.weight"] = { "self_attn.v_proj.weight" },
    ["attn_v.bias"] = { "self_attn.v_proj.bias" },
    ["attn_output.weight"] = { "self_attn.o_proj.weight" },
    ["ffn_norm.weight"] = { "post_attention_layernorm.weight" },
    ["ffn_gate.weight"] = { "mlp.gate_proj.weight" },
    ["ffn_up.weight"] = { "mlp.up_proj.weight" },
    ["ffn_down.weight"] = { "mlp.down_proj.weight" },
}

-- GGUF name -> published name, whether its rows are rotary pairs; an unknown name stays as it is.
local function from_gguf_name(name)
    local layer, rest = name:match("^blk%.(%d+)%.(.+)$")
    local entry = GGUF_LAYER[rest]
    if entry then
        return ("model.layers.%s.%s"):format(layer, entry[1]), entry.rope or false
    end
    return GGUF_GLOBAL[name] or name, false
end

local function is_adapter_tensor(name)
    return name:find("^model%.layers%.%d+%.self_attn%.prefix_[kv]$")
        or name:find("^model%.aggregate_layer%.[02]%.%a+$")
end

local function exists(path)
    return lfs.attributes(path) ~= nil
end

local function base_name(path)
    return path:gsub("/+$", ""):match("[^/]*$")
end

-- The last part of the path as the name of a spec.
local function default_name(from)
    local name = base_name(from):gsub("%.gguf$", ""):gsub("[^%w._-]", "-"):gsub("^[.-]+", "")
    name = name:sub(1, 64)
    return name ~= "" and name or "model"
end

-- Two names of a file may come to the same name here.
local function add_tensor(tensors, name, tensor, rope)
    if tensors[name] then
        fail("%s: %s: found a second time", tensor.file, quote(name))
    end
    tensor.rope = rope
    tensors[name] = tensor
end

local function open_gguf(path)
    local file = gguf.open(path)
    local keys = published.from_gguf(file.metadata, path)
    local interleaved = keys.model_type == "llama"
    local tensors = {}
    for name, tensor in pairs(file.tensors) do
        local published_name, rope = from_gguf_name(name)
        add_tensor(tensors, published_name, tensor, rope and interleaved)
    end
    keys.tie_word_embeddings = tensors["lm_head.weight"] == nil
    local tokenizer = { kind = "gguf", path = path, metadata = file.metadata }
    return {
        spec = keys, where = path, tensors = tensors, sources = { path },
        tokenizer = file.metadata["tokenizer.ggml.tokens"] and tokenizer or nil,
    }
end

local function weights_file(folder)
    for _, name in ipairs({ "model.safetensors", "model.safetensors.index.json" }) do
        if exists(folder .. "/" .. name) then
            return folder .. "/" .. name
        end
    end
    fail("%s: found neither model.safetensors nor model.safetensors.index.json", folder)
end

-- generation_config.json, where there is one, says which ids end a text; config.json often has only
-- one of them.
local function read_config(folder)
    local config = json.read(folder .. "/config.json", 1 << 20)
    local path = folder .. "/generation_config.json"
    if exists(path) then
        local ids = json.read(path, 1 << 20).eos_token_id
        if ids ~= nil then
            config.eos_token_id = spec.check({ eos_token_id = ids }, path).eos_token_id
        end
    end
    return published.from_config(config, folder .. "/config.json")
end

local function open_folder(folder)
    local keys = read_config(folder)
    local weights = weights_file(folder)
    local streams = keys.parscale_n and keys.parscale_n[1] or 1
    if keys.parscale_n and #keys.parscale_n > 1 then
        fail("%s/config.json: parscale_n: found a list, expected a number", folder)
    end
    local tensors = {}
    for name, tensor in pairs(safetensors.open(weights).tensors) do
        local key = is_adapter_tensor(name) and ("p%d:%s"):format(streams, name) or name
        add_tensor(tensors, key, tensor, false)
    end
    local embedding = tensors["model.embed_tokens.weight"] or {}
    keys.weight_dtype = keys.weight_dtype or published.weight_dtype(embedding.dtype)
    local tokenizer = folder .. "/tokenizer.json"
    return {
        spec = keys, where = folder .. "/config.json", tensors = tensors,
        sources = { weights, [streams] = weights },
        tokenizer = exists(tokenizer) and { kind = "json", path = tokenizer } or nil,
    }
end

-- P and T of an adapter, from its first prefix [P, G, T, d]. Every shape is checked against the
-- plan later (job.lua).
local function adapter_shape(tensors, path)
    local name = "model.layers.0.self_attn.prefix_k"
    local shape = tensors[name] and tensors[name].shape or {}
    if #shape ~= 4 or shape[1] < 2 or shape[1] > 16 then
        fail("%s: %s: found %s, expected [P, kv heads, tokens, head_dim] with P from 2 to 16", path,
            name, tensors[name] and "[" .. table.concat(shape, ", ") .. "]" or "nothing")
    end
    return shape[1], shape[3]
end

-- What two checkpoints of one backbone may differ in.
local FREE_KEYS = { "parscale_n", "eos_token_id", "max_position_embeddings", "weight_dtype",
    "model_type" }

-- An adapter is a safetensors file, or the folder of a whole checkpoint, whose config.json must
-- then agree with the backbone's. Returns { tensors, metadata }, the path of the weights.
local function open_adapter(checkpoint, path)
    if lfs.attributes(path, "mode") ~= "directory" then
        return safetensors.open(path), path
    end
    local keys = read_config(path)
    for _, key in ipairs(FREE_KEYS) do
        keys[key] = nil
    end
    checkpoint.spec = spec.merge(checkpoint.spec, keys, checkpoint.where, path .. "/config.json")
    local weights = weights_file(path)
    return safetensors.open(weights), weights
end

-- Adds the tensors of one adapter. What it carries of a backbone is kept to be compared with ours.
-- Returns its P and T.
local function add_adapter(checkpoint, given_path)
    local adapter, path = open_adapter(checkpoint, given_path)
    local streams, tokens = adapter_shape(adapter.tensors, path)
    if checkpoint.sources[streams] then
        fail("%s: found an adapter for P = %d, which %s already is", path, streams,
            checkpoint.sources[streams])
    end
    checkpoint.sources[streams] = path
    backbone.check(adapter, path, checkpoint.tensors, checkpoint.sources[1])
    for name, tensor in pairs(adapter.tensors) do
        if is_adapter_tensor(name) then
            add_tensor(checkpoint.tensors, ("p%d:%s"):format(streams, name), tensor, false)
        else
            checkpoint.copies[#checkpoint.copies + 1] = { name = name, tensor = tensor }
        end
    end
    return streams, tokens
end

local function add_adapters(checkpoint, paths)
    local own = checkpoint.spec.parscale_n and checkpoint.spec.parscale_n[1] or 1
    local list = own > 1 and { own } or {}
    checkpoint.copies = {}
    for _, path in ipairs(paths) do
        local streams, tokens = add_adapter(checkpoint, path)
        if #list == 0 then
            checkpoint.spec.parscale_n_tokens = tokens
        end
        list[#list + 1] = streams
    end
    table.sort(list)
    table.sort(checkpoint.copies, function(a, b)
        return a.tensor.file < b.tensor.file or a.tensor.file == b.tensor.file and a.name < b.name
    end)
    checkpoint.spec.parscale_n = #list > 0 and list or { 1 }
end

-- from: a Hugging Face folder or a GGUF file; adapters: list of safetensors files and checkpoints'
-- folders, may be nil.
-- Returns
--   spec       keys as spec.merge and spec.complete take them, with a name made from the path
--   where      the file they come from, for messages
--   tensors    published name -> { file, offset, bytes, dtype, shape, rope }; the prefixes and the
--              aggregation network of P streams are "pP:NAME"
--   sources    P -> the file that has, or should have, the tensors of P; 1 is the backbone
--   copies     { name, tensor }, sorted: what adapters carry of their backbone
--   tokenizer  { kind = "json", path } or { kind = "gguf", path, metadata } or nil
--   eos        list of the ids that end a text
-- parscale_n is what the tensors give: P = 1, the backbone alone, is in it only if nothing else is.
function M.open(from, adapters)
    local mode = lfs.attributes(from, "mode")
    local checkpoint
    if mode == "directory" then
        checkpoint = open_folder((from:gsub("(.)/+$", "%1")))
    elseif mode == "file" then
        checkpoint = open_gguf(from)
    else
        fail("%s: found %s, expected a checkpoint's folder or a GGUF file", from, mode or "nothing")
    end
    add_adapters(checkpoint, adapters or {})
    checkpoint.spec.name = default_name(from)
    checkpoint.eos = checkpoint.spec.eos_token_id or {}
    return checkpoint
end

return M
