#!/usr/bin/env lua5.4
-- SmolLM2 with P = 1, 2, 4, 8: every path against what the published code computed in fp32, and the
-- fast paths against the plain one on a longer text. ENGINE_DIR names the engine's folder
-- (`make demo-model`).

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local tap = require("tap")
local folder = tap.needs("ENGINE_DIR")
local build = require("build")

local DATA = here .. "data/smollm2/"
local DECODED = 64 -- tokens that are fed one by one
local PLAIN_ERROR, FAST_ERROR = 1e-3, 2e-2 -- log-probabilities, mean absolute error
-- Half of what the published code's own bf16 has.
local KL = { [1] = 0.6e-3, [2] = 0.3e-3, [4] = 0.3e-3, [8] = 0.3e-3 }

-- The prompts as real_harness reads them, and their number.
local function prompts(P)
    local path = build.path("prompts")
    build.must("lua5.4 '%sreal_prompts.lua' %d >'%s'", here, P, path)
    return path, select(2, build.read(path):gsub("\n", ""))
end

-- With the machine's own instructions, or the plain path would take minutes here.
local native = build.cc:find("aarch64") and "" or " -march=native"
local real = build.harness(folder, "real_harness", build.flags .. native)
local paths = build.harness(folder, "paths_harness", build.flags .. native)

local function test_expected(P, path)
    local file, prompt_count = prompts(P)
    local code, out, err = build.shell("'%s' '%s/model.psc' %d %s <'%s'", real, folder, P, path,
        file)
    local label = ("P = %d, %s: "):format(P, path)
    if code == 77 then
        tap.skip(label .. "expected log-probabilities", "not on this processor")
        return
    end
    local sum, tokens, steps, wrong, count = 0, 0, 0, 0, 0
    for line in out:gmatch("[^\n]+") do
        local v = build.values(line)
        sum, tokens, count = sum + v.sum, tokens + v.tokens, count + 1
        steps, wrong = steps + v.steps, wrong + v.wrong
    end
    local mean = sum / tokens
    tap.ok(code == 0 and count == prompt_count
        and mean <= (path == "plain" and PLAIN_ERROR or FAST_ERROR),
        ("%slog-probabilities of %d prompts, mean error %.5f"):format(label, count, mean),
        out .. err)
    tap.ok(code == 0 and wrong == 0 and steps > 0,
        ("%s%d greedy ids"):format(label, steps), out .. err)
end

local ids = build.path("ids")
build.must("'%s/engine' tokenize -f '%sheldout.py' >'%s'", folder, DATA, ids)

local function test_paths(P)
    local out = build.must("'%s' '%s/model.psc' %d %d '%s' %s <'%s'", paths, folder, P, DECODED,
        build.path("logits" .. P), table.concat(build.paths, " "), ids)
    os.remove(build.path("logits" .. P))
    for path, line in out:gmatch("path=(%S+)([^\n]*)") do
        local label, v = ("P = %d, %s: "):format(P, path), build.values(line)
        if v.absent then
            tap.skip(label .. "KL to the plain path", "not on this processor")
        else
            tap.ok(v.tokens >= 350 and v.kl <= KL[P],
                ("%sKL to the plain path %.2g"):format(label, v.kl), line)
            tap.ok(v.decodekl <= KL[P],
                ("%sthe same by decode steps %.2g"):format(label, v.decodekl), line)
        end
    end
end

for _, P in ipairs({ 1, 2, 4, 8 }) do
    test_expected(P, "plain")
    for _, path in ipairs(build.paths) do
        test_expected(P, path)
    end
    test_paths(P)
end
build.done()
