#!/usr/bin/env lua5.4
-- Engines and packer under the sanitizers: addresses and undefined behaviour on golden models and
-- on the whole command line, threads on one.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local golden = require("golden")
local tap = require("tap")

local ADDRESS = "-std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
local THREAD = "-std=c11 -O1 -g -fsanitize=thread"

-- The command must end with this code and no report of a sanitizer.
local function clean(code, name, command, ...)
    local found, _, err = build.shell(command, ...)
    tap.ok(found == code and not err:find("Sanitizer", 1, true)
        and not err:find("runtime error", 1, true), name, ("exit %d, %s"):format(found, err))
end

local function test_golden(name, flags, label)
    local folder = build.generate("--from " .. golden.folder(name))
    build.must("%s %s -Wall -Wextra -Werror -o '%s/pack' '%s/pack.c' -lm -pthread", build.cc, flags,
        folder, folder)
    clean(0, label .. name .. ": pack", "'%s/pack' '%s/pack.job'", folder, folder)
    local harness = build.harness(folder, "golden_harness", flags)
    for _, path in ipairs({ "plain", table.unpack(build.paths) }) do
        local code, _, err = build.shell("'%s' '%s/model.psc' %s '%s'", harness, folder, path,
            golden.expected(name))
        if code ~= 77 then
            tap.ok(code == 0 and not err:find("Sanitizer", 1, true)
                and not err:find("runtime error", 1, true), label .. name .. ": " .. path, err)
        end
    end
    return folder
end

test_golden("p8-hd96-untied-f16", ADDRESS, "address: ")
local folder = test_golden("p3-hd16-odd-bf16", ADDRESS, "address: ")
build.engine(folder, ADDRESS)
local ids = ("1 2 3 "):rep(12)
for _, case in ipairs({
    { 0, "generate --ids '1 2 3' -n 40 --temp 0 --print-ids --ignore-eos" },
    { 0, "generate --ids '1 2 3' -n 9 -s 7 --repeat-penalty 1.2 --print-ids --ignore-eos -t 3" },
    { 0, ("score --ids '%s' --top 5"):format(ids) },
    { 0, "bench -p 5 -n 3 -d 0,4 -r 2 -o json" }, { 0, "info --json" }, { 0, "--help" },
    { 2, "generate --bogus" }, { 2, "score --ids x" }, { 2, "generate --ids '1' --isa sse" },
    { 2, "score --ids 1 --streams 5" },
    { 3, "info -m /nonexistent" }, { 3, "info -m /" }, { 5, "score --ids '1 999999999'" },
    { 5, "generate -p text" }, { 5, "tokenize -p text" }, { 5, "detokenize --ids '1 2'" },
    { 5, "chat </dev/null" }, { 5, "score --ids ''" }, { 6, "info >/dev/full" },
}) do
    clean(case[1], "address: " .. case[2], "'%s/engine' %s", folder, case[2])
end

local real = os.getenv("ENGINE_DIR") -- a model with a tokenizer
if real then
    local engine = build.path("real")
    build.must("%s %s -Wall -Wextra -Werror -o '%s' '%s/engine.c' -lm -pthread", build.cc, ADDRESS,
        engine, real)
    local text = build.write("text", "def f(x):\n    return 'caf\u{e9} \u{1f600}'\n")
    local turns = build.write("turns", "hi\n/clear\n<|im_end|>\n")
    for _, case in ipairs({ { 0, "tokenize -f " .. text }, { 0, "detokenize --ids '504 3575 1'" },
        { 0, ("generate -f %s -n 2"):format(text) }, { 0, "chat -n 2 <" .. turns },
        { 5, "tokenize -f " .. build.write("broken", "a\xff") } }) do
        clean(case[1], "address: " .. case[2]:gsub(build.scratch, "."), "'%s' %s -m '%s/model.psc'",
            engine, case[2], real)
    end
else
    tap.skip("text under the sanitizers", "ENGINE_DIR is not set")
end

test_golden("p3-hd16-odd-bf16", THREAD, "threads: ")
build.done()
