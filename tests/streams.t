#!/usr/bin/env lua5.4
-- P chosen at each request: SmolLM2's engine for P = 1, 2, 4 and 8 against an engine made for each
-- P alone, every logit bit for bit; what its pack holds; /streams in a chat. ENGINE_DIR names that
-- engine's folder (`make demo-model`), PARSCALE_GGUF its backbone, beside which the adapters lie.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local lfs = require("lfs")

local tap = require("tap")
local folder, gguf = tap.needs("ENGINE_DIR", "PARSCALE_GGUF")
local build = require("build")

local STREAMS = { 1, 2, 4, 8 }
local TOKENS = 8
local SECTION = 4096 -- each part of a pack starts at a multiple of it
local native = build.cc:find("aarch64") and "" or " -march=native"
local FLAGS = build.flags .. native

local engine = "'" .. folder .. "/engine'"

local function info(arguments)
    return cjson.decode((build.must("%s info --json %s", engine, arguments)))
end

local function adapter_file(P)
    return ("%s/adapter_p%d.safetensors"):format(gguf:match("^(.*)/") or ".", P)
end

-- ---- the engines -------------------------------------------------------------------------------

local ids = build.path("ids")
build.must("'%s/engine' tokenize -f '%sdata/smollm2/heldout.py' | cut -d' ' -f1-%d >'%s'", folder,
    here, TOKENS, ids)

-- What the engine in `where` computes: P -> line of digests, and its line of sizes.
local function digests(harness, where, path, order)
    local out = build.must("'%s' '%s/model.psc' %s %s <'%s'", harness, where, path,
        table.concat(order, " "), ids)
    local lines = {}
    for P, line in out:gmatch("(%d+) ([^\n]+)\n") do
        lines[tonumber(P)] = line
    end
    return lines, out:match("^[^\n]+")
end

local there = info("")
local PATHS = { "plain", there.isa } -- and the fastest
local shared = {}
do
    local harness = build.harness(folder, "streams_harness", FLAGS)
    for _, path in ipairs(PATHS) do
        shared[path] = digests(harness, folder, path, { 8, 4, 2, 1 })
    end
end

-- The sizes of the engine for P alone.
local function test_alone(P)
    local own = build.generate(("--from '%s' --name p%d %s"):format(gguf, P,
        P > 1 and "--adapter " .. build.quote(adapter_file(P)) or ""))
    build.pack(own)
    local harness, sizes = build.harness(own, "streams_harness", FLAGS), nil
    for _, path in ipairs(PATHS) do
        local found
        found, sizes = digests(harness, own, path, { P })
        local scored, decoded, switched = shared[path][P]:match("(%S+) (%S+) (%S+)")
        tap.is(scored .. " " .. decoded .. " -", found[P],
            ("P = %d, %s: the logits of an engine of its own"):format(P, path))
        tap.is(switched, P == 8 and "-" or decoded,
            ("P = %d, %s: a conversation that changes to it"):format(P, path))
    end
    os.execute("rm -r " .. build.quote(own)) -- 270 MB
    return sizes
end

-- ---- the pack ----------------------------------------------------------------------------------

local grown, alone = 0, {}
for i, P in ipairs(STREAMS) do
    local adapter, sizes = there.adapters[i], test_alone(P)
    alone[P] = build.values(sizes)
    grown = grown + (adapter.bytes + SECTION - 1) // SECTION * SECTION
    tap.ok(adapter.parscale_n == P and adapter.parscale_n_tokens == (P > 1 and 48 or 0)
        and (adapter.bytes > 0) == (P > 1), ("info lists the adapter of P = %d"):format(P))
    tap.ok(alone[P].bytes == adapter.bytes
        and (P == 1 or sizes:match("digest=(%x+)") == adapter.digest),
        ("P = %d: the adapter is that of an engine of its own"):format(P))
    if P > 1 then -- bf16, as in the checkpoint's file, but for the biases and what fills up tiles
        local stored = lfs.attributes(adapter_file(P), "size")
        tap.ok(math.abs(adapter.bytes - stored) < 20000,
            ("P = %d: %d bytes in the pack, %d in its file"):format(P, adapter.bytes, stored))
    end
    local with = info("--streams " .. P)
    tap.ok(with.parscale_n == P and with.kv_bytes_position == alone[P].position
        and with.cache_bytes == there.cache_bytes,
        ("--streams %d: the cache of the largest P, a position of P = %d"):format(P, P))
end
tap.is(there.pack_bytes - alone[1].pack, grown, "the pack grows by the adapters only")
tap.is(there.cache_bytes, alone[8].cache, "the cache is that of the largest P")

-- ---- the command line --------------------------------------------------------------------------

for _, case in ipairs({ "generate -p x -n 1", "score -p 'x y'", "bench -p 1 -n 0", "info",
    "chat </dev/null" }) do
    build.fails(2, "P = 3: " .. case, engine .. " " .. case .. " --streams 3", "P = 3",
        "expected one of 1, 2, 4, 8")
end
for i, P in ipairs(STREAMS) do -- the mean of 1 to 4 positions
    local row = cjson.decode((build.must("%s bench -p 0 -n 4 -r 1 -o json --streams %d", engine,
        P)))[1]
    tap.ok(row.streams == P and row.bytes_token == there.weight_bytes + there.adapters[i].bytes
        + 2.5 * alone[P].position, ("bench --streams %d"):format(P))
end

-- A chat that changes P says what it would have said with that P and the same turns before it.
local function chat(turns, arguments)
    local out, err = build.must("%s chat --temp 0 -n 12 %s <'%s'", engine, arguments or "",
        build.write("turns", turns))
    return out, err
end
local QUESTION = "Name a colour.\n"
local first = chat(QUESTION, "--streams 8")
tap.is(chat("/streams 2\n" .. QUESTION), chat(QUESTION, "--streams 2"),
    "/streams before the first turn is --streams")
tap.is(chat("/streams 0\n" .. QUESTION, "--streams 1"), first, "/streams 0 is the largest P")
local both, err = chat(QUESTION .. "/streams 2\nAnother?\n")
local prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    .. "Hugging Face<|im_end|>\n<|im_start|>user\n" .. QUESTION:sub(1, -2)
    .. "<|im_end|>\n<|im_start|>assistant\n" .. first:sub(1, -2)
    .. "<|im_end|>\n<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\n"
local second = build.must("%s generate --streams 2 --temp 0 -n 12 -f '%s'", engine,
    build.write("prompt", prompt))
tap.is(both, first .. second:gsub("\n$", "") .. "\n", "/streams between turns keeps the turns")
tap.ok(err:find("streams: 2\n", 1, true), "/streams says so", err)
for _, case in ipairs({ { "3", "expected one of 1, 2, 4, 8" }, { "x", "/streams: found 'x'" },
    { "", "/streams: found ''" }, { "99999999999", "/streams: found" } }) do
    build.fails(2, ("/streams '%s'"):format(case[1]), ("printf '/streams %s\\n' | %s chat"):format(
        case[1], engine), case[2])
end
build.done()
