-- JSON files and texts as Lua tables, with a size limit and one-line errors.
-- Relies on lua-cjson.
--
-- What the tables look like: a null in an object is an absent key; a null in a list is M.null, a
-- type that no field expects. Whole numbers are Lua integers, also when written as 1e6; those past
-- 2^53 have lost digits, those past 2^63 stay floats. Of equal keys in one object the last counts.
-- {} and [] are both an empty table.
local cjson = require("cjson").new()
local failure = require("codegen.fail")
local files = require("codegen.files")
local fail, quote = failure.fail, failure.quote

cjson.decode_max_depth(64)
cjson.decode_invalid_numbers(false)

local M = { null = cjson.null }

local DEFAULT_MAX_BYTES = 64 << 20

-- In place; assigning to existing keys is allowed during pairs().
local function tidy(value)
    for key, entry in pairs(value) do
        local kind = type(entry)
        if kind == "number" then
            value[key] = math.tointeger(entry) or entry
        elseif kind == "table" then
            tidy(entry)
        elseif entry == cjson.null and type(key) == "string" then
            value[key] = nil
        end
    end
    return value
end

-- The object or list that text holds. where names the text in messages.
function M.decode(text, where)
    local ok, value = pcall(cjson.decode, text)
    if not ok then
        fail("%s: not valid JSON: %s", where, tostring(value))
    end
    if type(value) ~= "table" then
        fail("%s: found %s, expected a JSON object", where, quote(value))
    end
    return tidy(value)
end

-- The same for a file of at most max_bytes (64 MiB if not given).
function M.read(path, max_bytes)
    return M.decode(files.read(path, max_bytes or DEFAULT_MAX_BYTES), path)
end

return M
