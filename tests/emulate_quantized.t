#!/usr/bin/env lua5.4
-- int8 and int4 weights on the emulated GPU against the plain CPU path with the same pack: golden
-- models, quantised, and shapes that no golden folder has. Widths end in the middle of a tile of 32
-- columns; a row of P = 16 is longer than what a warp copies ahead. The last ones with warpgroups,
-- where some rows of tiles are multiplied together; one of them with teams of blocks, and with rows
-- that take larger slots.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local golden = require("golden")
local tap = require("tap")

local KL, ERROR = 3e-4, 15e-3 -- nats; of the logits' deviation
local SMALL, SMALL_RING = "EMULATOR_SHARED=101376", "-DSHARED_BYTES=101376"

local PLAIN = [[model_type = "llama", hidden_size = 16, intermediate_size = 150,
    num_hidden_layers = 2, num_attention_heads = 3, num_key_value_heads = 3, head_dim = 16,
    vocab_size = 40, tie_word_embeddings = true]]

-- A golden folder or the end of a spec; P; tokens; what the kernels are compiled with and the
-- emulated GPU has, unless that is little shared memory.
local MODELS = {
    { "p3-hd16-odd-bf16", 3, 24 },
    { "p2-hd56-f32", 2, 24 },
    { [[model_type = "qwen2_parscale", hidden_size = 208, intermediate_size = 40,
        num_hidden_layers = 2, num_attention_heads = 3, num_key_value_heads = 1, head_dim = 22,
        vocab_size = 70, parscale_n = 16, parscale_n_tokens = 20, tie_word_embeddings = false]],
      16, 9 },
    { PLAIN, 1, 24 },
    { PLAIN, 1, 24, "-DEMULATOR_WARPGROUPS", "" },
    { "p3-hd16-odd-bf16", 3, 24, "-DEMULATOR_WARPGROUPS", "" },
    { [[model_type = "qwen2_parscale", hidden_size = 1040, intermediate_size = 232,
        num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16,
        vocab_size = 40, parscale_n = 2, parscale_n_tokens = 4, tie_word_embeddings = true]],
      2, 8, "-DEMULATOR_WARPGROUPS", "" },
}

-- The engine's folder, with its pack.
local function generate(source, dtype, name)
    local is_golden = not source:find("=")
    local spec = build.write(name .. ".lua", ("return { name = '%s', weight_dtype = '%s', %s }")
        :format(name, dtype, is_golden and "" or source .. ", rms_norm_eps = 1e-6, "
        .. "rope_theta = 10000, max_position_embeddings = 100"))
    local out = build.generate(("--from '%s' --spec '%s'"):format(
        is_golden and golden.folder(source) or "random", spec))
    build.pack(out, not is_golden and 1 or nil)
    return out
end

local commands, names = {}, {}
for i, row in ipairs(MODELS) do
    for _, dtype in ipairs({ "int8", "int4" }) do
        local source, streams, tokens, defines, environment = table.unpack(row)
        local name = ("%s-p%d-%d"):format(dtype, streams, i)
        local model = { out = generate(source, dtype, name) }
        emulated.emulator(model.out, streams, defines or SMALL_RING)
        build.must("%s -std=c11 -O1 -DPARSCALE_NO_MAIN -o '%s/harness' '%sgpu_harness.c' "
            .. "'%s/engine.c' -lm -pthread -ldl", build.cc, model.out, build.here, model.out)
        names[#names + 1] = name
        commands[#commands + 1] = ("%s '%s/harness' compare '%s/model.psc' %d %d plain"):format(
            emulated.environment(model, environment or SMALL), model.out, model.out, streams,
            tokens)
    end
end
for i, result in ipairs(emulated.run_all(commands)) do
    for _, how in ipairs({ "prefill", "decode" }) do
        local kl = tonumber(result.text:match("kl_" .. how .. "=(%S+)"))
        local off = tonumber(result.text:match("error_" .. how .. "=(%S+)"))
        tap.ok(kl and kl <= KL and off <= ERROR, ("%s: %s, mean KL %.2g, logits' error %.2g")
            :format(names[i], how, kl or -1, off or -1), result.text)
    end
end
build.done()
