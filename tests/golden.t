#!/usr/bin/env lua5.4
-- Golden models: every path of the engine against what the published code computed in fp32, through
-- blocks of tokens, prefills of every length and single decode steps.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local golden = require("golden")
local tap = require("tap")

local LOGITS, WEIGHTS, KL = 2e-3, 1e-4, 3e-4

local function test_model(name)
    local folder = build.generate("--from " .. golden.folder(name))
    build.pack(folder)
    local expected = golden.expected(name)
    local harness = build.harness(folder, "golden_harness")
    local function run(path)
        local code, out, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            expected)
        return code, build.values(out), name .. ", " .. path .. ": ", out .. err
    end

    local code, found, label, text = run("plain")
    tap.ok(code == 0 and found.logits <= LOGITS, label .. "logits of every position", text)
    tap.ok(code == 0 and found.weights <= WEIGHTS, label .. "weights of the streams", text)
    tap.ok(code == 0 and found.wrong == 0 and found.greedy >= 1, label .. "greedy ids", text)
    for _, path in ipairs(build.paths) do
        code, found, label, text = run(path)
        if code == 77 then
            tap.skip(label .. "KL", "not on this processor")
        else
            tap.ok(code == 0 and found.kl <= KL,
                ("%sKL of prefill %.2g"):format(label, found.kl or -1), text)
            tap.ok(code == 0 and found.decodekl <= KL,
                ("%sKL of decode %.2g"):format(label, found.decodekl or -1), text)
        end
    end
end

for _, name in ipairs(golden.names) do
    test_model(name)
end
build.done()
