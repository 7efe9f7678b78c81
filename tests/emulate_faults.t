#!/usr/bin/env lua5.4
-- What the emulator (tests/emulator) catches. Small kernels with one fault each. Then the engine's
-- own kernels: every wait, arrival, barrier, and end of a group of copies is left out of every
-- kernel that has it, one at a time, and each time the emulator must complain.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")
local tap = require("tap")

local function small_kernels()
    local program = build.path("faulty")
    local cu = build.must("realpath '%stemplates/cuda_primitives.cu'", build.root):sub(1, -2)
    emulated.link(emulated.kernels("faulty.cc", cu), program)
    local names, complaints, commands = {}, {}, {}
    for name, complaint in build.must("'%s'", program):gmatch("([^|\n]+)|([^\n]*)\n") do
        names[#names + 1] = name
        complaints[#names] = complaint
        commands[#names] = ("'%s' %s"):format(program, build.quote(name))
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        if complaints[i] == "" then
            tap.ok(result.code == 0 and result.text == "", names[i], result.text)
        else
            tap.ok(result.code == 1 and result.text:find(complaints[i], 1, true), names[i],
                result.text)
        end
    end
end

-- A model small and odd enough that every statement of every kernel is needed, somewhere: attention
-- in two parts, more steps of a product than are copied ahead, more rows of tiles in a block than
-- it keeps sums of, runs of several ids to sample from.
local SPEC = [[return { name = "%s", backends = "cpu+cuda", model_type = "qwen2_parscale",
    hidden_size = %d, intermediate_size = 176, num_hidden_layers = %d, num_attention_heads = 10,
    num_key_value_heads = 2, head_dim = 16, vocab_size = 1040, parscale_n = 5,
    parscale_n_tokens = 160, rms_norm_eps = 1e-6, rope_theta = 10000.0, parscale_attn_smooth = 0.1,
    weight_dtype = "bf16", tie_word_embeddings = true, max_position_embeddings = 64 }]]
local STREAMS = 5
-- And one with warps that have no row of tiles of the residual. Its statements have the same order.
local SMALL_MODEL = { name = "small", hidden_size = 144, layers = 2 }
local NARROW_MODEL = { name = "narrow", hidden_size = 16, layers = 3 }

-- Two machines: little shared memory, so that less is copied ahead; warpgroups.
local SMALL = { defines = "-DSHARED_BYTES=101376", environment = "EMULATOR_SHARED=101376" }
local WARPGROUPS = { defines = "-DEMULATOR_WARPGROUPS " .. SMALL.defines,
                     environment = SMALL.environment }

-- What runs, where, on how many multiprocessors: a prefill and decode steps, on many and on one,
-- which has all work; the kernels that sample and measure. A later run leaves out what no earlier
-- one complained of.
local COMPARE = { harness = "gpu_harness", arguments = "compare '%s/model.psc' 5 3" }
local CHAIN = { harness = "gpu_chain_harness", arguments = "'%s/model.psc' 36" }
local RUNS = {
    { model = SMALL_MODEL, what = COMPARE, machine = SMALL, multiprocessors = 8 },
    { model = SMALL_MODEL, what = COMPARE, machine = SMALL, multiprocessors = 1 },
    { model = SMALL_MODEL, what = CHAIN, machine = SMALL, multiprocessors = 8 },
    { model = SMALL_MODEL, what = COMPARE, machine = WARPGROUPS, multiprocessors = 1 },
    { model = NARROW_MODEL, what = COMPARE, machine = SMALL, multiprocessors = 8 },
}

local STATEMENTS = { "wait_for_previous_kernel%(%)", "__syncthreads%(%)", "__syncwarp%(%)",
    "wait_copies<[^;]*>%(%)", "commit_copies%(%)", "consumers_barrier%(%)",
    "barrier_sync<[^;]*>%(%)", "publish_barriers%(%)", "arrive%([^;]*%)", "wait_barrier%([^;]*%)",
    "[%w.]*ring%.wait%(%)", "[%w.]*ring%.leave%(%)",
    "fence_products%(%)", "wait_products<[^;]*>%(%)", "commit_products%(%)" }

-- What is left out without harm, and why.
local HARMLESS = {
    ["wait_for_previous_kernel() of embed"] =
        "the first kernel of a step, behind a copy or the end of a graph; kept to start the next",
    ["wait_barrier(&workplace()->full[oldest.slot], oldest.parity) of decode_step"] =
        "keeps few copies under way: who reads them waits too",
    ["look_again_alone(strange(look(from, round), round)) of decode_step"] =
        "asks for one of those that are then waited for",
    ["look_again_alone(strange(look(one, round), round)) of decode_step"] =
        "asks for some of those that are then waited for",
}

-- engine.cu with each of these statements, and each wait for numbers that are told, behind a
-- question to the emulator, but for those that only an architecture has. Returns it and the
-- statements: their text and line.
local function with_questions(text)
    local lines, found, compiled = {}, {}, true
    for line in text:gmatch("([^\n]*)\n") do
        if line:find("^#") then
            compiled = not (line:find("^#elif defined%(__CUDA_ARCH__%)")
                or line:find("^#ifndef EMULATOR"))
        end
        for _, pattern in ipairs(STATEMENTS) do
            local indent, statement = line:match("^(%s+)(" .. pattern .. ");$")
            if statement and compiled then
                found[#found + 1] = { text = statement, line = #lines + 1 }
                line = ("%sif (emulate_kept(%d)) %s;"):format(indent, #found, statement)
            end
        end
        local before, look, after =
            line:match("^(.*while %()(.*look_again[_a-z]*%(.*%))(%);?)$")
        if look then -- once is not left out
            found[#found + 1] = { text = look, line = #lines + 1 }
            line = ("%s%s && emulate_kept(%d)%s"):format(before, look, #found, after)
        end
        lines[#lines + 1] = line
    end
    return table.concat(lines, "\n") .. "\n", found
end

local function prepare(model)
    local folder = build.generate_spec(SPEC:format(model.name, model.hidden_size, model.layers),
        model.name)
    build.pack(folder, 1)
    build.must("%s -std=c11 -O1 -DPARSCALE_NO_MAIN -o '%s/gpu_harness' '%sgpu_harness.c' "
        .. "'%s/engine.c' -lm -pthread", build.cc, folder, build.here, folder)
    build.must("mv '%s' '%s'", build.harness(folder, "gpu_chain_harness", "-std=c11 -O1"), folder)
    local text, statements = with_questions(build.read(folder .. "/engine.cu"))
    return folder, statements, build.write(model.name .. ".cu", text)
end

-- The command of a run.
local function command(folder, run, environment)
    return ("%s '%s/%s' %s"):format(emulated.environment({ out = folder },
        ("EMULATOR_MULTIPROCESSORS=%d %s %s"):format(run.multiprocessors, run.machine.environment,
            environment)), folder, run.what.harness, run.what.arguments:format(folder))
end

-- The statements of kernels that a run meets, of which no run before has complained.
local function met_in(folder, run, statements, cases)
    local found, list = {}, build.path("statements")
    os.remove(list)
    build.must("%s", command(folder, run, ("EMULATOR_STATEMENTS='%s'"):format(list)))
    for which, kernel in build.read(list):gmatch("(%d+) ([%w_]+)\n") do
        local key, statement = which .. " " .. kernel, statements[tonumber(which)]
        if not cases[key] then
            cases[key] = { key = key, name = ("%s of %s"):format(statement.text, kernel),
                           line = statement.line }
            cases[#cases + 1] = cases[key]
            statement.met = true
        end
        if not cases[key].caught then found[#found + 1] = cases[key] end
    end
    return found
end

local function engine_kernels()
    local folder, statements, asking, model, machine
    local cases = {}
    for _, run in ipairs(RUNS) do
        if run.model ~= model then
            local found
            model, machine = run.model, nil
            folder, found, asking = prepare(model)
            statements = statements or found
        end
        if run.machine ~= machine then
            machine = run.machine
            emulated.emulator(folder, STREAMS, machine.defines, asking)
        end
        local met, commands = met_in(folder, run, statements, cases), {}
        for i, case in ipairs(met) do
            commands[i] = command(folder, run, ("EMULATOR_SKIP='%s'"):format(case.key))
        end
        for i, result in ipairs(emulated.run_all(commands)) do
            met[i].caught = result.code ~= 0 and result.text:find("emulator: ", 1, true)
            met[i].text = result.text
        end
    end
    for _, case in ipairs(cases) do
        local name = ("without %s, line %d of engine.cu"):format(case.name, case.line)
        local harmless = HARMLESS[case.name]
        if harmless then
            tap.ok(not case.caught, name .. ": " .. harmless, case.text)
        else
            tap.ok(case.caught, name, case.text)
        end
    end
    for _, statement in ipairs(statements) do
        if not statement.met then
            tap.ok(false, ("%s, line %d of engine.cu, is in a kernel that ran")
                :format(statement.text, statement.line))
        end
    end
end

small_kernels()
engine_kernels()
build.done()
