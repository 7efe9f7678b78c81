#!/usr/bin/env lua5.4
-- The command line of a real engine. ENGINE_DIR names a folder with engine and model.psc, made from
-- SmolLM2; without it there is nothing to test.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "?.lua;" .. package.path

local cjson = require("cjson")
local tap = require("tap")

local folder = tap.needs("ENGINE_DIR")

local scratch = os.tmpname()
os.remove(scratch)
assert(os.execute("mkdir " .. scratch))

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function read(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read("a")
    file:close()
    return text
end

-- A scratch file that holds text.
local function write(name, text)
    local path = scratch .. "/" .. name
    local file = assert(io.open(path, "wb"))
    file:write(text)
    file:close()
    return path
end

local engine = quote(folder .. "/engine")

-- Runs a shell command; `command` may redirect what it likes. Returns exit code, stdout, stderr.
local function shell(command)
    local _, how, code = os.execute(("{ %s\n} >%s/out 2>%s/err </dev/null"):format(command, scratch,
        scratch))
    return how == "exit" and code or 1000 + code, read(scratch .. "/out"), read(scratch .. "/err")
end

local function run(arguments)
    return shell(engine .. " " .. arguments)
end

local function lines(text)
    local list = {}
    for line in text:gmatch("([^\n]*)\n") do
        list[#list + 1] = line
    end
    return list
end

-- The command must work; returns stdout and stderr.
local function works(name, command)
    local code, out, err = shell(command)
    tap.ok(code == 0, name, ("exit %d, %s"):format(code, err))
    return out, err
end

-- The command must fail with this code, one line on stderr in which each of the patterns is found,
-- and nothing on stdout.
local function fails(code, name, command, ...)
    local found, out, err = shell(command)
    local good = found == code and out == "" and #lines(err) == 1 and err:sub(-1) == "\n"
        and err:find("^parscale: ")
    for _, pattern in ipairs({ ... }) do
        good = good and err:find(pattern)
    end
    tap.ok(good, name, ("exit %d, stdout %d bytes, stderr %s"):format(found, #out, err))
end

local function fails_run(code, name, arguments, ...)
    fails(code, name, engine .. " " .. arguments, ...)
end

local function valid_utf8(text)
    return os.execute(("iconv -f UTF-8 -t UTF-8 %s >/dev/null 2>&1"):format(
        quote(write("utf8", text)))) == true
end

local function count_words(text)
    return select(2, text:gsub("%S+", ""))
end

-- ---- info --------------------------------------------------------------------------------------

local info_text = works("info --json works", engine .. " info --json")
local info_is_json, info = pcall(cjson.decode, info_text)
tap.ok(info_is_json, "info --json prints JSON", info)
if not info_is_json or not info.tokenizer or info.vocab_size ~= 49152 then
    print("Bail out! ENGINE_DIR holds no SmolLM2 engine with a tokenizer")
    os.exit(1)
end
local context = math.tointeger(info.context)
local info_lines = works("info works", engine .. " info")
tap.ok(info_lines:find("\nvocab_size +49152\n") and info_lines:find(info.plan_digest, 1, true),
    "info prints the spec and the digest", info_lines)
tap.ok(#info.plan_digest == 16 and info.compiler:find("%d"), "info tells digest and compiler")
tap.ok(info.weight_dtype == "bf16" and info.cache_dtype == "bf16", "info tells the dtypes",
    info_text)
local pack_file = assert(io.open(folder .. "/model.psc", "rb"))
tap.is(info.pack_bytes, pack_file:seek("end"), "info tells the size of the pack")
pack_file:close()

-- ---- help and usage ----------------------------------------------------------------------------

local commands = { "generate", "chat", "score", "tokenize", "detokenize", "bench", "info" }
local help = works("--help works", engine .. " --help")
for _, command in ipairs(commands) do
    tap.ok(help:find("\n  " .. command .. " ", 1, true), "--help lists " .. command)
    local out, err = works(command .. " --help works", engine .. " " .. command .. " --help")
    tap.ok(out:find("usage: engine " .. command, 1, true) and out:find("--model", 1, true)
        and err == "", command .. " --help lists its options", out)
end
tap.is(select(2, run("generate -h")), select(2, run("generate --help")), "-h is --help")

fails(2, "no command", engine, "command", "generate")
fails_run(2, "an unknown command", "sing", "'sing'", "generate")
fails_run(2, "an unknown option", "generate -p x --bogus", "%-%-bogus")
fails_run(2, "an option of another command", "generate -p x --top 3", "%-%-top", "score")
fails_run(2, "what is no option", "generate -p x y", "'y'")
fails_run(2, "no value", "generate -p", "%-p", "no value")
fails_run(2, "a value for a flag", "generate -p x --ignore-eos=1", "%-%-ignore%-eos", "'1'")
fails_run(2, "no prompt", "generate", "%-p", "%-%-ids")
fails_run(2, "two prompts", "score -p x --ids 1", "%-p", "%-%-ids")
fails_run(2, "two texts to tokenize", "tokenize -p x -f y", "%-p", "%-f")
local bad_values = {
    { "--temp", "hot" }, { "--temp", "-1" }, { "--temp", "nan" }, { "--temp", "inf" },
    { "--temp", "" }, { "--temp", "1e400" }, { "--top-k", "-1" }, { "--top-k", "2.5" },
    { "--top-k", "99999999999999999999" }, { "--top-p", "1.1" }, { "--min-p", "x" },
    { "--repeat-penalty", "0" }, { "-s", "-1" }, { "-s", "18446744073709551616" },
    { "-n", "-2" }, { "-n", "2147483648" }, { "-n", " 1" }, { "-n", "1x" }, { "-t", "-1" },
    { "--streams", "17" }, { "--isa", "sse" }, { "--isa", "avx" }, { "--device", "tpu" },
}
for _, case in ipairs(bad_values) do
    fails_run(2, ("%s '%s'"):format(case[1], case[2]),
        ("generate -p x %s %s"):format(case[1], quote(case[2])),
        case[1]:gsub("%-", "%%-") .. ":", "expected")
end
fails_run(2, "a bad list", "bench -p 1,,2", "%-p", "'1,,2'")
fails_run(2, "a format that is not known", "bench -o xml", "%-o", "md csv json")
fails_run(2, "an option with a line end", "generate " .. quote("--a\nb"), "%-%-a%?b")
fails_run(2, "an option that is not UTF-8", "generate " .. quote("--a\xff"), "%-%-a\u{fffd}")
fails(7, "a device that is not there", "export CUDA_VISIBLE_DEVICES=; " .. engine
    .. " generate -p x --device cuda", "CUDA")
fails_run(3, "no pack", "generate -p x -m /nonexistent/model.psc", "/nonexistent/model.psc")
tap.is((run("info --threads=1 --model=" .. quote(folder .. "/model.psc"))), 0,
    "--option=value works")

-- ---- tokenize and detokenize -------------------------------------------------------------------

local _, vectors_text = shell("xz -dc " .. quote(here .. "data/tokenizers/smollm2/vectors.json.xz"))
local vectors = cjson.decode(vectors_text)
local function id_line(ids)
    local list = {}
    for i, id in ipairs(ids) do
        list[i] = ("%d"):format(id)
    end
    return table.concat(list, " ") .. "\n"
end
for i = 1, #vectors, 30 do
    local vector = vectors[i]
    local path = write("text", vector.text)
    local out = select(2, run("tokenize -f " .. path))
    tap.is(out, id_line(vector.ids), ("tokenize gives the ids of vector %d"):format(i))
    local _, back = shell(("%s tokenize -f %s | %s detokenize"):format(engine, path, engine))
    tap.is(back, vector.text, ("detokenize gives back the text of vector %d"):format(i))
end
local hello = "19556 28 905 17" -- 'Hello, world!' in vectors.json
tap.is(select(2, run("tokenize -p 'Hello, world!'")), hello .. "\n", "tokenize -p")
tap.is(select(2, shell("printf 'Hello, world!' | " .. engine .. " tokenize")), hello .. "\n",
    "tokenize reads stdin")
tap.is(select(2, shell("printf 'Hello, world!' | " .. engine .. " tokenize -f -")), hello .. "\n",
    "tokenize -f - reads stdin")
tap.is(select(2, run("detokenize --ids '19556,28\t905 17'")), "Hello, world!",
    "ids may have commas and white space between them")
tap.is(select(2, run("tokenize")), "\n", "tokenizing nothing gives an empty line")
tap.is(select(2, run("detokenize")), "", "detokenizing nothing gives nothing")
tap.is(select(2, shell(engine .. " tokenize <&-")), "\n", "a closed stdin is empty")
local japanese = "日本語"
local first = select(2, run("tokenize -p " .. japanese)):match("^%d+ %d+")
local cut = select(2, run("detokenize --ids " .. quote(first)))
tap.ok(valid_utf8(cut), "ids that end inside a character still give UTF-8", cut)
local broken = write("broken", "abc\xe6\x97")
fails_run(5, "broken UTF-8", "tokenize -f " .. broken, "UTF%-8")
fails_run(5, "broken UTF-8 in -p", "generate -p " .. quote("a\xff"), "UTF%-8")
fails_run(2, "an id that is no number", "detokenize --ids '1 x'", "%-%-ids", "'x'")
fails_run(2, "a negative id", "generate --ids '-1'", "%-%-ids", "'%-1'")
fails_run(5, "an id outside the vocabulary", "score --ids '1 49152'", "%-%-ids", "49152", "49151")
fails_run(5, "an id past 2^64", "detokenize --ids 99999999999999999999", "%-%-ids")
fails(5, "text where ids should be", "echo 1 two | " .. engine .. " detokenize", "stdin", "'two'")
fails_run(5, "a file that is missing", "tokenize -f /nonexistent", "/nonexistent")
fails_run(5, "a folder for a file", "tokenize -f /", "/: ")
fails_run(5, "a file without end", "generate -f /dev/zero", "/dev/zero")

-- ---- generate ----------------------------------------------------------------------------------

local prompt = quote("def fibonacci(n):\n    ")
local function generate(arguments)
    return works("generate " .. arguments,
        ("%s generate -p %s %s"):format(engine, prompt, arguments))
end

local greedy_ids, greedy_err = generate("-n 12 --temp 0 --print-ids")
tap.is(count_words(greedy_ids), 12, "-n 12 gives 12 ids")
tap.ok(greedy_err:find("prefill:.*tokens/s.*decode:.*tokens/s.*MiB"), "statistics are on stderr",
    greedy_err)
local prompt_ids = select(2, run("tokenize -p " .. prompt)):gsub("\n", "")
local scored = lines(select(2, run(("score --ids %s --top 1"):format(
    quote(prompt_ids .. " " .. greedy_ids:gsub("\n", ""))))))
local agree, position = true, count_words(prompt_ids)
for id in greedy_ids:gmatch("%d+") do -- the best id after each position is the next one
    agree = agree and scored[position]:match("\t(%d+):[^\t]*$") == id
    position = position + 1
end
tap.ok(agree, "greedy ids are what score calls the best")
tap.is(generate("-n 12 --temp 0"), select(2, run("detokenize --ids " .. quote(greedy_ids))),
    "the text is that of the ids")

local drawn = generate("-n 20 -s 7 --print-ids")
tap.is(generate("-n 20 -s 7 --print-ids"), drawn, "the same seed gives the same ids")
tap.is(generate("-n 20 -s 7 --print-ids -t 1"), drawn, "1 thread gives the same ids")
tap.is(generate("-n 20 -s 7 --print-ids -t 3"), drawn, "3 threads give the same ids")
tap.ok(generate("-n 20 -s 8 --print-ids") ~= drawn, "another seed gives other ids")
tap.is(generate("-n 20 -s 8 --top-k 1 --print-ids"), generate("-n 20 --temp 0 --print-ids"),
    "top-k 1 is greedy")

local wild = "-n 60 --temp 2 --top-k 0 --top-p 1 --min-p 0 --ignore-eos -s 3"
local wild_text = generate(wild)
tap.ok(valid_utf8(wild_text), "whatever is generated is UTF-8")
tap.is(wild_text, select(2, run("detokenize --ids " .. quote(generate(wild .. " --print-ids")))),
    "and the text of its ids")

tap.is(generate("-n 0"), "", "-n 0 generates nothing")
local stop = quote("<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\nYes.")
local stopped, stop_err = works("generate ends at a stop id",
    ("%s generate -p %s --temp 0 -n 60"):format(engine, stop))
tap.ok(stop_err:find("ended: +a stop id") and not stopped:find("<|im_end|>", 1, true),
    "and does not print it", stopped .. stop_err)
local on = select(2, run(("generate -p %s --temp 0 -n 60 --print-ids --ignore-eos"):format(stop)))
tap.is(count_words(on), 60, "--ignore-eos goes on")

fails_run(5, "an empty prompt", "generate -p ''", "prompt", "no token")
fails_run(5, "an empty file", "generate -f /dev/null", "prompt", "no token")
fails_run(5, "an empty list of ids", "score --ids ''", "prompt", "no token")
works("a prompt with NUL", ("printf 'a\\0b' | %s generate -f - -n 1"):format(engine))
local full = ("1 "):rep(context)
local last, last_err = works("a prompt that fills the context",
    ("%s generate --streams 1 --ids %s --print-ids --ignore-eos"):format(engine, quote(full)))
tap.ok(count_words(last) == 1 and last_err:find("context is full", 1, true),
    "leaves room for one token, which needs no place", last_err)
fails_run(5, "a prompt that is one too long", "generate --ids " .. quote(full .. "1"),
    tostring(context + 1), tostring(context))
fails_run(5, "a text to score that is one too long", "score --ids " .. quote(full .. "1"),
    tostring(context + 1), tostring(context))

-- ---- score -------------------------------------------------------------------------------------

local score_out, score_err = works("score works",
    engine .. " score -p 'The capital of France is Paris.'")
local rows, sum, well_formed = lines(score_out), 0, true
for i, row in ipairs(rows) do
    local at, _, logprob = row:match("^(%d+)\t(%d+)\t(%S+)$")
    well_formed = well_formed and tonumber(at) == i - 1
        and (i == 1 and logprob == "-" or logprob:find("^%-?%d+%.%d%d%d%d%d%d$") ~= nil)
    sum = sum + (tonumber(logprob) or 0)
end
tap.ok(well_formed and #rows > 4, "score prints position, id and log-probability", score_out)
local mean = tonumber(score_err:match("mean NLL: ([%d.]+)"))
tap.ok(mean and math.abs(mean + sum / (#rows - 1)) < 2e-6, "the mean NLL is on stderr", score_err)
local top_out = works("score --top works", engine .. " score --ids '504 3575' --top 49152")
local top = lines(top_out)
local total, best = 0, 1
for logprob in top[1]:gmatch(":(%S+)") do
    total = total + math.exp(tonumber(logprob))
    best = tonumber(logprob) <= best and tonumber(logprob) or 2
end
tap.ok(math.abs(total - 1) < 1e-3 and best < 1,
    "--top prints probabilities in order, which sum to 1", total)
tap.is(top[1]:match("\t3575:(%S+)"), top[2]:match("^1\t3575\t(%S+)"),
    "the next token has the same log-probability in both places")
tap.is((works("one token has no probability", engine .. " score --ids 504")), "0\t504\t-\n",
    "score of one token")

-- ---- chat --------------------------------------------------------------------------------------

local system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
local function template(user, system_prompt)
    return "<|im_start|>system\n" .. (system_prompt or system) .. "<|im_end|>\n<|im_start|>user\n"
        .. user .. "<|im_end|>\n<|im_start|>assistant\n"
end
local function chat(input, arguments)
    return works("chat " .. arguments, ("%s chat %s <%s"):format(engine, arguments,
        write("turns", input)))
end
local function one_turn(text)
    local _, out = run("generate --temp 0 -n 10 -f " .. write("prompt", text))
    return (out:gsub("\n$", ""))
end

local question = "What is the capital of France?"
local reply = one_turn(template(question))
local replies, chat_err = chat(question .. "\n", "--temp 0 -n 10")
tap.is(replies, reply .. "\n", "chat replies as generate does to the template")
local _, template_ids = run("tokenize -f " .. write("prompt", template(question)))
tap.is(tonumber(chat_err:match("prefill: (%d+)")), count_words(template_ids),
    "chat reads the template's tokens")
tap.is((chat(question .. "\n", "--temp 0 -n 10 --system 'Be brief.'")),
    one_turn(template(question, "Be brief.")) .. "\n",
    "--system replaces the model's system prompt")
local clearing = question .. "\r\n\n/clear\n" .. question .. "\n/exit\nnot read\n"
tap.is((chat(clearing, "--temp 0 -n 10")), reply .. "\n" .. reply .. "\n",
    "/clear starts over, /exit ends, empty lines are passed over")
local second = one_turn(template(question) .. reply .. "<|im_end|>\n<|im_start|>user\nAnd of Italy?"
    .. "<|im_end|>\n<|im_start|>assistant\n")
tap.is((chat(question .. "\nAnd of Italy?\n", "--temp 0 -n 10")), reply .. "\n" .. second .. "\n",
    "the second turn follows the first")
local _, marker_err = chat("<|im_end|>\n", "--temp 0 -n 1")
local _, marker_ids = run("tokenize -f " .. write("prompt", template("<|im_end|>")))
tap.ok(tonumber(marker_err:match("prefill: (%d+)")) > count_words(marker_ids) + 3,
    "a marker that a user types is text")
tap.is((chat("", "")), "", "a chat without turns")
local function chat_fails(name, input, ...)
    fails(5, name, ("%s chat <%s"):format(engine, write("turns", input)), ...)
end
chat_fails("a turn that does not fit", ("word "):rep(context) .. "\n", "context", tostring(context),
    "/clear")
chat_fails("a turn that is not UTF-8", "a\xff\n", "UTF%-8")
chat_fails("a line that is too long", ("a"):rep((1 << 20) + 1), "1048576")

-- ---- bench -------------------------------------------------------------------------------------

local bench = "bench -p 16 -n 4,8 -d 0,8 -r 2 -t 1 -o "
local bench_text = works("bench -o json works", engine .. " " .. bench .. "json")
local bench_is_json, tests = pcall(cjson.decode, bench_text)
tap.ok(bench_is_json and #tests == 6, "bench -o json prints JSON", bench_text)
tests = bench_is_json and tests or {}
local names, plausible = {}, true
for i, test in ipairs(tests) do
    names[i] = test.test
    local tokens = test.n_prompt + test.n_gen
    plausible = plausible and test.avg_ts > 0 and test.avg_ns > 0 and test.stddev_ts >= 0
        and math.abs(test.ms_token * tokens * 1e6 / test.avg_ns - 1) < 1e-2
    if test.n_gen > 0 then
        plausible = plausible and test.bytes_token >= info.weight_bytes and test.machine_gb_s > 0
            and math.abs(test.gb_s * test.avg_ns / (test.bytes_token * tokens) - 1) < 1e-2
            and math.abs(test.machine_percent / 100 * test.machine_gb_s / test.gb_s - 1) < 1e-2
    else
        plausible = plausible and test.bytes_token == cjson.null
    end
end
tap.is(table.concat(names, ", "), "pp16, tg4, tg8, pp16 @ d8, tg4 @ d8, tg8 @ d8", "the tests")
tap.ok(plausible, "the figures of a row agree with each other", bench_text)
-- The first processor that this process may run on, alone.
local alone = works("bench on one processor works", ("one=$(taskset -pc $$ | sed 's/.*: //; "
    .. "s/[,-].*//') && taskset -c $one %s bench -p 4 -n 0 -r 1 -o json"):format(engine))
tap.ok(alone:find('"n_threads": 1[,\n]'), "bench has as many threads as it may use processors",
    alone)
local csv = lines(works("bench -o csv works", engine .. " " .. bench .. "csv"))
local commas = select(2, csv[1]:gsub(",", ""))
local even = #csv == 7
for _, row in ipairs(csv) do
    even = even and select(2, row:gsub(",", "")) == commas
end
tap.ok(even and csv[1]:find("^model,") and commas > 10, "bench -o csv prints a head and six rows")
local md = lines(works("bench prints a table", engine .. " bench -p 4 -n 0 -r 1"))
tap.ok(#md == 3 and md[1]:find("^| model") and md[2]:find("^| %-") and md[3]:find("pp4", 1, true),
    "bench prints a table", table.concat(md, "\n"))
fails_run(5, "a test that does not fit", ("bench -p 1 -n %d"):format(context + 1),
    tostring(context + 1), tostring(context))

-- ---- stdout ------------------------------------------------------------------------------------

for _, command in ipairs({ "generate -p x -n 3", "score -p 'x y'", "tokenize -p x", "info",
    "detokenize --ids 504", "bench -p 1 -n 0 -r 1", "--help",
    "chat -n 2 <" .. write("turns", "hi\n") }) do
    fails(6, "a full disk: " .. command:match("%S+"), ("%s %s >/dev/full"):format(engine, command),
        "stdout: No space left on device")
    fails(6, "stdout is closed: " .. command:match("%S+"), ("%s %s >&-"):format(engine, command),
        "stdout: ")
end
local _, _, gone_err = shell(("{ %s generate -p x -n 100 --ignore-eos; echo $? >%s/code; } | true")
    :format(engine, scratch))
tap.ok(read(scratch .. "/code") == "6\n"
    and gone_err == "parscale: stdout: Broken pipe\n", "a reader that went away", gone_err)

os.execute("rm -rf " .. quote(scratch))
tap.done()
