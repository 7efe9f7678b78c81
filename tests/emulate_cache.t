#!/usr/bin/env lua5.4
-- A KV cache in int8 on the emulated GPU: a golden model against what was published, through
-- prefills that end and begin within a row of 16 positions; other shapes against the plain CPU
-- path, which keeps the same integers: more query heads than columns of a product, heads of many
-- tiles and of none whole, layer 0 that all streams share.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local golden = require("golden")
local tap = require("tap")

-- Mean KL in nats to what was published, half of it from rounding keys and values (cache_int8.t).
-- To the plain path: mean KL, and the logits' error over their deviation; of the golden model as in
-- emulate_quantized.t, of random weights, whose logits differ less.
local PUBLISHED_KL = 1e-3
local GOLDEN = { kl = 3e-4, error = 15e-3 }
local RANDOM = { kl = 1e-6, error = 5e-3 }
local EVERY = 20 -- see emulate.t
local SMALL, SMALL_RING = "EMULATOR_SHARED=101376", "-DSHARED_BYTES=101376"

local commands, checks = {}, {}

-- Runs a test program with an engine, then check(its result).
local function add(model, program, arguments, check)
    build.must("%s -std=c11 -O1 -DPARSCALE_NO_MAIN -o '%s/%s' '%s%s.c' '%s/engine.c' -lm -pthread "
        .. "-ldl", build.cc, model.out, program, build.here, program, model.out)
    commands[#commands + 1] = ("%s '%s/%s' %s"):format(emulated.environment(model, SMALL),
        model.out, program, arguments)
    checks[#checks + 1] = check
end

local function compare(model, label, tokens, bar)
    local arguments = ("compare '%s/model.psc' %d %d plain"):format(model.out, model.streams,
        tokens)
    add(model, "gpu_harness", arguments, function(result)
        for _, how in ipairs({ "prefill", "decode" }) do
            local kl = tonumber(result.text:match("kl_" .. how .. "=(%S+)"))
            local off = tonumber(result.text:match("error_" .. how .. "=(%S+)"))
            tap.ok(kl and kl <= bar.kl and off <= bar.error,
                ("%s: %s against the plain path, mean KL %.2g, logits' error %.2g"):format(label,
                    how, kl or -1, off or -1), result.text)
        end
    end)
end

local int8 = build.write("int8.lua", "return { cache_dtype = 'int8' }\n")
local golden_model = emulated.golden(golden.folder("p3-hd16-odd-bf16"), "--spec " .. int8,
    SMALL_RING)
compare(golden_model, "golden model", 24, GOLDEN)
add(golden_model, "golden_harness", ("'%s/model.psc' cuda '%s' %d"):format(golden_model.out,
    golden_model.expected, EVERY), function(result)
    local found = build.values(result.text)
    tap.ok(result.code == 0 and found.kl <= PUBLISHED_KL and found.decodekl <= PUBLISHED_KL,
        ("golden model: mean KL to what was published %.2g, by decode steps %.2g"):format(
            found.kl or -1, found.decodekl or -1), result.text)
end)

-- P; tokens; the rest of a spec.
local MODELS = {
    { 2, 40, [[hidden_size = 48, intermediate_size = 40, num_attention_heads = 9,
        num_key_value_heads = 1, head_dim = 16, parscale_n_tokens = 20]] },
    { 3, 20, [[hidden_size = 32, intermediate_size = 24, num_attention_heads = 2,
        num_key_value_heads = 2, head_dim = 250, parscale_n_tokens = 3]] },
    { 16, 18, [[hidden_size = 64, intermediate_size = 24, num_attention_heads = 4,
        num_key_value_heads = 2, head_dim = 22, parscale_n_tokens = 0, weight_dtype = "int4"]] },
}
for _, row in ipairs(MODELS) do
    local streams, tokens, text = table.unpack(row)
    local name = "cache-p" .. streams
    local out = build.generate_spec(([[return { name = "%s", model_type = "qwen2_parscale",
        parscale_n = %d, num_hidden_layers = 2, vocab_size = 70, rms_norm_eps = 1e-6,
        rope_theta = 10000, tie_word_embeddings = true, max_position_embeddings = 100,
        cache_dtype = "int8", %s }]]):format(name, streams, text), name)
    build.pack(out, 1)
    emulated.emulator(out, streams, SMALL_RING)
    compare({ out = out, streams = streams }, "P = " .. streams, tokens, RANDOM)
end

for i, result in ipairs(emulated.run_all(commands)) do
    checks[i](result)
end
build.done()
