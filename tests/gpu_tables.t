#!/usr/bin/env lua5.4
-- tests/gpu_tables.lua on rows of known figures: each lands in its cell, what is missing is a dash,
-- the text around the tables stays; a figure is drawn where gnuplot is.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local tap = require("tap")

local HEAD = "source,device,driver,power_limit_w,size,dtype,streams,what,context,value\n"
local GPU = "parscale.c,NVIDIA X,580.1,700.00,"
local ROWS = HEAD
    .. GPU .. "4.7B,bf16,8,decode_ms,512,3.5\n"
    .. GPU .. "1.8B,int8,1,decode_ms,512,0.61\n"
    .. GPU .. "1.8B,bf16,1,read_gb_s,,4000\n"
    .. GPU .. "1.8B,bf16,1,bytes_token,512,3600000000\n" -- 0.9 ms
    .. GPU .. "1.8B,bf16,1,decode_ms,512,7\n"
    .. GPU .. "1.8B,bf16,1,decode_ms,512,1.2\n" -- measured again: 75 %
    .. GPU .. "1.8B,bf16,8,decode_ms,512,1.25\n"
    .. GPU .. "1.8B,bf16,8,decode_ms,2000,1.5\n"
    .. GPU .. "1.8B,bf16,4,prefill_ms,1984,50\n"
    .. GPU .. "1.8B,bf16,2,joules_token,512,0.4567\n"
    .. GPU .. "1.8B,bf16,2,first_start_s,,1.25\n"
    .. GPU .. "1.8B,bf16,8,first_start_s,,1.5\n"
    .. GPU .. "1.8B,bf16,8,later_start_s,,0.045\n"
    .. GPU .. "1.8B,bf16,8,driver_start_s,,0.04\n"
    .. GPU .. "1.8B,bf16,8,gpu_activation_bytes,,93000000\n"
    .. "torch.compile,NVIDIA X,,,1.8B,bf16,2,decode_ms,512,3.02\n"
    .. "torch.compile,NVIDIA Y,,,1.8B,bf16,4,decode_ms,512,99\n"
local AROUND = "before\n<!-- tests/gpu_tables.lua: begin -->\n%s"
    .. "<!-- tests/gpu_tables.lua: end -->\nafter\n"

local csv = build.write("bench.csv", ROWS)
local doc = build.write("performance.md", AROUND:format("what was there\n"))
local has_gnuplot = build.shell("command -v gnuplot >/dev/null") == 0

-- A program of that name that only takes its input, where there is none.
if not has_gnuplot then
    build.write("gnuplot", "#!/bin/sh\ncat >/dev/null\n: >'" .. build.path("gpu.svg.part") .. "'\n")
    build.must("chmod +x '%s'", build.path("gnuplot"))
end
local function make(...)
    return build.shell("PATH=\"$PATH:%s\" lua5.4 '%sgpu_tables.lua' '%s' '%s' '%s'", build.scratch,
        build.here, ...)
end

local code, _, err = make(doc, build.path("gpu.svg"), csv)
tap.is(code, 0, "tables are made")
tap.ok(err:find("^1 rows of other devices"), "a row of another device is left out", err)
local text = build.read(doc)
tap.ok(text:find("^before\n<!%-%- ") and text:find("end %-%->\nafter\n$"), "the text around stays",
    text)
tap.ok(not text:find("what was there", 1, true), "what was between the markers goes")

local tables, current = {}, nil -- title -> rows
for line in text:gmatch("([^\n]*)\n") do
    local cells = {}
    for cell in line:gmatch("| ([^|]*) ") do cells[#cells + 1] = cell end
    if not cells[1] then
        current = nil
    elseif not current then
        current = {}
        tables[cells[1]] = current
    elseif cells[1] ~= "---" then
        current[#current + 1] = table.concat(cells, "|")
    end
end

local function has(title, ...)
    for found, rows in pairs(tables) do
        if found:find(title, 1, true) then
            tap.is(table.concat(rows, "\n"), table.concat({ ... }, "\n"), title)
            return
        end
    end
    tap.ok(false, title, "no such table in " .. text)
end

tap.ok(text:find("NVIDIA X, driver 580.1, power limit 700 W;", 1, true), "the device is named")
tap.ok(text:find("4000 to 4000 GB/s", 1, true), "and its read bandwidth")
has("decode behind 512 positions, ms",
    "1.8B bf16|1.20 (75)|-|-|1.25",
    "1.8B bf16: its bytes over the bandwidth|0.900|-|-|-",
    "1.8B bf16, torch.compile|-|3.02|-|-",
    "1.8B int8|0.610|-|-|-",
    "4.7B bf16|-|-|-|3.50")
has("decode behind 2000 positions", "1.8B bf16|-|-|-|1.50")
has("prefill of 1984 tokens", "1.8B bf16|-|-|50.0|-")
has("J a token; the power limit is 700 W", "1.8B bf16|-|0.457|-|-")
has("largest P",
    "1.8B bf16|1.50|45.0|40.0|-|-|-|93.0",
    "1.8B int8|-|-|-|-|-|-|-",
    "4.7B bf16|-|-|-|-|-|-|-")

if has_gnuplot then
    local svg = build.read(build.path("gpu.svg"))
    tap.ok(svg:find("</svg>", 1, true) and svg:find("bf16, torch.compile", 1, true),
        "the figure names the peer")
else
    tap.skip("the figure", "no gnuplot here")
end

local again = build.read(doc)
make(doc, build.path("gpu.svg"), csv)
tap.is(build.read(doc), again, "the same rows give the same text")
tap.is(make(build.write("plain.md", "no markers\n"), build.path("gpu.svg"), csv), 1,
    "a document without markers is refused")
tap.is(make(doc, build.path("gpu.svg"), build.write("bad.csv", "a,b\n")), 1,
    "a row of another form is refused")
tap.is(make(doc, build.path("gpu.svg"), build.write("empty.csv", HEAD)), 1, "no rows are refused")
tap.is(build.read(doc), again, "and change nothing")
tap.ok(not lfs.attributes(doc .. ".part"), "nothing half-written is left")

-- The committed document has its markers, the earlier figures their form.
local committed = build.write("committed.md", build.read(build.root .. "docs/performance.md"))
tap.is(make(committed, build.path("gpu.svg"), csv .. "' '" .. build.root
    .. "tests/data/gpu_earlier.csv"), 0, "docs/performance.md has markers for the tables")
build.done()
