-- The spec: the shape of a model and how it is deployed. One table, spec.schema, says every key,
-- what it may be and its default; whatever reads, checks or documents a spec uses that table.
-- A spec comes from a Lua file (sandbox.lua), or from a checkpoint (published.lua).

local failure = require("codegen.fail")
local sandbox = require("codegen.sandbox")

local fail, quote = failure.fail, failure.quote
local spec = {}

-- In the order of the documentation; a default may use the keys above it. The ranges keep every
-- product in a plan below 2^53: layers * streams * positions * key/value width * 4 bytes is the
-- largest. `ours`: not a key of config.json. `override`: a spec may replace the checkpoint's value.
-- `streams`: a plain backbone does not say it, and its adapters cannot.
spec.schema = {
    { key = "name", kind = "name", ours = true,
        doc = "Folder and title of the engine; the checkpoint's own name if it has one." },
    { key = "model_type", kind = "choice", choices = { "qwen2_parscale", "qwen2", "llama" },
        doc = "Family of the checkpoint. All three compute the same; the defaults differ." },
    { key = "hidden_size", kind = "integer", min = 16, max = 65536, multiple = 16,
        doc = "Width of the residual stream." },
    { key = "intermediate_size", kind = "integer", min = 1, max = 262144,
        doc = "Width of the feed-forward layer." },
    { key = "num_hidden_layers", kind = "integer", min = 1, max = 1000, doc = "Number of layers." },
    { key = "num_attention_heads", kind = "integer", min = 1, max = 256,
        doc = "Query heads in a layer." },
    { key = "num_key_value_heads", kind = "integer", min = 1, max = 256,
        doc = "Key/value heads in a layer; divides num_attention_heads." },
    { key = "head_dim", kind = "integer", min = 16, max = 256, multiple = 2,
        default = function(s)
            return s.hidden_size and s.num_attention_heads
                and s.hidden_size / s.num_attention_heads
        end,
        default_doc = "hidden_size / num_attention_heads",
        doc = "Width of a head." },
    { key = "vocab_size", kind = "integer", min = 1, max = 1 << 24,
        doc = "Rows of the embedding and of the output head." },
    { key = "rms_norm_eps", kind = "number", min = 1e-12, max = 1,
        doc = "Added to the mean square in every RMSNorm." },
    { key = "rope_theta", kind = "number", min = 1, max = 1e12,
        doc = "Base of the rotary embedding's angles." },
    { key = "tie_word_embeddings", kind = "boolean",
        doc = "Whether the output head is the embedding." },
    { key = "attention_bias", kind = "boolean",
        default = function(s) return s.model_type ~= "llama" end,
        default_doc = "true for qwen2 and qwen2_parscale, false for llama",
        doc = "Whether the q, k and v projections have biases." },
    { key = "hidden_act", kind = "choice", choices = { "silu" }, default = "silu",
        doc = "Activation of the feed-forward layer." },
    { key = "max_position_embeddings", kind = "integer", min = 1, max = 1 << 24,
        doc = "Positions that the model was trained for." },
    { key = "parscale_n", kind = "integers", min = 1, max = 16, count = 16, increasing = true,
        default = 1,
        doc = "Parallel streams P: a number, or a list to choose from at each request." },
    { key = "parscale_n_tokens", kind = "integer", min = 0, max = 4096, default = 48,
        streams = true,
        doc = "Learned key/value prefix entries of each stream in each layer (P > 1)." },
    -- The published configuration class has 0.01; a llama or plain qwen2 gets its streams from
    -- adapters, which carry no configuration, and every published ParScale model has 0.1.
    { key = "parscale_attn_smooth", kind = "number", min = 0, max = 1, streams = true,
        default = function(s) return s.model_type == "qwen2_parscale" and 0.01 or 0.1 end,
        default_doc = "0.01 for qwen2_parscale, 0.1 for qwen2 and llama (adapters)",
        doc = "Share of the aggregation weights that is spread evenly over the streams." },
    { key = "eos_token_id", kind = "integers", min = 0, max = (1 << 24) - 1, count = 64,
        override = true, default = {},
        doc = "Token id or list of ids that end a text." },
    { key = "context", kind = "integer", min = 1, max = 1 << 20, ours = true,
        default = function(s) return math.min(s.max_position_embeddings, 2048) end,
        default_doc = "max_position_embeddings, at most 2048",
        doc = "Positions that the caches hold; at most max_position_embeddings." },
    { key = "weight_dtype", kind = "choice", choices = { "bf16", "bf16x2", "int8", "int4" },
        ours = true,
        default = "bf16",
        default_doc = "bf16x2 for a float16 or float32 folder, else bf16",
        doc = "bf16x2 keeps a weight as the sum of two bf16 numbers: exact for float16. int8 and "
            .. "int4 quantise groups of 32 weights; a GGUF's Q8_0 and Q4_0 blocks (int8), Q4_0 and "
            .. "Q4_1 blocks (int4) keep their values. Embedding and head are int8 in both." },
    { key = "backends", kind = "choice", choices = { "cpu", "cpu+cuda" }, ours = true,
        default = "cpu+cuda",
        doc = "What the engine can run on; cpu leaves the GPU part out, for the smallest engine." },
    { key = "cache_dtype", kind = "choice", choices = { "bf16", "int8" }, ours = true,
        default = "bf16",
        doc = "Type of the key/value caches. int8: the key and the value of each position and kv "
            .. "head are integers with a scale, half of bf16's bytes." },
}

local by_key = {}
for _, entry in ipairs(spec.schema) do
    by_key[entry.key] = entry
end

-- What a message says of a value: a list as {1, 2}, anything else quoted.
function spec.show(value)
    if type(value) ~= "table" then
        return quote(value)
    end
    local items = {}
    for i = 1, math.min(#value, 16) do
        items[i] = type(value[i]) == "table" and "{...}" or quote(value[i])
    end
    return "{" .. table.concat(items, ", ") .. (#value > 16 and ", ...}" or "}")
end

local function range_text(entry)
    local text = ("%s from %.14g to %.14g"):format(
        entry.kind == "number" and "a number" or "an integer", entry.min, entry.max)
    return entry.multiple and ("%s, a multiple of %d"):format(text, entry.multiple) or text
end

-- What a key may be, in words: for messages and for the documentation.
function spec.allowed(entry)
    if entry.kind == "choice" then
        return '"' .. table.concat(entry.choices, '" or "') .. '"'
    elseif entry.kind == "boolean" then
        return "true or false"
    elseif entry.kind == "name" then
        return "1 to 64 of A-Z a-z 0-9 . _ -, not starting with . or -"
    elseif entry.kind == "integers" then
        return ("%s, or a list of them%s"):format(range_text(entry),
            entry.increasing and " that strictly increases" or "")
    end
    return range_text(entry)
end

-- Each returns the value as the generator keeps it, or nil if it is not allowed. Comparisons are
-- written so that NaN fails them.
local accept = {}

function accept.number(entry, value)
    if type(value) == "number" and value >= entry.min and value <= entry.max then
        return value + 0.0
    end
end

function accept.integer(entry, value)
    local n = accept.number(entry, value) and math.tointeger(value)
    return n and n % (entry.multiple or 1) == 0 and n or nil
end

function accept.integers(entry, value)
    local list = type(value) == "table" and value or { value }
    local kept, keys = {}, 0
    for _ in pairs(list) do
        keys = keys + 1
    end
    for i = 1, math.min(keys, entry.count) do
        local n = accept.integer(entry, list[i])
        if not n or entry.increasing and i > 1 and n <= kept[i - 1] then
            return nil
        end
        kept[i] = n
    end
    return keys == #kept and (keys > 0 or not entry.increasing) and kept or nil
end

function accept.boolean(_, value)
    if type(value) == "boolean" then
        return value
    end
end

function accept.choice(entry, value)
    for _, choice in ipairs(entry.choices) do
        if value == choice then
            return value
        end
    end
end

function accept.name(_, value)
    if type(value) == "string" and #value <= 64 and value:find("^[%w_][%w._-]*$") then
        return value
    end
end

local function checked(entry, value, where, label)
    local kept = accept[entry.kind](entry, value)
    if kept == nil then
        fail("%s: %s: found %s, expected %s", where, label or entry.key, spec.show(value),
            spec.allowed(entry))
    end
    return kept
end

-- Checks the keys that are there, each alone; returns them as a new table. where and labels (key ->
-- name) say for messages what the file and its fields are called.
function spec.check(given, where, labels)
    local unknown = {}
    for key in pairs(given) do
        if not by_key[key] then
            unknown[#unknown + 1] = spec.show(key)
        end
    end
    if #unknown > 0 then
        table.sort(unknown)
        fail("%s: %s: not a key of a spec", where, unknown[1])
    end
    local kept = {}
    for _, entry in ipairs(spec.schema) do
        if given[entry.key] ~= nil then
            kept[entry.key] = checked(entry, given[entry.key], where, labels and labels[entry.key])
        end
    end
    return kept
end

local function check_relations(s, where)
    if s.num_attention_heads % s.num_key_value_heads ~= 0 then
        fail("%s: num_key_value_heads: found %d, expected a divisor of num_attention_heads %d",
            where, s.num_key_value_heads, s.num_attention_heads)
    end
    if s.context > s.max_position_embeddings then
        fail("%s: context: found %d, expected at most max_position_embeddings %d",
            where, s.context, s.max_position_embeddings)
    end
    for _, id in ipairs(s.eos_token_id) do
        if id >= s.vocab_size then
            fail("%s: eos_token_id: found %d, expected less than vocab_size %d",
                where, id, s.vocab_size)
        end
    end
end

local function default_of(entry, s)
    if type(entry.default) == "function" then
        return entry.default(s)
    end
    return entry.default
end

-- Returns the spec with every key of the schema, or fails with the first key that is missing or
-- contradicts another. parscale_n and eos_token_id are lists from here on.
function spec.complete(given, where)
    local s = spec.check(given, where)
    for _, entry in ipairs(spec.schema) do
        if s[entry.key] == nil then
            local default = default_of(entry, s)
            if default == nil then
                fail("%s: %s: missing, expected %s", where, entry.key, spec.allowed(entry))
            end
            s[entry.key] = checked(entry, default, where)
        end
    end
    check_relations(s, where)
    return s
end

local function same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then
        return a == b
    end
    return table.concat(a, " ") == table.concat(b, " ")
end

-- The first of `list` that is not in `other`, or nil.
local function missing_in(other, list)
    local set = {}
    for _, n in ipairs(other) do
        set[n] = true
    end
    for _, n in ipairs(list) do
        if not set[n] then
            return n
        end
    end
end

-- The list of P is for the spec to say, but there is an adapter for each, and each is in it.
-- P = 1, the plain backbone, needs no tensors of its own: a spec may add it to what is there.
local function check_streams(there, wanted, base_where, overlay_where)
    local absent = missing_in({ 1, table.unpack(there) }, wanted)
    local extra = missing_in(wanted, there)
    if absent or extra then
        fail("%s: parscale_n: found %s, but %s has %s: %s", overlay_where, spec.show(wanted),
            base_where, spec.show(there), absent and ("no adapter for P = %d"):format(absent)
            or ("the adapter for P = %d is left out"):format(extra))
    end
end

-- What a checkpoint means by a key: what it says, else the default.
local function meaning(entry, base)
    local silent = entry.ours or entry.streams and base.model_type ~= "qwen2_parscale"
    if base[entry.key] ~= nil or silent then
        return base[entry.key]
    end
    local default = default_of(entry, base)
    return default and accept[entry.kind](entry, default)
end

-- Adapters make a plain qwen2 what qwen2_parscale is.
local function same_family(entry, old, new)
    return entry.key == "model_type" and old == "qwen2" and new == "qwen2_parscale"
end

-- The checkpoint's spec with a Lua spec laid over it: the overlay may add keys and choose the
-- deployment; the first key in which it contradicts the checkpoint is refused.
function spec.merge(base, overlay, base_where, overlay_where)
    local merged, kept = spec.check(base, base_where), spec.check(overlay, overlay_where)
    local given = spec.check(base, base_where)
    for _, entry in ipairs(spec.schema) do
        local old, new = meaning(entry, given), kept[entry.key]
        if entry.key == "parscale_n" and old and new then
            check_streams(old, new, base_where, overlay_where)
        elseif new ~= nil and old ~= nil and not (entry.ours or entry.override or same(old, new)
                or same_family(entry, old, new)) then
            fail("%s: %s: found %s, but %s has %s", overlay_where, entry.key, spec.show(new),
                base_where, spec.show(old))
        end
        if new ~= nil then
            merged[entry.key] = new
        end
    end
    return merged
end

-- A Lua spec file -> its keys, each checked.
function spec.load(path)
    return spec.check(sandbox.load(path), path)
end

return spec
