#!/usr/bin/env lua5.4
-- The generator: the same bytes from the same spec, wherever it runs; what it plans is what the
-- engine tells; texts in a spec stay texts in C; nothing is left of a run that fails.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local lfs = require("lfs")
local build = require("build")
local tap = require("tap")

local root = lfs.currentdir() .. "/" .. build.root
if here:sub(1, 1) == "/" then
    root = build.root
end

local function spec_text(name, more)
    return ([[return { name = "%s", model_type = "qwen2_parscale", hidden_size = 64,
        intermediate_size = 160, num_hidden_layers = 3, num_attention_heads = 4,
        num_key_value_heads = 2, vocab_size = 300, rms_norm_eps = 1e-6, rope_theta = 10000,
        tie_word_embeddings = true, max_position_embeddings = 128, %s }]]):format(name, more or "")
end

local MORE = "parscale_n = { 1, 2, 3 }, context = 100"
local spec = build.write("a.lua", spec_text("a", MORE))

-- Generates into a folder of its own; `before` is put before the command.
local function generate_to(folder, before)
    build.must("%s lua5.4 '%scodegen/main.lua' --from random --spec '%s' --out '%s'", before or "",
        root, spec, build.path(folder))
    return build.path(folder) .. "/a/"
end

-- ---- the same bytes ----------------------------------------------------------------------------

local FILES = { "engine.c", "pack.c", "report.md" }
local first = generate_to("first")
for _, case in ipairs({
    { "again", "" },
    { "from another folder", "cd / && " },
    { "in another locale", "LC_ALL=C LANG=C LC_NUMERIC=de_DE.UTF-8" },
    { "in another time zone and home", "TZ=Asia/Tokyo HOME=/nonexistent" },
    { "with nothing in the environment", "env -i PATH=/usr/bin:/bin" },
}) do
    local folder, same = generate_to(case[1]:gsub(" ", "_"), case[2]), true
    for _, name in ipairs(FILES) do
        same = same and build.read(folder .. name) == build.read(first .. name)
    end
    tap.ok(same, "the same files " .. case[1])
end
for _, name in ipairs(FILES) do
    local text = build.read(first .. name)
    tap.ok(not text:find(build.scratch, 1, true) and not text:find(lfs.currentdir(), 1, true)
        and not text:find(os.date("%Y-%m-%d"), 1, true), name .. " tells no path and no date")
end

-- Files that come out the same are not touched, so that make has nothing to do.
for _, name in ipairs(FILES) do
    lfs.touch(first .. name, 1000000000)
end
generate_to("first")
tap.is(lfs.attributes(first .. "engine.c", "modification"), 1000000000,
    "a second run touches nothing")

local seconds = build.processor_seconds("lua5.4 '%scodegen/main.lua' --from random --spec '%s' "
    .. "--out '%s'", root, spec, build.path("timed"))
tap.ok(seconds < 2, ("an engine is generated in %.2f s"):format(seconds))

-- ---- what it plans -----------------------------------------------------------------------------

local folder = build.generate("--from random --spec " .. build.quote(spec))
build.pack(folder, 1)
local engine = build.engine(folder, "-std=c11 -O1")
local report, code = build.read(folder .. "/report.md"), build.read(folder .. "/engine.c")

-- The number in a row of the report.
local function reported(label)
    local text = report:match("\n| " .. label:gsub("%p", "%%%0") .. " | ([%d,]+) |") or ""
    return tonumber((text:gsub(",", "")))
end

local function info(arguments)
    return cjson.decode((build.must("'%s' info --json %s", engine, arguments)))
end

local largest = info("-t 1")
tap.is(largest.plan_digest, code:match("\n// plan (%x+)\n"),
    "engine.c starts with the plan's digest")
tap.ok(not code:find("INT[48]_TILE") and not build.read(folder .. "/pack.c"):find("INT[48]_TILE"),
    "an engine of bf16 weights has no quantised code")
tap.is(largest.pack_bytes, lfs.attributes(folder .. "/model.psc", "size"), "the size of the pack")
tap.is(largest.parscale_n, 3, "the largest P is the default")
tap.is(info("--streams 2").parscale_n, 2, "another P can be chosen")
tap.is(largest.context, 100, "the context is the spec's")
tap.ok(report:find("Plan " .. largest.plan_digest, 1, true), "report.md: the digest")
tap.is(reported("KV cache, bf16 (fast paths)"), info("--isa avx2").cache_bytes,
    "report.md: the cache")
tap.is(reported("KV cache, fp32 (plain path)"), info("--isa plain").cache_bytes,
    "report.md: the plain path's cache")
for _, threads in ipairs({ 1, 3 }) do
    tap.is(reported("**shared**") + threads * reported("**each thread**"),
        info("-t " .. threads).activation_bytes, ("report.md: buffers, %d threads"):format(threads))
end
tap.is(tonumber(report:match("| tokenizer | as it comes | (%d+) |")), largest.pack_bytes,
    "report.md: the pack")

-- A pack of the same shape fits, whatever the name and the context; of another P it does not.
local function digest(name, more)
    local text = build.read(build.generate_spec(spec_text(name, more), name) .. "/engine.c")
    return text:match("\n// plan (%x+)\n")
end
tap.is(digest("b", "parscale_n = { 1, 2, 3 }, context = 50"), largest.plan_digest,
    "name and context leave the digest as it is")
for _, more in ipairs({ "parscale_n = { 1, 2, 4 }", "parscale_n = 3",
    "parscale_n = { 1, 2, 3 }, parscale_n_tokens = 47",
    "parscale_n = { 1, 2, 3 }, parscale_attn_smooth = 0.2",
    "parscale_n = { 1, 2, 3 }, weight_dtype = 'bf16x2'",
    "parscale_n = { 1, 2, 3 }, attention_bias = false" }) do
    tap.ok(digest("c", more) ~= largest.plan_digest, "another digest with " .. more)
end

-- ---- backends ---------------------------------------------------------------------------------

tap.ok(lfs.attributes(folder .. "/engine.cu"), "the GPU part is there unless the spec says cpu")
tap.ok(info("--device auto").device_note:find("CUDA", 1, true), "info tells why not the GPU")
local minimal = build.write("a.lua", spec_text("a", MORE .. ", backends = 'cpu'"))
build.generate("--from random --spec " .. build.quote(minimal))
tap.ok(not lfs.attributes(folder .. "/engine.cu"), "without the GPU part no engine.cu is left")
engine = build.engine(folder, "-std=c11 -O1")
tap.is(info("--device auto").device_note, "none", "an engine without it takes the CPU")
build.fails(7, "and refuses --device cuda", ("'%s' info --device cuda"):format(engine), "--device",
    "cpu+cuda")

-- ---- texts -------------------------------------------------------------------------------------

local function refused(name, text, part)
    local before = build.path("refused")
    local command = "lua5.4 '%scodegen/main.lua' --from random --spec '%s' --out '%s'"
    build.fails(2, name, command:format(root, build.write("hostile.lua", text), before), part)
    tap.ok(not lfs.attributes(before), name .. ": nothing is left")
end

for _, name in ipairs({ [[a\"; int x;//]], "a\\nb", "*/ int x; /*", "../a", "a/b", ".a", "-a",
    "a b", "a\u{e9}", "$(id)", "`id`", "", ("a"):rep(65), "a%sb", "a?" }) do
    refused(("the name %q"):format(name:gsub("%c", "?")), spec_text(name), "name")
end
refused("another activation", spec_text("a", 'hidden_act = "gelu"'), "hidden_act")
refused("a key that is not known", spec_text("a", "rope_scaling = 1"), "rope_scaling")
local full = build.shell("lua5.4 '%scodegen/main.lua' --from random --spec '%s' --out /dev/full/x",
    root, spec)
tap.is(full, 2, "a folder that cannot be made")

-- The longest and oddest name that is allowed compiles.
local odd = "A.-_" .. ("z"):rep(60)
local odd_folder = build.generate_spec(spec_text(odd), "odd")
build.pack(odd_folder, 1)
local odd_info = build.must("'%s' info --json", build.engine(odd_folder, "-std=c11 -O0"))
tap.is(cjson.decode(odd_info).name, odd, "a name of 64 characters")
build.done()
