#!/usr/bin/env lua5.4
-- safetensors files and sharded indexes: headers that are truncated, oversized, overlapping or
-- lying, tensors that are wrong, missing or too many, indexes that lead astray.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local make = require("checkpoints")
local hostile = require("hostile")
local jobs = require("jobs")
local lfs = require("lfs")
local tap = require("tap")

local checkpoint = require("codegen.checkpoint")
local safetensors = require("codegen.safetensors")

local fails, survives = hostile.fails, hostile.survives
local path, refused = hostile.path, hostile.refused

local function open_text(text)
    return safetensors.open(make.write(path("x.safetensors"), text))
end

local function header(text, data)
    return make.header_text(text) .. ("\0"):rep(data or 0)
end

local function one(dtype, shape, first, last)
    return ('{"a":{"dtype":%s,"shape":%s,"data_offsets":[%s,%s]}}'):format(dtype, shape, first,
        last)
end

do
    local text = '{"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],'
        .. '"data_offsets":[0,8]},"c":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}}'
    local t = open_text(header(text, 8)).tensors
    tap.ok(t.b.bytes == 8 and #t.b.shape == 0 and t.c.bytes == 0 and not t.__metadata__,
        "scalars, empty tensors and metadata are read")
end

local pair = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[%s]},'
    .. '"%s":{"dtype":"F32","shape":[2],"data_offsets":[%s]}}'
local HOSTILE_SAFETENSORS = {
    { "nothing in it", "", "header length" },
    { "4 bytes", "abcd", "header length" },
    { "a header of no bytes", header("", 0), "header length: found 0" },
    { "a header past the end", string.pack("<I8", 100) .. "{}", "header length: found 100" },
    { "a header of 2^63 bytes", string.pack("<I8", 1 << 63) .. "{}", "header length: found 9223" },
    { "a header of 2^64 - 1 bytes", string.pack("<i8", -1) .. "{}", "header length: found 1844" },
    { "a header that is no JSON", header("{]"), "header: not valid JSON" },
    { "a header that ends early", header('{"a":{"dtype":"F3'), "header: not valid JSON" },
    { "a list as header", header("[1,2]"), "header: found a list" },
    { "a number as header", header("12"), "header: found 12" },
    { "deep nesting", header(("["):rep(1e6)), "header: not valid JSON" },
    { "a number as tensor", header('{"a":5}'), '"a": found 5' },
    { "no dtype", header('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4), "dtype: found nothing" },
    { "a wrong dtype", header(one('"F31"', "[1]", 0, 4), 4), '"a": dtype: found "F31"' },
    { "a list as dtype", header(one("[]", "[1]", 0, 4), 4), '"a": dtype' },
    { "no shape", header('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4), '"a": shape' },
    { "an object as shape", header(one('"F32"', '{"x":1}', 0, 4), 4), '"a": shape' },
    { "9 dimensions", header(one('"F32"', "[1,1,1,1,1,1,1,1,1]", 0, 4), 4), '"a": shape' },
    { "a negative dimension", header(one('"F32"', "[-1]", 0, 4), 4), "shape: found -1" },
    { "two negative dimensions", header(one('"F32"', "[-1,-1]", 0, 4), 4), "shape: found -1" },
    { "a fraction as dimension", header(one('"F32"', "[1.5]", 0, 4), 4), "shape: found 1.5" },
    { "null as dimension", header(one('"F32"', "[null]", 0, 4), 4), "shape: found null" },
    { "a dimension of 2^64", header(one('"F32"', "[18446744073709551616]", 0, 4), 4),
        "shape: found" },
    { "a product of 2^64", header(one('"F32"', "[4294967296,4294967296]", 0, 0)),
        "more than 2^48" },
    { "a product of 2^64 + 1 bytes", header(one('"I8"', "[274177,67280421310721]", 0, 1), 1),
        "more than 2^48" },
    { "a product of 2^64 times 0", header(one('"F32"', "[281474976710656,65536,0]", 0, 0)),
        "more than 2^48" },
    { "no offsets", header('{"a":{"dtype":"F32","shape":[1]}}', 4), '"a": data_offsets' },
    { "three offsets", header(one('"F32"', "[1]", 0, "4,8"), 4), '"a": data_offsets' },
    { "offsets that fall", header(one('"F32"', "[1]", 4, 0), 4), '"a": data_offsets' },
    { "negative offsets", header(one('"F32"', "[1]", -4, 0), 4), '"a": data_offsets' },
    { "offsets past the end", header(one('"F32"', "[2]", 0, 8), 4), '"a": data_offsets' },
    { "offsets of 2^63", header(one('"F32"', "[2]", 0, "9223372036854775808"), 8), "data_offsets" },
    { "offsets in quotes", header(one('"F32"', "[1]", 0, '"4"'), 4), '"a": data_offsets' },
    { "too few bytes for the shape", header(one('"F32"', "[2,3]", 0, 20), 20),
        "data_offsets: found 20 bytes, expected 24 for F32 [2, 3]" },
    { "bytes before the tensors", header(one('"F32"', "[1]", 4, 8), 8), "a gap" },
    { "bytes after the tensors", header(one('"F32"', "[1]", 0, 4), 5), "1 bytes after the last" },
    { "an overlap", header(pair:format("0,8", "b", "4,12"), 12),
        '"b": data_offsets: found an overlap' },
    { "twice the same bytes", header(pair:format("0,8", "b", "0,8"), 8), "an overlap" },
    { "a gap", header(pair:format("0,8", "b", "12,20"), 20), '"b": data_offsets: found a gap' },
    { "a name twice", header(pair:format("0,8", "a", "0,8"), 8), "duplicate" },
    { "a name twice, escaped", header(pair:format("0,8", "\\u0061", "0,8"), 8), "duplicate" },
    { "a field twice", header('{"a":{"dtype":"F32","dtype":"F32","shape":[0],'
        .. '"data_offsets":[0,0]}}'), "duplicate" },
}
for _, row in ipairs(HOSTILE_SAFETENSORS) do
    refused("safetensors with " .. row[1], { path("x.safetensors"), row[3] }, open_text, row[2])
end
refused("safetensors with a header of 1 GB", { path("sparse"), "header length" }, safetensors.open,
    make.write_sparse(path("sparse"), string.pack("<I8", 1 << 30) .. "{", 2 << 30))
refused("a folder as safetensors", { path("hf"), "directory" }, safetensors.open, path("hf"))

do
    local text = make.safetensors(make.backbone_tensors())
    local clean = true
    local length = 8 + string.unpack("<I8", text)
    for size = 0, #text - 1, 37 do
        clean = clean and fails(open_text, text:sub(1, size))
    end
    tap.ok(clean, "safetensors cut anywhere is refused")
    clean = true
    for at = 1, length, 5 do
        clean = clean and survives(open_text, text:sub(1, at - 1) .. "\xff" .. text:sub(at + 1))
    end
    tap.ok(clean, "safetensors with any byte of its header broken is read or refused")
end

-- ---- tensors that the model does not have, or has otherwise ------------------------------------

local function open_folder(changes, list)
    return checkpoint.open(make.folder(path("hf"), changes, list))
end

local function with_tensors(change)
    local list = make.backbone_tensors()
    change(list)
    return jobs.write(open_folder({}, list))
end
refused("a tensor missing", { "model.safetensors", "model.norm.weight", "missing" }, with_tensors,
    function(list) table.remove(list, 2) end)
refused("a tensor too many", { "model.safetensors", '"model.layers.2.x"', "does not have" },
    with_tensors, function(list) list[#list + 1] = { "model.layers.2.x", { 4 } } end)
refused("a tensor under a name of ours", { "model.safetensors", "does not have" }, with_tensors,
    function(list) list[#list + 1] = { "p4:model.aggregate_layer.0.bias", { 32 } } end)
refused("a prefix where P is 1", { "model.safetensors", "prefix_k", "does not have" }, with_tensors,
    function(list) list[#list + 1] = { "model.layers.0.self_attn.prefix_k", { 1, 1, 5, 16 } } end)
refused("a tensor turned around", { "model.safetensors", "embed_tokens", "[32, 64]", "[64, 32]" },
    with_tensors, function(list) list[1] = { "model.embed_tokens.weight", { 32, 64 } } end)
refused("a tensor of another rank", { "model.safetensors", "model.norm", "[1, 32]", "[32]" },
    with_tensors, function(list) list[2] = { "model.norm.weight", { 1, 32 } } end)
refused("a tensor of integers", { "model.safetensors", "model.norm", 'I64' }, with_tensors,
    function(list) list[2] = { "model.norm.weight", { 32 }, dtype = "I64" } end)
refused("a path of two lines", { "control character" }, function()
    jobs.write(checkpoint.open(make.folder(path("a\nb"))))
end)

-- ---- indexes -----------------------------------------------------------------------------------

local function sharded(change)
    local folder = make.folder(path("sharded"))
    os.remove(folder .. "/model.safetensors")
    local parts, map = { {}, {} }, {}
    for i, entry in ipairs(make.backbone_tensors()) do
        table.insert(parts[i % 2 + 1], entry)
        map[entry[1]] = ("model-%d.safetensors"):format(i % 2 + 1)
    end
    for i, part in ipairs(parts) do
        make.write(("%s/model-%d.safetensors"):format(folder, i), (make.safetensors(part)))
    end
    local index = { metadata = { total_size = 0 }, weight_map = map }
    index = change(index) or index
    make.write(folder .. "/model.safetensors.index.json", cjson.encode(index))
    return jobs.write(checkpoint.open(folder))
end

local _, sharded_lines = jobs.lines(sharded(function() end))
tap.is(sharded_lines, 2 + 2 + 26, "a job of two shards names both files")
for _, name in ipairs({ "../../x", "../../x.safetensors", "/etc/passwd", "/etc/x.safetensors",
    "sub/x.safetensors", ".x.safetensors", "..", "", "a\0.safetensors", "a\nb.safetensors", 5,
    {} }) do
    refused("an index that names " .. cjson.encode({ name }),
        { "model.safetensors.index.json: weight_map: \"model.norm.weight\": found" }, sharded,
        function(index) index.weight_map["model.norm.weight"] = name end)
end
refused("an index that names a missing file", { path("sharded/gone.safetensors") }, sharded,
    function(index) index.weight_map["model.norm.weight"] = "gone.safetensors" end)
refused("an index that names the wrong shard", { "index.json: weight_map", "model.norm.weight",
    "model-2.safetensors" }, sharded,
    function(index) index.weight_map["model.norm.weight"] = "model-2.safetensors" end)
refused("an index that names a tensor too many", { "index.json: weight_map", '"x"' }, sharded,
    function(index) index.weight_map.x = "model-1.safetensors" end)
refused("an index that lacks a tensor", { "index.json: weight_map", "model.norm.weight" }, sharded,
    function(index) index.weight_map["model.norm.weight"] = nil end)
refused("an index without map", { "index.json: weight_map: found nothing" }, sharded,
    function() return { x = 1 } end)
refused("an index with a list as map", { "index.json: weight_map: found a list" }, sharded,
    function() return { weight_map = { "model-1.safetensors" } } end)
refused("a shard that is a link to a device", { path("sharded/link.safetensors"), "device" },
    sharded, function(index)
        lfs.link("/dev/zero", path("sharded/link.safetensors"), true)
        index.weight_map["model.norm.weight"] = "link.safetensors"
    end)
refused("a shard that is a pipe", { path("sharded/pipe.safetensors"), "pipe" }, sharded,
    function(index)
        os.execute("mkfifo '" .. path("sharded/pipe.safetensors") .. "'")
        index.weight_map["model.norm.weight"] = "pipe.safetensors"
    end)

hostile.finish()
