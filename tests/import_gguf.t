#!/usr/bin/env lua5.4
-- GGUF: names, shapes and types of a good file, and the refusals of bad ones. PARSCALE_GGUF may
-- name SmolLM2-135M-Instruct.Q4_1.gguf; without it that one test is skipped.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local make = require("checkpoints")
local hostile = require("hostile")
local jobs = require("jobs")
local lfs = require("lfs")
local tap = require("tap")

local checkpoint = require("codegen.checkpoint")
local gguf = require("codegen.gguf")
local job = require("codegen.job")
local plan = require("codegen.plan")
local spec = require("codegen.spec")

local fails, survives = hostile.fails, hostile.survives
local path, refused = hostile.path, hostile.refused

local function gguf_case(text)
    return gguf.open(make.write(path("x.gguf"), text))
end

local function gguf_job(...)
    return jobs.write(checkpoint.open(make.write(path("x.gguf"), (make.gguf(...)))))
end

do
    local text, start = make.gguf("llama")
    local from = checkpoint.open(make.write(path("x.gguf"), text))
    local s = spec.complete(from.spec, from.where)
    tap.ok(s.hidden_size == 32 and s.rms_norm_eps == 1e-5 and s.rope_theta == 100000
        and s.head_dim == 16 and s.tie_word_embeddings and s.attention_bias == false
        and s.weight_dtype == "bf16" and s.name == "x" and from.eos[1] == 2,
        "a llama GGUF gives its spec, eps as the decimal it was")
    local lines, count = jobs.lines(jobs.write(from))
    tap.ok(lines[("tensor model.embed_tokens.weight 0 %d F32"):format(start)]
        and lines[("tensor model.norm.weight 0 %d F32"):format(start + 64 * 32 * 4)]
        and count == 3 + 26, "a GGUF's tensors have the published names and file offsets")
    local layer = "model.layers.1.self_attn."
    tap.ok(from.tensors[layer .. "q_proj.weight"].rope
        and from.tensors[layer .. "k_proj.weight"].rope
        and not from.tensors[layer .. "v_proj.weight"].rope
        and table.concat(from.tensors[layer .. "k_proj.weight"].shape, " ") == "16 32"
        and lines["zero " .. layer .. "q_proj.bias"],
        "a llama GGUF has q and k rotary-interleaved, shapes [rows, columns], no biases")
    from = checkpoint.open(make.write(path("x.gguf"), (make.gguf("qwen2", nil, true))))
    tap.ok(not from.tensors[layer .. "q_proj.weight"].rope and from.tensors[layer .. "q_proj.bias"]
        and spec.complete(from.spec, "x").attention_bias, "a qwen2 GGUF is not interleaved")
end

-- Sizes of the block formats: 32 values in 18, 20 and 34 bytes.
for _, row in ipairs({ { "Q4_0", 2, 18 }, { "Q4_1", 3, 20 }, { "Q8_0", 8, 34 }, { "F16", 1, 64 },
    { "BF16", 30, 64 } }) do
    local text = make.gguf_text({}, { make.tensor_info("w", { 64, 3 }, row[2], 0) },
        ("\0"):rep(6 * row[3]))
    local tensor = gguf_case(text).tensors.w
    tap.ok(tensor.dtype == row[1] and tensor.bytes == 6 * row[3], "GGUF type " .. row[1])
    refused("GGUF type " .. row[1] .. " cut", { path("x.gguf"), '"w"' }, gguf_case, text:sub(1, -2))
end

do
    local tokens = {}
    for i = 1, 151936 do
        tokens[i] = "token" .. i
    end
    local start = os.clock()
    local file = gguf_case(make.gguf_text({ make.strings("t", tokens) }, {}, ""))
    tap.ok(os.clock() - start < 1 and #file.metadata.t == 151936
        and file.metadata.t[151936] == "token151936", "151,936 tokens are read in under a second")
end

local i8 = function(n) return string.pack("<i8", n) end
local u4 = function(n) return string.pack("<I4", n) end
local magic = "GGUF" .. u4(3)
local kv = magic .. i8(0) .. i8(1) -- one key, no tensor
local key = string.pack("<s8", "k")
local function tensors_of(...)
    return (make.gguf_text({}, { ... }, ("\0"):rep(256)))
end
local info = make.tensor_info
local HOSTILE_GGUF = {
    { "nothing in it", "", "magic" },
    { "another magic", "GGML" .. u4(3) .. i8(0) .. i8(0), 'magic: found "GGML"' },
    { "version 1", "GGUF" .. u4(1) .. i8(0) .. i8(0), "version: found 1" },
    { "big-endian numbers", "GGUF" .. string.pack(">I4", 3) .. i8(0) .. i8(0), "version: found" },
    { "2^64 - 1 tensors", magic .. i8(-1) .. i8(0), "tensor count: found 1844" },
    { "2^40 tensors", magic .. i8(1 << 40) .. i8(0), "tensor count: found" },
    { "2^63 keys", magic .. i8(0) .. i8(math.mininteger), "metadata count: found 9223" },
    { "65,536 keys that are not there", magic .. i8(0) .. i8(65536), "metadata key" },
    { "a key of 2^62 bytes", kv .. i8(1 << 62), "metadata key: found" },
    { "a string of 2^63 bytes", kv .. key .. u4(8) .. i8(math.mininteger), '"k": found' },
    { "a string past the end", kv .. key .. u4(8) .. i8(1000), '"k"' },
    { "a value past the end", kv .. key .. u4(12) .. "1234", '"k"' },
    { "type 13", kv .. key .. u4(13) .. i8(0), '"k": found value type 13' },
    { "a boolean of 7", kv .. key .. u4(7) .. "\7", '"k": found 7' },
    { "an array in an array", kv .. key .. u4(9) .. u4(9) .. i8(1), '"k": found value type 9' },
    { "an array of 2^60", kv .. key .. u4(9) .. u4(0) .. i8(1 << 60), '"k": items: found' },
    { "an array past the end", kv .. key .. u4(9) .. u4(4) .. i8(1000), '"k"' },
    { "a key twice", (make.gguf_text({ make.u32("k", 1), make.u32("k", 1) }, {}, "")), '"k"' },
    { "alignment 0", (make.gguf_text({ make.u32("general.alignment", 0) }, {}, "")), "alignment" },
    { "alignment 9", (make.gguf_text({ make.u32("general.alignment", 9) }, {}, "")), "alignment" },
    { "alignment x", (make.gguf_text({ make.string("general.alignment", "x") }, {}, "")),
        'general.alignment: found "x"' },
    { "no dimensions", tensors_of(info("w", {}, 0, 0)), '"w": found 0 dimensions' },
    { "5 dimensions", tensors_of(info("w", { 1, 1, 1, 1, 1 }, 0, 0)), '"w": found 5 dimensions' },
    { "a negative dimension", tensors_of(info("w", { -1, 4 }, 0, 0)), '"w": dimension: found' },
    { "a product of 2^64", tensors_of(info("w", { 1 << 32, 1 << 32 }, 0, 0)), "more than 2^48" },
    { "too large a tensor", tensors_of(info("w", { 65 }, 0, 0)), '"w": found 260 bytes at 0' },
    { "an offset past the end", tensors_of(info("w", { 1 }, 0, 1 << 40)), '"w": found 4 bytes' },
    { "an offset of 2^63", tensors_of(info("w", { 1 }, 0, 1 << 63)), '"w": offset: found 9223' },
    { "an offset of 4", tensors_of(info("w", { 1 }, 0, 4)), '"w": offset: found 4' },
    { "a broken block", tensors_of(info("w", { 33 }, 8, 0)), '"w": found rows of 33' },
    { "an overlap", tensors_of(info("w", { 16 }, 0, 0), info("v", { 16 }, 0, 32)), '"v": offset' },
    { "a tensor twice", tensors_of(info("w", { 8 }, 0, 0), info("w", { 8 }, 0, 32)), '"w"' },
    { "no data", (make.gguf_text({}, { info("w", { 8 }, 0, 0) }, "")), '"w"' },
}
for _, row in ipairs(HOSTILE_GGUF) do
    refused("GGUF with " .. row[1], { path("x.gguf"), row[3] }, gguf_case, row[2])
end
refused("GGUF with 2^32 bytes in arrays", { path("sparse"), "items: found" }, gguf.open,
    make.write_sparse(path("sparse"), kv .. key .. u4(9) .. u4(0) .. i8(1 << 32), 5 << 30))
refused("GGUF with many arrays", { path("sparse"), "items: found" }, gguf.open,
    make.write_sparse(path("sparse"), magic .. i8(0) .. i8(3)
        .. (string.pack("<s8", "a") .. u4(9) .. u4(0) .. i8(3 << 20) .. ("\1"):rep(3 << 20))
        .. (string.pack("<s8", "b") .. u4(9) .. u4(0) .. i8(3 << 20)), 1 << 30))

local GGUF_KEYS = {
    { "another architecture", "general.architecture",
        make.string("general.architecture", "gemma") },
    { "no architecture", "general.architecture", false },
    { "no hidden size", "llama.embedding_length", false },
    { "no eps", "llama.attention.layer_norm_rms_epsilon", false },
    { "a string as hidden size", "llama.embedding_length",
        make.string("llama.embedding_length", "x") },
    { "0 heads", "llama.attention.head_count", make.u32("llama.attention.head_count", 0) },
    { "heads for each layer", "llama.attention.head_count",
        make.strings("llama.attention.head_count", { "2", "2" }) },
    { "partial rotary", "llama.rope.dimension_count", make.u32("llama.rope.dimension_count", 8) },
    { "a NaN eps", "llama.attention.layer_norm_rms_epsilon",
        make.f32("llama.attention.layer_norm_rms_epsilon", 0 / 0) },
    { "a NaN stop id", "tokenizer.ggml.eos_token_id",
        make.f32("tokenizer.ggml.eos_token_id", 0 / 0) },
}
for _, row in ipairs(GGUF_KEYS) do
    refused("GGUF with " .. row[1], { path("x.gguf: ") .. row[2] }, gguf_job, "llama",
        { [row[2]] = row[3] })
end
refused("GGUF with rope scaling", { path("x.gguf"), "llama.rope.scaling.type" }, gguf_job, "llama",
    { make.string("llama.rope.scaling.type", "yarn") })
refused("GGUF in parts", { path("x.gguf"), "split.count" }, gguf_job, "llama",
    { make.u32("split.count", 3) })
refused("GGUF with shapes that contradict its metadata", { path("x.gguf"), "embed_tokens" },
    function()
        local from = checkpoint.open(make.write(path("x.gguf"),
            (make.gguf("llama", { ["llama.vocab_size"] = make.u32("llama.vocab_size", 65) }))))
        job.write(plan.make(spec.complete(from.spec, from.where)), from)
    end)
refused("GGUF with a needed tensor as Q6_K", { path("x.gguf"), "attn.v_proj.weight", "Q6_K" },
    gguf_job, "llama", nil, false, function(name, dims, at)
        return name == "blk.1.attn_v.weight" and info(name, dims, 14, at)
    end)
refused("GGUF with a tensor of an unknown type", { path("x.gguf"), "model.norm", "type 99" },
    gguf_job, "llama", nil, false, function(name, dims, at)
        return name == "output_norm.weight" and info(name, dims, 99, at)
    end)
refused("GGUF with a tensor too many", { path("x.gguf"), '"rope_freqs.weight"' }, function()
    local infos, data = make.gguf_tensors()
    infos[#infos + 1] = info("rope_freqs.weight", { 8 }, 0, #data)
    local text = make.gguf_text(make.gguf_metadata("llama"), infos, data .. ("\0"):rep(32))
    jobs.write(checkpoint.open(make.write(path("x.gguf"), text)))
end)
refused("GGUF with two names for one tensor", { path("x.gguf"), "model.norm.weight" }, gguf_job,
    "llama", nil, false, function(name, dims, at)
        return name == "blk.1.attn_norm.weight" and info("model.norm.weight", dims, 0, at)
    end)

do
    local text, start = make.gguf("qwen2", nil, true)
    local clean = true
    for size = 0, start, 3 do
        clean = clean and fails(gguf_case, text:sub(1, size))
    end
    tap.ok(clean, "GGUF cut anywhere in its header is refused")
    clean = true
    for at = 1, start do
        make.write(path("x.gguf"), text:sub(1, at - 1) .. "\xff" .. text:sub(at + 1))
        clean = clean and survives(checkpoint.open, path("x.gguf"))
    end
    tap.ok(clean, "GGUF with any byte of its header broken is read or refused")
end

-- ---- the published GGUF ------------------------------------------------------------------------

local real = os.getenv("PARSCALE_GGUF")
if not real then
    tap.skip("SmolLM2-135M-Instruct.Q4_1.gguf", "PARSCALE_GGUF does not name it")
else
    local start = os.clock()
    local from = checkpoint.open(real)
    local seconds = os.clock() - start
    local s = spec.complete(from.spec, from.where)
    tap.ok(seconds < 1, "SmolLM2's GGUF is read in under a second", seconds)
    tap.ok(s.hidden_size == 576 and s.intermediate_size == 1536 and s.num_hidden_layers == 30
        and s.num_attention_heads == 9 and s.num_key_value_heads == 3 and s.head_dim == 64
        and s.vocab_size == 49152 and s.rope_theta == 100000 and s.rms_norm_eps == 1e-5
        and s.tie_word_embeddings, "SmolLM2's spec is the published one")
    local count, last = 0, 0
    for _, tensor in pairs(from.tensors) do
        count, last = count + 1, math.max(last, tensor.offset + tensor.bytes)
    end
    tap.ok(count == 272 and last == lfs.attributes(real, "size"), "SmolLM2's tensors fill its file")
end

hostile.finish()
