-- What a request takes, before anything runs: memory and time of P streams, and the shape of a
-- larger model. It restates the published analysis (arXiv 2505.10475, its cost_analysis.py, which
-- builds on llm-analysis): each part of a layer takes the longer of its products at the device's
-- rate and its bytes at the device's bandwidth; P streams are a batch P times as large with the
-- prefix before it, and the aggregation network.

local M = {}

M.LENGTHS = { 64, 128, 256, 512 } -- input and output tokens of the published average
local BYTES = 2                   -- of a weight, an activation, a cache entry
local NORM_BYTES = 4              -- of an activation in a norm
local NORM_OPERATIONS = 5         -- for each element
local WIDTH_STEP = 16             -- of hidden_size and intermediate_size when a model grows
local HEAD_STEP = 8               -- of head_dim: the published sizes have multiples of 8

-- Parameters of one layer without norms and biases: of attention, and of the feed-forward part.
local function layer_parameters(s)
    local width, kv = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    return 2 * s.hidden_size * (width + kv), 3 * s.hidden_size * s.intermediate_size
end

-- Parameters outside embedding and head, the prefixes and the aggregation network included: the N
-- of the scaling law.
function M.parameters(s, P)
    local h, d, G = s.hidden_size, s.head_dim, s.num_key_value_heads
    local attention, mlp = layer_parameters(s)
    local bias = s.attention_bias and (s.num_attention_heads + 2 * G) * d or 0
    local backbone = s.num_hidden_layers * (attention + mlp + bias + 2 * h) + h
    if P == 1 then
        return backbone
    end
    local prefixes = s.num_hidden_layers * 2 * P * G * s.parscale_n_tokens * d
    return backbone + prefixes + h * P * h + h + P * h + P
end

-- Functions of b sequences of n tokens each, on a device: seconds that the parts of a forward pass
-- take, and bytes of the parts' activations.
local function rates(s, device)
    local h, H = s.hidden_size, s.num_attention_heads
    local width, kv = H * s.head_dim, s.num_key_value_heads * s.head_dim
    local flops = device.tflops * 1e12 * device.flops_efficiency
    local bandwidth = device.bandwidth * 1e9 * device.bandwidth_efficiency
    local attention, mlp = layer_parameters(s)
    local t = {}

    function t.attention_bytes(b, n)
        return BYTES * b * n * math.max(3 * h, 2 * h + 4 * H)
    end

    function t.mlp_bytes(b, n)
        return BYTES * b * n * math.max(h, s.intermediate_size)
    end

    function t.attention(b, n)
        local operations = 4 * b * n * (h * (width + kv) + n * width)
        return math.max(operations / flops,
            (attention * BYTES + t.attention_bytes(b, n)) / bandwidth)
    end

    function t.mlp(b, n)
        return math.max(2 * b * n * mlp / flops, (mlp * BYTES + t.mlp_bytes(b, n)) / bandwidth)
    end

    function t.norm(b, n)
        return math.max(NORM_OPERATIONS * b * n * h / flops, NORM_BYTES * b * n * h / bandwidth)
    end

    function t.head(b, n)
        return 2 * b * n * s.vocab_size * h / flops
    end

    function t.read(bytes)
        return bytes / bandwidth
    end

    -- All layers, one read of the embedding, the head.
    function t.forward(b, n)
        return s.num_hidden_layers * (t.attention(b, n) + t.mlp(b, n) + 2 * t.norm(b, n))
            + t.read(s.vocab_size * h * BYTES) + t.head(b, n)
    end

    return t
end

-- s: a complete spec, of which the shape counts; batch sequences, each of `length` tokens in and as
-- many out. Returns bytes of memory and seconds.
function M.request(s, P, device, batch, length)
    local h, V, L = s.hidden_size, s.vocab_size, s.num_hidden_layers
    local t = rates(s, device)
    local attention, mlp = layer_parameters(s)
    local rows = batch * P -- sequences as the layers see them
    local n = length + (P > 1 and s.parscale_n_tokens or 0)
    local cache = 2 * BYTES * rows * (n + length) * s.num_key_value_heads * s.head_dim * L
    local weights = BYTES * (L * (attention + mlp + 2 * h) + V * h + h)
    local mixing = P > 1 and (h + 1) * h * P or 0
    local activations = math.max(t.attention_bytes(rows, n), t.mlp_bytes(rows, n),
        BYTES * V * batch * n)
    -- The cache is read and written once a token. The head runs once for all streams.
    local seconds = t.forward(rows, n) + length * (t.forward(rows, 1) + t.read(2 * cache))
        - t.head(rows, 2 * length) + t.head(batch, 2 * length)
        + mixing / mlp * t.mlp(batch, 2 * length)
    return cache + weights + mixing * BYTES + activations, seconds
end

-- The same, averaged over the published lengths.
function M.average(s, P, device, batch)
    local bytes, seconds = 0, 0
    for _, length in ipairs(M.LENGTHS) do
        local memory, time = M.request(s, P, device, batch, length)
        bytes, seconds = bytes + memory, seconds + time
    end
    return bytes / #M.LENGTHS, seconds / #M.LENGTHS
end

local function nearest(x, multiple)
    return (x / multiple + 0.5) // 1 * multiple | 0
end

-- A spec of one stream with N parameters, grown as the published sizes grow: in width, with the
-- same layers and heads. head_dim (a multiple of 8) and hidden_size (of 16) follow the square
-- root of N, intermediate_size (of 16) makes up for the rounding.
function M.grow(s, N)
    local ratio = math.sqrt(N / M.parameters(s, 1))
    local g = {}
    for key, value in pairs(s) do g[key] = value end
    g.head_dim = nearest(s.head_dim * ratio, HEAD_STEP)
    g.hidden_size = nearest(s.hidden_size / s.head_dim * g.head_dim, WIDTH_STEP)
    g.intermediate_size = 0
    local rest = (N - M.parameters(g, 1)) / s.num_hidden_layers
    g.intermediate_size = nearest(rest / (3 * g.hidden_size), WIDTH_STEP)
    g.parscale_n = { 1 }
    return g
end

return M
