#!/usr/bin/env lua5.4
-- The models of model_specs/: parameters as published, an engine of each size and each P, names
-- that are looked up or refused, and specs that do not fit a checkpoint.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local make = require("checkpoints")
local tap = require("tap")

local checkpoint = require("codegen.checkpoint")
local models = require("codegen.models")
local plan = require("codegen.plan")
local spec = require("codegen.spec")

local FOLDER = build.root .. "model_specs"
local STREAMS = { 1, 2, 4, 8 }

-- Parameters outside the embedding, P = 1, 2, 4, 8, as published with arXiv 2505.10475.
local PUBLISHED = {
    ["0.7B"] = { 535813376, 538195842, 540577412, 545340552 },
    ["0.9B"] = { 693753856, 696738818, 699722756, 705690632 },
    ["1.3B"] = { 1088376320, 1092762882, 1097148164, 1105918728 },
    ["1.8B"] = { 1571472384, 1577522690, 1583571460, 1595669000 },
    ["3B"] = { 2774773760, 2784937986, 2795100164, 2815424520 },
    ["4.7B"] = { 4353203200, 4368529922, 4383854084, 4414502408 },
}
local SIZES = { "0.7B", "0.9B", "1.3B", "1.8B", "3B", "4.7B" }

-- The published names.
local function published_names()
    local names = {}
    for _, P in ipairs(STREAMS) do
        for _, corpus in ipairs({ "Python", "Pile" }) do
            for _, size in ipairs(SIZES) do
                names[#names + 1] = ("ParScale-%s-P%d-%s"):format(size, P, corpus)
            end
            names[#names + 1] = ("ParScale-QwenInit-3B-P%d-%s"):format(P, corpus)
        end
        names[#names + 1] = ("ParScale-1.8B-P%d"):format(P)
        names[#names + 1] = ("ParScale-1.8B-P%d-Inst"):format(P)
        names[#names + 1] = P > 1 and ("ParScale-Qwen-3B-P%d-Python"):format(P) or nil
    end
    return names
end

-- ---- what they are -----------------------------------------------------------------------------

local all = models.all(FOLDER)
local names, unknown = published_names(), {}
for _, name in ipairs(names) do
    unknown[#unknown + 1] = not all[name] and name or nil
end
tap.ok(#names == 67 and #unknown == 0, "the 67 published checkpoints have specs",
    table.concat(unknown, ", "))
tap.ok(all["SmolLM2-135M"], "SmolLM2-135M has one")

-- The row of `make specs`: parameters, those outside the embedding, bytes, bytes read, KV bytes.
local list = build.must("lua5.4 '%scodegen/specs.lua'", build.root)
local function row(name)
    local numbers = {}
    for number in list:match("\n" .. name:gsub("%p", "%%%0") .. "( [ %d]+)\n"):gmatch("%d+") do
        numbers[#numbers + 1] = math.tointeger(tonumber(number))
    end
    return numbers
end

for _, size in ipairs(SIZES) do
    local found = {}
    for i, P in ipairs(STREAMS) do
        found[i] = row(("ParScale-%s-P%d-Pile"):format(size, P))[2]
    end
    tap.is(table.concat(found, " "), table.concat(PUBLISHED[size], " "),
        size .. ": the published numbers of parameters")
end
do -- by hand: 151936 * 896 embeddings; 2 KV heads of 56, keys and values, bf16, 1 + 35 P layers
    local P1, P8 = row("ParScale-0.7B-P1-Python"), row("ParScale-0.7B-P8-Python")
    tap.ok(P1[1] == 535813376 + 151936 * 896 and P1[3] == 2 * P1[1]
        and P1[5] == 36 * 2 * 2 * 56 * 2 and P8[5] == (1 + 35 * 8) * 2 * 2 * 56 * 2,
        "make specs: parameters, bytes, KV bytes", list)
    -- Vectors are fp32 in the pack, tiles are filled up: hardly more than the parameters' bytes.
    tap.ok(P1[4] >= P1[3] and P1[4] < P1[3] * 1.001 and P8[4] > P1[4] and P8[4] < P8[3] * 1.002,
        "make specs: bytes a token", list)
    local seconds = build.processor_seconds("lua5.4 '%scodegen/specs.lua'", build.root)
    tap.ok(seconds < 2, ("make specs takes %.2f s"):format(seconds))
end

-- ---- an engine of each -------------------------------------------------------------------------

local cubin = build.path("cubin")
build.must("%s -std=c11 -D_GNU_SOURCE -O1 -o '%s' '%scodegen/cubin.c' -ldl", build.cc, cubin,
    build.root)
local nvrtc = build.must("'%scodegen/find_nvrtc.sh' '%sout/nvrtc'", build.root, build.root)
    :match("^[^\n]+")

-- For one architecture; cubins.t has all of them, for one of these models.
local function test_nvrtc(name, P, folder)
    local code, out, err = build.shell("'%s' '%s' '%s/engine.cu' 90 %d 232448 '%s'", cubin, nvrtc,
        folder, P, build.path("kernels"))
    local most = 0
    for bytes in out:gmatch("(%d+)\n") do
        most = math.max(most, tonumber(bytes))
    end
    tap.ok(code == 0 and out:find("decode_step") and most == 0,
        ("%s: NVRTC compiles engine.cu, nothing is spilled"):format(name),
        out .. err)
end

for _, size in ipairs(SIZES) do
    for _, P in ipairs(STREAMS) do
        local name = ("ParScale-%s-P%d-Python"):format(size, P)
        local command = ("lua5.4 '%scodegen/main.lua' --from random --spec %s --out '%s'"):format(
            build.root, name, build.path("models"))
        local folder = build.path("models/" .. name)
        local seconds = build.processor_seconds("%s", command)
        tap.ok(seconds < 1, ("%s: generated in %.2f s"):format(name, seconds))
        local code, _, err = build.shell("%s -std=c11 -O0 -Wall -Wextra -Werror -c -o '%s/engine.o'"
            .. " '%s/engine.c'", build.cc, folder, folder)
        tap.ok(code == 0, name .. ": engine.c compiles", err)
        test_nvrtc(name, P, folder)
    end
end

-- ---- names -------------------------------------------------------------------------------------

local function generates(name, arguments)
    local code, out, err = build.shell("lua5.4 '%scodegen/main.lua' --out '%s' %s", build.root,
        build.path("named"), arguments)
    tap.is(code == 0 and out or err, build.path("named") .. "/" .. name .. "\n", arguments)
    return build.path("named/") .. name
end

local function refused(name, arguments, ...)
    build.fails(2, name, ("lua5.4 '%scodegen/main.lua' --out '%s' %s"):format(build.root,
        build.path("refused"), arguments), ...)
end

generates("ParScale-1.8B-P4-Inst", "--from random --spec ParScale-1.8B-P4-Inst")
build.write("three.lua", "return { parscale_n = 3, name = 'three' }")
local three = generates("three", "--from random --spec ParScale-0.7B-P8-Pile --spec '"
    .. build.path("three.lua") .. "'")
tap.ok(build.read(three .. "/engine.c"):find("parscale_n = { 3 }", 1, true),
    "a spec is laid over those before it")
refused("an unknown name", "--from random --spec ParScale-1.8B-P4-Instruct",
    '"ParScale-1.8B-P4-Instruct"', "ParScale-1.8B-P4-Inst", "make specs")
refused("another spelling", "--from random --spec smollm2_135m", "SmolLM2-135M")
refused("a name of 100,000 letters", "--from random --spec " .. ("x"):rep(100000), '"xxx')
refused("an empty name", "--from random --spec ''", '""')
refused("a path that is not there", "--from random --spec ./ParScale-1.8B-P4", "No such file")

-- ---- specs and checkpoints ---------------------------------------------------------------------

-- A published checkpoint's config.json, as far as a spec goes, with one key changed: every key of
-- the spec is compared. (Weights of this shape need not exist for that.)
local published = all["ParScale-1.8B-P4-Inst"]
local OTHER = { -- what no check of a key alone refuses
    model_type = "llama", hidden_size = 896, intermediate_size = 4864, num_hidden_layers = 35,
    num_attention_heads = 8, num_key_value_heads = 4, head_dim = 64, vocab_size = 151935,
    rms_norm_eps = 1e-5, rope_theta = 1e6, tie_word_embeddings = false, attention_bias = false,
    max_position_embeddings = 32768, parscale_n = 8, parscale_n_tokens = 16,
    parscale_attn_smooth = 0.01,
}
for _, entry in ipairs(spec.schema) do
    local key = entry.key
    if OTHER[key] ~= nil then
        local config, wanted = {}, {}
        for k, value in pairs(published) do
            config[k], wanted[k] = value, value
        end
        config.name, config[key] = nil, OTHER[key]
        if key == "head_dim" or key == "attention_bias" then -- the spec says them by its defaults
            wanted[key] = key == "head_dim" and 96 or true
        end
        local ok, problem = pcall(spec.merge, config, wanted, "config.json", "SPEC")
        tap.ok(not ok and tostring(problem):find("^SPEC: " .. key .. ": found .*config.json has"),
            "another " .. key .. " is refused by that name", tostring(problem))
    elseif not (entry.ours or entry.override) then
        tap.is(key, "hidden_act", "a key with one value only")
    end
end

local function opened(changes)
    return checkpoint.open(make.folder(build.path("hf"), changes))
end
do
    local from = opened({ parscale_n = 4 })
    local ok, problem = pcall(spec.merge, from.spec, { parscale_attn_smooth = 0.2 }, from.where,
        "S")
    tap.ok(not ok and tostring(problem):find("parscale_attn_smooth: found 0.2", 1, true),
        "a spec is held against config.json", tostring(problem))
    local silent = opened({ parscale_n = 4, parscale_attn_smooth = require("cjson").null })
    ok, problem = pcall(spec.merge, silent.spec, { parscale_attn_smooth = 0.1 }, silent.where, "S")
    tap.ok(not ok and tostring(problem):find("has 0.01", 1, true),
        "what config.json does not say is its class's default", tostring(problem))
end
refused("a spec of another model", "--from '" .. build.path("hf")
    .. "' --spec ParScale-0.7B-P4-Pile", "ParScale-0.7B-P4-Pile: hidden_size: found 896",
    "hf/config.json has 32")

-- A plain Qwen2 backbone with an adapter becomes a qwen2_parscale.
do
    local merged = spec.merge({ model_type = "qwen2", parscale_n = { 2 } },
        { model_type = "qwen2_parscale", parscale_n = { 1, 2 }, parscale_attn_smooth = 0.1 },
        "c", "s")
    tap.ok(merged.model_type == "qwen2_parscale" and #merged.parscale_n == 2,
        "a backbone of plain qwen2 fits the specs of ParScale")
end

-- What is planned for several P: the backbone once, and each adapter as in an engine of its own.
do
    local shared = plan.make(spec.complete(all["ParScale-Qwen-3B-Python"], "s"))
    local single, extra = {}, 0
    for i, P in ipairs({ 2, 4, 8 }) do
        single[i] = plan.make(spec.complete(all[("ParScale-Qwen-3B-P%d-Python"):format(P)], "s"))
        tap.is(shared.adapters[i + 1].bytes, single[i].adapters[1].bytes,
            ("P = %d takes the same bytes in a pack of several P"):format(P))
        extra = extra + single[i].adapters[1].bytes
    end
    local grown = shared.weights_end - single[3].weights_end
    tap.ok(grown >= extra - single[3].adapters[1].bytes
        and grown < extra - single[3].adapters[1].bytes + 4 * 4096,
        ("three more P add %d bytes to the pack, their adapters"):format(grown))
    tap.is(shared.cache.bytes, single[3].cache.bytes, "one cache, for the largest P")
end
build.done()
