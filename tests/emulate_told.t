#!/usr/bin/env lua5.4
-- What blocks of a decode step tell each other of activations, four numbers in 8 bytes that also
-- say which round they are of: a million of them, of all magnitudes, against the numbers.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local tap = require("tap")

for _, dtype in ipairs({ "bf16", "int4" }) do
    local spec = build.write(dtype .. ".lua", ([[return { name = "%s", weight_dtype = "%s",
        model_type = "qwen2", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1,
        num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, vocab_size = 40,
        rms_norm_eps = 1e-6, rope_theta = 10000, max_position_embeddings = 64,
        tie_word_embeddings = true }]]):format(dtype, dtype))
    local out = build.generate(("--from random --spec '%s'"):format(spec))
    -- Of the kernels just what is called: the emulator is not there.
    build.must("g++ -std=c++17 -O2 -ffunction-sections -Wl,--gc-sections -DSTREAMS=1 "
        .. "-DENGINE_CU='\"%s/engine.cu\"' -include '%stests/emulator/device.h' -o '%s/told' "
        .. "'%stests/emulator/told.cc'", out, build.root, out, build.root)
    local code, text = build.shell("'%s/told'", out)
    tap.is(code .. " " .. text, "0 numbers=1048576 wrong=0 different=0\n",
        dtype .. ": what is told is what is read")
end
build.done()
