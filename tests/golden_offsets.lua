-- Prints the arguments of golden_harness for a golden folder: where its expected tensors lie.
package.path = "./?.lua;" .. package.path
local safetensors = require("codegen.safetensors")

local path = arg[1] .. "/expected.safetensors"
local t = safetensors.open(path).tensors
local weights = t.aggregate_weights
print(path, t.logits.shape[1], t.input_ids.offset, t.logits.offset, t.logits.shape[2],
    weights and weights.offset or 0, weights and weights.shape[2] or 1, t.greedy_ids.offset,
    t.greedy_margin.offset, t.greedy_ids.shape[1])
