#!/usr/bin/env lua5.4
-- Shapes that fit no tile, register or block evenly: engines generated for small random
-- checkpoints, against the computation of reference.lua. Compiled with all warnings as errors.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local reference = require("reference")
local tap = require("tap")

local LOGITS, WEIGHTS, KL = 2e-3, 1e-4, 3e-4 -- the golden models'

-- hidden, ffn, layers, heads, kv heads, head_dim, vocab, P, prefix tokens; the rest by name.
local SHAPES = {
    { 16, 1, 1, 1, 1, 16, 1, 1, 48, model_type = "llama" },
    { 16, 3, 2, 3, 1, 16, 40, 16, 5, tie_word_embeddings = false },
    { 32, 33, 2, 4, 2, 18, 33, 3, 0, parscale_attn_smooth = 0 },
    { 48, 17, 2, 2, 2, 22, 100, 5, 17, parscale_attn_smooth = 1, tie_word_embeddings = false },
    { 80, 70, 2, 6, 3, 34, 50, 2, 33, torch_dtype = "float32" },
    { 48, 40, 1, 1, 1, 256, 47, 11, 1, rope_theta = 1e6 },
    { 16, 16, 1, 16, 1, 30, 29, 7, 130 },
    { 64, 129, 3, 2, 1, 32, 65, 1, 48, model_type = "qwen2", tokens = 150 },
    { 32, 48, 1, 2, 1, 16, 31, 13, 16, tokens = 140, tie_word_embeddings = false },
}

local function config(shape)
    local c = {
        model_type = "qwen2_parscale", hidden_size = shape[1], intermediate_size = shape[2],
        num_hidden_layers = shape[3], num_attention_heads = shape[4],
        num_key_value_heads = shape[5], head_dim = shape[6], vocab_size = shape[7],
        parscale_n = shape[8], parscale_n_tokens = shape[9], parscale_attn_smooth = 0.1,
        rms_norm_eps = 1e-6, rope_theta = 1e4, tie_word_embeddings = true, hidden_act = "silu",
        max_position_embeddings = 160, torch_dtype = "bfloat16",
    }
    for key, value in pairs(shape) do
        if type(key) == "string" and key ~= "tokens" then
            c[key] = value
        end
    end
    return c
end

local function label(shape)
    return ("h %d, ffn %d, d %d, vocab %d, P %d, T %d: "):format(shape[1], shape[2], shape[6],
        shape[7], shape[8], shape[9])
end

local function test_shape(number, shape)
    local c, name = config(shape), label(shape)
    local checkpoint = build.path("shape" .. number)
    local file = build.write("expected", reference.expected(c,
        reference.checkpoint(c, checkpoint), shape.tokens or 40))
    local folder = build.generate("--from " .. checkpoint)
    build.pack(folder)
    local harness = build.harness(folder, "golden_harness", "-std=c11 -O1 -fno-trapping-math")
    for _, path in ipairs({ "plain", table.unpack(build.paths) }) do
        local code, out, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            file)
        local found = build.values(out)
        if code == 77 then
            tap.skip(name .. path, "not on this processor")
        elseif path == "plain" then
            tap.ok(code == 0 and found.logits <= LOGITS and found.weights <= WEIGHTS,
                name .. "plain, logits and weights", out .. err)
        else
            tap.ok(code == 0 and found.kl <= KL and found.decodekl <= KL and found.logits < 0.2,
                ("%s%s, KL %.2g"):format(name, path, found.kl or -1), out .. err)
        end
    end
end

math.randomseed(20)
for number, shape in ipairs(SHAPES) do
    test_shape(number, shape)
end
build.done()
