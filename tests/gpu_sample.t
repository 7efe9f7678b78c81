#!/usr/bin/env lua5.4
-- Sampling on the emulated GPU: the kernel chooses what sample.c does, to the bit; and through the
-- engine, with steps that run ahead of the host, ids and logits are those of steps one by one.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local tap = require("tap")

local function model(name, vocab)
    local out = build.generate_spec(([[return { name = "%s", model_type = "qwen2_parscale",
        hidden_size = 32, intermediate_size = 40, num_hidden_layers = 2, num_attention_heads = 2,
        num_key_value_heads = 1, vocab_size = %d, rms_norm_eps = 1e-6, rope_theta = 10000,
        tie_word_embeddings = true, max_position_embeddings = 64, parscale_n = 2,
        parscale_n_tokens = 5 }]]):format(name, vocab), name)
    emulated.emulator(out, 2)
    return { out = out }
end

local harness = build.path("gpu_sample_harness")
build.must("%s -std=c11 -O2 -fno-trapping-math -o '%s' '%sgpu_sample_harness.c' -lm -ldl", build.cc,
    harness, here)
local function test_kernel(m, vocab, cases)
    local code, out, err = build.shell("%s '%s' %d %d", emulated.environment(m), harness, vocab,
        cases)
    local v = build.values(out)
    tap.ok(code == 0 and v.wrong == 0 and v.cases == cases,
        ("%d ids: the kernel chooses as sample.c does"):format(vocab), out .. err)
    tap.ok(code == 0 and v.usualdecided == v.usual and v.usual > 0 and v.decided > cases / 2,
        ("%d ids: it decides what it should"):format(vocab), out)
end

local large, small = model("large", 5000), model("small", 300)
test_kernel(large, 5000, 300)
test_kernel(small, 300, 100)

build.pack(small.out, 1)
local chain = build.harness(small.out, "gpu_chain_harness", build.flags)
local STEPS = 150
local code, out, err = build.shell("%s '%s' '%s/model.psc' %d", emulated.environment(small), chain,
    small.out, STEPS)
local v = build.values(out)
tap.ok(code == 0 and v.wrong == 0 and v.steps == STEPS, "an engine's choices are sample.c's",
    out .. err)
tap.ok(code == 0 and v.different == 0 and v.positions > 20,
    "steps that run ahead leave the logits of steps one by one", out .. err)
build.done()
