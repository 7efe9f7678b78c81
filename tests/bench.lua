-- Measures what engines of SmolLM2 with P = 1, 2, 4, 8, in bf16 and int4, are held to: decode,
-- prefill and start; and llama.cpp, with the same weights, in turns with them if LLAMA_BIN names
-- the folder of its programs. Prints medians.
--
--     lua5.4 tests/bench.lua BF16_FOLDER INT4_FOLDER GGUF
--
-- ROUNDS (default 5), THREADS (default 2).

package.path = "./tests/?.lua;" .. package.path

local cjson = require("cjson")
local run = require("run")

local folders, gguf = { bf16 = arg[1], int4 = arg[2] }, arg[3]
local rounds = tonumber(os.getenv("ROUNDS") or 5)
local threads = tonumber(os.getenv("THREADS") or 2)
local llama = os.getenv("LLAMA_BIN")
llama = llama ~= "" and llama or nil

local STREAMS = { 1, 2, 4, 8 }
local SEQUENCES = { 4, 8 } -- of llama.cpp's batched decode
local PROMPT, TOKENS = 256, 64
local DTYPES = { "bf16", "int4" }

local samples = {} -- what was measured -> list of figures

local function add(key, figure)
    samples[key] = samples[key] or {}
    table.insert(samples[key], figure)
end

local function median(key)
    local list = samples[key]
    table.sort(list)
    local middle = #list // 2 + 1
    return #list % 2 == 1 and list[middle] or (list[middle - 1] + list[middle]) / 2
end

-- ---- the engine --------------------------------------------------------------------------------

local function measure_engine(dtype, start_harness)
    local folder = folders[dtype]
    for _, P in ipairs(STREAMS) do
        local rows = cjson.decode(run(
            "'%s/engine' bench -p %d -n %d -r 1 -t %d --streams %d -o json 2>/dev/null", folder,
            PROMPT, TOKENS, threads, P))
        add(dtype .. " prefill " .. P, rows[1].avg_ts)
        add(dtype .. " decode " .. P, rows[2].avg_ts)
    end
    local line = run("'%s' 5 '%s/engine' generate --ids 504 -n 1 --temp 0 --print-ids -t %d "
        .. "2>/dev/null", start_harness, folder, threads)
    add(dtype .. " start", tonumber(line:match("median=([%d.]+)")))
end

-- ---- llama.cpp ---------------------------------------------------------------------------------

-- The GGUF itself; its weights in bf16, made once.
local function llama_model(dtype)
    if dtype == "int4" then
        return gguf
    end
    local path = folders.bf16 .. "/llama-bf16.gguf"
    local file = io.open(path)
    if file then
        file:close()
        return path
    end
    run("'%s/llama-quantize' --allow-requantize '%s' '%s.part' BF16 >/dev/null 2>&1", llama, gguf,
        path)
    assert(os.rename(path .. ".part", path))
    return path
end

local function measure_llama(dtype, model)
    local rows = cjson.decode(run("'%s/llama-bench' -m '%s' -p %d -n %d -r 1 -t %d -o json "
        .. "2>/dev/null", llama, model, PROMPT, TOKENS, threads))
    add(dtype .. " llama prefill", rows[1].avg_ts)
    add(dtype .. " llama decode 1", rows[2].avg_ts)
    local output = run("'%s/llama-batched-bench' -m '%s' -c 2048 -t %d -npp 4 -ntg %d -npl %s "
        .. "--output-format jsonl 2>/dev/null", llama, model, threads, TOKENS,
        table.concat(SEQUENCES, ","))
    for line in output:gmatch("{[^\n]*}") do
        local row = cjson.decode(line)
        add(("%s llama decode %d"):format(dtype, row.pl), row.speed_tg / row.pl)
    end
end

-- ---- the tables --------------------------------------------------------------------------------

local function decode_rows(prefix, label, counts)
    for _, n in ipairs(counts) do
        local rate, one = median(prefix .. n), median(prefix .. 1)
        print(("| decode, %-28s | %8.1f | %8.2f | %5.2f |"):format(label:format(n), rate,
            1000 / rate, one / rate))
    end
end

local function print_table(dtype)
    print(("\n%s"):format(dtype))
    print("| what                                 | tokens/s | ms/step  | steps |")
    print("| ------------------------------------ | -------: | -------: | ----: |")
    decode_rows(dtype .. " decode ", "P = %d", STREAMS)
    for _, P in ipairs(STREAMS) do
        print(("| prefill %d, P = %d %19s | %8.1f | %8s | %5s |"):format(PROMPT, P, "",
            median(dtype .. " prefill " .. P), "-", "-"))
    end
    print(("| start to first token %15s | %8s | %8.1f | %5s |"):format("", "-",
        median(dtype .. " start"), "-"))
    if llama then
        decode_rows(dtype .. " llama decode ", "llama.cpp, %d sequences",
            { 1, table.unpack(SEQUENCES) })
        print(("| prefill %d, llama.cpp %14s | %8.1f | %8s | %5s |"):format(PROMPT, "",
            median(dtype .. " llama prefill"), "-", "-"))
        local decode = median(dtype .. " decode 1") / median(dtype .. " llama decode 1")
        local prefill = median(dtype .. " prefill 1") / median(dtype .. " llama prefill")
        print(("\nP = 1 against llama.cpp: decode %.2f times, prefill %.2f times its tokens/s.")
            :format(decode, prefill))
    end
end

local start_harness = os.tmpname()
run("cc -std=c11 -O1 -D_GNU_SOURCE -o '%s' tests/start_harness.c", start_harness)
for round = 1, rounds do
    io.stderr:write(("round %d of %d\n"):format(round, rounds))
    for _, dtype in ipairs(DTYPES) do
        measure_engine(dtype, start_harness)
        if llama then
            measure_llama(dtype, llama_model(dtype))
        end
    end
end
os.remove(start_harness)

print(("Medians of %d rounds, %d threads, %d tokens after an empty cache."):format(rounds, threads,
    TOKENS))
for _, dtype in ipairs(DTYPES) do
    print_table(dtype)
end
