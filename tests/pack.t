#!/usr/bin/env lua5.4
-- The packer and what it makes: bad jobs, bad packs, full disks, no memory, death in the middle;
-- and random weights, the same on any number of processors. ENGINE_DIR may name an engine's folder
-- whose pack has a tokenizer; without it the tests of a damaged tokenizer are skipped.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local lfs = require("lfs")
local build = require("build")
local golden = require("golden")
local tap = require("tap")

local fails, quote, shell = build.fails, build.quote, build.shell

local SPEC = [[return { name = "%s", model_type = "qwen2_parscale", hidden_size = %d,
    intermediate_size = 1000, num_hidden_layers = %d, num_attention_heads = 4,
    num_key_value_heads = 2, vocab_size = 3000, rms_norm_eps = 1e-6, rope_theta = 10000,
    tie_word_embeddings = true, max_position_embeddings = 64, parscale_n = 2,
    parscale_n_tokens = 7 }]]

local function random_model(name, hidden, layers)
    local folder = build.generate_spec(SPEC:format(name, hidden, layers), name)
    build.pack(folder, 1)
    return folder
end

local folder = random_model("small", 64, 2)
local engine = build.engine(folder, "-std=c11 -O1")
local pack = folder .. "/model.psc"
local good = build.read(pack)
local pack_program = quote(folder .. "/pack")

-- ---- packs -------------------------------------------------------------------------------------

local function engine_fails(code, name, file, ...)
    fails(code, name, ("'%s' score --ids '1 2' -m '%s'"):format(engine, file), file, ...)
end

tap.is((shell("'%s' score --ids '1 2'", engine)), 0, "a good pack is read")
local other = random_model("other", 80, 2)
engine_fails(3, "a pack of another plan", other .. "/model.psc", "plan", "(other)", "(small)")
engine_fails(3, "no pack", build.path("none.psc"), "No such file")
engine_fails(3, "a folder", build.scratch, "not a regular file")
engine_fails(3, "an empty pack", build.write("empty.psc", ""), "size: found 0 bytes")
engine_fails(3, "another kind of file", build.write("text.psc", ("text"):rep(2000)), "magic")
for _, size in ipairs({ 8, 4095, 4096, 4104, #good // 2 // 8 * 8, #good - 8, #good - 1 }) do
    engine_fails(3, ("a pack cut off after %d bytes"):format(size),
        build.write("cut.psc", good:sub(1, size)), "size")
end
engine_fails(3, "a pack with something behind it", build.write("long.psc", good .. ("\0"):rep(8)),
    "size")

-- Flips one bit of the file at byte `at`, counted from 0.
local function flip(path, at)
    local file = assert(io.open(path, "r+b"))
    file:seek("set", at)
    local byte = file:read(1):byte()
    file:seek("set", at)
    file:write(string.char(byte ~ 1 << at % 8))
    assert(file:close())
end

local function flips(path, base, bytes, command)
    for _, at in ipairs(bytes) do
        flip(path, at)
        fails(3, ("%s: byte %d flipped"):format(base, at), command, path)
        flip(path, at)
    end
end

local copy = build.write("flipped.psc", good)
local HEADER = { 0, 7, 8, 12, 16, 39, 40, 111, 112, 119, 120, 127, 128, 135, 136, 143, 144, 151,
    152, 2000, 4095 }
flips(copy, "header", HEADER, ("'%s' score --ids '1 2' -m '%s'"):format(engine, copy))
flips(copy, "weights", { 4096, 4097, #good // 3, #good // 2, #good - 9, #good - 1 },
    ("'%s' score --ids '1 2' -m '%s'"):format(engine, copy))
tap.is((shell("'%s' score --ids '1 2' -m '%s'", engine, copy)), 0, "flipped back it is read")

local real = os.getenv("ENGINE_DIR")
if real then
    local path = build.path("real.psc")
    build.must("cp '%s/model.psc' '%s'", real, path)
    local size = lfs.attributes(path, "size")
    flips(path, "tokenizer", { size - 1, size - 1000, size - 1000000 },
        ("'%s/engine' tokenize -p x -m '%s'"):format(real, path))
    os.remove(path)
else
    tap.skip("a damaged tokenizer", "ENGINE_DIR is not set")
end

-- ---- jobs --------------------------------------------------------------------------------------

local from = golden.folder("p3-hd16-odd-bf16")
local model = build.generate("--from " .. from)
build.pack(model)
local job = build.read(model .. "/pack.job")
local packed = build.read(model .. "/model.psc")
local out = build.path("job.psc")

-- The packer must refuse this job, and leave no file.
local function job_fails(name, text, ...)
    local path = build.write("bad.job", text)
    fails(3, "a job: " .. name, ("'%s/pack' '%s' '%s'"):format(model, path, out), path, ...)
    tap.ok(not lfs.attributes(out) and not lfs.attributes(out .. ".part"),
        "a job: " .. name .. ": nothing is left")
end

local function changed(pattern, with)
    local text, n = job:gsub(pattern, with, 1)
    assert(n == 1, pattern)
    return text
end

local NORM = "\ntensor model%.norm%.weight[^\n]*"
job_fails("empty", "", "tensors")
job_fails("not a job", "hello\n", "not a pack job")
job_fails("a folder's bytes", ("\0"):rep(5000), "not a pack job")
job_fails("another plan", changed("plan %x+", "plan 0123456789abcdef"), "plan", "0123456789abcdef")
job_fails("a tensor missing", changed(NORM, ""), "tensors")
job_fails("a tensor twice", changed(NORM, "%0%0"), "model.norm.weight")
job_fails("a tensor in another's place",
    changed("model%.layers%.0%.input_layernorm", "model.layers.0.post_attention_layernorm"),
    "post_attention_layernorm")
job_fails("an unknown tensor", changed("tensor model%.norm%.weight", "tensor model.norm.wait"),
    "model.norm.wait")
job_fails("a layer that is not there", changed("model%.layers%.1%.", "model.layers.9."),
    "model.layers.9.")
job_fails("a dtype that is not known", changed(" BF16", " I8"), "I8")
job_fails("a dtype of blocks for odd rows",
    changed("(\ntensor model%.norm%.weight %d+ %d+) BF16", "%1 Q8_0"), "model.norm.weight")
job_fails("a file that is not in it", changed("(\ntensor %S+) 0 ", "%1 7 "), "no file 7")
job_fails("a negative file", changed("(\ntensor %S+) 0 ", "%1 -2 "), "no file -2")
job_fails("an offset past the end", changed("(\ntensor %S+ 0) %d+", "%1 99999999"), "bytes")
job_fails("an offset past 2^64", changed("(\ntensor %S+ 0) %d+", "%1 18446744073709551615"),
    "bytes")
job_fails("a line that is none", changed("\nfile", "\nfiles"), "files")
job_fails("files out of order", changed("\nfile 0", "\nfile 1"), "file 1")

-- Another copy of a backbone's tensor: it must be equal, byte for byte.
local norm_offset = tonumber(job:match("tensor model%.norm%.weight 0 (%d+)"))
local twin = build.write("twin.safetensors", build.read(from .. "/model.safetensors"))
local same = changed("\nfile 0 [^\n]*", "%0\nfile 1 " .. twin)
    .. ("same model.norm.weight 1 %d\n"):format(norm_offset)
build.must("'%s/pack' '%s' '%s'", model, build.write("same.job", same), out)
tap.ok(build.read(out) == packed, "a job with a copy of a tensor gives the same pack")
os.remove(out)
flip(twin, norm_offset + 3)
fails(3, "a copy of another backbone",
    ("'%s/pack' '%s' '%s'"):format(model, build.path("same.job"), out), twin, "another backbone",
    "model.norm.weight", from)
tap.ok(not lfs.attributes(out), "a copy of another backbone: nothing is left")
job_fails("a copy past the end", same:gsub("1 %d+\n$", "1 999999999\n"), "bytes")
job_fails("a copy in no file", same:gsub("1 (%d+)\n$", "2 %1\n"), "no file 2")
job_fails("a copy of no tensor", same:gsub("same model.norm", "same model.worm"), "no tensor")
job_fails("half a line of a copy", same:gsub(" %d+\n$", "\n"), "copy")

local function job_names(name, text, part)
    local path = build.write("bad.job", text)
    fails(3, name, ("'%s/pack' '%s' '%s'"):format(model, path, out), part)
end
local gone = build.path("gone.safetensors")
job_names("a file that is missing", changed("\nfile 0 [^\n]*", "\nfile 0 " .. gone), gone)
build.write("gone.safetensors", build.read(from .. "/model.safetensors"):sub(1, 200000))
job_names("a file that was cut off", changed("\nfile 0 [^\n]*", "\nfile 0 " .. gone), "bytes")
job_names("a tokenizer that is missing", job .. "tokenizer /nonexistent\n", "/nonexistent")
fails(3, "no job", ("'%s/pack' /nonexistent '%s'"):format(model, out), "/nonexistent")
fails(3, "a folder for a job", ("'%s/pack' / '%s'"):format(model, out), "/: ")

-- ---- the command line --------------------------------------------------------------------------

fails(2, "no arguments", pack_program, "usage")
fails(2, "too many", pack_program .. " a b c", "usage")
for _, seed in ipairs({ "x", "-1", "1x", "", "18446744073709551616" }) do
    fails(2, ("seed '%s'"):format(seed), ("%s --random '%s'"):format(pack_program, seed),
        "--random")
end
fails(6, "a folder that is missing", pack_program .. " --random 1 /nonexistent/model.psc",
    "/nonexistent/model.psc")
lfs.mkdir(build.path("taken.psc"))
fails(6, "a folder in the way",
    ("%s --random 1 '%s'"):format(pack_program, build.path("taken.psc")), "taken.psc")

-- ---- full disk, no memory, death ---------------------------------------------------------------

-- The packer writes OUT.part: here that is a device with no room.
local full = build.path("full.psc")
build.must("ln -s /dev/full '%s.part'", full)
fails(6, "a full disk", ("%s --random 1 '%s'"):format(pack_program, full), full, "No space left")
tap.ok(not lfs.attributes(full) and not lfs.symlinkattributes(full .. ".part"),
    "a full disk: nothing is left")

local large = random_model("large", 1024, 8)
local large_pack = build.path("large.psc")
fails(4, "no memory for the packer", ("ulimit -v 40000; '%s/pack' --random 1 '%s'"):format(large,
    full))
tap.ok(not lfs.attributes(full), "no memory: nothing is left")

fails(4, "no memory for the engine", ("ulimit -v 40000; '%s' score --ids 1"):format(
    build.engine(large, "-std=c11 -O1")))
-- Killed at any moment, the packer leaves the old pack or, once it has renamed it, the new one.
build.must("'%s/pack' --random 2 '%s'", large, large_pack)
local after = build.read(large_pack)
local seconds = build.seconds("'%s/pack' --random 1 '%s'", large, large_pack)
local before, intact, killed = build.read(large_pack), true, 0
for i = 1, 8 do
    local code = shell("'%s/pack' --random 2 '%s' & pid=$!; sleep %.3f; kill -9 $pid; wait $pid",
        large, large_pack, seconds * i / 8)
    killed = killed + (code == 137 and 1 or 0)
    local now = build.read(large_pack)
    intact = intact and (now == after or code == 137 and now == before)
    if now ~= before then
        build.must("'%s/pack' --random 1 '%s'", large, large_pack)
    end
end
tap.ok(before ~= after, "two seeds, two large packs")
tap.ok(intact and killed >= 1, "killed in the middle, it leaves a whole pack",
    ("killed %d times"):format(killed))

-- ---- the same bytes ----------------------------------------------------------------------------

local function random_pack(seed, prefix)
    build.must("%s %s --random %d '%s'", prefix or "", pack_program, seed, out)
    return build.read(out)
end
tap.ok(random_pack(1) == good, "the same seed gives the same pack")
tap.ok(random_pack(1, "taskset -c 0") == good, "on one processor too")
tap.ok(random_pack(2) ~= good, "another seed gives another")
for _, prefix in ipairs({ "", "taskset -c 0", "nice" }) do
    build.must("%s '%s/pack' --random 1 '%s'", prefix, large, large_pack)
    tap.ok(build.read(large_pack) == before, "a large one too " .. prefix)
end
build.must("taskset -c 0 '%s/pack' '%s/pack.job' '%s'", model, model, out)
tap.ok(build.read(out) == packed, "a job gives the same pack on one processor")
build.done()
