#!/usr/bin/env lua5.4
-- What measures a GPU, on the emulated one: `bench` with the energy that a made-up NVML tells, and
-- every line of tests/gpu_bench.sh, with stand-ins for nvidia-smi, ncu and python3.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local lfs = require("lfs")
local build = require("build")
local emulated = require("emulated")
local tap = require("tap")

local STREAMS = 2
local folder = build.path("gpu")
local spec = build.write("test.lua", [[return { model_type = "qwen2_parscale", hidden_size = 64,
    intermediate_size = 96, num_hidden_layers = 1, num_attention_heads = 4, num_key_value_heads = 2,
    vocab_size = 100, max_position_embeddings = 64, rms_norm_eps = 1e-6, rope_theta = 10000.0,
    tie_word_embeddings = true, parscale_attn_smooth = 0.1 }]])
build.must("cd '%s' && tests/gpu_bench_prepare.sh '%s' '%s' bf16", build.root, folder, spec)
local model = { out = folder .. "/bench/test-bf16" }
build.pack(model.out, 1)
emulated.emulator(model.out, STREAMS)
local engine = build.engine(model.out, "-std=c11 -O1")

-- ---- bench --------------------------------------------------------------------------------------

local TEST = " bench -p 4 -n 3 -r 2 --streams 2 --device cuda -o "
local function bench(format, environment)
    return build.shell(emulated.environment(model, environment) .. " " .. engine .. TEST .. format)
end

local function decoded(environment)
    local code, out, err = bench("json", environment)
    tap.is(code, 0, "bench works: " .. environment)
    return cjson.decode(out)[2], err
end

local row, err = decoded("EMULATOR_MILLIJOULES=250")
local share = row.bytes_token * row.n_gen / row.avg_ns / (row.machine_percent / 100)
tap.ok(row.machine_gb_s > 0 and math.abs(share - row.machine_gb_s) < 6e-4 + 6e-3 * share,
    "the share of the GPU's read bandwidth, measured in the same run", cjson.encode(row))
tap.ok(err:find("read bandwidth of emulator: ", 1, true), "which is named", err)
tap.is(row.joules_token, nil, "without NVML no energy is told")
tap.ok(not select(2, bench("md", "")):find("J/token", 1, true), "nor is there a column for it")
local parscale_bytes = row.bytes_token

build.must("ln -s libcuda.so.1 '%s/libnvidia-ml.so.1'", model.out)
row, err = decoded("EMULATOR_MILLIJOULES=250")
tap.is(row.joules_token, 0.25, "a step that takes 250 mJ")
tap.is(row.power_limit_w, 700, "the power limit is told")
tap.ok(err:find("power limit is 700 W", 1, true), "and named", err)
tap.ok(select(2, bench("md", "EMULATOR_MILLIJOULES=250")):find("J/token |.*|   0%.2500 |\n"),
    "a column of the table")
local _, csv = bench("csv", "EMULATOR_MILLIJOULES=250")
tap.ok(csv:find(",joules_token,power_limit_w\n.*,0%.25000,700\n$"), "two fields of the CSV", csv)

-- A GPU that tells its power alone, 100 W: at least that long as the repetitions took, at most as
-- long as the whole program.
local seconds = build.seconds("%s %s%sjson >'%s' 2>/dev/null",
    emulated.environment(model, "EMULATOR_MILLIWATTS=100000"), engine, TEST, build.path("rows"))
row = cjson.decode(build.read(build.path("rows")))[2]
tap.ok(row.joules_token > 0.99 * 100 * row.ms_token / 1e3
    and row.joules_token < 100 * seconds / (2 * 3), "power is summed up", cjson.encode(row))

for name, environment in pairs({
    ["NVML that does not start"] = "EMULATOR_FAIL=nvmlInit_v2",
    ["NVML that does not know the GPU"] = "EMULATOR_FAIL=nvmlDeviceGetHandleByUUID",
    ["a GPU without a UUID"] = "EMULATOR_FAIL=cuDeviceGetUuid_v2",
    ["no energy and no power"] = "EMULATOR_MILLIWATTS=1 EMULATOR_FAIL=nvmlDeviceGetPowerUsage",
}) do
    tap.is(decoded(environment).joules_token, nil, name .. ": no energy, and no failure")
end

-- ---- gpu_bench.sh -------------------------------------------------------------------------------

local tools = build.path("tools")
assert(lfs.mkdir(tools))
local function stand_in(name, text)
    build.write("tools/" .. name, "#!/bin/sh\n" .. text)
    build.must("chmod +x '%s/%s'", tools, name)
end
stand_in("nvidia-smi", "echo 'emulator, 580.95, 700.00'\n")
stand_in("python3", [[
case $1 in
-c) exit ${NO_TORCH:-0} ;;
esac
echo "$*" >>"$TOOL_LOG"
echo 'torch.compile,emulator,580.95,700.00,1.8B,bf16,2,decode_ms,20,3.5'
]])
stand_in("ncu", [[
while [ "${1#-}" != "$1" ]; do
    case $1 in
    --csv) ;;
    *) shift ;;
    esac
    shift
done
echo "==PROF== Connected"
"$@"
cat <<ROWS
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum",$(
)"dram__throughput.avg.pct_of_peak_sustained_elapsed",$(
)"sm__warps_active.avg.pct_of_peak_sustained_active",$(
)"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",$(
)"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
"","","","ns","byte","%","%","inst","inst"
"0","1","decode_step(gpu_task)","2,000","4,000,000","40.5","20","1.5","2"
"1","1","decode_step(gpu_task)","4,000","4,000,000","20.5","20","2.5","2.5"
"2","1","choose","9,000","36,000,000","99","30","0","7"
ROWS
]])

local function measure(environment, parts)
    return build.shell("%s export PATH='%s':\"$PATH\" TOOL_LOG='%s' STREAMS=2 CONTEXTS=20 PROMPT=9 "
        .. "STEPS=1 PROFILE_STREAMS=2 PROFILE_CONTEXT=9 %s; cd '%s' && "
        .. "sh tests/gpu_bench.sh results %s",
        emulated.environment(model, "EMULATOR_MILLIJOULES=250"), tools, build.path("log"),
        environment, folder, parts)
end

local code, _, said = measure("", "")
tap.ok(code == 0, "tests/gpu_bench.sh works", said)
local text, found = build.read(folder .. "/results/bench.csv"), {}
for source, device, size, dtype, streams, what, context, value in text:gmatch(
        "([^,\n]*),(emulator,580.95,700.00),([^,]*),([^,]*),([^,]*),([^,]*),([^,]*),([^\n]*)\n") do
    tap.ok(device and tonumber(value) and tonumber(value) >= 0 and tonumber(streams) == STREAMS,
        what .. " has a figure", value)
    found[table.concat({ source, size, dtype, what, context }, " ")] = tonumber(value)
end
for _, key in ipairs({ "first_start_s ", "later_start_s ", "driver_start_s ", "upload_s ",
    "pack_bytes ", "gpu_cache_bytes ", "gpu_activation_bytes ", "read_gb_s ", "decode_ms 20",
    "prefill_ms 9" }) do
    tap.ok(found["parscale.c test bf16 " .. key], "a row of " .. key, text .. said)
end
local joules = found["parscale.c test bf16 joules_token 20"] -- of 43 tokens, one step in vain
tap.ok(joules and math.abs(joules - 0.25 * 44 / 43) < 1e-6, "a row of J a token", joules)
tap.ok(found["parscale.c test bf16 bytes_token 20"] > parscale_bytes,
    "a row of bytes: more behind more positions")
tap.is(found["torch.compile 1.8B bf16 decode_ms 20"], 3.5, "a row of the peer")
tap.ok(build.read(build.path("log")):find("--label emulator,580.95,700.00 --size 1.8B --streams 2 "
    .. "--contexts 20 --prompt 9", 1, true), "which is told what to measure")
tap.is(build.read(folder .. "/results/profile.md"), [[
### test-bf16, P = 2

| kernel | launches | us each | us in all | GB/s read | % of DRAM | % warps active | stalls |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| decode_step | 2 | 3.00 | 6.0 | 1333 | 30.5 | 20.0 | wait 2.2, barrier 2.0 |
| choose | 1 | 9.00 | 9.0 | 4000 | 99.0 | 30.0 | wait 7.0 |
| all | | | 15.0 | | | | |

]], "the profile is a table of means")
build.must("cp '%sdocs/performance.md' '%s'", build.root, folder)
build.write("tools/gnuplot", ("#!/bin/sh\ncat >/dev/null\n: >'%s/gpu.svg.part'\n"):format(folder))
build.must("chmod +x '%s/gnuplot'; PATH='%s':\"$PATH\" lua5.4 '%sgpu_tables.lua' "
    .. "'%s/performance.md' '%s/gpu.svg' '%s/results/bench.csv'", tools, tools, build.here, folder,
    folder, folder)
tap.ok(build.read(folder .. "/performance.md"):find("| test bf16 | - | ", 1, true),
    "its rows make the tables")

code, _, said = measure("NO_TORCH=1", "peer")
tap.ok(code == 0 and said:find("no PyTorch", 1, true), "no PyTorch: it says so", said)
build.must("rm '%s/ncu'", tools)
if build.shell("command -v ncu") ~= 0 then
    code, _, said = measure("", "profile")
    tap.ok(code == 0 and said:find("no ncu", 1, true), "no ncu: it says so", said)
end
build.must("rm '%s/model.psc'; : >'%s/pack.c'", model.out, model.out)
tap.is(measure("", "engine"), 1, "an engine that cannot be measured fails")
build.done()
