#!/usr/bin/env lua5.4
-- What the emulator (tests/emulator) catches. Small kernels with one fault each. Then the engine's
-- own kernels: every wait, barrier, fence, and end of a group of copies is left out of every kernel
-- that has it, one at a time, and each time the emulator must complain.

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

-- A model small and odd enough that every statement of every kernel is needed: attention in two
-- parts, more steps of a product than are copied ahead, runs of several ids to sample from.
local SPEC = [[return { name = "small", backends = "cpu+cuda", model_type = "qwen2_parscale",
    hidden_size = 80, intermediate_size = 176, num_hidden_layers = 2, num_attention_heads = 4,
    num_key_value_heads = 2, head_dim = 16, vocab_size = 1040, parscale_n = 2,
    parscale_n_tokens = 160, rms_norm_eps = 1e-6, rope_theta = 10000.0, parscale_attn_smooth = 0.1,
    weight_dtype = "bf16", tie_word_embeddings = true, max_position_embeddings = 64 }]]
local STREAMS, TOKENS = 2, 3
local SAMPLED = 36 -- tokens, for the kernels that sample and measure

local STATEMENTS = { "wait_for_previous_kernel%(%)", "__syncthreads%(%)", "__syncwarp%(%)",
    "__threadfence%(%)", "wait_copies<[^;]*>%(%)", "commit_copies%(%)" }

-- What is left out without harm, and why.
local HARMLESS = {
    ["wait_for_previous_kernel() of embed"] =
        "the first kernel of a step, behind a copy or the end of a graph; kept to start the next",
}

-- engine.cu with each of these statements behind a question to the emulator. Returns it and the
-- statements: their text and line.
local function with_questions(text)
    local lines, found = {}, {}
    for line in text:gmatch("([^\n]*)\n") do
        for _, pattern in ipairs(STATEMENTS) do
            local indent, statement = line:match("^(%s+)(" .. pattern .. ");$")
            if statement then
                found[#found + 1] = { text = statement, line = #lines + 1 }
                line = ("%sif (emulate_kept(%d)) %s;"):format(indent, #found, statement)
            end
        end
        lines[#lines + 1] = line
    end
    return table.concat(lines, "\n") .. "\n", found
end

local function engine_kernels()
    local folder = build.generate_spec(SPEC, "small")
    build.pack(folder, 1)
    local harness = folder .. "/harness"
    build.must("%s -std=c11 -O1 -DPARSCALE_NO_MAIN -o '%s' '%sgpu_harness.c' '%s/engine.c' -lm "
        .. "-pthread", build.cc, harness, build.here, folder)
    local text, statements = with_questions(build.read(folder .. "/engine.cu"))
    emulated.emulator(folder, STREAMS, "-DSHARED_BYTES=101376", build.write("asking.cu", text))

    local chain = build.harness(folder, "gpu_chain_harness", "-std=c11 -O1")
    local function command(sampling, environment)
        environment = emulated.environment({ out = folder },
            "EMULATOR_MULTIPROCESSORS=132 EMULATOR_SHARED=101376 " .. environment)
        if sampling then
            return ("%s '%s' '%s/model.psc' %d"):format(environment, chain, folder, SAMPLED)
        end
        return ("%s '%s' compare '%s/model.psc' %d %d"):format(environment, harness, folder,
            STREAMS, TOKENS)
    end
    local labels, commands = {}, {}
    for _, sampling in ipairs({ false, true }) do
        local list = build.path(sampling and "sampling" or "statements")
        build.must("%s", command(sampling, ("EMULATOR_STATEMENTS='%s'"):format(list)))
        for statement, kernel in build.read(list):gmatch("(%d+) ([%w_]+)\n") do
            local which = statements[tonumber(statement)]
            which.met = which.met or {}
            if not which.met[kernel] then
                which.met[kernel] = true
                labels[#labels + 1] = { name = ("%s of %s"):format(which.text, kernel),
                                        line = which.line }
                commands[#labels] = command(sampling, ("EMULATOR_SKIP='%s %s'"):format(statement,
                    kernel))
            end
        end
    end
    for i, result in ipairs(emulated.run_all(commands)) do
        local label = labels[i]
        local name = ("without %s, line %d of engine.cu"):format(label.name, label.line)
        if HARMLESS[label.name] then
            tap.ok(result.code == 0, name .. ": " .. HARMLESS[label.name], result.text)
        else
            tap.ok(result.code ~= 0 and result.text:find("emulator: ", 1, true), name, result.text)
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
