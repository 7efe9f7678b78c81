#!/usr/bin/env lua5.4
-- Checkpoints: golden folders give what their makers published; config.json, generation_config.json
-- and adapters are read, or refused by the field that is wrong.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local make = require("checkpoints")
local hostile = require("hostile")
local jobs = require("jobs")
local tap = require("tap")

local backbone = require("codegen.backbone")
local checkpoint = require("codegen.checkpoint")
local job = require("codegen.job")
local plan = require("codegen.plan")
local safetensors = require("codegen.safetensors")
local spec = require("codegen.spec")

local path, refused = hostile.path, hostile.refused

local golden = here .. "data/golden/"

-- ---- golden folders ----------------------------------------------------------------------------

local function read_json(file)
    local handle = assert(io.open(file, "rb"))
    local text = handle:read("a")
    handle:close()
    return cjson.decode(text)
end

local function read_bytes(tensor)
    local handle = assert(io.open(tensor.file, "rb"))
    handle:seek("set", tensor.offset)
    local bytes = handle:read(tensor.bytes)
    handle:close()
    return bytes
end

-- The int32 tensor of the published run holds the ids that its JSON lists, so offsets are right.
local function golden_offsets(folder)
    local ids = read_json(folder .. "/expected.json").greedy_ids
    local tensor = safetensors.open(folder .. "/expected.safetensors").tensors.greedy_ids
    local bytes = read_bytes(tensor)
    local equal = #ids == tensor.shape[1]
    for i, id in ipairs(ids) do
        equal = equal and string.unpack("<i4", bytes, 4 * i - 3) == id
    end
    return equal
end

local GOLDEN = {
    -- folder, P, head_dim, dtype, weight_dtype, tied, files, T, layers, theta
    { "p1-hd64-bf16", 1, 64, "BF16", "bf16", true, 1, 48, 2, 10000 },
    { "p2-hd56-f32", 2, 56, "F32", "bf16x2", true, 1, 48, 2, 10000 },
    { "p3-hd16-odd-bf16", 3, 16, "BF16", "bf16", true, 1, 16, 2, 10000 },
    { "p4-hd128-theta1e6-bf16", 4, 128, "BF16", "bf16", true, 1, 48, 2, 1000000 },
    { "p4-hd80-sharded-bf16", 4, 80, "BF16", "bf16", true, 3, 48, 3, 10000 },
    { "p8-hd160-bf16", 8, 160, "BF16", "bf16", true, 1, 48, 2, 10000 },
    { "p8-hd96-untied-f16", 8, 96, "F16", "bf16x2", false, 1, 48, 2, 10000 },
}

local function check_golden(row)
    local name, P, head_dim, dtype, weight_dtype, tied, files, T, layers, theta = table.unpack(row)
    local from = checkpoint.open(golden .. name)
    local s = spec.complete(from.spec, from.where)
    local seen, file_count, tensor_count, same_dtype = {}, 0, 0, true
    for _, tensor in pairs(from.tensors) do
        tensor_count = tensor_count + 1
        file_count = file_count + (seen[tensor.file] and 0 or 1)
        seen[tensor.file] = true
        same_dtype = same_dtype and tensor.dtype == dtype
    end
    -- 12 tensors a layer, the embedding, the last norm; for P > 1 two prefixes and the aggregator
    local expected = 12 * layers + 2 + (P > 1 and 2 * layers + 4 or 0) + (tied and 0 or 1)
    local prefix = from.tensors[("p%d:model.layers.1.self_attn.prefix_v"):format(P)]
    tap.ok(#s.parscale_n == 1 and s.parscale_n[1] == P and s.head_dim == head_dim
        and s.weight_dtype == weight_dtype and s.tie_word_embeddings == tied
        and s.parscale_n_tokens == T and s.num_hidden_layers == layers and s.rope_theta == theta
        and s.attention_bias and s.context == 2048 and s.name == name,
        name .. ": the spec is the published one")
    tap.ok(file_count == files and tensor_count == expected and same_dtype
        and (P == 1 or table.concat(prefix.shape, " ")
            == table.concat({ P, s.num_key_value_heads, T, head_dim }, " ")),
        name .. ": its tensors are the published ones")
    tap.ok(golden_offsets(golden .. name), name .. ": offsets lead to the published values")
end

for _, row in ipairs(GOLDEN) do
    check_golden(row)
end

-- ---- folders -----------------------------------------------------------------------------------

local function open_folder(changes, list)
    return checkpoint.open(make.folder(path("hf"), changes, list))
end

do
    local from = open_folder({ parscale_n = 4 })
    local list = make.backbone_tensors()
    table.move(make.adapter_tensors(4, 5), 1, 8, #list + 1, list)
    local _, offsets = make.safetensors(list)
    local lines, count = jobs.lines(jobs.write(from))
    tap.ok(lines["parscale-pack-job 1"] and lines["plan 0123456789abcdef"]
        and lines["file 0 " .. path("hf/model.safetensors")], "a job starts with plan and file")
    local right = count == 3 + #list
    for _, entry in ipairs(list) do
        local own = entry[1]:find("prefix_") or entry[1]:find("aggregate_")
        local line = ("tensor %s%s 0 %d BF16"):format(own and "p4:" or "", entry[1],
            offsets[entry[1]])
        right = right and lines[line]
    end
    tap.ok(right, "a job has every tensor at its offset")
    tap.ok(job.write(make.plan({ 4 }, 5), from, "/x/tok"):find("\ntokenizer /x/tok\n", 1, true),
        "a job names the tokenizer's blob")
    tap.ok(not from.tokenizer and from.eos[1] == 0, "no tokenizer, one stop id")
end

do
    make.write(path("hf/tokenizer.json"), "{}")
    make.write(path("hf/generation_config.json"), '{"eos_token_id": [7, 9]}')
    local from = open_folder()
    tap.ok(table.concat(from.eos, " ") == "7 9" and table.concat(from.spec.eos_token_id, " ")
        == "7 9", "generation_config.json has the last word on stop ids")
    tap.ok(from.tokenizer.kind == "json" and from.tokenizer.path == path("hf/tokenizer.json"),
        "tokenizer.json is found")
    make.write(path("hf/generation_config.json"), '{"eos_token_id": "7"}')
    refused("a stop id in quotes", { path("hf/generation_config.json: eos_token_id") },
        open_folder)
    os.remove(path("hf/generation_config.json"))
    os.remove(path("hf/tokenizer.json"))
end

-- torch_dtype absent: the embedding tells. Transformers 5: dtype, rope_parameters.
do
    local from = open_folder({ torch_dtype = cjson.null })
    tap.is(from.spec.weight_dtype, "bf16", "bf16 weights stay bf16")
    from = open_folder({ torch_dtype = cjson.null, dtype = "float16", rope_theta = cjson.null,
        rope_parameters = { rope_type = "default", rope_theta = 5e5 } })
    tap.ok(from.spec.weight_dtype == "bf16x2" and from.spec.rope_theta == 5e5,
        "the newer names of dtype and rope_theta are known")
end

-- A llama without biases, with the harmless tensors that real folders have.
do
    local list = {}
    for _, entry in ipairs(make.backbone_tensors()) do
        list[#list + 1] = not entry[3] and entry or nil
    end
    list[#list + 1] = { "lm_head.weight", { 64, 32 } }
    list[#list + 1] = { "model.layers.0.self_attn.rotary_emb.inv_freq", { 8 }, dtype = "F32" }
    local from = open_folder({ model_type = "llama" }, list)
    local lines, count = jobs.lines(jobs.write(from))
    tap.ok(lines["zero model.layers.1.self_attn.q_proj.bias"] and count == 3 + 26
        and spec.complete(from.spec, "c").attention_bias == false, "absent biases are zero")
    list[#list - 1][2] = { 64, 16 }
    refused("another lm_head where it is tied", { "model.safetensors", "lm_head.weight" },
        function() jobs.write(open_folder({}, list)) end)
    list[#list - 1] = { "model.layers.0.self_attn.q_proj.bias", { 32 } }
    refused("biases in some layers only", { "model.safetensors", "k_proj.bias", "missing" },
        function() jobs.write(open_folder({}, list)) end)
end

local function config_case(changes)
    return jobs.write(open_folder(changes))
end
local HOSTILE_CONFIGS = {
    { "rope_scaling", { type = "yarn" } }, { "use_sliding_window", true }, { "mlp_bias", true },
    { "partial_rotary_factor", 0.5 }, { "quantization_config", { bits = 4 } },
    { "rope_parameters", { rope_type = "llama3" } },
    { "layer_types", { "sliding_attention" } },
    { "hidden_act", "gelu" }, { "model_type", "mistral" }, { "torch_dtype", "float8_e4m3fn" },
    { "torch_dtype", { 1 } }, { "parscale_n", { 2, 4 } }, { "vocab_size", 2 ^ 40 },
    { "num_hidden_layers", 1e300 }, { "num_key_value_heads", 0 }, { "rms_norm_eps", -1e-6 },
    { "eos_token_id", 64 }, { "eos_token_id", { 1, "2" } }, { "head_dim", 12 },
}
for _, row in ipairs(HOSTILE_CONFIGS) do
    refused("config.json with " .. row[1] .. " = " .. cjson.encode({ row[2] }),
        { path("hf/config.json: ") .. row[1] .. ": found" }, config_case, { [row[1]] = row[2] })
end
for _, key in ipairs({ "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta",
    "tie_word_embeddings", "max_position_embeddings" }) do
    refused("config.json without " .. key, { path("hf/config.json: ") .. key .. ": missing" },
        config_case, { [key] = cjson.null })
end
for key in pairs(make.config) do
    if key ~= "sliding_window" then
        refused("config.json with an object as " .. key, { path("hf/config.json: ") .. key },
            config_case, { [key] = { x = 1 } })
    end
end

local function config_text(text)
    make.folder(path("hf"))
    make.write(path("hf/config.json"), text)
    return checkpoint.open(path("hf"))
end
local whole_config = cjson.encode(make.config)
refused("a truncated config.json", { path("hf/config.json"), "JSON" }, config_text,
    whole_config:sub(1, -20))
refused("an empty config.json", { path("hf/config.json"), "JSON" }, config_text, "")
refused("a config.json of 2 MB", { path("hf/config.json"), "bytes" }, config_text,
    whole_config .. (" "):rep(2 << 20))
refused("a deep config.json", { path("hf/config.json"), "JSON" }, config_text, ("["):rep(1e5))
refused("no config.json", { path("config.json") }, checkpoint.open, path(""))
refused("no checkpoint at all", { path("none"), "nothing" }, checkpoint.open, path("none"))
os.execute("mkfifo '" .. path("fifo") .. "'")
refused("a pipe as checkpoint", { path("fifo"), "pipe" }, checkpoint.open, path("fifo"))

-- Shapes of config.json that contradict the tensors.
for _, row in ipairs({ { "hidden_size", 64 }, { "intermediate_size", 64 }, { "vocab_size", 65 },
    { "num_key_value_heads", 2 }, { "head_dim", 32 } }) do
    refused(row[1] .. " that contradicts the tensors",
        { path("hf/model.safetensors"), "found shape [", "expected [" }, function()
            local from = open_folder({ [row[1]] = row[2] })
            local s = spec.complete(from.spec, from.where)
            job.write(plan.make(s), from)
        end)
end

-- ---- adapters ----------------------------------------------------------------------------------

local function adapter(name, P, T, change)
    local list = make.adapter_tensors(P, T)
    if change then
        change(list)
    end
    return make.write(path(name), (make.safetensors(list)))
end

local function with_adapters(paths, changes)
    local from = checkpoint.open(make.folder(path("hf"), changes), paths)
    return from, jobs.write(from)
end

do
    local p2, p4 = adapter("p2.safetensors", 2, 7), adapter("p4.safetensors", 4, 7)
    local from, text = with_adapters({ p4, p2 })
    tap.ok(table.concat(from.spec.parscale_n, " ") == "2 4" and from.spec.parscale_n_tokens == 7
        and from.sources[4] == p4 and from.sources[2] == p2 and from.sources[1]
        == path("hf/model.safetensors"), "adapters are known by their shapes")
    local _, offsets = make.safetensors(make.adapter_tensors(4, 7))
    local lines = jobs.lines(text)
    tap.ok(lines[("tensor p4:model.layers.1.self_attn.prefix_v 2 %d BF16"):format(
        offsets["model.layers.1.self_attn.prefix_v"])] and lines["file 2 " .. p4],
        "an adapter's tensors are the job's pP: tensors")
    from = with_adapters({ p4 }, { model_type = "qwen2", parscale_n = cjson.null,
        parscale_n_tokens = cjson.null, parscale_attn_smooth = cjson.null })
    tap.is(spec.complete(from.spec, "x").parscale_attn_smooth, 0.1,
        "adapters of a plain backbone are smoothed as every published model is")
    from = checkpoint.open(make.folder(path("hf"), { parscale_n = 2 }),
        { adapter("p4.safetensors", 4, 5) })
    tap.is(table.concat(from.spec.parscale_n, " "), "2 4", "a published P = 2 stays in the list")
    from = checkpoint.open(make.write(path("x.gguf"), (make.gguf("llama"))), { p4 })
    tap.ok(from.tensors["p4:model.aggregate_layer.2.bias"] and from.spec.parscale_n[1] == 4,
        "a GGUF takes adapters")
end

local function adapter_case(P, T, change, more)
    return with_adapters({ adapter("a.safetensors", P, T, change), more })
end
refused("two adapters of one P", { "b.safetensors", "P = 4", "a.safetensors" }, adapter_case, 4, 7,
    nil, adapter("b.safetensors", 4, 7))
refused("adapters of unlike prefixes", { "b.safetensors", "prefix_k", "[2, 1, 6, 16]",
    "[2, 1, 7, 16]" }, adapter_case, 4, 7, nil, adapter("b.safetensors", 2, 6))
refused("an adapter of a published P", { "a.safetensors", "P = 2", "hf/model.safetensors" },
    with_adapters, { adapter("a.safetensors", 2, 5) }, { parscale_n = 2 })
refused("an adapter of P = 1", { "a.safetensors", "prefix_k", "P from 2" }, adapter_case, 1, 7)
refused("an adapter of P = 17", { "a.safetensors", "prefix_k", "P from 2" }, adapter_case, 17, 7)
refused("an adapter for more layers", { "a.safetensors", "layers.2.", "does not have" },
    adapter_case, 4, 7, function(list)
        list[#list + 1] = { "model.layers.2.self_attn.prefix_k", { 4, 1, 7, 16 } }
    end)
refused("an adapter for fewer layers", { "a.safetensors", "layers.1.self_attn.prefix_v",
    "missing" }, adapter_case, 4, 7, function(list) table.remove(list, 4) end)
refused("an adapter for more heads", { "a.safetensors", "prefix_v", "[4, 2, 7, 16]" }, adapter_case,
    4, 7, function(list) list[2][2] = { 4, 2, 7, 16 } end)
refused("an adapter with a flat prefix", { "a.safetensors", "prefix_k", "[4, 112]" }, adapter_case,
    4, 7, function(list) list[1][2] = { 4, 112 } end)
refused("an adapter without prefixes", { "a.safetensors", "prefix_k: found nothing" }, adapter_case,
    4, 7, function(list) table.remove(list, 1) end)
refused("an adapter with a foreign tensor", { "a.safetensors", '"model.wait"' }, adapter_case,
    4, 7, function(list) list[#list + 1] = { "model.wait", { 32 } } end)
refused("an adapter with a backbone of another shape", { "a.safetensors",
    '"model.embed_tokens.weight": found BF16 [64, 16]', "BF16 [64, 32]" }, adapter_case, 4, 7,
    function(list) list[#list + 1] = { "model.embed_tokens.weight", { 64, 16 } } end)
refused("an adapter with a backbone of another dtype", { "a.safetensors",
    '"model.embed_tokens.weight": found F32', "BF16" }, adapter_case, 4, 7,
    function(list)
        list[#list + 1] = { "model.embed_tokens.weight", { 64, 32 }, dtype = "F32" }
    end)
refused("an adapter that is not there", { path("none.safetensors") }, with_adapters,
    { path("none.safetensors") })


-- ---- the backbone of an adapter ----------------------------------------------------------------

-- The text of a safetensors file, the last norm's values set to `value`, a packed number.
local function with_norm(list, dtype, value)
    local file, offsets = make.safetensors(list, dtype)
    local at = offsets["model.norm.weight"]
    return file:sub(1, at) .. value:rep(32) .. file:sub(at + 32 * #value + 1)
end

-- The FNV-1a of 32 times 1.5 as fp32, by arithmetic of its own.
local function expected_digest()
    local low, high = 0x84222325, 0xcbf29ce4 -- 64 bits in two halves; the prime is 2^40 + 0x1b3
    for byte in string.pack("<f", 1.5):rep(32):gmatch(".") do
        low = low ~ byte:byte()
        local product = low * 0x1b3
        high = (high * 0x1b3 + (product >> 32) + (low << 8)) & 0xffffffff
        low = product & 0xffffffff
    end
    return ("%08x%08x"):format(high, low)
end

do
    local digests = {}
    for i, case in ipairs({ { "F32", string.pack("<f", 1.5) }, { "BF16", "\xc0\x3f" },
        { "F16", "\x00\x3e" } }) do
        local file = make.write(path("norm.safetensors"),
            with_norm(make.backbone_tensors(), table.unpack(case)))
        digests[i] = backbone.digest(safetensors.open(file).tensors)
    end
    tap.is(table.concat(digests, " "), (" " .. expected_digest()):rep(3):sub(2),
        "a backbone has one digest in every dtype")
end

local zeros = "8421ae126c7ced25" -- of the norms that make.folder writes
local function named_adapter(digest)
    local file = make.safetensors(make.adapter_tensors(4, 5))
    local header = file:sub(9, 8 + string.unpack("<I8", file))
    local named = ('{"__metadata__":{"backbone_digest":"%s"},%s'):format(digest, header:sub(2))
    return make.write(path("named.safetensors"), make.header_text(named) .. file:sub(9 + #header))
end
tap.ok(with_adapters({ named_adapter(zeros) }), "an adapter that names its backbone")
refused("an adapter that names another backbone", { "named.safetensors", "another backbone",
    '"0123456789abcdef"', "hf/model.safetensors has " .. zeros }, function()
    with_adapters({ named_adapter("0123456789abcdef") })
end)

-- Whole published checkpoints that share a backbone.
do
    local other = make.folder(path("p8"), { parscale_n = 8 })
    local from, text = with_adapters({ other }, { parscale_n = 2 })
    local lines = jobs.lines(text)
    local list = make.backbone_tensors()
    table.move(make.adapter_tensors(8, 5), 1, 8, #list + 1, list)
    local _, offsets = make.safetensors(list)
    local right = true
    for _, entry in ipairs(make.backbone_tensors()) do
        right = right and lines[("same %s 1 %d"):format(entry[1], offsets[entry[1]])]
    end
    tap.ok(table.concat(from.spec.parscale_n, " ") == "2 8" and right
        and lines[("tensor p8:model.aggregate_layer.0.bias 1 %d BF16"):format(
            offsets["model.aggregate_layer.0.bias"])],
        "a whole checkpoint gives its streams; its backbone is to be compared")
    from = with_adapters({ other }, { model_type = "qwen2", parscale_n = cjson.null,
        parscale_n_tokens = cjson.null, parscale_attn_smooth = cjson.null })
    tap.ok(from.spec.parscale_attn_smooth == 0.1 and from.spec.parscale_n_tokens == 5,
        "and its config.json tells what that of a plain backbone does not")
    make.write(path("p8/model.safetensors"), with_norm(list, "BF16", "\xc0\x3f"))
    refused("a whole checkpoint of another backbone", { "p8/model.safetensors", "another backbone",
        expected_digest(), zeros }, with_adapters, { other })
end
for key, value in pairs({ hidden_size = 64, num_hidden_layers = 3, rope_theta = 1e6,
    rms_norm_eps = 1e-5, parscale_n_tokens = 6, parscale_attn_smooth = 0.2 }) do
    local other = make.folder(path("other"), { parscale_n = 8, [key] = value })
    refused("a whole checkpoint with another " .. key, { "other/config.json: " .. key .. ": found",
        "hf/config.json has" }, with_adapters, { other })
end

hostile.finish()
