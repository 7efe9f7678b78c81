#!/usr/bin/env lua5.4
-- A prompt that fills the context takes the memory that was planned: peak memory, less the mapped
-- pack, is within 64 MiB of cache and activations. ENGINE_DIR names an engine's folder.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")

local tap = require("tap")
local folder = tap.needs("ENGINE_DIR")
local build = require("build")

local MIB, SLACK = 1 << 20, 64

local info = cjson.decode((build.must("'%s/engine' info --json", folder)))
local planned = (info.cache_bytes + info.activation_bytes) / MIB
local out = build.must("'%s' '%s/model.psc'", build.harness(folder, "memory_harness"), folder)
local found = build.values(out)
local anonymous, peak = found.anonymous / 1024, found.peak / 1024 - info.pack_bytes / MIB

tap.ok(planned > 2 * SLACK, "the plan is large enough to tell", planned)
tap.is(found.position, info.context, "the prompt fills the context")
tap.ok(math.abs(anonymous - planned) <= SLACK,
    ("%.1f MiB are taken, %.1f planned"):format(anonymous, planned), out)
tap.ok(math.abs(peak - planned) <= SLACK,
    ("%.1f MiB beside the pack at the peak, %.1f planned"):format(peak, planned), out)
tap.is(found.grown, 0, "nothing is allocated after the start")
build.done()
