#!/usr/bin/env lua5.4
-- A KV cache in int8: every path against the published computation with keys and values rounded as
-- docs/design.md says; golden models against what was published; its size; threads.
-- tests/quantized.t has SmolLM2, tests/emulate_cache.t the GPU.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local build = require("build")
local golden = require("golden")
local reference = require("reference")
local tap = require("tap")

-- ---- against the computation in double precision -----------------------------------------------

-- fp32 paths round nothing else. But a number between two integers may go to the other one than in
-- double precision: by a hundredth of its head's largest, one of many. With AVX-512 VNNI queries
-- and probabilities have 16 bits; avx512bf16 rounds inputs of other products, as with a bf16 cache.
local KL = { plain = 1e-7, avx2 = 1e-7, neon = 1e-7, avx512 = 3e-6, avx512bf16 = 3e-4 }
local LOGITS = 5e-3 -- of the plain path

-- hidden, ffn, layers, heads, kv heads, head_dim, vocab, P, prefix tokens, tokens: heads that end
-- in the middle of a tile, more than a chunk of positions, more columns than a pass takes.
local SHAPES = {
    { 16, 3, 2, 3, 1, 16, 40, 16, 5, 40 },
    { 48, 17, 2, 2, 2, 22, 100, 5, 17, 40 },
    { 48, 40, 2, 1, 1, 256, 47, 3, 1, 33 },
    { 64, 29, 3, 13, 1, 32, 65, 1, 48, 150 },
}

local function test_shape(number, shape)
    local c = {
        model_type = "qwen2_parscale", hidden_size = shape[1], intermediate_size = shape[2],
        num_hidden_layers = shape[3], num_attention_heads = shape[4],
        num_key_value_heads = shape[5], head_dim = shape[6], vocab_size = shape[7],
        parscale_n = shape[8], parscale_n_tokens = shape[9], parscale_attn_smooth = 0.1,
        rms_norm_eps = 1e-6, rope_theta = 1e4, tie_word_embeddings = true, hidden_act = "silu",
        max_position_embeddings = 160, torch_dtype = "bfloat16",
    }
    local checkpoint = build.path("shape" .. number)
    local weights = reference.checkpoint(c, checkpoint)
    c.cache_dtype = "int8"
    local file = build.write("expected", reference.expected(c, weights, shape[10]))
    local spec = build.write("int8.lua", "return { cache_dtype = 'int8' }\n")
    local folder = build.generate(("--from '%s' --spec '%s'"):format(checkpoint, spec))
    build.pack(folder)
    local harness = build.harness(folder, "golden_harness", "-std=c11 -O1 -fno-trapping-math")
    for _, path in ipairs({ "plain", table.unpack(build.paths) }) do
        local label = ("h %d, d %d, P %d, %s: "):format(shape[1], shape[6], shape[8], path)
        local code, out, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            file)
        local found = build.values(out)
        if code == 77 then
            tap.skip(label .. "KL", "not on this processor")
        else
            tap.ok(code == 0 and found.kl <= KL[path] and found.decodekl <= KL[path]
                and (path ~= "plain" or found.logits <= LOGITS),
                ("%sKL %.2g, logits within %.2g"):format(label, found.kl or -1,
                    found.logits or -1), out .. err)
        end
    end
end

math.randomseed(20)
for number, shape in ipairs(SHAPES) do
    test_shape(number, shape)
end

-- ---- products ----------------------------------------------------------------------------------

local spec_text = [[return { name = "products", hidden_size = 64, model_type = "qwen2",
    intermediate_size = 160, num_hidden_layers = 2, num_attention_heads = 4, vocab_size = 300,
    num_key_value_heads = 2, rms_norm_eps = 1e-6, rope_theta = 10000, context = 64,
    tie_word_embeddings = true, max_position_embeddings = 64, cache_dtype = "int8" }]]
local products = build.path("products")
build.must("%s -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined "
    .. "-Wall -Wextra -Werror -DENGINE='\"%s/engine.c\"' -o '%s' '%scache_harness.c' -lm "
    .. "-pthread", build.cc, build.generate_spec(spec_text, "products"), products, here)
for line in build.must(build.quote(products)):gmatch("[^\n]+") do
    local found = build.values(line)
    tap.ok(found.cases == 216 and found.error <= 1 and found.wrong == 0, "products, " .. line)
end

-- ---- golden models -----------------------------------------------------------------------------

-- Rounding to 1/127 of a head's largest number has some 6 times the error of rounding each to
-- bf16, where the largest is 2.5 to 3 times the root mean square, and KL grows with the square: 36
-- times that of a bf16 cache, which the AVX2 path shows alone.
local GOLDEN_KL = 3e-3

local function test_golden(name)
    local spec = build.write("int8.lua", "return { cache_dtype = 'int8', context = 100 }\n")
    local folder = build.generate(("--from '%s' --spec '%s'"):format(golden.folder(name), spec))
    build.pack(folder)
    local expected = golden.expected(name)
    local harness = build.harness(folder, "golden_harness", "-std=c11 -O1 -fno-trapping-math")
    for _, path in ipairs({ "plain", table.unpack(build.paths) }) do
        local code, out, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            expected)
        local found = build.values(out)
        if code == 77 then
            tap.skip(name .. ", " .. path .. ": KL", "not on this processor")
        else
            tap.ok(code == 0 and found.kl <= GOLDEN_KL and found.decodekl <= GOLDEN_KL,
                ("%s, %s: KL of prefill %.2g, of decode %.2g"):format(name, path, found.kl or -1,
                    found.decodekl or -1), out .. err)
        end
    end
    return folder
end

local folder
for _, name in ipairs({ "p4-hd80-sharded-bf16", "p3-hd16-odd-bf16" }) do
    folder = test_golden(name)
end

-- ---- size and threads --------------------------------------------------------------------------

-- Of the last golden model, head_dim 16: a position is a key and a value of 16 bytes and a scale of
-- 4 each; the cache is whole rows of 16 positions.
local engine = build.engine(folder, "-std=c11 -O1")
for _, isa in ipairs({ "", "--isa plain" }) do
    local info = cjson.decode((build.must("'%s' info --device cpu --json %s", engine, isa)))
    local slots = 1 + (info.num_hidden_layers - 1) * info.parscale_n
    local position = slots * info.num_key_value_heads * 2 * (info.head_dim + 4)
    tap.is(info.kv_bytes_position, position, "info: bytes of a position " .. isa)
    tap.is(info.cache_bytes, 112 * position, "info: bytes of the cache " .. isa)
    local reported = build.read(folder .. "/report.md"):match("KV cache, int8 | ([%d,]+)")
    tap.is((reported:gsub(",", "")), ("%d"):format(info.cache_bytes),
        "report.md: the cache " .. isa)
end
build.same_for_threads(engine)
build.done()
