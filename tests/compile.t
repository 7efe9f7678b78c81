#!/usr/bin/env lua5.4
-- engine.c compiles with gcc and clang, with and without optimization, without a warning and in
-- time; without the GPU part it is small. For aarch64 too, where the program runs under qemu.
-- ENGINE_DIR names a folder with SmolLM2's engine.c.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local golden = require("golden")
local tap = require("tap")

local SECONDS, LINES, BYTES = 20, 6000, 500000
local LOGITS, WEIGHTS, KL = 2e-3, 1e-4, 3e-4
local WARNINGS = "-std=c11 -Wall -Wextra -Werror"

local function compiles(cc, flags, folder)
    local out = build.path("compiled")
    for _, name in ipairs({ "engine", "pack" }) do
        local command = ("%s %s %s -o '%s' '%s/%s.c' -lm -pthread"):format(cc, WARNINGS, flags, out,
            folder, name)
        local code, said, err = build.shell("%s && times", command)
        local seconds = code == 0 and build.times(said) or 0
        tap.ok(code == 0 and seconds < SECONDS,
            ("%s %s %s.c: %.1f s"):format(cc, flags, name, seconds), err)
    end
end

local folder = os.getenv("ENGINE_DIR")
if folder then
    for _, cc in ipairs({ "gcc", "clang" }) do
        compiles(cc, "-O0", folder)
        compiles(cc, "-O3 -fno-trapping-math", folder)
    end
    compiles("gcc", "-O2 -Wconversion -Wshadow -DPARSCALE_NO_MAIN -c", folder)
else
    tap.skip("SmolLM2's engine.c", "ENGINE_DIR is not set")
end

-- SmolLM2's shape, for the CPU alone.
do
    local minimal = build.generate("--from random --spec SmolLM2-135M-ParScale --spec '"
        .. build.write("cpu.lua", "return { backends = 'cpu' }") .. "'")
    compiles("gcc", "-O3 -fno-trapping-math", minimal)
    local text = build.read(minimal .. "/engine.c")
    local lines = select(2, text:gsub("\n", ""))
    tap.ok(lines < LINES, ("engine.c has %d lines"):format(lines))
    local stripped = build.path("stripped")
    build.must("gcc %s -s -o '%s' '%s/engine.c' -lm -pthread", build.flags, stripped, minimal)
    local bytes = lfs.attributes(stripped, "size")
    tap.ok(bytes < BYTES, ("the stripped program has %d bytes"):format(bytes))
    local needed = build.must("readelf -d '%s'", stripped)
    for library in needed:gmatch("Shared library: %[([^%]]+)") do
        tap.ok(library:find("^libc%.") or library:find("^libm%."), "it needs " .. library)
    end
end

-- aarch64. The pack is the same for every processor: it is made here.
local CROSS = "aarch64-linux-gnu-gcc"
local name = "p3-hd16-odd-bf16"
local model = build.generate("--from " .. golden.folder(name))
build.pack(model)
local expected = golden.expected(name)
build.cc = CROSS
local harness = build.harness(model, "golden_harness", build.flags .. " -static")
for _, path in ipairs({ "plain", "neon" }) do
    local code, out, err = build.shell("qemu-aarch64 '%s' '%s/model.psc' %s '%s'", harness, model,
        path, expected)
    local found = build.values(out)
    local good = path == "plain" and found.logits and found.logits <= LOGITS
        and found.weights <= WEIGHTS
        or path == "neon" and found.kl and found.kl <= KL and found.decodekl <= KL
    tap.ok(code == 0 and good and found.wrong == 0, ("aarch64, %s: %s"):format(path,
        out:gsub("\n", "")), err)
end
local native = build.read(model .. "/model.psc")

-- An engine of that model with another `key` = `value`, and the products that it then has.
local function compiles_products(key, value, source, cases, what)
    local engine = build.generate(("--from %s --name %s --spec '%s'"):format(golden.folder(name),
        key, build.write(key .. ".lua", ("return { %s = '%s' }\n"):format(key, value))))
    compiles("gcc", "-O3 -fno-trapping-math", engine)
    compiles("clang", "-O3 -fno-trapping-math", engine)
    local products = build.path("products")
    build.must("%s %s -O1 -static -Wall -Wextra -Werror -DENGINE='\"%s/engine.c\"' -o '%s' "
        .. "'%s%s' -lm -pthread", CROSS, build.flags, engine, products, here, source)
    for line in build.must("qemu-aarch64 '%s'", products):gmatch("[^\n]+") do
        local found = build.values(line)
        tap.ok(found.cases == cases and found.error <= 1 and found.wrong == 0,
            ("aarch64, %s, %s"):format(what, line))
    end
end
compiles_products("cache_dtype", "int8", "cache_harness.c", 216, "int8 cache")
compiles_products("weight_dtype", "int4", "quantized_harness.c", 160, "products")

build.must("%s %s -static -o '%s/pack' '%s/pack.c' -lm -pthread", CROSS, build.flags, model, model)
build.must("qemu-aarch64 '%s/pack' '%s/pack.job' '%s'", model, model, build.path("cross.psc"))
tap.ok(build.read(build.path("cross.psc")) == native, "aarch64: the packer makes the same pack")
build.done()
