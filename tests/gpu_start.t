#!/usr/bin/env lua5.4
-- Starting on the emulated GPU: the memory that is taken is the report's; weights read in place; no
-- memory, and a start that is killed while it writes to the kernel cache.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local lfs = require("lfs")
local build = require("build")
local emulated = require("emulated")
local golden = require("golden")
local tap = require("tap")

local MODULES = 5 -- of engine.cu: each has an entry in the cache

local model = emulated.golden(golden.folder("p3-hd16-odd-bf16"))
local engine = build.engine(model.out, "-std=c11 -O1")

local function run(environment, command)
    return build.shell("%s '%s' %s --device cuda", emulated.environment(model, environment), engine,
        command or "generate --ids '1 2 3' -n 2 --print-ids")
end

local function is_line(text)
    return select(2, text:gsub("\n", "")) == 1
end

-- ---- memory ------------------------------------------------------------------------------------

local code, out, err = run("", "info --json")
local info = code == 0 and cjson.decode(out) or {}
local report = build.read(model.out .. "/report.md")
local function reported(label)
    local text = report:match("\n| " .. label:gsub("%p", "%%%0") .. " | ([%d,]+) |") or ""
    return tonumber((text:gsub(",", "")))
end
tap.is(info.gpu_cache_bytes, reported("KV cache, for the largest P"),
    "the cache takes what the report says")
tap.is(info.gpu_activation_bytes, reported("**activations**"), "and so do the activations", err)

-- A device that shares memory with the host, as a Jetson does.
local _, ids, copied = run("")
for _, case in ipairs({
    { "EMULATOR_INTEGRATED=1", "weights read in place" },
    { "EMULATOR_INTEGRATED=1 EMULATOR_FAIL=cuMemHostRegister_v2", "weights uploaded" },
}) do
    code, out, err = run(case[1])
    tap.ok(code == 0 and out == ids and err:find(case[2], 1, true), "shared memory: " .. case[2],
        err)
end
tap.ok(copied:find("weights uploaded", 1, true), "memory of its own: weights uploaded", copied)

-- A pack that is uploaded in batches, to two places in turn: the same as read in place.
local large = build.generate_spec([[return { name = "large", model_type = "qwen2_parscale",
    hidden_size = 80, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 4,
    num_key_value_heads = 4, head_dim = 64, vocab_size = 50, parscale_n = 2,
    parscale_n_tokens = 4096, rms_norm_eps = 1e-6, rope_theta = 10000.0,
    tie_word_embeddings = true, max_position_embeddings = 16 }]], "large")
build.pack(large, 1)
emulated.emulator(large, 2)
local large_engine = build.engine(large, "-std=c11 -O1")
local scores = {}
for i, environment in ipairs({ "", "EMULATOR_INTEGRATED=1" }) do
    code, scores[i], err = build.shell("%s '%s' score --ids '1 2' --top 3 -t 3 --device cuda",
        emulated.environment({ out = large }, environment), large_engine)
    tap.ok(code == 0 and err:find(i == 1 and "weights uploaded" or "read in place", 1, true),
        ("a pack of %d bytes"):format(lfs.attributes(large .. "/model.psc", "size")), err)
end
tap.is(scores[1], scores[2], "batch by batch: uploaded whole")

for _, case in ipairs({
    { "weights", "cuMemAlloc_v2 EMULATOR_FAIL_AT=0", "weights", "asked for" },
    { "caches", "cuMemAlloc_v2 EMULATOR_FAIL_AT=1", "caches", "asked for" },
    { "activations", "cuMemAlloc_v2 EMULATOR_FAIL_AT=2", "activations", "asked for" },
    { "the graph", "cuGraphInstantiateWithFlags EMULATOR_FULL=1", "graph", "free" },
}) do
    local name, environment, part, word = table.unpack(case)
    code, _, err = run("EMULATOR_FAIL=" .. environment)
    tap.ok(code == 4 and is_line(err) and err:find(part, 1, true) and err:find(word, 1, true)
        and err:find("free", 1, true), "no memory for " .. name, err)
end

-- ---- a start that is killed --------------------------------------------------------------------

-- write and renameat as a kill sees them: half of the cubin is written, or the rename is not done.
local killer = build.write("killer.c", [[
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

ssize_t write(int file, const void *data, size_t bytes) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (file > 2 && bytes == 8 && getenv("KILL_WRITE")) {
        real(file, data, 4);
        raise(SIGKILL);
    }
    return real(file, data, bytes);
}

int renameat(int from, const char *old, int to, const char *new) {
    (void)from, (void)old, (void)to, (void)new;
    raise(SIGKILL);
    return -1;
}
]])
build.must("%s -shared -fPIC -o '%s' '%s' -ldl", build.cc, build.path("killer.so"), killer)
local cache = build.path(".cache/parscale")

local function entries()
    local whole, parts = {}, 0
    for name in lfs.dir(cache) do
        if #name == 32 then whole[#whole + 1] = name end
        if name:find("%.part$") then parts = parts + 1 end
    end
    return whole, parts
end

for _, when in ipairs({ "KILL_WRITE=1", "KILL_RENAME=1" }) do
    build.must("rm -rf '%s'", cache)
    code = build.shell("(%s LD_PRELOAD='%s' %s '%s' generate --ids 1 -n 1 --print-ids "
        .. "--device cuda)", emulated.environment(model), build.path("killer.so"), when, engine)
    local whole, parts = entries()
    tap.ok(code == 137 and #whole == 0 and parts >= 1, "killed at " .. when .. ": no entry", code)
    code, _, err = run("EMULATOR_SEED=2")
    whole = entries()
    tap.ok(code == 0 and #whole == MODULES and err:find("kernels compiled", 1, true),
        "the next start compiles the kernels and keeps them", err)
    code, _, err = run("EMULATOR_FAIL=nvrtcCompileProgram")
    tap.ok(code == 0 and err:find("kernels cached", 1, true), "and the one after has them", err)
end
build.done()
