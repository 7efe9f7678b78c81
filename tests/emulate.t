#!/usr/bin/env lua5.4
-- The CUDA kernels without a GPU: engine.cu, compiled as C++ for the emulator in tests/emulator,
-- runs golden models through the engine's own host code, whose driver the emulator is. Warps and
-- blocks are scheduled at random; a missing wait, a read of what nobody wrote or an address out of
-- range ends the program.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local golden = require("golden")
local tap = require("tap")

local KL = 3e-4
local MODELS = { ["p1-hd64-bf16"] = 1, ["p2-hd56-f32"] = 2, ["p3-hd16-odd-bf16"] = 3 }
local names = { "p1-hd64-bf16", "p2-hd56-f32", "p3-hd16-odd-bf16" }
local spec = build.write("cuda.lua", 'return { backends = "cpu+cuda" }\n')

-- Builds the emulator with an engine's kernels as libcuda.so.1; it is the compiler too.
local function emulator(folder, streams)
    build.must("g++ -std=c++17 -O2 -fPIC -shared -include '%semulator/device.h' -DSTREAMS=%d "
        .. "-DENGINE_CU='\"%s/engine.cu\"' -o '%s/libcuda.so.1' '%semulator/emulator.cc' "
        .. "'%semulator/driver.cc' && ln -sf libcuda.so.1 '%s/libnvrtc.so.13'", build.here, streams,
        folder, folder, build.here, build.here, folder)
end

for _, name in ipairs(names) do
    local folder = build.generate(("--from %s --spec '%s'"):format(golden.folder(name), spec))
    build.pack(folder)
    emulator(folder, MODELS[name])
    local harness = build.harness(folder, "golden_harness")
    local code, out, err = build.shell("LD_LIBRARY_PATH='%s' '%s' '%s/model.psc' cuda '%s'", folder,
        harness, folder, golden.expected(name))
    local found, text = build.values(out), out .. err
    tap.ok(code == 0 and found.kl <= KL, ("%s: KL of prefill %.2g"):format(name, found.kl or -1),
        text)
    tap.ok(code == 0 and found.decodekl <= KL,
        ("%s: KL of decode %.2g"):format(name, found.decodekl or -1), text)
end
build.done()
