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

local CXX = "g++ -std=c++17 -g1 -fPIC"
-- The kernels' accesses to memory become calls of the emulator.
local KERNELS = "-fsanitize=thread --param tsan-instrument-func-entry-exit=0"

local objects -- the emulator without kernels, compiled once

local function compile_emulator()
    objects = {}
    for i, name in ipairs({ "emulator", "cooperative", "memory", "driver" }) do
        objects[i] = build.path(name .. ".o")
        build.must("%s -O3 -Wall -Wextra -Werror -c -o '%s' '%stests/emulator/%s.cc'", CXX,
            objects[i], build.root, name)
    end
    objects = "'" .. table.concat(objects, "' '") .. "'"
end

-- Compiles CUDA C for the emulator. Returns the object's path.
function M.kernels(source, cu, defines)
    local object = build.path("kernels.o")
    build.must("%s -O2 %s -include '%stests/emulator/device.h' -DENGINE_CU='\"%s\"' %s -c -o '%s' "
        .. "'%stests/emulator/%s'", CXX, KERNELS, build.root, cu, defines or "", object, build.root,
        source)
    return object
end

-- A program or, as `flags` say, a library of the emulator and an object with kernels.
function M.link(object, path, flags)
    if not objects then compile_emulator() end
    build.must("g++ %s -o '%s' '%s' %s -ldl", flags or "", path, object, objects)
end

-- The emulator with the kernels of `folder` (or of `cu`), there: the driver and NVRTC.
function M.emulator(folder, streams, defines, cu)
    local object = M.kernels("kernels.cc", cu or folder .. "/engine.cu",
        ("-DSTREAMS=%d %s"):format(streams, defines or ""))
    M.link(object, folder .. "/libcuda.so.1", "-shared")
    build.must("ln -sf libcuda.so.1 '%s/libnvrtc.so.13'", folder)
end

-- Kernels of another P, beside the emulator of `folder`.
function M.other_streams(folder, streams)
    local object = M.kernels("kernels.cc", folder .. "/engine.cu", "-DSTREAMS=" .. streams)
    build.must("g++ -shared -Wl,-Bsymbolic -o '%s/libkernels_p%d.so' '%s' '%s/libcuda.so.1'",
        folder, streams, object, folder)
end

-- Engine, pack, emulator and expected values of a golden folder. `arguments`: for the generator,
-- `defines`: for the kernels.
function M.golden(path, arguments, defines)
    local model = { out = build.generate(("--from '%s' %s"):format(path, arguments or "")),
                    streams = streams_of(path) }
    build.pack(model.out)
    M.emulator(model.out, model.streams, defines)
    model.expected = model.out .. "/expected"
    local file = assert(io.open(model.expected, "wb"))
    file:write(golden.expected_bytes(path))
    file:close()
    return model
end

-- The command line's start: the emulator instead of a GPU, with this in its environment.
function M.environment(model, environment)
    return ("export HOME='%s' LD_LIBRARY_PATH='%s' %s;"):format(build.scratch, model.out,
        environment or "")
end

-- Runs shell commands, two at a time. Returns for each its exit code and what it wrote.
function M.run_all(commands)
    local list, results = {}, {}
    for i, command in ipairs(commands) do
        list[i] = ("'%s'\n"):format(build.write("job" .. i, ("{ %s\n} >'%s' 2>&1; echo $? >'%s'")
            :format(command, build.path("job" .. i .. ".out"), build.path("job" .. i .. ".code"))))
    end
    build.must("xargs -P 2 -n 1 sh <'%s'", build.write("jobs", table.concat(list)))
    for i in ipairs(commands) do
        results[i] = { code = tonumber(build.read(build.path("job" .. i .. ".code"))),
                       text = build.read(build.path("job" .. i .. ".out")) }
    end
    return results
end

return M
