#!/usr/bin/env lua5.4
-- P chosen at each request on the emulated GPU: a small engine for P = 1 and 3 against an engine
-- for each alone, every logit bit for bit; a conversation that changes P; a P without kernels.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local make = require("checkpoints")
local tap = require("tap")

local IDS = "1 2 3 5 8 13 21 34 55 63"

local backbone = make.folder(build.path("backbone"), { model_type = "qwen2" })
make.write(backbone .. "/model.safetensors", make.random_safetensors(make.backbone_tensors(), 1))
local adapter = make.write(build.path("p3.safetensors"),
    make.random_safetensors(make.adapter_tensors(3, 5), 2))

local ids = build.write("ids", IDS)

-- An engine for `list`, its pack and its harness; the emulator with the kernels of one P.
local function prepare(name, list, streams)
    local spec = build.write(name .. ".lua", ("return { name = '%s', parscale_n = { %s }, "
        .. "backends = 'cpu+cuda' }"):format(name, table.concat(list, ", ")))
    local adapters = list[#list] > 1 and "--adapter " .. build.quote(adapter) or ""
    local model = { out = build.generate(("--from '%s' %s --spec '%s'"):format(backbone, adapters,
        spec)) }
    build.pack(model.out)
    emulated.emulator(model.out, streams)
    model.harness = model.out .. "/streams_harness"
    build.must("mv '%s' '%s'", build.harness(model.out, "streams_harness", "-std=c11 -O1"),
        model.harness)
    return model
end

-- P -> line of digests.
local function digests(model, path, order, environment)
    local out = build.must("%s '%s' '%s/model.psc' %s %s <'%s'", emulated.environment(model,
        environment), model.harness, model.out, path, order, ids)
    local lines = {}
    for P, line in out:gmatch("(%d+) ([^\n]+)\n") do
        lines[tonumber(P)] = line
    end
    return lines
end

local both = prepare("both", { 1, 3 }, 3)
build.fails(1, "kernels of P = 1 that cannot be had", ("%s '%s' '%s/model.psc' cuda 3 1 <'%s' "
    .. ">/dev/null"):format(emulated.environment(both), both.harness, both.out, ids), "NVRTC")
emulated.other_streams(both.out, 1)
local found, back = digests(both, "cuda", "1 3"), digests(both, "cuda", "3 1")
local cpu = digests(both, "plain", "3 1")
for _, P in ipairs({ 1, 3 }) do
    local alone = prepare("p" .. P, { P }, P)
    local own = digests(alone, "cuda", tostring(P))[P]:match("^%S+ %S+")
    tap.is(found[P]:match("^%S+ %S+"), own,
        ("P = %d: the logits of an engine of its own"):format(P))
    tap.is(back[P]:match("^%S+ %S+"), own, ("P = %d: in the other order too"):format(P))
    local changed = (P == 3 and found or back)[P]:match("(%S+)$")
    tap.is(changed, own:match("(%S+)$"), ("P = %d: a conversation that changes to it"):format(P))
    tap.ok(own ~= cpu[P]:match("^%S+ %S+"), ("P = %d: it is the GPU that computes"):format(P))
end
tap.ok(found[1] ~= found[3], "another P computes something else")
build.done()
