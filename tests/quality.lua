-- How well SmolLM2 with P = 1, 2, 4, 8 predicts Python that its adapters have not seen: nats a
-- token, differences with a bootstrap interval, and what they cost: ms a token and memory.
--
--     lua5.4 tests/quality.lua ENGINE_FOLDER TEXT_FOLDER
--
-- TEXT_FOLDER is what codegen/fetch_heldout.sh fetched. THREADS (default 2). All but the times is
-- the same in every run on the same instruction set.

package.path = "./?.lua;" .. package.path

local cjson = require("cjson")
local models = require("codegen.models")
local plan = require("codegen.plan")
local run = require("tests.run")
local spec = require("codegen.spec")

local folder, text = arg[1], arg[2]
local threads = tonumber(os.getenv("THREADS") or 2)

local STREAMS = { 1, 2, 4, 8 }
-- Two blocks of each file; the first one is left out, as it is mostly the licence.
local FILES = { "build_helpers.py", "chunkmap.py", "diffgrid.py", "dirdiff.py", "filediff.py",
    "matchers/diffutil.py", "matchers/merge.py", "matchers/myers.py", "meldapp.py", "meldbuffer.py",
    "meldwindow.py", "misc.py", "sourceview.py", "vc/_vc.py", "vc/git.py", "vcview.py" }
local BLOCK, SKIPPED, BLOCKS = 512, 1, 2
local RESAMPLES, SEED, CONFIDENCE = 10000, 1, 0.95
local ROUNDS, TOKENS, CONTEXT = 3, 64, 512 -- of the times; positions of the memory

-- ---- nats a token ------------------------------------------------------------------------------

-- Lists of BLOCK ids.
local function read_blocks()
    local blocks = {}
    for _, name in ipairs(FILES) do
        local ids = {}
        for id in run("'%s/engine' tokenize -f '%s/%s'", folder, text, name):gmatch("%d+") do
            ids[#ids + 1] = id
        end
        for b = SKIPPED, SKIPPED + BLOCKS - 1 do
            assert((b + 1) * BLOCK <= #ids, name .. " is too short")
            blocks[#blocks + 1] = table.concat(ids, " ", b * BLOCK + 1, (b + 1) * BLOCK)
        end
    end
    return blocks
end

-- Mean of -log p of a block's tokens but the first.
local function score(ids, P)
    local sum, count = 0, 0
    for logprob in run("'%s/engine' score --ids '%s' --streams %d -t %d 2>/dev/null", folder, ids,
            P, threads):gmatch("%d+\t%d+\t(-?[%d.]+)\n") do
        sum, count = sum - tonumber(logprob), count + 1
    end
    assert(count == BLOCK - 1)
    return sum / count
end

local function mean(list)
    local sum = 0
    for _, x in ipairs(list) do sum = sum + x end
    return sum / #list
end

-- Percentile interval of the mean of `list`, blocks drawn with replacement.
local function bootstrap(list)
    math.randomseed(SEED)
    local means = {}
    for i = 1, RESAMPLES do
        local sum = 0
        for _ = 1, #list do sum = sum + list[math.random(#list)] end
        means[i] = sum / #list
    end
    table.sort(means)
    local tail = (1 - CONFIDENCE) / 2 * RESAMPLES // 1 | 0
    return means[tail + 1], means[RESAMPLES - tail]
end

-- ---- what it costs -----------------------------------------------------------------------------

-- P -> median ms a token, in alternating rounds.
local function measure_times()
    local samples = {}
    for _ = 1, ROUNDS do
        for _, P in ipairs(STREAMS) do
            local rows = cjson.decode(run("'%s/engine' bench -p 0 -n %d -r 1 -t %d --streams %d "
                .. "-o json 2>/dev/null", folder, TOKENS, threads, P))
            samples[P] = samples[P] or {}
            table.insert(samples[P], rows[1].ms_token)
        end
    end
    for _, P in ipairs(STREAMS) do
        table.sort(samples[P])
        samples[P] = samples[P][ROUNDS // 2 + 1]
    end
    return samples
end

-- What an engine for this P alone takes, as report.md counts it: pack, cache, buffers.
local function planned_memory(P)
    local given = models.load("SmolLM2-135M-ParScale", "model_specs")
    given.parscale_n, given.context = P, CONTEXT
    local p = plan.make(spec.complete(given, "SmolLM2-135M-ParScale"))
    return p.weights_end + p.cache.bytes + p.buffers.bytes + threads * p.scratch.bytes
end

-- ---- the table ---------------------------------------------------------------------------------

local blocks = read_blocks()
local digest = run("cd '%s' && cat %s | sha256sum", text, table.concat(FILES, " ")):match("%x+")
print(("%d files of Python, SHA-256 of them in a row %s"):format(#FILES, digest))
print(("%d blocks of %d tokens; %g %% intervals from %d resamples of the blocks, seed %d"):format(
    #blocks, BLOCK, 100 * CONFIDENCE, RESAMPLES, SEED))
local losses = {}
for _, P in ipairs(STREAMS) do
    losses[P] = {}
    for i, ids in ipairs(blocks) do losses[P][i] = score(ids, P) end
end
local times = measure_times()
print("| P | nats a token | to P = 1 | to the P before | ms a token | memory, MiB |")
print("| - | -----------: | -------: | --------------: | ---------: | ----------: |")
local function difference(P, Q)
    local list = {}
    for i = 1, #blocks do list[i] = losses[P][i] - losses[Q][i] end
    return ("%.4f (%.4f to %.4f)"):format(mean(list), bootstrap(list))
end
for i, P in ipairs(STREAMS) do
    print(("| %d | %.4f | %s | %s | %.2f | %.1f |"):format(P, mean(losses[P]),
        i > 1 and difference(P, 1) or "", i > 2 and difference(P, STREAMS[i - 1]) or "", times[P],
        planned_memory(P) / 2 ^ 20))
end
