-- For tests with golden models (data/golden): their names, and what was published of them in the
-- form that golden_harness reads.

local build = require("build")
local safetensors = require("codegen.safetensors")

local M = {}

M.names = {
    "p1-hd64-bf16", "p2-hd56-f32", "p3-hd16-odd-bf16", "p4-hd128-theta1e6-bf16",
    "p4-hd80-sharded-bf16", "p8-hd160-bf16", "p8-hd96-untied-f16",
}

function M.folder(name)
    return build.here .. "data/golden/" .. name
end

-- The expected values in a golden folder, as golden_harness reads them.
function M.expected_bytes(folder)
    local tensors = safetensors.open(folder .. "/expected.safetensors").tensors
    local weights = tensors.aggregate_weights
    local sizes = { tensors.logits.shape[1], tensors.logits.shape[2],
        weights and weights.shape[2] or 1, tensors.greedy_ids.shape[1] }
    local parts = { string.pack("<i4i4i4i4", table.unpack(sizes)) }
    for _, key in ipairs({ "input_ids", "logits", "aggregate_weights", "greedy_ids",
        "greedy_margin" }) do
        local tensor = tensors[key]
        if tensor then
            local file = assert(io.open(tensor.file, "rb"))
            file:seek("set", tensor.offset)
            parts[#parts + 1] = file:read(tensor.bytes)
            file:close()
        end
    end
    return table.concat(parts)
end

-- Writes them; returns the file's path.
function M.expected(name)
    return build.write(name .. ".expected", M.expected_bytes(M.folder(name)))
end

return M
