#!/usr/bin/env lua5.4
-- int8 and int4 weights: what the packer makes of every dtype, against the blocks' published
-- meaning; the products of every path, against double precision; logits, against the published
-- computation with the weights that the pack holds; and SmolLM2, against its bf16 engine.
-- ENGINE_DIR and PARSCALE_GGUF name that engine's folder and the GGUF it was made from
-- (`make demo-model`); the adapter of P = 8 is beside it.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local make = require("checkpoints")
local planner = require("codegen.plan")
local quantized = require("quantized_pack")
local reference = require("reference")
local spec = require("codegen.spec")
local tap = require("tap")

local f16, f32 = quantized.f16, quantized.f32
local DTYPES = { "int8", "int4" }
-- Mean KL of the fast paths, which keep keys and values in bf16; avx512bf16 rounds some inputs of
-- products to bf16, and with avx2 those of int4 weights to 8 bits.
local KL = { int8 = 1e-4, int4 = 1e-4, int4avx512bf16 = 2e-3, int4avx2 = 2e-3 }

-- ---- blocks of a GGUF, from their definition in ggml --------------------------------------------

math.randomseed(8)

local function random_bytes(n)
    local bytes = {}
    for i = 1, n do
        bytes[i] = string.char(math.random(0, 255))
    end
    return table.concat(bytes)
end

-- Bits of a half: mostly of a magnitude that weights have, sometimes 0 or subnormal.
local function random_half()
    local exponent = math.random(20) == 1 and 0 or math.random(4, 9)
    return math.random(0, 1) << 15 | exponent << 10 | math.random(0, 1023)
end

local function quad(quads, i)
    local byte = quads:byte(i % 16 + 1)
    return i < 16 and byte & 15 or byte >> 4
end

-- Each: GGUF's type id, how many weights a block has, and a random block with its weights.
local BLOCKS = {
    Q8_0 = { 8, 32, function()
        local scale, quants, list = random_half(), random_bytes(32), {}
        for i = 0, 31 do
            list[i + 1] = f32(f16(scale) * string.unpack("<i1", quants, i + 1))
        end
        return string.pack("<I2", scale) .. quants, list
    end },
    Q4_0 = { 2, 32, function()
        local scale, quads, list = random_half(), random_bytes(16), {}
        for i = 0, 31 do
            list[i + 1] = f32(f16(scale) * (quad(quads, i) - 8))
        end
        return string.pack("<I2", scale) .. quads, list
    end },
    Q4_1 = { 3, 32, function()
        local scale, minimum, quads, list = random_half(), random_half(), random_bytes(16), {}
        for i = 0, 31 do
            list[i + 1] = f32(f16(scale) * quad(quads, i) + f16(minimum))
        end
        return string.pack("<I2I2", scale, minimum) .. quads, list
    end },
    F16 = { 1, 1, function()
        local bits = random_half()
        return string.pack("<I2", bits), { f16(bits) }
    end },
    BF16 = { 30, 1, function()
        local bytes = string.pack("<f", (math.random() - 0.5) / 8):sub(3, 4)
        return bytes, { (string.unpack("<f", "\0\0" .. bytes)) }
    end },
    F32 = { 0, 1, function()
        local bytes = string.pack("<f", (math.random() - 0.5) / 8)
        return bytes, { (string.unpack("<f", bytes)) }
    end },
}
local MIX = { "Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32" }
local EXACT = { int8 = { Q8_0 = true, Q4_0 = true }, int4 = { Q4_0 = true, Q4_1 = true } }

local LAYERS, HIDDEN, FFN, VOCAB, HEAD_DIM = 3, 64, 96, 72, 16
local PARTS = {
    { "attn_q", "self_attn.q_proj", 64, HIDDEN }, { "attn_k", "self_attn.k_proj", 32, HIDDEN },
    { "attn_v", "self_attn.v_proj", 32, HIDDEN }, { "attn_output", "self_attn.o_proj", HIDDEN, 64 },
    { "ffn_gate", "mlp.gate_proj", FFN, HIDDEN }, { "ffn_up", "mlp.up_proj", FFN, HIDDEN },
    { "ffn_down", "mlp.down_proj", HIDDEN, FFN },
}

-- A llama GGUF keeps the dimensions of a q or k head as pairs: 0, d/2, 1, d/2 + 1, ...
local function undo_pairs(list, columns)
    local rows = {}
    for at, number in ipairs(list) do
        local row, k = (at - 1) // columns, (at - 1) % columns
        local i = row % HEAD_DIM
        local published = row - i + i // 2 + i % 2 * (HEAD_DIM // 2)
        rows[published * columns + k + 1] = number
    end
    return rows
end

-- A llama GGUF of all dtypes. Returns its bytes, published name -> dtype, -> weights.
local function mixed_gguf()
    local infos, data, at, dtypes, weights = {}, {}, 0, {}, {}
    local function add(name, published, rows, columns, dtype)
        local id, block, random = table.unpack(BLOCKS[dtype])
        local bytes, list = {}, {}
        for i = 1, rows * columns // block do
            local some
            bytes[i], some = random()
            table.move(some, 1, #some, #list + 1, list)
        end
        infos[#infos + 1] = make.tensor_info(name, rows > 1 and { columns, rows } or { columns },
            id, at)
        data[#data + 1] = table.concat(bytes)
        data[#data] = data[#data] .. ("\0"):rep(-#data[#data] % 32)
        at = at + #data[#data]
        local paired = name:find("attn_[qk]%.weight$")
        dtypes[published], weights[published] = dtype, paired and undo_pairs(list, columns) or list
    end
    add("token_embd.weight", "model.embed_tokens.weight", VOCAB, HIDDEN, "Q8_0")
    add("output.weight", "lm_head.weight", VOCAB, HIDDEN, "Q4_0")
    add("output_norm.weight", "model.norm.weight", 1, HIDDEN, "F32")
    for layer = 0, LAYERS - 1 do
        local from, to = ("blk.%d."):format(layer), ("model.layers.%d."):format(layer)
        add(from .. "attn_norm.weight", to .. "input_layernorm.weight", 1, HIDDEN, "F32")
        add(from .. "ffn_norm.weight", to .. "post_attention_layernorm.weight", 1, HIDDEN, "F32")
        for i, part in ipairs(PARTS) do
            add(from .. part[1] .. ".weight", to .. part[2] .. ".weight", part[3], part[4],
                MIX[(i + 2 * layer) % #MIX + 1])
        end
    end
    local changes = {}
    for key, value in pairs({ block_count = LAYERS, embedding_length = HIDDEN,
        feed_forward_length = FFN, ["attention.head_count"] = 4, ["attention.head_count_kv"] = 2,
        vocab_size = VOCAB, ["rope.dimension_count"] = HEAD_DIM }) do
        changes["llama." .. key] = make.u32("llama." .. key, value)
    end
    local text = make.gguf_text(make.gguf_metadata("llama", changes), infos, table.concat(data))
    return text, dtypes, weights
end

-- Engine, pack and plan of a checkpoint; the plan is that of the same keys.
local function build_model(from, dtype, name)
    local chosen = build.write(dtype .. ".lua", ("return { weight_dtype = '%s' }\n"):format(dtype))
    local folder = build.generate(("--from '%s' --spec '%s' --name %s"):format(from, chosen, name))
    build.pack(folder)
    local source = require("codegen.checkpoint").open(from)
    local merged = spec.merge(source.spec, { weight_dtype = dtype }, "from", "spec")
    return folder, planner.make(spec.complete(merged, "from"))
end

-- ---- what the packer makes of them -------------------------------------------------------------

-- Sum of the squared errors of one group quantised as ggml's Q4_1 is: the range from the least to
-- the largest weight in 15 steps.
local function q4_1_error(list, first, n)
    local low, high, sum = math.huge, -math.huge, 0
    for i = first, first + n - 1 do
        low, high = math.min(low, list[i]), math.max(high, list[i])
    end
    local step = (high - low) / 15
    for i = first, first + n - 1 do
        local quant = step > 0 and math.floor((list[i] - low) / step + 0.5) or 0
        sum = sum + (quant * step + low - list[i]) ^ 2
    end
    return sum
end

-- Whether the pack's weights are near enough to the source's: int8 within half a step of a scale
-- that is 1/127 of the largest; int4 no worse than Q4_1 would be, up to f16's rounding of scale and
-- minimum.
local function is_near(dtype, wanted, found, scales)
    for first = 1, #wanted, 32 do
        local largest, sum = 0, 0
        for i = first, first + 31 do
            largest = math.max(largest, math.abs(wanted[i]))
            sum = sum + (found[i] - wanted[i]) ^ 2
            if dtype == "int8" and math.abs(found[i] - wanted[i]) > 0.52 * scales[i] + 2e-6 then
                return false
            end
        end
        if dtype == "int8" and math.abs(scales[first] - largest / 127) > largest / 127 / 1024 + 6e-8
            or dtype == "int4" and sum > 1.1 * q4_1_error(wanted, first, 32) + 1e-9 then
            return false
        end
    end
    return true
end

local function is_equal(wanted, found)
    for i = 1, #wanted do
        if wanted[i] ~= found[i] then
            return false
        end
    end
    return #wanted == #found
end

local gguf_text, gguf_dtypes, gguf_weights = mixed_gguf()
local gguf = build.write("mixed.gguf", gguf_text)
for _, dtype in ipairs(DTYPES) do
    local folder, plan = build_model(gguf, dtype, "mixed-" .. dtype)
    local found, scales = quantized.read(build.read(folder .. "/model.psc"), plan)
    local equal, near, wrong = {}, {}, {}
    for name, wanted in pairs(gguf_weights) do
        local kept = name:find("embed") or name == "lm_head.weight"
        local target = kept and "int8" or dtype
        local list = EXACT[target][gguf_dtypes[name]] and equal or near
        local good = not found[name]
            or list == equal and is_equal(wanted, found[name])
            or list == near and is_near(target, wanted, found[name], scales[name])
        list[gguf_dtypes[name]] = true
        if not good then
            wrong[#wrong + 1] = name .. " " .. gguf_dtypes[name]
        end
    end
    local function names(list)
        local sorted = {}
        for name in pairs(list) do sorted[#sorted + 1] = name end
        table.sort(sorted)
        return table.concat(sorted, " ")
    end
    tap.ok(#wrong == 0 and names(equal) ~= "" and names(near) ~= "",
        ("%s: every weight of %s kept, of %s near"):format(dtype, names(equal), names(near)),
        table.concat(wrong, ", "))
end

-- Weights that f16 scales cannot hold: bytes put over the start of a tensor of some dtype.
local function refuses(name, dtype, source_dtype, bytes)
    local folder = build.path("models/mixed-" .. dtype)
    for tensor, found in pairs(require("codegen.checkpoint").open(gguf).tensors) do
        if found.dtype == source_dtype and tensor:find("layers") and #found.shape == 2 then
            build.write("mixed.gguf", gguf_text:sub(1, found.offset) .. bytes
                .. gguf_text:sub(found.offset + #bytes + 1))
            break
        end
    end
    build.fails(3, ("%s: %s"):format(dtype, name), ("'%s/pack' '%s/pack.job' '%s'"):format(folder,
        folder, build.path("bad.psc")), "mixed.gguf", "model.layers.",
        "_proj.weight: row 0, columns from 0", dtype)
    tap.ok(not lfs.attributes(build.path("bad.psc")), "nothing is left")
    build.write("mixed.gguf", gguf_text)
end

refuses("a Q8_0 block with an infinite scale", "int8", "Q8_0", "\x00\x7c")
refuses("a Q4_1 block with a NaN as minimum", "int4", "Q4_1", "\x00\x1c\x01\x7e")
refuses("a Q4_0 block whose minimum f16 has not", "int4", "Q4_0", "\x00\x78")
refuses("an infinite weight", "int8", "F16", "\x00\x7c")
refuses("a NaN", "int4", "BF16", "\xc0\x7f")
refuses("a weight of 1e7", "int8", "F32", string.pack("<f", 1e7))
refuses("a weight of -1e6", "int4", "F32", string.pack("<f", -1e6))

-- ---- logits ------------------------------------------------------------------------------------

local LOGITS, WEIGHTS = 3e-5, 3e-6 -- fp32 against double precision, of the same weights

-- hidden, ffn, layers, heads, kv heads, head_dim, vocab, P, prefix tokens, tied: widths that fill
-- no group of 32, a whole one, several.
local SHAPES = {
    { 16, 3, 2, 3, 1, 16, 40, 16, 5, false },
    { 48, 81, 2, 2, 2, 22, 100, 5, 17, true },
    { 64, 129, 3, 2, 1, 32, 65, 1, 48, false },
}

local function test_logits(number, shape, dtype)
    local c = {
        model_type = "qwen2_parscale", hidden_size = shape[1], intermediate_size = shape[2],
        num_hidden_layers = shape[3], num_attention_heads = shape[4],
        num_key_value_heads = shape[5], head_dim = shape[6], vocab_size = shape[7],
        parscale_n = shape[8], parscale_n_tokens = shape[9], parscale_attn_smooth = 0.1,
        rms_norm_eps = 1e-6, rope_theta = 1e4, tie_word_embeddings = shape[10],
        hidden_act = "silu", max_position_embeddings = 160, torch_dtype = "bfloat16",
    }
    local name = ("%s-%d"):format(dtype, number)
    local checkpoint = build.path("checkpoint-" .. name)
    local weights = reference.checkpoint(c, checkpoint)
    local folder, plan = build_model(checkpoint, dtype, name)
    for tensor, numbers in pairs((quantized.read(build.read(folder .. "/model.psc"), plan))) do
        weights[tensor] = numbers
    end
    local file = build.write("expected", reference.expected(c, weights, 40))
    local harness = build.harness(folder, "golden_harness", "-std=c11 -O1 -fno-trapping-math")
    for _, path in ipairs({ "plain", table.unpack(build.paths) }) do
        local label = ("%s, hidden %d, ffn %d, P %d, %s: "):format(dtype, shape[1], shape[2],
            shape[8], path)
        local code, out, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            file)
        local found = build.values(out)
        if code == 77 then
            tap.skip(label .. "logits", "not on this processor")
        elseif path == "plain" then
            tap.ok(code == 0 and found.logits <= LOGITS and found.weights <= WEIGHTS,
                ("%slogits within %.2g, weights %.2g"):format(label, found.logits or -1,
                    found.weights or -1), out .. err)
        else
            local most = KL[dtype .. path] or KL[dtype]
            tap.ok(code == 0 and found.kl <= most and found.decodekl <= most,
                ("%sKL %.2g"):format(label, found.kl or -1), out .. err)
        end
    end
end

for number, shape in ipairs(SHAPES) do
    for _, dtype in ipairs(DTYPES) do
        test_logits(number, shape, dtype)
    end
end

-- ---- random weights ----------------------------------------------------------------------------

local random_folder
for _, dtype in ipairs(DTYPES) do
    local text = ([[return { name = "random-%s", hidden_size = 64,
        model_type = "qwen2_parscale", parscale_n = 3, intermediate_size = 160,
        num_hidden_layers = 2, num_attention_heads = 4, vocab_size = 300,
        num_key_value_heads = 2, rms_norm_eps = 1e-6, rope_theta = 10000, context = 64,
        tie_word_embeddings = true, max_position_embeddings = 64, weight_dtype = "%s" }]]):format(
        dtype, dtype)
    local path = build.write("random.lua", text)
    local folder = build.generate("--from random --spec " .. path)
    build.pack(folder, 1)
    local pack = build.read(folder .. "/model.psc")
    local weights, scales = quantized.read(pack, planner.make(spec.complete(spec.load(path), "x")))
    for _, name in ipairs({ "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight" }) do
        local sum, squares, list, some = 0, 0, weights[name], {}
        local different = 0
        for i, number in ipairs(list) do
            sum, squares = sum + number, squares + number * number
            different = different + (some[scales[name][i]] and 0 or 1)
            some[scales[name][i]] = true
        end
        local mean, deviation = sum / #list, math.sqrt(squares / #list)
        tap.ok(math.abs(mean) < 1e-3 and math.abs(deviation - 0.02) < 1e-3 and different > 50,
            ("%s, random %s: deviation %.4f"):format(dtype, name, deviation), mean)
    end
    build.pack(folder, 1)
    tap.ok(build.read(folder .. "/model.psc") == pack, dtype .. ": the same seed, the same pack")
    random_folder = folder
end

-- ---- products ----------------------------------------------------------------------------------

local products = build.path("products")
build.must("%s -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined "
    .. "-Wall -Wextra -Werror -DENGINE='\"%s/engine.c\"' -o '%s' '%squantized_harness.c' -lm "
    .. "-pthread", build.cc, random_folder, products, here)
for line in build.must(build.quote(products)):gmatch("[^\n]+") do
    local found = build.values(line)
    local cases = found.bytes < 64 and 80 or 160
    tap.ok(found.cases == cases and found.error <= 1 and found.wrong == 0, "products, " .. line)
end

-- ---- threads -----------------------------------------------------------------------------------

build.same_for_threads(build.engine(random_folder, "-std=c11 -O1"))

-- ---- SmolLM2 -----------------------------------------------------------------------------------

-- Mean KL, in nats, to the bf16 engine's plain path, which is the published fp32 within 1e-4. The
-- GGUF's blocks are int4's own; int8 is a second rounding. With fp32 inputs, and of fast paths.
-- An int8 cache has about 36 times the KL of a bf16 one (design.md), 3e-5 with one stream.
local PLAIN_KL = { int8 = 2e-3, int4 = 2e-4, ["an int8 cache"] = 2e-3 }
local FAST_KL = { int8 = 2e-3, int4 = 2e-2, ["an int8 cache"] = 2e-3 }
local SPECS = {
    { "int8", "weight_dtype = 'int8'" }, { "int4", "weight_dtype = 'int4'" },
    { "an int8 cache", "cache_dtype = 'int8'" },
}
local TOKENS = { { 1, 1000 }, { 8, 64 } } -- P; tokens of the text, at most

local published, engine_dir = os.getenv("PARSCALE_GGUF"), os.getenv("ENGINE_DIR")
if not (published and engine_dir) then
    tap.skip("SmolLM2", "PARSCALE_GGUF or ENGINE_DIR is not set")
    build.done()
end

local native = build.cc:find("aarch64") and "" or " -march=native"
local ids, data = build.path("ids"), published:match("^(.*)/") or "."
build.must("'%s/engine' tokenize -f '%sdata/smollm2/heldout.py' >'%s'", engine_dir, here, ids)

-- Each path's KL; the reference is computed if it is not there.
local function compare(harness, folder, P, tokens, paths)
    return build.must("tr ' ' '\\n' <'%s' | head -n %d | '%s' '%s/model.psc' %d 0 '%s' %s", ids,
        tokens, harness, folder, P, build.path("logits" .. P), table.concat(paths, " "))
end

local harness = build.harness(engine_dir, "paths_harness", build.flags .. native)
for _, case in ipairs(TOKENS) do
    compare(harness, engine_dir, case[1], case[2], { "none" })
end
for number, entry in ipairs(SPECS) do
    local dtype, text = table.unpack(entry)
    local chosen = build.write("streams.lua", ("return { %s, parscale_n = { 1, 8 } }\n"):format(
        text))
    local folder = build.generate(("--from '%s' --adapter '%s/adapter_p8.safetensors' "
        .. "--spec '%s' --name smollm2-%d"):format(published, data, chosen, number))
    build.pack(folder)
    harness = build.harness(folder, "paths_harness", build.flags .. native)
    for _, case in ipairs(TOKENS) do
        local P, tokens = table.unpack(case)
        local paths = P == 1 and { "plain", table.unpack(build.paths) }
            or { "avx2", "avx512bf16", "neon" }
        for path, line in compare(harness, folder, P, tokens, paths):gmatch(
            "path=(%S+)([^\n]*)") do
            local found, most = build.values(line), (path == "plain" and PLAIN_KL or FAST_KL)[dtype]
            local label = ("SmolLM2 in %s, P = %d, %s: "):format(dtype, P, path)
            if found.absent then
                tap.skip(label .. "KL to the published fp32", "not on this processor")
            else
                tap.ok(found.tokens >= math.min(tokens, 350) and found.kl <= most,
                    ("%sKL to the published fp32 %.2g"):format(label, found.kl), line)
            end
        end
    end
end
build.done()
