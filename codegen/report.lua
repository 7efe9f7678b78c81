-- report.md: what a plan takes, before anything runs: parameters, the pack byte by byte, memory,
-- bytes and operations of a decode step, and the time that a device's memory allows for it.

local devices = require("codegen.devices")

local function grouped(n)
    local text = ("%d"):format(n):reverse():gsub("(%d%d%d)", "%1,"):reverse()
    return (text:gsub("^,", ""))
end

local function mib(bytes)
    return ("%.1f MiB"):format(bytes / 2 ^ 20)
end

local function markdown_table(head, rows)
    local out = { "| " .. table.concat(head, " | ") .. " |" }
    local rule = {}
    for i = 1, #head do rule[i] = i == 1 and "---" or "---:" end
    out[2] = "| " .. table.concat(rule, " | ") .. " |"
    for _, row in ipairs(rows) do
        out[#out + 1] = "| " .. table.concat(row, " | ") .. " |"
    end
    return table.concat(out, "\n")
end

local function pack_rows(p)
    local layer, L = p.layer, p.spec.num_hidden_layers
    local rows = { { "header", grouped(p.header_bytes), 0 },
                   { "embedding", grouped(p.embedding.bytes), p.embedding.offset } }
    if p.head ~= p.embedding then
        rows[#rows + 1] = { "head", grouped(p.head.bytes), p.head.offset }
    end
    rows[#rows + 1] = { ("%d layers"):format(L), grouped(layer.stride * L), p.layers_offset }
    for _, name in ipairs({ "qkv", "o", "gate_up", "down", "input_norm", "post_norm",
                            "qkv_bias" }) do
        rows[#rows + 1] = { "- in each: " .. name, grouped(layer[name].bytes),
                            "+" .. layer[name].offset }
    end
    for _, a in ipairs(p.adapters) do
        if a.streams > 1 then
            rows[#rows + 1] = { "adapter of P = " .. a.streams, grouped(a.bytes), a.offset }
        end
    end
    rows[#rows + 1] = { "tokenizer", "as it comes", p.weights_end }
    return rows
end

-- A decode step of each P with n positions in the cache.
local function step_rows(p, n)
    local s = p.spec
    local rows = {}
    for _, a in ipairs(p.adapters) do
        local bytes = p.bytes_per_token + a.bytes + a.kv_bytes_position * n
        local attention = 4 * s.num_attention_heads * s.head_dim * (n + a.prefix_tokens)
            * s.num_hidden_layers
        local operations = 2 * p.inner_parameters * a.streams + attention * a.streams
            + 2 * s.vocab_size * s.hidden_size
        rows[#rows + 1] = { a.streams, grouped(bytes), ("%.2f"):format(operations / 1e9),
                            bytes = bytes }
    end
    return rows
end

-- A decode step cannot be faster than its bytes over the bandwidth.
local function device_rows(p, steps)
    local rows = {}
    for _, device in ipairs(devices) do
        local row = { device.name, ("%g"):format(device.bandwidth) }
        for i = 1, #p.adapters do
            row[#row + 1] = ("%.3f"):format(steps[i].bytes / device.bandwidth / 1e6)
        end
        rows[#rows + 1] = row
    end
    return rows
end

local function memory_rows(p)
    local rows = { { "KV cache, int8", grouped(p.cache.bytes), "" } }
    if p.spec.cache_dtype == "bf16" then
        rows = { { "KV cache, bf16 (fast paths)", grouped(p.cache.bytes), "" },
                 { "KV cache, fp32 (plain path)", grouped(p.cache.plain_bytes), "" } }
    end
    for _, part in ipairs({ { "shared", p.buffers }, { "each thread", p.scratch } }) do
        for _, b in ipairs(part[2]) do
            rows[#rows + 1] = { part[1] .. ": " .. b.name, grouped(b.bytes), b.shape }
        end
        rows[#rows + 1] = { "**" .. part[1] .. "**", grouped(part[2].bytes), "" }
    end
    return rows
end

local function gpu_memory_rows(p)
    local rows = { { "weights, as in the pack", grouped(p.weights_end), "" } }
    rows[#rows + 1] = { "KV cache, for the largest P", grouped(p.gpu.cache_bytes),
                         p.spec.cache_dtype }
    for _, b in ipairs(p.gpu.buffers) do
        rows[#rows + 1] = { "activations: " .. b.name, grouped(b.bytes), b.shape }
    end
    rows[#rows + 1] = { "**activations**", grouped(p.gpu.bytes), "" }
    return rows
end

-- What the assembler said of the kernels that were compiled.
local function kernel_rows(p, compiled)
    local rows = {}
    for _, cubin in ipairs(compiled) do
        for _, kernel in ipairs(cubin.kernels) do
            rows[#rows + 1] = { ("sm_%d, P = %d: %s"):format(cubin.sm, cubin.streams, kernel.name),
                kernel.registers,
                kernel.shared + p.gpu.shared_bytes(kernel.name, cubin.sm, cubin.shared),
                kernel.memory }
        end
    end
    return rows
end

local function gpu_text(p, compiled)
    local text = "## On a GPU\n\nAll of it taken at start-up. A GPU that shares memory with the "
        .. "host reads the weights in the mapped pack.\n\n"
        .. markdown_table({ "memory", "bytes", "shape" }, gpu_memory_rows(p)) .. "\n\n"
    if #compiled == 0 then
        return text .. "`make model ... SM=\"90\"` compiles the kernels when the engine is "
            .. "generated; their registers and what they spill are then told here."
    end
    return text .. "Kernels in this engine, as the assembler made them:\n\n"
        .. markdown_table({ "kernel", "registers", "shared memory, bytes", "spilled, bytes" },
            kernel_rows(p, compiled))
end

-- plan, digest of the backbone (backbone.lua; nil if its weights are random), compiled kernels
-- (cubins.lua) or nil -> text of report.md
return function(p, backbone, compiled)
    local s = p.spec
    local n = s.context // 2
    local steps = step_rows(p, n)
    local heads = { "device", "GB/s" }
    for _, a in ipairs(p.adapters) do heads[#heads + 1] = "P = " .. a.streams .. ", ms" end
    return table.concat({
        "# " .. s.name,
        ("Plan %s. %s parameters, %s outside embedding and head; P = %s."):format(p.digest,
            grouped(p.parameters), grouped(p.inner_parameters), table.concat(p.streams, ", ")),
        ("Backbone: %s."):format(backbone and "digest " .. backbone or "random weights"),
        "## The pack",
        markdown_table({ "section", "bytes", "at" }, pack_rows(p)),
        ("Without the tokenizer: %s."):format(mib(p.weights_end)),
        "## Memory",
        ("Besides the mapped pack, all of it taken at start-up: cache, shared buffers, and the "
            .. "scratch of each thread. With 2 threads on a fast path: %s, of which the cache is "
            .. "%s and one position of it %s bytes. Pages of the cache are touched when positions "
            .. "first reach them."):format(
            mib(p.cache.bytes + p.buffers.bytes + 2 * p.scratch.bytes),
            mib(p.cache.bytes), grouped(p.cache.bytes_position)),
        markdown_table({ "buffer", "bytes", "shape" }, memory_rows(p)),
        "## A decode step",
        ("With %d positions in the cache."):format(n),
        markdown_table({ "P", "bytes read", "GFLOP" }, steps),
        "The least time a step takes, were memory read at its published rate and all else free:",
        markdown_table(heads, device_rows(p, steps)),
        compiled and gpu_text(p, compiled),
    }, "\n\n") .. "\n"
end
