-- Prints a plan: dims.h (the shape as C constants), engine.c and pack.c (one file each, made of the
-- templates and the runtime by inlining their includes).

local lfs = require("lfs")
local files = require("codegen.files")
local fail = require("codegen.fail").fail

local emit = {}

-- A C string literal. Spec strings hold printable ASCII only (spec.lua), this makes them harmless.
local function c_string(text)
    return '"' .. text:gsub('[\\"?%c]', function(c)
        return ("\\%03o"):format(c:byte())
    end) .. '"'
end

-- A float constant that reads back exactly.
local function c_float(value)
    local text = ("%.9g"):format(value)
    return text .. (text:find("[%.e]") and "f" or ".0f")
end

local function enum(rows)
    local out = { "enum {" }
    for _, row in ipairs(rows) do
        local name, value, comment = table.unpack(row)
        local line = ("    %s = %d,"):format(name, value)
        out[#out + 1] = comment and ("%-36s // %s"):format(line, comment) or line
    end
    out[#out + 1] = "};"
    return table.concat(out, "\n")
end

local function c_matrix(m)
    return m and ("{ %d, %d, %d, %d }"):format(m.offset, m.row_tiles, m.column_tiles, m.tile_bytes)
        or "{ 0, 0, 0, 0 }"
end

local function layout_table(p)
    local l = p.layer
    local rows = {
        { "embedding", c_matrix(p.embedding), "[vocab, hidden]" },
        { "head", c_matrix(p.head), "[vocab, hidden], the embedding itself if tied" },
        { "final_norm", p.final_norm, "[hidden] fp32" },
        { "layers", p.layers_offset, "layer n starts at layers + n * layer_stride" },
        { "layer_stride", l.stride },
        { "qkv", c_matrix(l.qkv), "[QKV_VALUE_ROW + kv_heads * head_dim, hidden]" },
        { "o", c_matrix(l.o), "[hidden, heads * head_dim]" },
        { "gate_up", c_matrix(l.gate_up), "[2 * intermediate, hidden], 8 gates, 8 ups, ..." },
        { "down", c_matrix(l.down), "[hidden, intermediate]" },
        { "input_norm", l.input_norm.offset, "[hidden] fp32" },
        { "post_norm", l.post_norm.offset, "[hidden] fp32" },
        { "qkv_bias", l.qkv_bias.offset, "[rows of qkv] fp32" },
        { "end", p.weights_end, "the tokenizer follows" },
    }
    local out = {}
    for _, row in ipairs(rows) do
        local line = ("    .%s = %s,"):format(row[1], row[2])
        out[#out + 1] = row[3] and ("%-44s // %s"):format(line, row[3]) or line
    end
    return table.concat(out, "\n")
end

local function adapter_table(p)
    local out = {}
    for _, a in ipairs(p.adapters) do
        local row = "    { %d, %d, %d, %d, %d, %d, %d, %s, %s, %d, %d },"
        out[#out + 1] = row:format(a.streams, a.prefix_tokens, a.offset, a.bytes, a.prefix_k,
            a.prefix_v, a.prefix_block, c_matrix(a.mix), c_matrix(a.weigh), a.mix_bias or 0,
            a.weigh_bias or 0)
    end
    return table.concat(out, "\n")
end

local function buffer_struct(name, list)
    local out = { ("struct %s {"):format(name) }
    for _, b in ipairs(list) do
        out[#out + 1] = ("    _Alignas(64) %s %s[%d]; // %s"):format(b.type, b.name, b.elements,
                                                                    b.shape)
    end
    out[#out + 1] = "};"
    out[#out + 1] = ('_Static_assert(sizeof(struct %s) == %d, "the plan\'s size");'):format(name,
                                                                                   list.bytes)
    return table.concat(out, "\n")
end

local DIMS = [[
// The shape of this model, as planned by the generator. Every number is a constant.
#ifndef DIMS_H
#define DIMS_H

#include <stddef.h>

static const char SPEC_NAME[] = %s;
static const char PLAN_DIGEST[] = "%s";

%s

// A matrix of the pack: where it starts, its size in tiles, and the size of a tile, which tells
// bf16, int8 and int4 apart. A row of tiles is contiguous and holds WEIGHT_PLANES times
// column_tiles tiles.
struct matrix {
    size_t offset;
    int row_tiles, column_tiles, tile_bytes;
};

// Where everything lies in the pack: bytes from its start, in a layer from the layer's start.
static const struct layout {
    struct matrix embedding, head;
    size_t final_norm, layers, layer_stride;
    struct matrix qkv, o, gate_up, down;
    size_t input_norm, post_norm, qkv_bias, end;
} LAYOUT = {
%s
};

#endif
]]

local ENGINE_DIMS = [[
// What only the engine needs of the plan: numbers, adapters, and all memory that it takes.
#ifndef ENGINE_DIMS_H
#define ENGINE_DIMS_H

#include <stdint.h>
#include "dims.h"
#include "sample.h"

static const char WEIGHT_DTYPE[] = "%s";
static const char CACHE_DTYPE[] = "%s";

static const float RMS_NORM_EPS = %s;
static const float ROPE_THETA = %s;
static const float STREAM_SMOOTHING = %s; // parscale_attn_smooth

// What belongs to one P, in the pack from offset on: a prefix for each layer, stream and kv head
// (prefix_k [T, head_dim] and prefix_v [head_dim, T], prefix_block bytes each), and the aggregation
// network. The plain backbone, P = 1, has neither.
static const struct adapter {
    int streams, prefix_tokens;
    size_t offset, bytes;
    size_t prefix_k, prefix_v, prefix_block;
    struct matrix mix;   // aggregate_layer.0 [hidden, P * hidden], columns stream by stream
    struct matrix weigh; // aggregate_layer.2 [P, hidden]
    size_t mix_bias, weigh_bias;
} ADAPTERS[] = {
%s
};

// All memory that the threads share but the cache.
%s

// Each thread's own.
%s

#endif
]]

-- A block of the cache: with bf16 its bytes depend on the path, so tiles are counted.
local function cache_block(p)
    local name = p.spec.cache_dtype == "int8" and "bytes" or "tiles"
    return { "CACHE_BLOCK_" .. name:upper(), p.cache["block_" .. name],
             "keys and values of one kv head" }
end

function emit.dims(p)
    local s = p.spec
    return DIMS:format(c_string(s.name), p.digest, enum({
        { "HIDDEN_SIZE", s.hidden_size },
        { "INTERMEDIATE_SIZE", s.intermediate_size },
        { "LAYERS", s.num_hidden_layers },
        { "HEADS", s.num_attention_heads },
        { "KV_HEADS", s.num_key_value_heads },
        { "HEAD_DIM", s.head_dim },
        { "VOCAB_SIZE", s.vocab_size },
        { "CONTEXT", s.context, "positions the cache holds" },
        { "MAX_STREAMS", p.max_streams, "the largest P" },
        { "WEIGHT_PLANES", p.planes, "bf16 matrices whose sum is a weight matrix" },
        { "VECTORS_ROUNDED", s.weight_dtype == "bf16" and 1 or 0, "to bf16, as the matrices are" },
        { "QKV_VALUE_ROW", p.qkv.value_row, "row of q|k|v where the values start" },
        cache_block(p),
        { "CACHE_SLOTS", p.cache.slots, "layer 0 once, every other layer for each stream" },
        { "BLOCK_COLUMNS", p.block_columns, "tokens x streams computed together, at most" },
        { "ATTENTION_TOKENS", p.attention_tokens, "tokens whose queries are attended together" },
        { "ATTENTION_CHUNK", p.attention_chunk, "keys between two updates of the softmax" },
        { "DECODE_ITEMS", p.decode_items, "parts of the attention of one token, at least" },
        { "GPU_COLUMNS", p.gpu_columns, "tokens x streams computed together on a GPU, at most" },
        { "HEAD_TOKENS", p.head_tokens, "tokens whose logits are computed together" },
    }), layout_table(p))
end

function emit.engine_dims(p)
    local s = p.spec
    return ENGINE_DIMS:format(s.weight_dtype, s.cache_dtype, c_float(s.rms_norm_eps),
        c_float(s.rope_theta), c_float(s.parscale_attn_smooth), adapter_table(p),
        buffer_struct("buffers", p.buffers), buffer_struct("scratch", p.scratch))
end

-- The packer's table: one row for each kind of checkpoint tensor.
function emit.placements(p)
    local out = { "static const struct placement PLACEMENTS[] = {" }
    if p.quantized then
        table.insert(out, 1, '#include "pack_quantized.c"')
    end
    for _, e in ipairs(p.placements) do
        local row = "    { %s, %s, %s, %d, %d, %d, %d, %d, %d, %d, %d, %d, %s, %d, %s, %d, %s, "
            .. "%s },"
        out[#out + 1] = row:format(c_string(e.name), e.place, e.kind, e.count, e.stride, e.offset,
            e.blocks, e.block_stride, e.rows, e.columns, e.row_tiles_apart, e.plane_tiles_apart,
            e.row_map, e.first, e.column_map, e.streams, c_float(e.mean), c_float(e.deviation))
    end
    out[#out + 1] = "};\n"
    return table.concat(out, "\n")
end

local GPU_DIMS = [[
// What the GPU's host side needs of the plan: the memory that is taken beside the pack and the
// cache, and the shared memory of the kernels.
%s
static const size_t GPU_CACHE_BYTES = %d; // for the largest P

// Buffers of activations: bytes, and the place of their pointers; told: zeros whenever P changes.
static const struct gpu_buffer {
    size_t bytes, place;
    bool told;
} GPU_BUFFERS[] = {
%s
};
]]

function emit.gpu_dims(p)
    local g, rows = p.gpu, {}
    for i, b in ipairs(g.buffers) do
        rows[i] = ("    { %d, offsetof(struct gpu_task, %s), %s }, // %s"):format(b.bytes, b.name,
            tostring(b.told == true), b.shape)
    end
    return GPU_DIMS:format(enum({
        { "GPU_MOST_BLOCKS", g.most_blocks, "of a decode step" },
        { "GPU_PREFILL_SHARED", g.prefill_shared, "bytes of shared memory: products of a prefill" },
        { "GPU_SAMPLE_SHARED", g.sample_shared, "bytes: sampling" },
        { "GPU_SMALL_SHARED", g.small_shared, "bytes: one or two words of each warp" },
        { "GPU_PREFILL_ATTENTION_SHARED", g.prefill_attention_shared, "bytes: prefill attention" },
        { "GPU_WARPGROUPS_ATTEND", g.warpgroups_attend and 1 or 0,
          "where they multiply: in a prefill's attention too" },
        { "GPU_ACTIVATION_BYTES", g.bytes, "all buffers" },
    }), g.cache_bytes, table.concat(rows, "\n"))
end

local CUDA_DIMS = [[
// The shape, for the kernels. Given when this is compiled: STREAMS, the P in use, SHARED_BYTES, the
// shared memory that a block may have, and MODULES: which kernels, all if it is not given.
#ifndef STREAMS
#define STREAMS %d
#endif
#ifndef SHARED_BYTES
#define SHARED_BYTES 232448
#endif
#ifndef MODULES
#define MODULES 31
#endif

%s

// Where everything lies in the pack: bytes from its start, in a layer from the layer's start.
%s

static const float RMS_NORM_EPS = %s;
static const float STREAM_SMOOTHING = %s; // parscale_attn_smooth

// What belongs to one P: the learned prefix and the aggregation network.
%s
]]

local function cuda_offsets(rows)
    local out = {}
    for _, row in ipairs(rows) do
        out[#out + 1] = ("static const long long %s = %d;"):format(row[1], row[2])
    end
    return table.concat(out, "\n")
end

local function cuda_adapters(p)
    local out = {}
    for i, a in ipairs(p.adapters) do
        out[#out + 1] = ("#%s STREAMS == %d"):format(i == 1 and "if" or "elif", a.streams)
        out[#out + 1] = enum({ { "PREFIX_TOKENS", a.prefix_tokens } })
        out[#out + 1] = cuda_offsets({
            { "PREFIX_K_OFFSET", a.prefix_k },
            { "PREFIX_V_OFFSET", a.prefix_v },
            { "MIX_OFFSET", a.mix and a.mix.offset or 0 },
            { "WEIGH_OFFSET", a.weigh and a.weigh.offset or 0 },
            { "MIX_BIAS_OFFSET", a.mix_bias or 0 },
            { "WEIGH_BIAS_OFFSET", a.weigh_bias or 0 },
        })
    end
    out[#out + 1] = "#endif"
    return table.concat(out, "\n")
end

-- The constants of engine.cu, which includes nothing.
function emit.cuda_dims(p)
    local s, l = p.spec, p.layer
    return CUDA_DIMS:format(p.max_streams, enum({
        { "HIDDEN_SIZE", s.hidden_size },
        { "INTERMEDIATE_SIZE", s.intermediate_size },
        { "LAYERS", s.num_hidden_layers },
        { "HEADS", s.num_attention_heads },
        { "KV_HEADS", s.num_key_value_heads },
        { "HEAD_DIM", s.head_dim },
        { "VOCAB_SIZE", s.vocab_size },
        { "WEIGHT_PLANES", p.planes, "bf16 matrices whose sum is a weight matrix" },
        { "QKV_VALUE_ROW", p.qkv.value_row, "row of q|k|v where the values start" },
        { "QKV_ROW_TILES", l.qkv.row_tiles },
        { "GATE_UP_ROW_TILES", l.gate_up.row_tiles },
        { "HEAD_ROW_TILES", p.head.row_tiles },
        { "TILE_COLUMNS", p.formats.layers.columns, "of a tile of layers, embedding and head" },
        { "LAYER_TILE_BYTES", l.qkv.tile_bytes },
        { "HIDDEN_COLUMN_TILES", l.qkv.column_tiles, "of qkv, gate_up, embedding and head" },
        { "O_COLUMN_TILES", l.o.column_tiles },
        { "DOWN_COLUMN_TILES", l.down.column_tiles },
        cache_block(p),
        { "CACHE_ELEMENT_BYTES", s.cache_dtype == "int8" and 1 or 2 },
        { "CONTEXT", s.context, "positions the cache holds" },
        { "GPU_COLUMNS", p.gpu_columns, "tokens x streams of a prefill, at most" },
    }), cuda_offsets({
        { "EMBEDDING_OFFSET", p.embedding.offset },
        { "HEAD_OFFSET", p.head.offset },
        { "FINAL_NORM_OFFSET", p.final_norm },
        { "LAYERS_OFFSET", p.layers_offset },
        { "LAYER_STRIDE", l.stride },
        { "QKV_OFFSET", l.qkv.offset },
        { "O_OFFSET", l.o.offset },
        { "GATE_UP_OFFSET", l.gate_up.offset },
        { "DOWN_OFFSET", l.down.offset },
        { "INPUT_NORM_OFFSET", l.input_norm.offset },
        { "POST_NORM_OFFSET", l.post_norm.offset },
        { "QKV_BIAS_OFFSET", l.qkv_bias.offset },
    }), c_float(s.rms_norm_eps), c_float(s.parscale_attn_smooth), cuda_adapters(p))
end

-- "ITEM, ITEM, ...", `each` items a line, from item(0) to item(count - 1).
local function item_lines(count, each, item, lead, separator)
    local lines = {}
    for first = 0, count - 1, each do
        local line = {}
        for i = first, math.min(first + each, count) - 1 do line[#line + 1] = item(i) end
        lines[#lines + 1] = lead .. table.concat(line, ", ")
    end
    return table.concat(lines, separator)
end

local WARPGROUP_PRODUCT = [[
static __device__ inline void start_%s(float (&s)[%d][4], const struct tile &a,
                                       unsigned long long b) {
    asm volatile("{.reg .pred add;\n"
                 "setp.eq.u32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n%dk16.f32.%s.%s {"
%s"
                 "}, {%s}, %%%d, add, 1, 1, 0;}"
%s
                 : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "l"(b));
}]]

local function warpgroup_product(number, columns)
    local sums, indent = columns // 2, (" "):rep(17)
    local function operand(i) return "%" .. i end
    local function sum(i) return ('"+f"(s[%d][%d])'):format(i // 4, i % 4) end
    return WARPGROUP_PRODUCT:format(number, columns // 8, columns, number, number,
        item_lines(sums, 16, operand, indent .. '"', ', "\n'),
        item_lines(4, 4, function(i) return operand(sums + i) end, "", ""), sums + 4,
        (item_lines(sums, 4, sum, indent .. "  ", ",\n"):gsub("^ +", indent .. ": ")))
end

-- Starts a warpgroup's products, one instruction each: s [64, n] += a [64, 16] x b [16, n] for the
-- n that prefill uses: those of cuda_warpgroup.cu's blocks, and 128 positions and a head's
-- dimensions in attention. b: a matrix descriptor. Each sum is an operand, which only text can say.
function emit.cuda_warpgroup_products(p)
    local out, made = {}, {}
    for _, columns in ipairs({ 128, 192, 256, p.gpu.attention_dims }) do
        if not made[columns] then out[#out + 1] = warpgroup_product("f16", columns) end
        made[columns] = true
    end
    for columns = 128, 256, 64 do out[#out + 1] = warpgroup_product("bf16", columns) end
    return table.concat(out, "\n") .. "\n"
end

-- Inlines `#include "x"` once each, found in `generated` or in the folders. Keeps everything else
-- but what is then needless: headers' guards, a second `#include <x>`, a second blank line.
local function amalgamate(root, name, generated)
    local seen, out = {}, {}
    local open, conditions = {}, 0 -- #if that were not closed, a guard's name or true; the latter's
    local function needless(line)  -- number
        if line == "" then return out[#out] == "" end
        local guard = line:match("^#ifndef ([%u_%d]+_H)$")
        if line:find("^#if") then
            open[#open + 1] = guard or true
            conditions = conditions + (guard and 0 or 1)
            return guard
        elseif line:find("^#endif") then
            guard = table.remove(open) ~= true
            conditions = conditions - (guard and 0 or 1)
            return guard
        end
        local system = line:match("^#include (<.+>)")
        local before = seen[system or ""]
        if system and conditions == 0 then seen[system] = true end
        guard = line:match("^#define ([%u_%d]+_H)$")
        return before or guard and guard == open[#open]
    end
    local function find(include)
        if generated[include] then return generated[include] end
        for _, folder in ipairs({ "/templates/", "/runtime/" }) do
            local path = root .. folder .. include
            if lfs.attributes(path, "mode") == "file" then
                return files.read(path, 1 << 20)
            end
        end
        fail("%s: include of %s: no such file", name, include)
    end
    local function inline(include)
        if seen[include] then return end
        seen[include] = true
        for line in find(include):gmatch("([^\n]*)\n") do
            local inner = line:match('^#include "([^"]+)"')
            if inner then
                if not seen[inner] then
                    inline(inner)
                end
            elseif not needless(line) then
                out[#out + 1] = line
            end
        end
    end
    inline(name)
    return table.concat(out, "\n") .. "\n"
end

local function head_comment(p, what)
    local out = {
        "// " .. what,
        "//",
        "// Generated by parscale.c from this spec; edit the spec or the templates, not this file.",
        "// plan " .. p.digest,
        "//",
    }
    local keys = {}
    for key in pairs(p.spec) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do
        local value = p.spec[key]
        if type(value) == "table" then
            value = "{ " .. table.concat(value, ", ") .. " }"
        elseif math.type(value) == "float" then
            value = ("%.9g"):format(value)
        end
        out[#out + 1] = ("//     %s = %s"):format(key, tostring(value))
    end
    return table.concat(out, "\n") .. "\n"
end

function emit.engine(root, p, generated)
    return head_comment(p, "engine.c: the inference engine for " .. p.spec.name .. ".")
        .. amalgamate(root, "engine.c", generated)
end

-- engine.cu is one file too; engine.c carries its text, one line of it in each line.
function emit.cuda(root, p, generated)
    return head_comment(p, "engine.cu: the CUDA kernels for " .. p.spec.name .. ".")
        .. amalgamate(root, "engine.cu", generated)
end

function emit.cuda_text(source)
    local out = { "static const char ENGINE_CU[] =" }
    for line in source:gmatch("([^\n]*)\n") do
        out[#out + 1] = '    "' .. line:gsub('[\\"?]', "\\%0") .. '\\n"'
    end
    out[#out] = out[#out] .. ";\n"
    return table.concat(out, "\n")
end

function emit.packer(root, p, generated)
    return head_comment(p, "pack.c: makes model.psc, the weights of " .. p.spec.name .. ".")
        .. amalgamate(root, "pack.c", generated)
end

return emit
