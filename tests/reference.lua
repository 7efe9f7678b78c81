-- The published computation of a ParScale model, written from its description with plain loops and
-- in double precision, and random checkpoints for it: for shapes of which nobody has published
-- results. Shares no code with the engine or the generator.

local cjson = require("cjson")
local lfs = require("lfs")
local make = require("checkpoints")

local M = {}

-- ---- random checkpoints ------------------------------------------------------------------------

local function bf16(x)
    local bytes = string.pack("<f", x):sub(3, 4)
    return bytes, string.unpack("<f", "\0\0" .. bytes)
end

local function f32(x)
    local bytes = string.pack("<f", x)
    return bytes, string.unpack("<f", bytes)
end

-- A number of mean 0 and deviation 1: the sum of four uniform ones.
local function normal()
    local sum = math.random() + math.random() + math.random() + math.random()
    return (sum - 2) * math.sqrt(3)
end

-- name -> shape, mean, deviation of all tensors of config c.
local function tensors_of(c)
    local h, d, H, G = c.hidden_size, c.head_dim, c.num_attention_heads, c.num_key_value_heads
    local I, V, P, T = c.intermediate_size, c.vocab_size, c.parscale_n, c.parscale_n_tokens
    local list = {}
    local function matrix(name, rows, columns)
        list[name] = { { rows, columns }, 0, 1 / math.sqrt(columns) }
    end
    local function vector(name, n, mean)
        list[name] = { { n }, mean, 0.1 }
    end
    list["model.embed_tokens.weight"] = { { V, h }, 0, 0.4 }
    if not c.tie_word_embeddings then
        list["lm_head.weight"] = { { V, h }, 0, 0.4 }
    end
    vector("model.norm.weight", h, 1)
    for layer = 0, c.num_hidden_layers - 1 do
        local at = ("model.layers.%d."):format(layer)
        vector(at .. "input_layernorm.weight", h, 1)
        vector(at .. "post_attention_layernorm.weight", h, 1)
        for name, heads in pairs({ q = H, k = G, v = G }) do
            matrix(("%sself_attn.%s_proj.weight"):format(at, name), heads * d, h)
            if c.model_type ~= "llama" then
                vector(("%sself_attn.%s_proj.bias"):format(at, name), heads * d, 0)
            end
        end
        matrix(at .. "self_attn.o_proj.weight", h, H * d)
        matrix(at .. "mlp.gate_proj.weight", I, h)
        matrix(at .. "mlp.up_proj.weight", I, h)
        matrix(at .. "mlp.down_proj.weight", h, I)
        if P > 1 then
            list[at .. "self_attn.prefix_k"] = { { P, G, T, d }, 0, 1 }
            list[at .. "self_attn.prefix_v"] = { { P, G, T, d }, 0, 1 }
        end
    end
    if P > 1 then
        matrix("model.aggregate_layer.0.weight", h, P * h)
        vector("model.aggregate_layer.0.bias", h, 0)
        list["model.aggregate_layer.2.weight"] = { { P, h }, 0, 0.5 }
        vector("model.aggregate_layer.2.bias", P, 0)
    end
    return list
end

-- Writes a checkpoint of config c to a new folder; returns name -> numbers, as they were stored.
function M.checkpoint(c, folder)
    local encode, dtype = bf16, "BF16"
    if c.torch_dtype == "float32" then
        encode, dtype = f32, "F32"
    end
    local header, data, at, weights, names = {}, {}, 0, {}, {}
    local list = tensors_of(c)
    for name in pairs(list) do
        names[#names + 1] = name
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local shape, mean, deviation = table.unpack(list[name])
        local count = 1
        for _, size in ipairs(shape) do
            count = count * size
        end
        local bytes, numbers = {}, {}
        for i = 1, count do
            bytes[i], numbers[i] = encode(mean + deviation * normal())
        end
        weights[name] = numbers
        data[#data + 1] = table.concat(bytes)
        header[name] = { dtype = dtype, shape = shape, data_offsets = { at, at + #data[#data] } }
        at = at + #data[#data]
    end
    assert(lfs.mkdir(folder))
    make.write(folder .. "/config.json", cjson.encode(c))
    make.write(folder .. "/model.safetensors",
        make.header_text(cjson.encode(header)) .. table.concat(data))
    return weights
end

-- ---- the computation ---------------------------------------------------------------------------

-- y[r] = sum over k of w[r, k] x[k] + bias[r]; w [rows, #x] flat.
local function linear(w, x, rows, bias)
    local y, n = {}, #x
    for r = 1, rows do
        local sum, at = bias and bias[r] or 0, (r - 1) * n
        for k = 1, n do
            sum = sum + w[at + k] * x[k]
        end
        y[r] = sum
    end
    return y
end

local function norm(x, weight, eps)
    local sum, y = 0, {}
    for i = 1, #x do
        sum = sum + x[i] * x[i]
    end
    local scale = 1 / math.sqrt(sum / #x + eps)
    for i = 1, #x do
        y[i] = x[i] * scale * weight[i]
    end
    return y
end

local function silu(x)
    return x / (1 + math.exp(-x))
end

local function softmax(u)
    local max, sum, y = -math.huge, 0, {}
    for _, x in ipairs(u) do
        max = math.max(max, x)
    end
    for i, x in ipairs(u) do
        y[i] = math.exp(x - max)
        sum = sum + y[i]
    end
    for i = 1, #y do
        y[i] = y[i] / sum
    end
    return y
end

-- Rotates the heads in x [heads * d] to `position`: pairs are i and i + d / 2.
local function rotate(x, d, position, theta)
    local half = d // 2
    for head = 0, #x // d - 1 do
        for i = 1, half do
            local angle = position * theta ^ (-2 * (i - 1) / d)
            local a, b = head * d + i, head * d + i + half
            local cosine, sine = math.cos(angle), math.sin(angle)
            x[a], x[b] = x[a] * cosine - x[b] * sine, x[b] * cosine + x[a] * sine
        end
    end
end

-- Rounds each head of x [heads * d] as an int8 cache does: to multiples of 1/127 of its largest.
local function round_heads(x, d)
    for first = 1, #x, d do
        local largest = 0
        for i = first, first + d - 1 do
            largest = math.max(largest, math.abs(x[i]))
        end
        for i = first, first + d - 1 do
            x[i] = largest > 0 and math.floor(x[i] * 127 / largest + 0.5) * largest / 127 or 0
        end
    end
end

-- One query head over keys and values: lists of { flat numbers, index before the first }.
local function attend(q, first, d, keys, values)
    local scores, y = {}, {}
    for j, key in ipairs(keys) do
        local sum = 0
        for i = 1, d do
            sum = sum + q[first + i] * key[1][key[2] + i]
        end
        scores[j] = sum / math.sqrt(d)
    end
    local chances = softmax(scores)
    for i = 1, d do
        local sum = 0
        for j, value in ipairs(values) do
            sum = sum + chances[j] * value[1][value[2] + i]
        end
        y[i] = sum
    end
    return y
end

-- Keys (or values) of stream p and kv head g, g and p from 0: the prefix, then the cache.
local function with_prefix(c, prefix, cache, p, g)
    local d, T, list = c.head_dim, c.parscale_n > 1 and c.parscale_n_tokens or 0, {}
    for j = 0, T - 1 do
        list[#list + 1] = { prefix, ((p * c.num_key_value_heads + g) * T + j) * d }
    end
    for _, row in ipairs(cache) do
        list[#list + 1] = { row, g * d }
    end
    return list
end

-- Adds a layer's attention and feed-forward to x, for stream p at `position`.
local function layer_step(c, w, at, x, p, position, cache)
    local d, H, G = c.head_dim, c.num_attention_heads, c.num_key_value_heads
    local a = norm(x, w[at .. "input_layernorm.weight"], c.rms_norm_eps)
    local function project(name, heads)
        return linear(w[at .. "self_attn." .. name .. "_proj.weight"], a, heads * d,
            w[at .. "self_attn." .. name .. "_proj.bias"])
    end
    local q, k, v = project("q", H), project("k", G), project("v", G)
    rotate(q, d, position, c.rope_theta)
    rotate(k, d, position, c.rope_theta)
    if c.cache_dtype == "int8" then
        round_heads(k, d)
        round_heads(v, d)
    end
    cache.k[#cache.k + 1], cache.v[#cache.v + 1] = k, v
    local joined = {}
    for head = 0, H - 1 do
        local g = head // (H // G)
        local y = attend(q, head * d, d,
            with_prefix(c, w[at .. "self_attn.prefix_k"], cache.k, p, g),
            with_prefix(c, w[at .. "self_attn.prefix_v"], cache.v, p, g))
        table.move(y, 1, d, #joined + 1, joined)
    end
    local o = linear(w[at .. "self_attn.o_proj.weight"], joined, #x)
    for i = 1, #x do
        x[i] = x[i] + o[i]
    end
    local n = norm(x, w[at .. "post_attention_layernorm.weight"], c.rms_norm_eps)
    local gate = linear(w[at .. "mlp.gate_proj.weight"], n, c.intermediate_size)
    local up = linear(w[at .. "mlp.up_proj.weight"], n, c.intermediate_size)
    for i = 1, #gate do
        gate[i] = silu(gate[i]) * up[i]
    end
    local down = linear(w[at .. "mlp.down_proj.weight"], gate, #x)
    for i = 1, #x do
        x[i] = x[i] + down[i]
    end
end

-- The weights of the streams, from their states y[p] after the final norm.
local function stream_weights(c, w, y)
    local P, z = c.parscale_n, {}
    if P == 1 then
        return { 1 }
    end
    for i = 1, c.hidden_size do
        for p = 1, P do
            z[(i - 1) * P + p] = y[p][i]
        end
    end
    local mixed = linear(w["model.aggregate_layer.0.weight"], z, c.hidden_size,
        w["model.aggregate_layer.0.bias"])
    for i = 1, #mixed do
        mixed[i] = silu(mixed[i])
    end
    local chances = softmax(linear(w["model.aggregate_layer.2.weight"], mixed, P,
        w["model.aggregate_layer.2.bias"]))
    local s = c.parscale_attn_smooth
    for p = 1, P do
        chances[p] = chances[p] * (1 - s) + s / P
    end
    return chances
end

-- Logits [#ids][vocab] and stream weights [#ids][P] of config c with weights w.
function M.forward(c, w, ids)
    local P, h = c.parscale_n, c.hidden_size
    local logits, weights, caches = {}, {}, {}
    local embedding = w["model.embed_tokens.weight"]
    for t, id in ipairs(ids) do
        local y = {}
        for p = 1, P do
            local x = table.move(embedding, id * h + 1, (id + 1) * h, 1, {})
            for layer = 0, c.num_hidden_layers - 1 do
                local key = p .. ":" .. layer
                caches[key] = caches[key] or { k = {}, v = {} }
                layer_step(c, w, ("model.layers.%d."):format(layer), x, p - 1, t - 1, caches[key])
            end
            y[p] = norm(x, w["model.norm.weight"], c.rms_norm_eps)
        end
        weights[t] = stream_weights(c, w, y)
        local sum = {}
        for i = 1, h do
            sum[i] = 0
            for p = 1, P do
                sum[i] = sum[i] + weights[t][p] * y[p][i]
            end
        end
        logits[t] = linear(w["lm_head.weight"] or embedding, sum, c.vocab_size)
    end
    return logits, weights
end

-- What golden_harness compares with: random ids, and what is computed for them.
function M.expected(c, weights, tokens)
    local ids, parts = {}, {}
    for t = 1, tokens do
        ids[t] = math.random(0, c.vocab_size - 1)
        parts[t] = string.pack("<i4", ids[t])
    end
    local logits, streams = M.forward(c, weights, ids)
    for _, rows in ipairs({ logits, c.parscale_n > 1 and streams or {} }) do
        for _, row in ipairs(rows) do
            for _, number in ipairs(row) do
                parts[#parts + 1] = string.pack("<f", number)
            end
        end
    end
    return string.pack("<i4i4i4i4", tokens, c.vocab_size, c.parscale_n, 0) .. table.concat(parts)
end

return M
