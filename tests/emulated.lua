-- For tests that run an engine on the emulated GPU (tests/emulator): an engine and its emulator in
-- one folder. Relies on build.lua and a C++ compiler.

local build = require("build")
local golden = require("golden")
local safetensors = require("codegen.safetensors")

local M = {}

-- The P that a golden folder's expected values are of.
local function streams_of(folder)
    local weights = safetensors.open(folder .. "/expected.safetensors").tensors.aggregate_weights
    return weights and weights.shape[2] or 1
end

-- The emulator with the kernels of `folder`, there: the driver and, unless it is left out, NVRTC.
function M.emulator(folder, streams)
    build.must("c++ -std=c++17 -O2 -fPIC -shared -include '%stests/emulator/device.h' -DSTREAMS=%d "
        .. "-DENGINE_CU='\"%s/engine.cu\"' -o '%s/libcuda.so.1' '%stests/emulator/emulator.cc' "
        .. "'%stests/emulator/driver.cc'", build.root, streams, folder, folder, build.root,
        build.root)
    build.must("ln -sf libcuda.so.1 '%s/libnvrtc.so.13'", folder)
end

-- Engine, pack, emulator and expected values of a golden folder; `arguments`: for the generator.
function M.golden(path, arguments)
    local model = { out = build.generate(("--from '%s' %s"):format(path, arguments or "")),
                    streams = streams_of(path) }
    build.pack(model.out)
    M.emulator(model.out, model.streams)
    model.expected = build.write("expected", golden.expected_bytes(path))
    return model
end

-- The command line's start: the emulator instead of a GPU, with this in its environment.
function M.environment(model, environment)
    return ("export HOME='%s' LD_LIBRARY_PATH='%s' %s;"):format(build.scratch, model.out,
        environment or "")
end

return M
