#!/usr/bin/env lua5.4
-- The CUDA kernels without a GPU: engine.cu of golden folders and of shapes that no folder has,
-- compiled as C++ under the emulator (tests/emulator), through the same host code. Then what the
-- host does when the driver fails, and its kernel cache.
--
-- Three small folders, or the one that EMULATE names.

local root = (arg[0]:match("^(.*)/[^/]*$") or ".") .. "/.."
package.path = root .. "/?.lua;" .. root .. "/tests/?.lua;" .. package.path

local lfs = require("lfs")
local safetensors = require("codegen.safetensors")
local tap = require("tap")

local KL_BAR = 3e-4        -- nats, mean over a golden prompt
local RANDOM_KL_BAR = 5e-4 -- the same, of random weights against the CPU

local scratch = os.tmpname()
os.remove(scratch)
assert(lfs.mkdir(scratch))

local function read(path)
    local file = io.open(path, "rb")
    if not file then return "" end
    local text = file:read("a")
    file:close()
    return text
end

local function write(path, text)
    local file = assert(io.open(path, "wb"))
    file:write(text)
    file:close()
end

-- Runs a shell command, a format, in the project's root: exit code, stdout, stderr.
local function shell(format, ...)
    local command = format:format(...)
    local _, how, code = os.execute(("{ cd '%s' && %s\n} >%s/out 2>%s/err </dev/null"):format(root,
        command, scratch, scratch))
    return how == "exit" and code or 1000 + code, read(scratch .. "/out"), read(scratch .. "/err")
end

local function must(format, ...)
    local code, _, err = shell(format, ...)
    if code ~= 0 then error(format:format(...) .. ": " .. err) end
end

-- The emulator with the kernels of `out`, as driver and compiler in `folder`.
local function build_emulator(out, folder, streams, options)
    must("c++ -std=c++17 -O2 -fPIC -shared -include tests/emulator/device.h -DSTREAMS=%d %s "
        .. "-DENGINE_CU='\"%s/engine.cu\"' -o %s/libcuda.so.1 tests/emulator/emulator.cc "
        .. "tests/emulator/driver.cc", streams, options, out, folder)
    must("ln -sf libcuda.so.1 %s/libnvrtc.so.13", folder)
end

-- Engine, pack and emulator of a golden folder.
local function build(name)
    local golden = "tests/data/golden/" .. name
    local out = scratch .. "/" .. name
    write(scratch .. "/cuda.lua", 'return { backends = "cpu+cuda" }\n')
    must("lua5.4 codegen/main.lua --from %s --out %s --spec %s/cuda.lua", golden, scratch, scratch)
    must("cc -O1 -o %s/pack %s/pack.c -lm -pthread", out, out)
    must("%s/pack %s/pack.job", out, out)
    must("cc -std=c11 -O1 -DPARSCALE_NO_MAIN -o %s/golden tests/golden_harness.c %s/engine.c "
        .. "-lm -pthread -ldl", out, out)
    local tensors = safetensors.open(root .. "/" .. golden .. "/expected.safetensors").tensors
    local weights = tensors.aggregate_weights
    local streams = weights and weights.shape[2] or 1
    build_emulator(out, out, streams, "")
    must("lua5.4 tests/gpu_expected.lua %s >%s/expected", golden, out)
    return { name = name, out = out, streams = streams }
end

-- The comparison of one folder; `environment` is for the emulator. Returns its line and its values.
local function compare(model, environment)
    local code, out, err = shell("export LD_LIBRARY_PATH=%s %s; %s/golden %s/model.psc cuda "
        .. "%s/expected", model.out, environment, model.out, model.out, model.out)
    local values = {}
    for key, value in out:gmatch("([%w_]+)=(%S+)") do values[key] = tonumber(value) end
    return code == 0 and out or err, values
end

local function golden_tests(model)
    local line, values = compare(model, "")
    tap.ok(values.kl and values.kl <= KL_BAR, model.name .. ": prefill's mean KL", line)
    tap.ok(values.decodekl and values.decodekl <= KL_BAR, model.name .. ": decode's mean KL",
        line)
    return line
end

local function schedule_tests(model, line)
    for _, seed in ipairs({ 2, 3 }) do
        local other = compare(model, "EMULATOR_SEED=" .. seed)
        tap.is(other, line, ("%s: the same in another order of blocks and warps, %d")
            :format(model.name, seed))
    end
    local small = scratch .. "/small"
    lfs.mkdir(small)
    build_emulator(model.out, small, model.streams, "-DWARP_RING_BYTES=8192")
    local _, values = compare(model, "LD_LIBRARY_PATH=" .. small .. " EMULATOR_SHARED=101376")
    tap.ok(values.decodekl and values.decodekl <= KL_BAR,
        model.name .. ": decode's mean KL where there is little shared memory")
    _, values = compare(model, "EMULATOR_MULTIPROCESSORS=1 EMULATOR_SM=80")
    tap.ok(values.decodekl and values.decodekl <= KL_BAR,
        model.name .. ": decode's mean KL on one multiprocessor")
end

-- A shape with random weights; `text` completes its spec.
local function generate_random(shape)
    shape.out = scratch .. "/" .. shape.name
    write(shape.out .. ".lua", ("return { name = %q, backends = 'cpu+cuda', rms_norm_eps = 1e-6, "
        .. "rope_theta = 10000.0, parscale_attn_smooth = 0.1, weight_dtype = 'bf16', %s }")
        :format(shape.name, shape.text))
    must("lua5.4 codegen/main.lua --from random --spec %s.lua --out %s", shape.out, scratch)
end

-- Shapes that no golden folder has, against the CPU.
local SHAPES = {
    { name = "p16-heads9", streams = 16, text = [[model_type = "qwen2_parscale", hidden_size = 144,
        intermediate_size = 200, num_hidden_layers = 3, num_attention_heads = 9,
        num_key_value_heads = 1, head_dim = 16, vocab_size = 301, parscale_n = 16,
        parscale_n_tokens = 20, tie_word_embeddings = true, max_position_embeddings = 100]] },
    { name = "p9-hd256", streams = 9, text = [[model_type = "qwen2_parscale", hidden_size = 128,
        intermediate_size = 72, num_hidden_layers = 3, num_attention_heads = 2,
        num_key_value_heads = 2, head_dim = 256, vocab_size = 100, parscale_n = 9,
        parscale_n_tokens = 20, tie_word_embeddings = true, max_position_embeddings = 100]] },
}

local function shape_tests(shape)
    generate_random(shape)
    local out = shape.out
    must("cc -O1 -o %s/pack %s/pack.c -lm -pthread", out, out)
    must("%s/pack --random 1 %s/model.psc", out, out)
    must("cc -std=c11 -O1 -DPARSCALE_NO_MAIN -o %s/harness tests/gpu_harness.c %s/engine.c "
        .. "-lm -pthread -ldl", out, out)
    build_emulator(out, out, shape.streams, "")
    local _, line, err = shell("LD_LIBRARY_PATH=%s HOME=%s %s/harness compare %s/model.psc %d 40",
        out, scratch, out, out, shape.streams)
    for _, how in ipairs({ "prefill", "decode" }) do
        local kl = tonumber(line:match("kl_" .. how .. "=(%S+)"))
        tap.ok(kl and kl <= RANDOM_KL_BAR, shape.name .. ": " .. how .. " against the CPU",
            line .. err)
    end
end

-- The engine's command line under the emulator.
local function generate(model, environment, options)
    return shell("HOME=%s/home LD_LIBRARY_PATH=%s %s %s/engine generate -m %s/model.psc "
        .. "--ids '1 2 3' -n 2 --temp 0 --print-ids %s", scratch, model.out, environment, model.out,
        model.out, options)
end

local function one_line(text)
    return select(2, text:gsub("\n", "")) <= 3
end

local function failure_tests(model)
    must("cc -std=c11 -O1 -o %s/engine %s/engine.c -lm -pthread -ldl", model.out, model.out)
    local cases = {
        { "no device", "EMULATOR_DEVICES=0", 7, "no device" },
        { "a driver that does not start", "EMULATOR_FAIL=cuInit", 7, "starting the driver" },
        { "too old a GPU", "EMULATOR_SM=75", 7, "7.5" },
        { "a compiler error", "EMULATOR_FAIL=nvrtcCompileProgram", 7, "error: emulated" },
        { "kernels that do not load", "EMULATOR_FAIL=cuModuleLoadData", 7, "loading kernels" },
        { "NVRTC newer than the driver", "EMULATOR_FAIL=cuModuleLoadData EMULATOR_DRIVER=12020", 7,
          "newer than the driver" },
        { "no memory for weights", "EMULATOR_FAIL=cuMemAlloc_v2 EMULATOR_FAIL_AT=0", 4, "weights" },
        { "no memory for caches", "EMULATOR_FAIL=cuMemAlloc_v2 EMULATOR_FAIL_AT=1", 4, "caches" },
        { "no memory for activations", "EMULATOR_FAIL=cuMemAlloc_v2 EMULATOR_FAIL_AT=2", 4,
          "activations" },
        { "a graph that cannot be made", "EMULATOR_FAIL=cuGraphInstantiateWithFlags", 7, "graph" },
        { "a graph that cannot be launched", "EMULATOR_FAIL=cuGraphLaunch", 7, "launching" },
        { "a kernel that fails", "EMULATOR_FAIL=cuStreamSynchronize", 7, "CUDA" },
    }
    for _, case in ipairs(cases) do
        local name, environment, expected, words = table.unpack(case)
        local code, _, err = generate(model, environment, "--device cuda --no-cache")
        tap.is(code, expected, name .. ": exit code")
        tap.ok(err:find(words, 1, true) and one_line(err), name .. ": what it says", err)
    end
    local code, out = generate(model, "EMULATOR_DEVICES=0", "--device auto")
    local _, cpu = generate(model, "", "--device cpu")
    tap.ok(code == 0 and out == cpu, "auto: the CPU where there is no GPU", out)
end

-- The kernel cache: what is wrong with an entry is told in a line, and the kernels compiled again.
local function cache_tests(model)
    local home = scratch .. "/home"
    lfs.mkdir(home)
    local folder = home .. "/.cache/parscale"
    local function run(environment)
        local code, _, err = generate(model, environment or "", "--device cuda")
        return code, err
    end
    local function entry()
        local found
        if not lfs.attributes(folder) then return nil end
        for name in lfs.dir(folder) do
            if #name == 32 then found = folder .. "/" .. name end
        end
        return found
    end
    tap.is(run(), 0, "kernel cache: a first start")
    local path = entry()
    tap.ok(path, "kernel cache: an entry is made")
    tap.is(lfs.attributes(folder).permissions, "rwx------",
        "kernel cache: its folder is the user's")
    local good = read(path)
    local code, err = run("EMULATOR_FAIL=nvrtcCompileProgram")
    tap.is(code, 0, "kernel cache: a second start compiles nothing")
    tap.ok(not err:find("kernel cache"), "kernel cache: and has nothing to say", err)
    local damaged = {
        { "empty", "" },
        { "cut off", good:sub(1, -2) },
        { "flipped", good:sub(1, -2) .. string.char(good:byte(-1) ~ 1) },
        { "foreign", good:sub(1, 8) .. ("f"):rep(32) .. good:sub(41) },
        { "too long", good .. "x" },
    }
    for _, case in ipairs(damaged) do
        write(path, case[2])
        code, err = run()
        tap.ok(code == 0 and err:find("kernel cache", 1, true), case[1] .. " entry: one line", err)
        tap.is(read(path), good, case[1] .. " entry: compiled again")
    end
    write(scratch .. "/elsewhere", good)
    os.remove(path)
    assert(lfs.link(scratch .. "/elsewhere", path, true))
    code, err = run()
    tap.ok(code == 0 and err:find("kernel cache", 1, true), "a link is not followed", err)
    must("chmod 755 %s", folder)
    code, err = run()
    tap.ok(code == 0 and err:find("0700", 1, true), "a folder open to others is not used", err)
    must("chmod 700 %s", folder)
    code, err = run("XDG_CACHE_HOME=/proc")
    tap.ok(code == 0 and err:find("kernel cache", 1, true), "a folder that cannot be made", err)
    must("rm -rf %s", folder)
    must("for i in 1 2 3; do HOME=%s LD_LIBRARY_PATH=%s %s/engine generate -m %s/model.psc --ids 1 "
        .. "-n 1 --print-ids --device cuda & done; wait", home, model.out, model.out, model.out)
    tap.is(read(entry()), good, "cold starts at once leave one good entry")
end

local only = os.getenv("EMULATE")
local names = only and { only } or { "p1-hd64-bf16", "p2-hd56-f32", "p3-hd16-odd-bf16" }
local smallest
for _, name in ipairs(names) do
    local model = build(name)
    local line = golden_tests(model)
    if name:find("^p3") or #names == 1 then
        smallest = model
        schedule_tests(model, line)
    end
end
for _, shape in ipairs(SHAPES) do shape_tests(shape) end
failure_tests(smallest)
cache_tests(smallest)
os.execute("rm -rf " .. scratch)
tap.done()
