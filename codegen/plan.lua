-- The plan: the one place where a size or an offset is computed. The engine, the packer and the
-- report are printed from it. A plan is made from a complete spec (spec.lua) and nothing else.

local digest = require("codegen.digest")

local LAYOUT_VERSION = 3   -- raise it when the meaning of any byte of the pack changes
local HEADER_BYTES = 4096  -- pack header: magic, digest, section table (runtime/pack_file.h)
local TILE = 16            -- matrices are stored as 16 x 16 tiles (templates/tile.h)
local TILE_BYTES = TILE * TILE * 2
local GROUP = 32           -- columns of a quantised tile (templates/tile_quantized.h)
local SCALE_BYTES = 4      -- of a key or a value in an int8 cache
local SECTION_ALIGN = 4096
local BLOCK_COLUMNS = 128  -- tokens x streams of one prefill block
local GPU_COLUMNS = 2048   -- the same on a GPU
local ATTENTION_TOKENS = 16 -- tokens whose queries are attended together
local ATTENTION_CHUNK = 128 -- keys between two updates of the running softmax
local DECODE_ITEMS = 16     -- parts that the attention of one token is split into, at least
local HEAD_TOKENS = 8       -- tokens whose logits are computed together
local PACKED_TILE = 64      -- bytes of 16 packed activations, in fp32 (templates/cpu.h)

local function tiles(n)
    return (n + TILE - 1) // TILE
end

local function align(n, to)
    return (n + to - 1) // to * to
end

local function streams_of(spec)
    return type(spec.parscale_n) == "table" and spec.parscale_n or { spec.parscale_n }
end

-- The keys that decide what the bytes of a pack are and what they mean: a pack fits every engine
-- that agrees on them. name, context and cache_dtype are the engine's own affair.
local DIGEST_KEYS = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta",
    "tie_word_embeddings", "attention_bias", "parscale_n", "parscale_n_tokens",
    "parscale_attn_smooth", "weight_dtype",
}

local function plan_digest(spec)
    local parts = { "parscale plan " .. LAYOUT_VERSION }
    for _, key in ipairs(DIGEST_KEYS) do
        local value = spec[key]
        if type(value) == "table" then
            value = table.concat(value, ",")
        elseif math.type(value) == "float" then
            value = ("%.9g"):format(value)
        end
        parts[#parts + 1] = key .. "=" .. tostring(value)
    end
    return digest(table.concat(parts, "\n"))
end

-- How a weight_dtype stores the matrices: of the layers, of embedding and head, of adapters.
local BF16 = { columns = TILE, tile_bytes = TILE_BYTES, planes = 1, kind = "TENSOR_MATRIX" }
local BF16X2 = { columns = TILE, tile_bytes = TILE_BYTES, planes = 2, kind = "TENSOR_MATRIX" }
local INT8 = { columns = GROUP, tile_bytes = 544, planes = 1, kind = "TENSOR_INT8" }
local INT4 = { columns = GROUP, tile_bytes = 320, planes = 1, kind = "TENSOR_INT4" }
local FORMATS = {
    bf16 = { layers = BF16, head = BF16, adapter = BF16 },
    bf16x2 = { layers = BF16X2, head = BF16X2, adapter = BF16X2 },
    int8 = { layers = INT8, head = INT8, adapter = BF16 },
    int4 = { layers = INT4, head = INT8, adapter = BF16 },
}

-- Matrices of the pack. A matrix [rows, columns] is row tiles x column tiles, a row of tiles
-- contiguous; with two planes the second plane's tiles follow the first's in every row of tiles,
-- so that it is a matrix of twice the columns, multiplied by the activations twice.
local function matrix(format, rows, columns)
    local row_tiles, column_tiles = tiles(rows), align(columns, format.columns) // format.columns
    return {
        rows = rows, columns = columns, row_tiles = row_tiles, column_tiles = column_tiles,
        tile_bytes = format.tile_bytes, kind = format.kind,
        bytes = row_tiles * column_tiles * format.planes * format.tile_bytes,
    }
end

-- Sections are laid one after the other. `place` returns the offset of the next one.
local function cursor(start)
    local at = start
    return {
        place = function(bytes, alignment)
            local offset = align(at, alignment or 64)
            at = offset + bytes
            return offset
        end,
        position = function() return at end,
    }
end

-- Row order inside q|k|v: tile by tile, row r of the upper half and row r + 8 of the lower half of
-- a tile are dimensions i and i + head_dim/2 of one head of q or k, so that a rotary pair never
-- leaves its tile. Values follow in their natural order.
local function qkv_shape(spec)
    local half = spec.head_dim // 2
    local pairs_qk = (spec.num_attention_heads + spec.num_key_value_heads) * half
    local value_row = align(pairs_qk * 2, TILE)
    return {
        key_pair = spec.num_attention_heads * half,
        value_row = value_row,
        rows = value_row + spec.num_key_value_heads * spec.head_dim,
    }
end

local function layer_layout(spec, format, qkv)
    local heads_width = spec.num_attention_heads * spec.head_dim
    local layer = { cursor = cursor(0) }
    local function add(name, m)
        m.offset = layer.cursor.place(m.bytes)
        layer[name] = m
    end
    local function vector(n)
        return { rows = n, bytes = n * 4 }
    end
    add("qkv", matrix(format, qkv.rows, spec.hidden_size))
    add("o", matrix(format, spec.hidden_size, heads_width))
    -- As many channels as down has columns, with its padding.
    add("gate_up", matrix(format, 2 * align(spec.intermediate_size, format.columns),
                          spec.hidden_size))
    add("down", matrix(format, spec.hidden_size, spec.intermediate_size))
    add("input_norm", vector(spec.hidden_size))
    add("post_norm", vector(spec.hidden_size))
    add("qkv_bias", vector(tiles(qkv.rows) * TILE))
    layer.stride = align(layer.cursor.position(), SECTION_ALIGN)
    return layer
end

-- One position of the cache, of one layer, stream and kv head: a key and a value, in bf16 or as
-- integers with a scale each.
local function position_bytes(spec)
    return 2 * (spec.cache_dtype == "int8" and spec.head_dim + SCALE_BYTES or spec.head_dim * 2)
end

-- One adapter for each P: its prefixes for all layers and streams, and its aggregation network.
local function adapter_layout(spec, format, streams, place)
    local layers, groups = spec.num_hidden_layers, spec.num_key_value_heads
    local prefix = streams > 1 and spec.parscale_n_tokens or 0
    -- One (stream, kv head): a matrix, one plane behind the other.
    local block = tiles(prefix) * tiles(spec.head_dim) * TILE_BYTES * format.planes
    local adapter = { streams = streams, prefix_tokens = prefix, prefix_block = block }
    -- One position of the cache: layer 0 is the same in all streams.
    adapter.kv_bytes_position = (1 + (layers - 1) * streams) * groups * position_bytes(spec)
    adapter.offset = place(0, SECTION_ALIGN)
    adapter.prefix_k = place(layers * streams * groups * block, 64)
    adapter.prefix_v = place(layers * streams * groups * block, 64)
    if streams > 1 then
        local h = spec.hidden_size
        adapter.mix = matrix(format, h, streams * h)   -- aggregate_layer.0
        adapter.weigh = matrix(format, streams, h)     -- aggregate_layer.2
        adapter.mix.offset = place(adapter.mix.bytes, 64)
        adapter.weigh.offset = place(adapter.weigh.bytes, 64)
        adapter.mix_bias = place(h * 4, 64)
        adapter.weigh_bias = place(TILE * 4, 64)
    end
    adapter.bytes = place(0, 64) - adapter.offset
    return adapter
end

-- Where each checkpoint tensor goes. `row_map` and `column_map` are explained in templates/pack.c;
-- `blocks` sub-matrices [rows, columns] follow each other in the source and in the pack; mean and
-- deviation are those of random weights.
local function placements(spec, plan)
    local L, H, G, d = spec.num_hidden_layers, spec.num_attention_heads,
        spec.num_key_value_heads, spec.head_dim
    local h, I, V = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    local list = {}
    local function add(entry)
        entry.count = entry.count or 1
        entry.stride = entry.stride or 0
        entry.blocks = entry.blocks or 1
        entry.first = entry.first or 0
        entry.row_map = entry.row_map or "ROWS_PLAIN"
        entry.column_map = entry.column_map or "COLUMNS_PLAIN"
        local quantized = entry.kind == "TENSOR_INT8" or entry.kind == "TENSOR_INT4"
        entry.place = quantized and "place_quantized" or "place_tensor"
        entry.mean = entry.mean or 0
        entry.deviation = entry.deviation or 0
        list[#list + 1] = entry
    end
    local function weights(name, m, shape, extra)
        local entry = { name = name, kind = m.kind, offset = m.offset, rows = shape[1],
                        columns = shape[2], row_tiles_apart = m.column_tiles * plan.planes,
                        plane_tiles_apart = m.column_tiles, shape = shape, deviation = 0.02 }
        for key, value in pairs(extra or {}) do entry[key] = value end
        add(entry)
    end
    local function vector(name, offset, n, extra)
        local entry = { name = name, kind = "TENSOR_VECTOR", offset = offset, rows = n, columns = 1,
                        shape = { n } }
        for key, value in pairs(extra or {}) do entry[key] = value end
        add(entry)
    end
    local function in_layer(name, m, shape, extra)
        extra = extra or {}
        extra.count, extra.stride = L, plan.layer.stride
        local at = { offset = plan.layers_offset + m.offset, column_tiles = m.column_tiles,
                     kind = m.kind }
        local full = "model.layers.%d." .. name
        if #shape == 2 then
            weights(full, at, shape, extra)
        else
            vector(full, at.offset, shape[1], extra)
        end
    end

    weights("model.embed_tokens.weight", plan.embedding, { V, h })
    if not spec.tie_word_embeddings then
        weights("lm_head.weight", plan.head, { V, h })
    end
    vector("model.norm.weight", plan.final_norm, h, { mean = 1 })

    local layer, qkv = plan.layer, plan.qkv
    in_layer("input_layernorm.weight", layer.input_norm, { h }, { mean = 1 })
    in_layer("post_attention_layernorm.weight", layer.post_norm, { h }, { mean = 1 })
    local parts = {
        { "q", H, "ROWS_ROTARY", 0 },
        { "k", G, "ROWS_ROTARY", qkv.key_pair },
        { "v", G, "ROWS_PLAIN", qkv.value_row },
    }
    for _, part in ipairs(parts) do
        local name, heads, row_map, first = table.unpack(part)
        local map = { row_map = row_map, first = first }
        in_layer("self_attn." .. name .. "_proj.weight", layer.qkv, { heads * d, h }, map)
        if spec.attention_bias then
            in_layer("self_attn." .. name .. "_proj.bias", layer.qkv_bias, { heads * d },
                     { row_map = row_map, first = first, deviation = 0.02, optional = true })
        end
    end
    in_layer("self_attn.o_proj.weight", layer.o, { h, H * d })
    in_layer("mlp.gate_proj.weight", layer.gate_up, { I, h }, { row_map = "ROWS_UPPER" })
    in_layer("mlp.up_proj.weight", layer.gate_up, { I, h }, { row_map = "ROWS_LOWER" })
    in_layer("mlp.down_proj.weight", layer.down, { h, I })

    for _, adapter in ipairs(plan.adapters) do
        local P, T = adapter.streams, adapter.prefix_tokens
        local prefix = "p" .. P .. ":"
        if P > 1 then
            for _, part in ipairs({ { "prefix_k", "TENSOR_MATRIX", tiles(d) },
                                    { "prefix_v", "TENSOR_TRANSPOSED", tiles(T) } }) do
                local name, kind, column_tiles = table.unpack(part)
                add({ name = prefix .. "model.layers.%d.self_attn." .. name, kind = kind,
                      count = L, stride = P * G * adapter.prefix_block, offset = adapter[name],
                      blocks = P * G, block_stride = adapter.prefix_block, rows = T, columns = d,
                      row_tiles_apart = column_tiles, plane_tiles_apart = tiles(T) * tiles(d),
                      shape = { P, G, T, d }, deviation = 1 })
            end
            weights(prefix .. "model.aggregate_layer.0.weight", adapter.mix, { h, P * h },
                    { column_map = "COLUMNS_STREAMS", streams = P })
            vector(prefix .. "model.aggregate_layer.0.bias", adapter.mix_bias, h)
            weights(prefix .. "model.aggregate_layer.2.weight", adapter.weigh, { P, h })
            vector(prefix .. "model.aggregate_layer.2.bias", adapter.weigh_bias, P)
        end
    end
    for _, entry in ipairs(list) do
        entry.streams = entry.streams or 1
        entry.block_stride = entry.block_stride or 0
        entry.row_tiles_apart = entry.row_tiles_apart or 0
        entry.plane_tiles_apart = entry.plane_tiles_apart or 0
    end
    return list
end

-- Parameters of the backbone, of these outside the embedding and the head, and of each adapter.
local function count_parameters(p)
    p.parameters, p.inner_parameters = 0, 0
    for _, adapter in ipairs(p.adapters) do
        adapter.parameters = 0
        for _, entry in ipairs(p.placements) do
            if entry.name:match("^p(%d+):") == tostring(adapter.streams) then
                adapter.parameters = adapter.parameters
                    + entry.count * entry.blocks * entry.rows * entry.columns
            end
        end
    end
    for _, entry in ipairs(p.placements) do
        if not entry.name:find("^p%d+:") then
            local n = entry.count * entry.rows * entry.columns
            local outer = entry.name:find("embed_tokens") or entry.name == "lm_head.weight"
            p.parameters = p.parameters + n
            p.inner_parameters = p.inner_parameters + (outer and 0 or n)
        end
    end
end

-- Checkpoint tensors by full name, in the order of the pack job.
local function tensor_list(entries)
    local list = {}
    for _, entry in ipairs(entries) do
        for i = 0, entry.count - 1 do
            list[#list + 1] = { name = (entry.name:gsub("%%d", tostring(i))), shape = entry.shape,
                                optional = entry.optional or false }
        end
    end
    return list
end

-- KV cache of one engine: layer 0 is the same in all streams and kept once. For bf16 the plain path
-- keeps fp32. int8: 16 positions are their keys, their values, and a scale for each of both.
local function cache_layout(spec, max_streams)
    local context_tiles, head_tiles = tiles(spec.context), tiles(spec.head_dim)
    local block_tiles = context_tiles * head_tiles * 2 -- of one (layer, stream, kv head)
    local slots = 1 + (spec.num_hidden_layers - 1) * max_streams
    local int8 = spec.cache_dtype == "int8"
    local block_bytes = int8 and block_tiles * TILE * TILE + context_tiles * 2 * TILE * SCALE_BYTES
        or block_tiles * TILE_BYTES
    local bytes = slots * spec.num_key_value_heads * block_bytes
    return { block_tiles = block_tiles, slots = slots, block_bytes = block_bytes, bytes = bytes,
             plain_bytes = int8 and bytes or 2 * bytes,
             bytes_position = slots * spec.num_key_value_heads * position_bytes(spec) }
end

-- Memory of the engine, taken at start-up: { name, C type, elements, bytes an element, shape }.
-- Packed activations ("packed") take PACKED_TILE bytes for 16 and a copy for each plane; inputs of
-- quantised matrices are whole groups.
local function buffer_tables(spec, p)
    local C, h, d, H = p.block_columns, spec.hidden_size, spec.head_dim, spec.num_attention_heads
    local I, V, P = spec.intermediate_size, spec.vocab_size, p.max_streams
    local queries = ATTENTION_TOKENS * H // spec.num_key_value_heads
    local int8 = spec.cache_dtype == "int8"
    local function floats(name, elements, shape)
        return { name = name, type = "float", elements = elements, size = 4, shape = shape }
    end
    local function packed(name, columns, width, shape, planes)
        return { name = name, type = "char", size = 1, shape = "packed " .. shape,
                 elements = columns * tiles(width) * PACKED_TILE * (planes or p.planes) }
    end
    local tile_columns = p.formats.layers.columns
    local function input(name, columns, width, shape)
        return packed(name, columns, align(width, tile_columns), shape)
    end
    local shared = {
        floats("residual", C * h, "[columns, hidden]"),
        input("input", C, math.max(h, H * d), "[columns, hidden or heads * head_dim]"),
        input("activation", C, I, "[columns, intermediate]"),
        floats("query", C * H * d, "[columns, heads, head_dim]"),
        floats("partial", math.max(C, P + DECODE_ITEMS) * H * (d + 2),
               "[splits, columns, heads, head_dim + 2]: sum, max, total"),
        floats("rotary", C * d, "[tokens, 2, head_dim / 2]: cosines, sines"),
        floats("frequencies", d // 2, "[head_dim / 2]: theta^(-2i / head_dim)"),
        floats("final", HEAD_TOKENS * P * h, "[HEAD_TOKENS, P, hidden]: after the final norm"),
        packed("streams", HEAD_TOKENS * P, h, "[HEAD_TOKENS, P * hidden]"),
        floats("mixed", HEAD_TOKENS * h, "[HEAD_TOKENS, hidden]: aggregation's hidden layer"),
        floats("weights", HEAD_TOKENS * P, "[HEAD_TOKENS, P]: how the streams are weighed"),
        input("head_input", HEAD_TOKENS, h, "[HEAD_TOKENS, hidden]"),
        floats("logits", HEAD_TOKENS * V, "[HEAD_TOKENS, vocab]"),
        floats("penalized", V, "[vocab]: sampling"),
        { name = "candidates", type = "struct candidate", elements = V, size = 8,
          shape = "[vocab]: sampling" },
        { name = "history", type = "int32_t", elements = spec.context, size = 4,
          shape = "[context]: the ids in the cache" },
    }
    if int8 then
        local G = spec.num_key_value_heads
        table.insert(shared, floats("new_cache", C * G * 2 * d,
                                    "[columns, kv_heads, key and value, head_dim]"))
    end
    local widest = math.max(h, tiles(H * d) * TILE)
    local scratch = {
        floats("row", widest, "[hidden or heads * head_dim]"),
        floats("product", 2 * tile_columns * math.max(C, queries),
               ("[columns, %d]"):format(2 * tile_columns)),
        packed("query", queries * (int8 and 2 or 1), d,
               int8 and "[2, queries, head_dim]: for prefix and cache" or "[queries, head_dim]", 1),
        packed("chances", queries, ATTENTION_CHUNK, "[queries, ATTENTION_CHUNK]", 1),
        floats("scores", queries * ATTENTION_CHUNK, "[queries, ATTENTION_CHUNK]"),
        floats("sums", queries * tiles(d) * TILE, "[queries, head_dim]"),
        floats("running", queries * 2, "[queries, 2]: max, total"),
    }
    for _, list in ipairs({ shared, scratch }) do
        list.bytes = 0
        for _, buffer in ipairs(list) do
            buffer.bytes = align(buffer.elements * buffer.size, 64)
            list.bytes = list.bytes + buffer.bytes
        end
    end
    return shared, scratch
end

-- What the GPU takes beside the pack and the cache, in the order of struct gpu_task, and the shared
-- memory of its kernels. Sizes are those of the largest P; WARPS and the like are engine.cu's.
local function gpu_plan(spec, p)
    local MOST_SPLITS, MOST_BLOCKS = 32, 192
    local TOLD = true -- a buffer of numbers that tell of their arrival: zero when P changes
    local C, P, h, V = p.gpu_columns, p.max_streams, spec.hidden_size, spec.vocab_size
    local H, G, d = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    local groups = (H // G + 7) // 8 -- of 8 query heads of a kv head
    local function groups_of(n) -- of 8 columns
        return (n + 7) // 8
    end
    local lanes = P > 4 and 32 or P > 2 and 16 or 8 -- that have sums of a tile's columns
    local function prefill_inputs(n) -- whole blocks of 64
        return align(tiles(n) * TILE, 64) * 2
    end
    local BEHIND = 256 * 64 * 2 -- a copy of a block of columns may go beyond the last column
    local head_tiles = tiles(d)
    local partial = head_tiles * 128 + 16
    local prefix_tokens = 0
    for _, a in ipairs(p.adapters) do prefix_tokens = math.max(prefix_tokens, a.prefix_tokens) end
    local attended_rows = align(tiles(spec.context) + tiles(prefix_tokens), 8)
    local items = P * G * groups
    local team = tiles(h) >= 32 and 4 or 1 -- of blocks
    local list = {
        { "rotary", spec.context * d * 4, "[context, head_dim / 2, 2]: cosine, sine" },
        { "state", 8, "token and position" },
        { "ids", C * 4, "[tokens]" },
        { "history", spec.context * 4, "[context]: the ids in the cache" },
        { "residual", C * h * 4, "[columns, hidden]" },
        { "input", C * prefill_inputs(math.max(h, H * d)) + BEHIND,
          "[columns, hidden or heads * head_dim] f16 or bf16" },
        { "activation", C * prefill_inputs(spec.intermediate_size) + BEHIND,
          "[columns, intermediate] bf16" },
        { "projected", C * (H + 2 * G) * d * 2, "[columns, heads + 2 kv_heads, head_dim] f16" },
        { "gathered", P * G * attended_rows * 2 * head_tiles * TILE_BYTES,
          "[P, kv_heads, prefix and context, key and value, head_dim] f16" },
        { "rounds", MOST_BLOCKS * 8, "[blocks, 2]: of layers, of steps", TOLD },
        { "inputs", 3 * tiles(h) * (groups_of(P) * 128 + P * 2) * 4,
          "[3, hidden and sums of squares, P]", TOLD },
        { "qkv", P * (H + 2 * G) * d * 4, "[P, heads + 2 kv_heads, head_dim]", TOLD },
        { "partial", items * MOST_SPLITS * partial * 4, "[P, head groups, blocks, partial sums]",
          TOLD },
        { "attended", tiles(H * d) * groups_of(P) * 128 * 4, "[heads * head_dim, P]", TOLD },
        { "inner", tiles(align(spec.intermediate_size, 32)) * groups_of(P) * 64 * 4,
          "[intermediate, P]", TOLD },
        { "added", MOST_BLOCKS / team * tiles(h) * groups_of(P) * lanes * 4 * 4,
          "[teams, hidden, P]: what parts of the MLP add", TOLD },
        { "mixed", h * 8 * 4, "[hidden], one of 8 columns", TOLD },
        { "head_input", h * 8 * 4, "[hidden], one of 8 columns", TOLD },
        { "stream_weights", 2 * P * 4, "[2, P]" },
        { "logits", 2 * V * 4, "[2, vocab]" },
        { "best", 2 * MOST_BLOCKS * 8, "[2, blocks]" },
        { "sampling", 32, "how a token is chosen" },
    }
    -- Prefill attention keeps some steps of keys and values, and queries of large heads.
    local step_rows = head_tiles <= 8 and 2 or 1
    local step_bytes = step_rows * 2 * head_tiles * TILE_BYTES
    local stages = math.max(2, math.min(4, (48 << 10) // step_bytes))
    local kept_queries = head_tiles <= 6 and 0 or 4 * head_tiles
    local gpu = { buffers = {}, bytes = 0, most_blocks = MOST_BLOCKS,
                  attention_dims = head_tiles * TILE,
                  warpgroups_attend = head_tiles <= 10,
                  prefill_shared = 64 << 10, small_shared = 256,
                  prefill_attention_shared = stages * step_bytes + kept_queries * TILE_BYTES,
                  sample_shared = 28 << 10 }
    for i, row in ipairs(list) do
        gpu.buffers[i] = { name = row[1], bytes = row[2], shape = row[3], told = row[4] }
        gpu.bytes = gpu.bytes + row[2]
    end
    -- Shared memory of a block, taken at the launch, on an architecture; most: what it may have.
    function gpu.shared_bytes(kernel, sm, most)
        local product = sm == 90 and most or gpu.prefill_shared
        local attention = sm == 90 and gpu.warpgroups_attend and most
            or gpu.prefill_attention_shared
        local bytes = { decode_step = most, choose = gpu.small_shared,
                        sample_token = gpu.sample_shared, prefill_qkv = product,
                        prefill_attention = attention,
                        prefill_o = product, prefill_gate_up = product, prefill_down = product }
        return bytes[kernel] or 0
    end
    gpu.cache_bytes = p.cache.bytes
    return gpu
end

local plan = {}

-- spec: complete and checked (spec.lua). Returns a plan, of plain data.
function plan.make(spec)
    local formats = FORMATS[spec.weight_dtype]
    local streams = streams_of(spec)
    local max_streams = streams[#streams]
    local place = cursor(HEADER_BYTES)
    local p = {
        spec = spec, streams = streams, max_streams = max_streams,
        formats = formats, planes = formats.adapter.planes,
        quantized = formats.layers.columns == GROUP,
        header_bytes = HEADER_BYTES, layout_version = LAYOUT_VERSION,
        digest = plan_digest(spec), qkv = qkv_shape(spec),
        block_columns = math.max(BLOCK_COLUMNS, max_streams),
        gpu_columns = math.min(GPU_COLUMNS, align(spec.context * max_streams, 128)),
        attention_tokens = ATTENTION_TOKENS, attention_chunk = ATTENTION_CHUNK,
        decode_items = DECODE_ITEMS, head_tokens = HEAD_TOKENS,
    }
    p.layer = layer_layout(spec, formats.layers, p.qkv)
    p.embedding = matrix(formats.head, spec.vocab_size, spec.hidden_size)
    p.embedding.offset = place.place(p.embedding.bytes, SECTION_ALIGN)
    p.head = p.embedding
    if not spec.tie_word_embeddings then
        p.head = matrix(formats.head, spec.vocab_size, spec.hidden_size)
        p.head.offset = place.place(p.head.bytes, SECTION_ALIGN)
    end
    p.final_norm = place.place(spec.hidden_size * 4, SECTION_ALIGN)
    p.layers_offset = place.place(p.layer.stride * spec.num_hidden_layers, SECTION_ALIGN)
    p.adapters = {}
    for i, n in ipairs(streams) do
        p.adapters[i] = adapter_layout(spec, formats.adapter, n, place.place)
    end
    p.weights_end = align(place.position(), SECTION_ALIGN) -- the tokenizer follows, if there is one
    p.placements = placements(spec, p)
    p.tensors = tensor_list(p.placements)
    count_parameters(p)
    p.cache = cache_layout(spec, max_streams)
    p.buffers, p.scratch = buffer_tables(spec, p)
    p.gpu = gpu_plan(spec, p)
    -- Bytes that one decode step reads, besides an adapter and the cache: every layer, the head,
    -- the final norm.
    p.bytes_per_token = p.head.bytes + p.layer.stride * spec.num_hidden_layers
        + spec.hidden_size * 4
    return p
end

return plan
