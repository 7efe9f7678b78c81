#!/usr/bin/env lua5.4
-- The CUDA kernels without a GPU: engine.cu of every golden folder and of shapes that no folder
-- has, compiled as C++ under the emulator (tests/emulator), through the same host code. Then what
-- the host does when the driver fails, and its kernel cache.

local root = (arg[0]:match("^(.*)/[^/]*$") or ".") .. "/.."
package.path = root .. "/?.lua;" .. root .. "/tests/?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local emulated = require("emulated")
local golden = require("golden")
local tap = require("tap")

local KL_BAR = 3e-4        -- nats, mean over a golden prompt
local RANDOM_ERROR = 5e-3 -- of random weights' logits, against the CPU's: of their deviation
-- Of the golden harness: all positions in one prefill and by decode steps; prefills of every 20th
-- length behind a full half, two greedy steps.
local EVERY = 20
local SHAPE_TOKENS = 24
-- Little shared memory, as sm_86 and sm_120 have it: half the work of copying ahead.
local SMALL, SMALL_RING = "EMULATOR_SHARED=101376", "-DSHARED_BYTES=101376"

local MODULES = 5 -- of engine.cu

local scratch = build.scratch

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

-- Engine, pack and emulator of a golden folder.
local function prepare(name)
    local model = emulated.golden(golden.folder(name), "", SMALL_RING)
    model.name = name
    model.harness = model.out .. "/golden"
    build.must("mv '%s' '%s'", build.harness(model.out, "golden_harness", "-std=c11 -O1"),
        model.harness)
    return model
end

-- The command that compares a golden folder; `environment` is for the emulator.
local function comparison(model, environment)
    return ("%s '%s' '%s/model.psc' cuda '%s' %d"):format(emulated.environment(model, environment),
        model.harness, model.out, model.expected, EVERY)
end

local function golden_tests()
    local models, commands, count = {}, {}, #golden.names
    for i, name in ipairs(golden.names) do -- the last ones take longest: they come first
        models[count + 1 - i] = prepare(name)
        commands[count + 1 - i] = comparison(models[count + 1 - i], SMALL)
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        local values = build.values(result.text)
        local label = models[i].name .. ": "
        models[i].result = result.text
        tap.ok(result.code == 0 and values.kl <= KL_BAR,
            ("%sprefill's mean KL %.2g"):format(label, values.kl or -1), result.text)
        tap.ok(result.code == 0 and values.decodekl <= KL_BAR,
            ("%sdecode's mean KL %.2g"):format(label, values.decodekl or -1), result.text)
    end
    return models
end

-- engine.cu as tests/gpu.sh gives it to compute-sanitizer.
local function racecheck_kernels(model)
    local kernels, changed = model.out .. "/engine.cu", model.out .. "/race.cu"
    must("sed -f tests/every_lane_tells.sed '%s' >'%s'", kernels, changed)
    local _, lines = shell("diff '%s' '%s' | grep -c '^<'", kernels, changed)
    tap.is(lines, "3\n", model.name .. ": racecheck's kernels, lines that differ")
    return changed
end

-- The same bits whatever the order of blocks, warps and lanes. Then other machines.
local function schedule_tests(model)
    local commands = {}
    for seed = 2, 5 do
        commands[#commands + 1] = comparison(model, ("%s EMULATOR_SEED=%d EMULATOR_SWITCH=%d")
            :format(SMALL, seed, seed % 2 * 40))
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        tap.is(result.text, model.result, ("%s: the same in another order of threads, %d")
            :format(model.name, i))
    end
    local machines = {
        { "much shared memory", "EMULATOR_SHARED=232448" },
        { "one multiprocessor, launches one after another",
          "EMULATOR_MULTIPROCESSORS=1 EMULATOR_SM=80" },
        { "warpgroups", "", "-DEMULATOR_WARPGROUPS" },
        { "warpgroups, as racecheck has them", "", "-DEMULATOR_WARPGROUPS",
          racecheck_kernels(model) },
    }
    for _, machine in ipairs(machines) do
        emulated.emulator(model.out, model.streams, machine[3], machine[4])
        local code, text = build.shell("%s", comparison(model, machine[2]))
        local values = build.values(text)
        tap.ok(code == 0 and values.kl <= KL_BAR and values.decodekl <= KL_BAR,
            model.name .. ": " .. machine[1], text)
    end
end

-- The products of prefill by warpgroups.
local function warpgroup_tests(models)
    local commands = {}
    for i, model in ipairs(models) do
        emulated.emulator(model.out, model.streams, "-DEMULATOR_WARPGROUPS")
        commands[i] = comparison(model, "")
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        local values = build.values(result.text)
        tap.ok(result.code == 0 and values.kl <= KL_BAR,
            ("%s: warpgroups, prefill's mean KL %.2g"):format(models[i].name, values.kl or -1),
            result.text)
    end
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
    -- Warps of a block without rows of the residual; an odd number of layers.
    { name = "p9-narrow", streams = 9, text = [[model_type = "qwen2_parscale", hidden_size = 32,
        intermediate_size = 314, num_hidden_layers = 3, num_attention_heads = 20,
        num_key_value_heads = 4, head_dim = 26, vocab_size = 36, parscale_n = 9,
        parscale_n_tokens = 48, tie_word_embeddings = false, max_position_embeddings = 100]] },
    -- Teams of four blocks, the last one smaller; rows of tiles that they do not divide.
    { name = "p5-teams", streams = 5, text = [[model_type = "qwen2_parscale", hidden_size = 528,
        intermediate_size = 424, num_hidden_layers = 3, num_attention_heads = 6,
        num_key_value_heads = 2, head_dim = 48, vocab_size = 200, parscale_n = 5,
        parscale_n_tokens = 40, tie_word_embeddings = true, max_position_embeddings = 100]],
      environment = "EMULATOR_MULTIPROCESSORS=6" },
    -- More rows of keys than warps: a prefix of 13 rows of tiles.
    { name = "p2-rounds", streams = 2, text = [[model_type = "qwen2_parscale", hidden_size = 64,
        intermediate_size = 72, num_hidden_layers = 2, num_attention_heads = 2,
        num_key_value_heads = 2, head_dim = 112, vocab_size = 100, parscale_n = 2,
        parscale_n_tokens = 200, tie_word_embeddings = true, max_position_embeddings = 100]],
      environment = "EMULATOR_MULTIPROCESSORS=3" },
}

local function shape_tests()
    local commands = {}
    for i, shape in ipairs(SHAPES) do
        generate_random(shape)
        local out = shape.out
        build.pack(out, 1)
        build.must("cc -std=c11 -O1 -DPARSCALE_NO_MAIN -o '%s/harness' '%sgpu_harness.c' "
            .. "'%s/engine.c' -lm -pthread -ldl", out, build.here, out)
        emulated.emulator(out, shape.streams, SMALL_RING)
        commands[i] = ("%s '%s/harness' compare '%s/model.psc' %d %d"):format(
            emulated.environment(shape, SMALL .. " " .. (shape.environment or "")), out, out,
            shape.streams, SHAPE_TOKENS)
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        for _, how in ipairs({ "prefill", "decode" }) do
            local off = tonumber(result.text:match("error_" .. how .. "=(%S+)"))
            tap.ok(off and off <= RANDOM_ERROR, SHAPES[i].name .. ": " .. how .. " against the CPU",
                result.text)
        end
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
    local function entries()
        local found = {}
        for name in lfs.dir(lfs.attributes(folder) and folder or scratch) do
            if #name == 32 then found[#found + 1] = folder .. "/" .. name end
        end
        return found
    end
    tap.is(run(), 0, "kernel cache: a first start")
    local path = entries()[1]
    tap.is(#entries(), MODULES, "kernel cache: an entry is made for each module")
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
    tap.is(read(path), good, "cold starts at once leave a good entry")
    tap.is(#entries(), MODULES, "and no more than one for each module")
end

local smallest, with_warpgroups = nil, {}
for _, model in ipairs(golden_tests()) do
    if model.name:find("^p3") then smallest = model end
    if model.name:find("^p[12]") then with_warpgroups[#with_warpgroups + 1] = model end
end
schedule_tests(smallest)
warpgroup_tests(with_warpgroups)
shape_tests()
failure_tests(smallest)
cache_tests(smallest)
build.done()
