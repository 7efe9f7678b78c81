-- Specs by name. A file of model_specs/ returns a table: name -> spec. A user's SPEC is such a
-- name, or the path of a file that returns one spec. Relies on lua-filesystem.

local lfs = require("lfs")
local failure = require("codegen.fail")
local sandbox = require("codegen.sandbox")
local spec = require("codegen.spec")

local fail, quote = failure.fail, failure.quote
local M = {}

local SUGGESTIONS = 3

-- folder: model_specs. Returns name -> spec, each key checked, and the names in order.
function M.all(folder)
    local models, names = {}, {}
    for file in lfs.dir(folder) do
        if file:find("%.lua$") then
            local path = folder .. "/" .. file
            for name, given in pairs(sandbox.load(path)) do
                models[name] = spec.check(given, path .. ": " .. name)
                names[#names + 1] = name
            end
        end
    end
    table.sort(names)
    return models, names
end

-- Letters to insert, remove or replace to make b of a (Levenshtein).
local function distance(a, b)
    local row = {}
    for j = 0, #b do row[j] = j end
    for i = 1, #a do
        local diagonal = row[0]
        row[0] = i
        for j = 1, #b do
            local cost = a:byte(i) == b:byte(j) and 0 or 1
            local best = math.min(diagonal + cost, row[j] + 1, row[j - 1] + 1)
            diagonal, row[j] = row[j], best
        end
    end
    return row[#b]
end

local function closest(wanted, names)
    local far, order = {}, table.move(names, 1, #names, 1, {})
    wanted = wanted:lower():sub(1, 64)
    for _, name in ipairs(names) do
        far[name] = distance(wanted, name:lower())
    end
    table.sort(order, function(a, b)
        return far[a] < far[b] or far[a] == far[b] and a < b
    end)
    return table.concat(order, ", ", 1, math.min(SUGGESTIONS, #order))
end

-- name_or_path -> the keys of a spec, each checked. What holds a "/" or ends in ".lua" is a path.
function M.load(name_or_path, folder)
    if name_or_path:find("/", 1, true) or name_or_path:find("%.lua$") then
        return spec.load(name_or_path)
    end
    local models, names = M.all(folder)
    if not models[name_or_path] then
        fail("SPEC: found %s, expected a path or a name that `make specs` lists, such as %s",
            quote(name_or_path), closest(name_or_path, names))
    end
    return models[name_or_path]
end

return M
