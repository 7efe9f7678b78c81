#!/usr/bin/env lua5.4
-- Kernels compiled ahead of time: NVRTC has no complaint and what spills is bounded;
-- an engine takes its embedded kernels where they run, and needs no NVRTC then. The modules that an
-- engine compiles where it runs have the kernels that it looks for in them.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local golden = require("golden")
local tap = require("tap")

local ARCHITECTURES = "80 87 90 100 110 120"
local KERNELS = 14 -- of an engine

-- ---- what NVRTC says ---------------------------------------------------------------------------

local cubin = build.path("cubin")
build.must("%s -std=c11 -O1 -D_GNU_SOURCE -o '%s' '%scodegen/cubin.c' -ldl", build.cc, cubin,
    build.root)
local nvrtc = build.must("'%scodegen/find_nvrtc.sh' '%sout/nvrtc'", build.root, build.root)
    :match("[^\n]+")

-- Every kernel of a report, for each architecture and P in it: sm, kernel, registers, spilled.
local function kernels(report)
    return report:gmatch("\n| sm_(%d+), P = %d+: (%S+) | (%d+) | %d+ | (%d+) |")
end

-- allowed: bytes of registers that a kernel may spill.
local function compiled(name, text, architectures, allowed)
    allowed = allowed or 0
    local spec = build.write(name .. ".lua", ([[return { name = "%s", rms_norm_eps = 1e-6,
        rope_theta = 10000, tie_word_embeddings = true, max_position_embeddings = 2048, %s }]])
        :format(name, text))
    local code, out, err = build.shell("lua5.4 '%scodegen/main.lua' --out '%s' --from random "
        .. "--spec '%s' --sm '%s' --cubin '%s' --nvrtc '%s'", build.root, build.path("models"),
        spec, architectures, cubin, nvrtc)
    tap.ok(code == 0, name .. ": NVRTC has no complaint", err)
    if code ~= 0 then return end
    local count, spilled = {}, {}
    for sm, kernel, registers, bytes in kernels(build.read(out:match("[^\n]+") .. "/report.md")) do
        count[sm] = (count[sm] or 0) + (tonumber(registers) > 0 and 1 or 0)
        if tonumber(bytes) > allowed then
            spilled[#spilled + 1] = ("sm_%s %s %s"):format(sm, kernel, bytes)
        end
    end
    for sm in architectures:gmatch("%d+") do
        tap.is(count[sm], KERNELS, ("%s: all kernels of sm_%s are told"):format(name, sm))
    end
    tap.is(table.concat(spilled, ", "), "",
        ("%s: nothing spills more than %d bytes"):format(name, allowed))
end

compiled("1.8B", [[model_type = "qwen2_parscale", hidden_size = 1536, intermediate_size = 8320,
    num_hidden_layers = 36, num_attention_heads = 16, num_key_value_heads = 2,
    vocab_size = 151936, parscale_n = 8]], ARCHITECTURES)
for _, case in ipairs({
    { "int8", 8, 'weight_dtype = "int8"' },
    { "int4", 8, 'weight_dtype = "int4"' },
    { "int4-p4", 4, 'weight_dtype = "int4"' }, -- rows of tiles that are multiplied together
    { "int8-cache", 8, 'cache_dtype = "int8"' },
}) do
    local name, P, dtype = table.unpack(case)
    compiled("1.8B-" .. name, ([[model_type = "qwen2_parscale", hidden_size = 1536,
        intermediate_size = 8320, num_hidden_layers = 36, num_attention_heads = 16,
        num_key_value_heads = 2, vocab_size = 151936, parscale_n = %d, %s]]):format(P, dtype),
        "80 90")
end
compiled("SmolLM2", [[model_type = "llama", hidden_size = 576, intermediate_size = 1536,
    num_hidden_layers = 30, num_attention_heads = 9, num_key_value_heads = 3, head_dim = 64,
    vocab_size = 49152, parscale_n = 4]], ARCHITECTURES)
compiled("p16", [[model_type = "qwen2_parscale", hidden_size = 144, intermediate_size = 200,
    num_hidden_layers = 3, num_attention_heads = 9, num_key_value_heads = 1, head_dim = 16,
    vocab_size = 301, parscale_n = 16]], "80 120")
compiled("hd256", [[model_type = "qwen2_parscale", hidden_size = 128, intermediate_size = 72,
    num_hidden_layers = 3, num_attention_heads = 2, num_key_value_heads = 2, head_dim = 256,
    vocab_size = 100, parscale_n = 9]], "80 120", 384) -- attention alone takes 200 registers

-- What templates/gpu.c expects: { "KERNEL", MODULE }. An engine with an int8 cache has all of them.
local whole = build.generate_spec([[return { name = "whole", model_type = "llama",
    hidden_size = 576, intermediate_size = 1536, num_hidden_layers = 30, num_attention_heads = 9,
    num_key_value_heads = 3, head_dim = 64, vocab_size = 49152, rms_norm_eps = 1e-5,
    rope_theta = 10000, tie_word_embeddings = true, max_position_embeddings = 2048,
    parscale_n = 4, cache_dtype = "int8" }]], "whole")
local expected = {}
for kernel, module in build.read(build.root .. "templates/gpu.c"):gmatch('{"([%w_]+)", (%d)},') do
    expected[module] = (expected[module] or "") .. " " .. kernel
end
local function sorted(words)
    local list = {}
    for word in words:gmatch("%S+") do list[#list + 1] = word end
    table.sort(list)
    return table.concat(list, " ")
end
for module = 0, 4 do
    local cu = build.write("module.cu", ("#define MODULES %d\n"):format(1 << module)
        .. "#pragma nv_diag_suppress 177\n" -- functions that other modules need
        .. build.read(whole .. "/engine.cu"))
    local report = build.must("LD_LIBRARY_PATH='%s' '%s' '%s' '%s' 90 4 232448 '%s'", nvrtc, cubin,
        nvrtc, cu, build.path("module.cubin"))
    tap.is(sorted(report:gsub("%d[%d ]*\n", " ")), sorted(expected[tostring(module)] or ""),
        ("module %d: it compiles, and has its kernels"):format(module))
end

local function refused(name, sm, part)
    build.fails(2, name, ("lua5.4 '%scodegen/main.lua' --from '%s' --out '%s' --sm '%s' --cubin "
        .. "false"):format(build.root, golden.folder("p1-hd64-bf16"), build.path("models"), sm),
        part)
end
refused("an architecture that is too old", "75", "75")
refused("an architecture that is none", "x", "--sm")
refused("a compiler that fails", "90", "sm_90")

-- ---- what the engine takes ---------------------------------------------------------------------

-- A compiler for the emulated driver, and a library without NVRTC's functions in NVRTC's place.
local fake = build.write("fake", "#!/bin/sh\nprintf EMULATED >\"$6\"\necho 'embed 30 0 0'\n")
build.must("chmod +x '%s'", fake)
local model = emulated.golden(golden.folder("p3-hd16-odd-bf16"),
    ("--sm '87 90' --cubin '%s'"):format(fake), "-DSHARED_BYTES=166912") -- as sm_87 has it
build.must("rm '%s/libnvrtc.so.13'; echo | %s -shared -fPIC -xc - -o '%s/libnvrtc.so.13'",
    model.out, build.cc, model.out)
local engine = build.engine(model.out, "-std=c11 -O1")

local function run(environment)
    return build.shell("%s '%s' generate --ids '1 2 3' -n 2 --temp 0 --print-ids --device cuda",
        emulated.environment(model, environment), engine)
end

local info = build.must("'%s' info", engine)
tap.ok(info:find("gpu_kernels +embedded for sm_87 sm_90, which need no NVRTC"),
    "info tells what is embedded", info)
for _, case in ipairs({
    { "its own architecture", "EMULATOR_SM=87", true },
    { "a newer one of the same generation", "EMULATOR_SM=89", true },
    { "an older one of the same generation", "EMULATOR_SM=86", false },
    { "another generation", "EMULATOR_SM=100", false },
    { "less shared memory than the kernels take", "EMULATOR_SM=89 EMULATOR_SHARED=101376", false },
}) do
    local name, environment, runs = table.unpack(case)
    local code, _, err = run(environment)
    if runs then
        tap.ok(code == 0 and err:find("kernels embedded", 1, true), name .. ": embedded", err)
    else
        tap.ok(code == 7 and err:find("NVRTC", 1, true) and select(2, err:gsub("\n", "")) == 1,
            name .. ": NVRTC is needed, and is not there", err)
    end
end
build.done()
