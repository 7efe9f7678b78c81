-- Reads the weights of a quantised pack back, by their published names, from what docs/design.md
-- and templates/tile_quantized.h say of its layout. Of the generator it uses the plan's offsets.

local M = {}

-- The fp32 number nearest to x.
function M.f32(x)
    return (string.unpack("<f", string.pack("<f", x)))
end

-- Half precision, from its bits.
function M.f16(bits)
    local exponent, fraction = bits >> 10 & 31, bits & 1023
    local magnitude = exponent == 0 and fraction * 2.0 ^ -24
        or (fraction + 1024) * 2.0 ^ (exponent - 25)
    return bits >= 0x8000 and -magnitude or magnitude
end

local FORMATS = {
    int8 = { bytes = 544, scales = 512 },
    int4 = { bytes = 320, scales = 256, minimums = 288 },
}

-- Weight (r, k) of a matrix at `offset`, and its scale.
local function weight(pack, format, offset, column_tiles, r, k)
    local f = FORMATS[format]
    local tile = offset + (r // 16 * column_tiles + k // 32) * f.bytes + 1
    local lane, c = r % 8 * 2 + r % 16 // 8, k % 32
    local half, w, i, odd = c // 16, c % 16 // 8, c % 8 // 2, c % 2
    local scale = M.f16(string.unpack("<I2", pack, tile + f.scales + 2 * lane))
    if format == "int8" then
        local place = i < 2 and lane or (lane + 8) % 16 -- the last eight come first
        local u = pack:byte(tile + ((2 * i + w) * 16 + place) * 4 + odd * 2 + half)
        return M.f32(scale * (u - 128)), scale
    end
    local byte = pack:byte(tile + (i * 16 + lane) * 4 + odd * 2 + half)
    local minimum = M.f16(string.unpack("<I2", pack, tile + f.minimums + 2 * lane))
    return M.f32(scale * (w == 1 and byte >> 4 or byte & 15) + minimum), scale
end

-- Row of q|k|v for row `row` of q or k, whose heads start at pair `first`.
local function rotary_row(spec, first, row)
    local half = spec.head_dim // 2
    local pair = first + row // spec.head_dim * half + row % half
    return pair // 8 * 16 + pair % 8 + (row % spec.head_dim >= half and 8 or 0)
end

-- name -> { matrix, its offset, rows, columns, format, row in the pack }
local function matrices_of(plan)
    local s, layer = plan.spec, plan.layer
    local H, G, d = s.num_attention_heads, s.num_key_value_heads, s.head_dim
    local h, I, V, format = s.hidden_size, s.intermediate_size, s.vocab_size, s.weight_dtype
    local list = {}
    local function plain(row) return row end
    list["model.embed_tokens.weight"] = { plan.embedding, plan.embedding.offset, V, h, "int8",
        plain }
    if not s.tie_word_embeddings then
        list["lm_head.weight"] = { plan.head, plan.head.offset, V, h, "int8", plain }
    end
    local parts = {
        { "self_attn.q_proj", "qkv", H * d, h, function(r) return rotary_row(s, 0, r) end },
        { "self_attn.k_proj", "qkv", G * d, h,
            function(r) return rotary_row(s, H * d // 2, r) end },
        { "self_attn.v_proj", "qkv", G * d, h,
            function(r) return (H + G) * d + -(H + G) * d % 16 + r end },
        { "self_attn.o_proj", "o", h, H * d, plain },
        { "mlp.gate_proj", "gate_up", I, h, function(r) return r // 8 * 16 + r % 8 end },
        { "mlp.up_proj", "gate_up", I, h, function(r) return r // 8 * 16 + r % 8 + 8 end },
        { "mlp.down_proj", "down", h, I, plain },
    }
    for number = 0, s.num_hidden_layers - 1 do
        for _, part in ipairs(parts) do
            local name, matrix, rows, columns, map = table.unpack(part)
            local offset = plan.layers_offset + number * layer.stride + layer[matrix].offset
            list[("model.layers.%d.%s.weight"):format(number, name)] =
                { layer[matrix], offset, rows, columns, format, map }
        end
    end
    return list
end

-- pack: the bytes of model.psc. Returns name -> numbers [rows * columns], flat, and in the same
-- form the scale of each.
function M.read(pack, plan)
    local weights, scales = {}, {}
    for name, entry in pairs(matrices_of(plan)) do
        local matrix, offset, rows, columns, format, map = table.unpack(entry)
        local numbers, steps = {}, {}
        for row = 0, rows - 1 do
            for k = 0, columns - 1 do
                local at = row * columns + k + 1
                numbers[at], steps[at] = weight(pack, format, offset, matrix.column_tiles, map(row),
                    k)
            end
        end
        weights[name], scales[name] = numbers, steps
    end
    return weights, scales
end

return M
