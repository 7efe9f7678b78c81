-- Prints the models of model_specs/, what each takes, before anything is downloaded or generated:
--     lua5.4 codegen/specs.lua

local root = arg[0]:match("^(.*)/codegen/specs%.lua$") or "."
package.path = root .. "/?.lua;" .. package.path

local models = require("codegen.models")
local plan = require("codegen.plan")
local spec = require("codegen.spec")

local ROW = "%-30s %13s %13s %13s %13s %13s"

local all, names = models.all(root .. "/model_specs")
print(ROW:format("", "parameters", "but embedding", "bytes as", "bytes a token", "KV bytes a"))
print(ROW:format("name", "", "and head", "bf16", "reads", "position"))
for _, name in ipairs(names) do
    local p = plan.make(spec.complete(all[name], name))
    local stored, largest = 0, p.adapters[#p.adapters]
    for _, adapter in ipairs(p.adapters) do
        stored = stored + adapter.parameters
    end
    print(ROW:format(name, p.parameters + stored, p.inner_parameters + stored,
        2 * (p.parameters + stored), p.bytes_per_token + largest.bytes,
        largest.kv_bytes_position))
end
print([[

A model for several P stores an adapter for each; what it reads is that of the largest P. A token
reads the weights and, for each position in the cache, the KV bytes of a position.]])
