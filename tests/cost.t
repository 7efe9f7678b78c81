#!/usr/bin/env lua5.4
-- What streams cost: the published cost analysis and scaling law are reproduced, the models that
-- are chosen and grown are the right ones, and the scripts that measure compute what they say (with
-- engines and a GPU that are scripts of known results).

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local cost = require("codegen.cost")
local law = require("codegen.law")
local models = require("codegen.models")
local spec = require("codegen.spec")
local tap = require("tap")

local LOSSES = build.root .. "model_specs/losses.csv"

local function near(found, expected, share, name)
    tap.ok(found and math.abs(found / expected - 1) <= share, name,
        ("found %s, expected %s"):format(tostring(found), tostring(expected)))
end

local function model(name)
    return spec.complete(models.load(name, build.root .. "model_specs"), name)
end

local function command(arguments, ...)
    return ("cd '%s' && lua5.4 codegen/cost_main.lua "):format(build.root)
        .. arguments:format(...)
end

-- ---- the published parameters, memory, latency -------------------------------------------------

local losses = law.read(LOSSES)
local wrong, count = 0, 0
for corpus, suffix in pairs({ python = "Python", pile = "Pile" }) do
    for _, row in ipairs(losses[corpus]) do
        local s = model(("ParScale-%s-P%d-%s"):format(row.size, row.P, suffix))
        wrong = wrong + (cost.parameters(s, row.P) == row.N and 0 or 1)
        count = count + 1
    end
end
tap.is(count, 48, "48 published losses")
tap.is(wrong, 0, "the parameters of all of them")

-- { P = memory in GiB, latency in s } of the 1.8B at batch 1 on an A100.
build.must(command("cost --model ParScale-1.8B-P1 --gpu a100 --csv '%s'", build.path("a100.csv")))
local rows = {} -- way, batch, P -> row
local lines = build.read(build.path("a100.csv")):gmatch("[^\n]+")
local columns = {}
for name in lines():gmatch("[^,]+") do columns[#columns + 1] = name end
for line in lines do
    local row, i = {}, 0
    for cell in (line .. ","):gmatch("([^,]*),") do
        i = i + 1
        row[columns[i]] = tonumber(cell) or cell
    end
    rows[("%s %d %d"):format(row.way, row.batch, row.P)] = row
end
near(rows["streams 1 1"].bytes / 2 ^ 30, 3.442, 0.0005, "A100, P = 1: memory")
near(rows["streams 1 8"].bytes / 2 ^ 30, 3.587, 0.0005, "A100, P = 8: memory")
near(rows["streams 1 1"].seconds, 0.482, 0.002, "A100, P = 1: latency")
near(rows["streams 1 8"].seconds, 0.555, 0.002, "A100, P = 8: latency")
for batch, expected in pairs({ { 22.6, 6.4 }, { 12.9, 3.2 }, [4] = { 6.9, 1.7 },
                               [8] = { 3.6, 0.88 } }) do
    local row = rows[("losses %d 8"):format(batch)]
    near(row.less_memory, expected[1], 0.02, ("A100, batch %d: times less memory"):format(batch))
    near(row.less_latency, expected[2], 0.02, ("A100, batch %d: times less latency"):format(batch))
end

-- ---- larger models -----------------------------------------------------------------------------

for _, name in ipairs({ "ParScale-0.7B-P1-Python", "ParScale-1.8B-P1", "SmolLM2-135M" }) do
    local s = model(name)
    for _, times in ipairs({ 1, 1.27, 1.82, 4 }) do
        local wanted = times * cost.parameters(s, 1)
        local grown = cost.grow(s, wanted)
        near(cost.parameters(grown, 1), wanted, 0.004, ("%s grown %g times"):format(name, times))
        tap.ok(grown.num_hidden_layers == s.num_hidden_layers
            and grown.num_attention_heads == s.num_attention_heads
            and pcall(spec.complete, grown, "grown"), name .. ": heads, layers, a valid spec")
    end
end
local same = cost.grow(model("ParScale-1.8B-P1"), 1571472384)
tap.ok(same.hidden_size == 1536 and same.intermediate_size == 8320 and same.head_dim == 96,
    "grown to its own size a model is itself")
local row = rows["law 1 8"]
near(row.loss, law.loss(law.corpora.python, 1595669000, 8), 0.0002,
    "the larger model's predicted loss is that of the streams")

-- ---- the law -----------------------------------------------------------------------------------

local fitted = build.must("'%scodegen/fit_law.py' '%s' --predict 1595669000 8", build.root, LOSSES)
local published = {
    python = { 0.6912, 1.131e7, 0.3935, 0.1894, r2 = 0.9978 },
    pile = { 1.2888, 1.974e8, 0.3345, 0.1963, r2 = 0.9987 },
}
for corpus, constants in pairs(published) do
    local found = {}
    for number in fitted:match(corpus .. "([^\n]*)"):gmatch("%S+") do
        found[#found + 1] = tonumber(number)
    end
    for i, name in ipairs({ "E", "A", "k", "alpha" }) do
        near(found[i + 1], constants[i], 0.02, ("%s: %s"):format(corpus, name))
        tap.is(law.corpora[corpus][name], constants[i], ("%s: the law's own %s"):format(corpus,
            name))
    end
    tap.ok(math.abs(found[6] - constants.r2) <= 0.001, corpus .. ": R2", found[6])
    near(found[7], law.loss(law.corpora[corpus], 1595669000, 8), 0.0005, corpus .. ": prediction")
end
for name, text in pairs({ ["a loss that is no number"] = "corpus,size,P,N,loss\na,b,1,2,nan\n",
    ["three losses"] = "corpus,size,P,N,loss\na,b,1,2,3\na,b,1,2,3\na,b,1,2,3\n",
    ["other columns"] = "x,y\n1,2\n" }) do
    local path = build.write("bad.csv", text)
    build.fails(2, "a fit to " .. name, ("'%scodegen/fit_law.py' '%s'"):format(build.root, path),
        path, "found")
end

-- ---- the choice --------------------------------------------------------------------------------

local function choice(loss, more)
    local out = build.must(command("choose --loss %g --gpu orin-nano %s", loss, more or ""))
    return out:match("least memory: +(%S+):"), out:match("least latency: +(%S+):")
end
-- Published: 1.8B-P4 1.0490, 1.8B-P8 1.0383, 3B-P1 1.0451.
tap.is(choice(1.0490), "ParScale-1.8B-P4-Python", "a loss that is just met, by streams")
tap.is(choice(1.0489), "ParScale-1.8B-P8-Python", "one that is just not met")
tap.is(select(2, choice(1.1722)), "ParScale-0.7B-P1-Python", "the smallest of all, if it will do")
tap.is(choice(1.9, "--corpus pile"), "ParScale-1.8B-P8-Pile", "another corpus")
build.fails(2, "a loss that none reaches", command("choose --loss 0.97 --gpu a100"), "LOSS",
    "0.9794")
build.fails(2, "no memory", command("choose --loss 1.2 --gpu a100 --memory 1"), "1 GB")
build.fails(2, "another device", command("choose --loss 1.2 --gpu a200"), "a200", "a100")
build.fails(2, "no device", command("choose --loss 1.2"), "GPU", "a100")
build.fails(2, "another model", command("cost --model ParScale-1.9B-P1"), "ParScale-1.9B-P1")

-- ---- the plot ----------------------------------------------------------------------------------

build.must([[gnuplot -e "csv='%s'; svg='%s'; device='a100'; title='a title'" '%scodegen/cost.gp']],
    build.path("a100.csv"), build.path("a100.svg"), build.root)
local svg = build.read(build.path("a100.svg"))
tap.ok(svg:find("^<%?xml") and svg:find("</svg>%s*$") and svg:find("a title")
    and svg:find("larger model") and select(2, svg:gsub("<circle", "")) + select(2,
    svg:gsub("<use [^>]*gpPt", "")) >= 16, "an SVG with a mark for each of 16 points")

-- ---- measuring ---------------------------------------------------------------------------------

local tiny = build.write("tiny.lua", [[return { name = "tiny", model_type = "qwen2_parscale",
    hidden_size = 256, intermediate_size = 1024, num_hidden_layers = 2, num_attention_heads = 4,
    num_key_value_heads = 2, vocab_size = 300, rms_norm_eps = 1e-6, rope_theta = 10000,
    tie_word_embeddings = true, max_position_embeddings = 2048 }]])
local folder = build.path("measured")
build.must("cd '%s' && tests/cost_prepare.sh '%s' '%s'", build.root, folder, tiny)
local NAMES = { "streams-1", "streams-2", "grown-2", "streams-4", "grown-4", "streams-8",
    "grown-8" }
for _, name in ipairs(NAMES) do
    tap.ok(lfs.attributes(folder .. "/" .. name .. "/engine.cu")
        and build.read(folder .. "/" .. name .. "/pack.c"):find("\n"), name .. ": engine, packer")
end

-- Engines that take this memory (MiB) and time (ms) a token; every second run is five times slower.
local FAKE = { ["streams-1"] = { 1000, 10 }, ["streams-2"] = { 1010, 11 },
    ["grown-2"] = { 1200, 13 }, ["streams-4"] = { 1020, 12 }, ["grown-4"] = { 1400, 16 },
    ["streams-8"] = { 1040, 14 }, ["grown-8"] = { 1800, 18 } }
for name, fake in pairs(FAKE) do
    local at = "measured/" .. name
    build.write(at .. "/engine", ([[#!/bin/sh
cd "$(dirname "$0")"
command=$1 memory=%d ms=%d
if [ "$command" = generate ]; then
    rm -f ../seen
    echo "$((50 + memory))" >../used.part && mv ../used.part ../used
    while [ ! -f ../seen ]; do sleep 0.01; done
    rm ../used ../seen
    exit
fi
echo x >>calls
# prefill and decode take turns: the third and fourth of six calls are the second round
case $(wc -l <calls) in 3|4) ms=$((5 * ms)) ;; esac
echo "model,ms_token"
while [ $# -gt 0 ]; do
    case $1 in
    -p) [ "$2" = 0 ] || for n in $(echo "$2" | tr , ' '); do echo "m,$((ms / 2))"; done ;;
    -d) for n in $(echo "$2" | tr , ' '); do echo "m,$((ms + n / 10))"; done ;;
    esac
    shift
done
]]):format(fake[1], fake[2]))
    build.must("chmod +x '%s'; touch '%s/pack' '%s/model.psc'; chmod +x '%s/pack'",
        build.path(at .. "/engine"), build.path(at), build.path(at), build.path(at))
end
-- Says what an engine takes while one runs.
build.write("nvidia-smi", ([[#!/bin/sh
if cat '%s/used' 2>/dev/null; then touch '%s/seen'; else echo 50; fi
]]):format(folder, folder))
build.must("chmod +x '%s'", build.path("nvidia-smi"))
local table_text = build.must("PATH='%s':$PATH DEVICE=cuda LENGTHS='100 200' TOKENS=20 ROUNDS=3 "
    .. "sh '%s/cost_measured.sh' '%s'", build.scratch, folder, folder)

-- Lengths 100 and 200: decoding is timed from positions 140 and 290 on.
local function expected(name)
    local memory, ms = table.unpack(FAKE[name])
    local decode, prefill = { ms + 14, ms + 29 }, ms // 2
    return { memory, (decode[1] + decode[2]) / 2,
        ((prefill + decode[1]) * 100 + (prefill + decode[2]) * 200) / 1000 / 2 }
end
local one = expected("streams-1")
for _, P in ipairs({ 2, 4, 8 }) do
    local a, b = expected("streams-" .. P), expected("grown-" .. P)
    local found = {}
    for number in table_text:match("added to P = 1.-(\n " .. P .. " [^\n]*)"):gmatch("%S+") do
        found[#found + 1] = tonumber(number)
    end
    for i, what in ipairs({ "memory", "decode", "request" }) do
        near(found[3 * i - 1], a[i] - one[i], 0.001, ("P = %d, %s added"):format(P, what))
        near(found[3 * i], b[i] - one[i], 0.001, ("grown for %d, %s added"):format(P, what))
        near(found[3 * i + 1], (b[i] - one[i]) / (a[i] - one[i]), 0.01,
            ("P = %d, %s: their ratio"):format(P, what))
    end
end
tap.ok(table_text:find("smallest of the same thing: 5.40"), "it tells its noise: 27 to 5")

-- ---- quality -----------------------------------------------------------------------------------

-- An engine that loses 2 nats a token, 0.1 less at P = 2, and 0.01 less than that on every second
-- block; a token takes it P ms.
assert(lfs.mkdir(build.path("quality")))
build.must("chmod +x '%s'", build.write("quality/engine", [[#!/bin/sh
case $1 in
tokenize) seq 1 1600 ;;
score) echo "$*" | awk '{
    for (i = 1; i < NF; i++) value[$i] = $(i + 1)
    first = value["--ids"]; P = value["--streams"]
    loss = P == 1 ? 2 : first == 513 ? 1.9 : 1.89
    for (i = 1; i < 512; i++) printf "%d\t%d\t%.6f\n", i, i, -loss }' ;;
bench) echo "$*" | awk '{
    for (i = 1; i <= NF; i++) if ($i == "--streams") printf "[{\"ms_token\": %d}]", $(i + 1) }' ;;
esac
]]))
local function quality()
    return build.must("cd '%s' && lua5.4 tests/quality.lua '%s' '%s' 2>/dev/null", build.root,
        build.path("quality"), build.scratch)
end
local quality_text = quality()
local loss, difference, low, high = quality_text:match(
    "\n| 2 | ([%d.]+) | (%-[%d.]+) %((%-[%d.]+) to (%-[%d.]+)%)")
near(tonumber(loss), 1.895, 0.0001, "nats a token")
near(tonumber(difference), -0.105, 0.0001, "the difference to P = 1")
-- 32 blocks of 0.10 or 0.11: a standard error of 0.005 / sqrt(32).
near(tonumber(low), -0.105 - 1.96 * 0.005 / math.sqrt(32), 0.003, "the interval's lower end")
near(tonumber(high), -0.105 + 1.96 * 0.005 / math.sqrt(32), 0.003, "the interval's upper end")
tap.ok(quality_text:find("\n| 8 | [^\n]* | 8.00 | [%d.]+ |\n"), "ms a token")
tap.is(quality(), quality_text, "the same in every run")
build.done()
