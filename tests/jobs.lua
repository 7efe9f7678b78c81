-- For tests of the way from a checkpoint to a pack job.

local job = require("codegen.job")
local make = require("checkpoints")
local spec = require("codegen.spec")

local M = {}

-- Checkpoint, spec, job; the plan's tensors are those of the published layout of make.config.
function M.write(from)
    local s = spec.complete(from.spec, from.where)
    return job.write(make.plan(s.parscale_n, s.parscale_n_tokens), from)
end

-- A job's lines as a set, and their number.
function M.lines(text)
    local set, count = {}, 0
    for line in text:gmatch("(.-)\n") do
        count = count + 1
        set[line] = true
    end
    return set, count
end

return M
