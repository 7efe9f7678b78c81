#!/usr/bin/env lua5.4
-- Lua specs: defaults, limits, and a spec laid over a checkpoint's. A spec is data from outside: it
-- may loop, grow or reach for the system, and gets one line that names the file and the field.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local make = require("checkpoints")
local hostile = require("hostile")
local tap = require("tap")

local published = require("codegen.published")
local spec = require("codegen.spec")

local path, refused = hostile.path, hostile.refused

local good_spec = [[return { name = "tiny", model_type = "llama", hidden_size = 64, head_dim = 16,
    intermediate_size = 100, num_hidden_layers = 3, num_attention_heads = 4, vocab_size = 1000,
    num_key_value_heads = 2, rms_norm_eps = 1e-5, rope_theta = 1e6, tie_word_embeddings = false,
    max_position_embeddings = 4096, parscale_n = { 1, 2, 4, 8 } }]]

local function load_text(text)
    return spec.load(make.write(path("spec.lua"), text))
end

do
    local s = spec.complete(load_text(good_spec), "spec.lua")
    tap.ok(s.context == 2048 and s.parscale_n_tokens == 48 and s.parscale_attn_smooth == 0.1
        and s.attention_bias == false and s.weight_dtype == "bf16" and #s.eos_token_id == 0
        and table.concat(s.parscale_n, " ") == "1 2 4 8", "a Lua spec gets the documented defaults")
    local config = published.from_config({ model_type = "qwen2_parscale" }, "c")
    tap.ok(config.parscale_attn_smooth == nil, "what a config.json does not say is left open")
    for _, entry in ipairs(spec.schema) do
        tap.ok(#entry.doc > 10 and (type(entry.default) ~= "function" or entry.default_doc),
            entry.key .. " is documented")
    end
end

local HOSTILE_SPECS = {
    { "an endless loop", "while true do end", "steps" },
    { "an endless goto", "::a:: goto a", "steps" },
    { "a long loop", "local x = 0 for i = 1, 1e12 do x = x + i end", "steps" },
    { "endless tail calls", "local function f() return f() end return f()", "steps" },
    { "endless recursion", "local function f() return 1 + f() end return f()", "takes more than" },
    { "a long string", 'return { name = ("x"):rep(1e9) }', "line 1" },
    { "doublings of a string", "local s = 'x' while true do s = s .. s end", "KiB" },
    { "wide doublings", "local s = 'x' while true do s = " .. ("s.."):rep(180) .. "s end", "KiB" },
    { "an endless table", "local t = {} for i = 1, 1e9 do t[i] = i end return t", "takes more" },
    { "os", "os.execute('true')", "os" },
    { "io", "io.open('/etc/passwd')", "io" },
    { "require", "require('os')", "require" },
    { "load", "load('return 1')()", "load" },
    { "_G", "return _G.os", "_G" },
    { "setmetatable", "setmetatable({}, {})", "setmetatable" },
    { "methods of strings", "return ('x').gsub", "line 1" },
    { "pcall", "pcall(function() end)", "pcall" },
    { "coroutine", "coroutine.wrap(function() end)()", "coroutine" },
    { "a syntax error", "return {", "near" },
    { "compiled code", string.dump(function() return {} end), "binary chunk" },
    { "deep nesting", "return " .. ("{"):rep(1000), "overflow" },
    { "no table", "return 5", "expected a file that returns a table" },
    { "nothing", "", "expected a file that returns a table" },
    { "a function as value", "return { name = function() end }", "name: found a function" },
    { "a function as key", "return { [function() end] = 1 }", "not a key" },
    { "a table in itself", "local t = {} t.name = t return t", "name: found {" },
    { "an unknown key", "return { hidden = 5 }", '"hidden": not a key' },
    { "rope_scaling", "return { rope_scaling = {} }", '"rope_scaling": not a key' },
    { "a name that ends a C string", [[return { name = 'a"; system("x"); //' }]], "name: found" },
    { "a name that ends a C comment", [[return { name = "*/" }]], "name: found" },
    { "a name of two lines", [[return { name = "a\nb" }]], "name: found" },
    { "a name with NUL", [[return { name = "a\0b" }]], "name: found" },
    { "a name that is a path", [[return { name = "../a" }]], "name: found" },
    { "a name that is an option", [[return { name = "-a" }]], "name: found" },
    { "a hidden name", [[return { name = ".a" }]], "name: found" },
    { "a long name", "return { name = '" .. ("a"):rep(65) .. "' }", "name: found" },
    { "an empty name", "return { name = '' }", "name: found" },
    { "NaN", "return { hidden_size = 0 / 0 }", "hidden_size: found" },
    { "infinity", "return { rope_theta = 1 / 0 }", "rope_theta: found inf" },
    { "a size past 2^53", "return { vocab_size = 1 << 60 }", "vocab_size: found" },
    { "a size of 2^64", "return { vocab_size = 2^64 }", "vocab_size: found" },
    { "a fraction", "return { num_hidden_layers = 1.5 }", "num_hidden_layers: found 1.5" },
    { "zero layers", "return { num_hidden_layers = 0 }", "num_hidden_layers: found 0" },
    { "a number in quotes", "return { hidden_size = '64' }", 'hidden_size: found "64"' },
    { "hidden_size 40", "return { hidden_size = 40 }", "a multiple of 16" },
    { "head_dim 15", "return { head_dim = 15 }", "head_dim: found 15" },
    { "head_dim 17", "return { head_dim = 17 }", "a multiple of 2" },
    { "head_dim 258", "return { head_dim = 258 }", "head_dim: found 258" },
    { "P = 0", "return { parscale_n = 0 }", "parscale_n: found 0" },
    { "P = 17", "return { parscale_n = 17 }", "parscale_n: found 17" },
    { "no P", "return { parscale_n = {} }", "parscale_n: found {}" },
    { "P that falls", "return { parscale_n = { 4, 2 } }", "parscale_n: found {4, 2}" },
    { "P twice", "return { parscale_n = { 2, 2 } }", "parscale_n: found {2, 2}" },
    { "a list with a hole", "return { parscale_n = { 1, nil, 2 } }", "parscale_n: found" },
    { "a list with a name", "return { parscale_n = { 1, x = 2 } }", "parscale_n: found" },
    { "a list in a list", "return { parscale_n = { { 1 } } }", "parscale_n: found {{...}}" },
    { "smoothing 1.1", "return { parscale_attn_smooth = 1.1 }", "parscale_attn_smooth: found 1.1" },
    { "another activation", "return { hidden_act = 'gelu' }", 'hidden_act: found "gelu"' },
    { "another family", "return { model_type = 'mistral' }", 'model_type: found "mistral"' },
    { "another dtype", "return { weight_dtype = 'int2' }", 'weight_dtype: found "int2"' },
    { "1 for true", "return { tie_word_embeddings = 1 }", "tie_word_embeddings: found 1" },
    { "65 stop ids", "return { eos_token_id = {" .. ("1,"):rep(65) .. "} }",
        "eos_token_id: found" },
}

for _, row in ipairs(HOSTILE_SPECS) do
    refused("spec with " .. row[1], { path("spec.lua"), row[3] }, load_text, row[2])
end
tap.ok(("x"):rep(3) == "xxx" and not debug.gethook(), "strings and hooks are as before")
refused("spec of 1 MB", { path("spec.lua"), "bytes" }, load_text, ("-"):rep(1 << 20))
refused("spec that is a folder", { path(""), "directory" }, spec.load, path(""))
refused("spec that is not there", { path("none.lua") }, spec.load, path("none.lua"))
os.execute("mkfifo '" .. path("fifo") .. "'")
refused("spec that is a pipe", { path("fifo"), "pipe" }, spec.load, path("fifo"))

local function complete_with(key, value)
    local s = load_text(good_spec)
    s[key] = value
    return spec.complete(s, "s.lua")
end
for _, key in ipairs({ "name", "model_type", "hidden_size", "intermediate_size", "vocab_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
    "rope_theta", "tie_word_embeddings", "max_position_embeddings" }) do
    refused("spec without " .. key, { "s.lua: " .. key .. ": missing" }, complete_with, key, nil)
end
refused("kv heads that do not divide the heads", { "s.lua: num_key_value_heads: found 3" },
    complete_with, "num_key_value_heads", 3)
refused("a context past max_position_embeddings", { "s.lua: context: found 4097", "4096" },
    complete_with, "context", 4097)
refused("a stop id past the vocabulary", { "s.lua: eos_token_id: found 1000" }, complete_with,
    "eos_token_id", { 5, 1000 })
do
    local s = load_text(good_spec)
    s.head_dim, s.num_attention_heads = nil, 6
    refused("a head_dim that is not whole", { "s.lua: head_dim: found 10.6" }, spec.complete, s,
        "s.lua")
end

-- ---- a spec laid over a checkpoint -------------------------------------------------------------

local function merged(base, overlay)
    return spec.merge(base, overlay, "config.json", "s.lua")
end

do
    local s = merged({ hidden_size = 64, weight_dtype = "bf16", name = "a", eos_token_id = 1,
        rms_norm_eps = 1e-5, parscale_n = { 4, 8 } }, { hidden_size = 64, weight_dtype = "bf16x2",
        name = "b", context = 99, eos_token_id = { 1, 2 }, rms_norm_eps = 0.00001,
        parscale_n = { 1, 4, 8 } })
    tap.ok(s.name == "b" and s.context == 99 and s.weight_dtype == "bf16x2" and s.hidden_size == 64
        and #s.eos_token_id == 2 and #s.parscale_n == 3, "a spec chooses the deployment")
end
refused("another hidden_size", { "s.lua: hidden_size: found 80, but config.json has 64" }, merged,
    { hidden_size = 64 }, { hidden_size = 80 })
refused("another smoothing", { "s.lua: parscale_attn_smooth: found 0.5", "0.1" }, merged,
    { parscale_attn_smooth = 0.1 }, { parscale_attn_smooth = 0.5 })
refused("a P without adapter", { "s.lua: parscale_n: found {1, 4, 8}",
    "config.json has {4}: no adapter for P = 8" }, merged, { parscale_n = 4 },
    { parscale_n = { 1, 4, 8 } })
refused("an adapter for a P that is not in the list", { "s.lua: parscale_n: found {4}",
    "config.json has {4, 8}: the adapter for P = 8 is left out" }, merged,
    { parscale_n = { 4, 8 } }, { parscale_n = 4 })

hostile.finish()
