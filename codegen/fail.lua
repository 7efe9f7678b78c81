-- Refusals: one line that names the file, the field, what was found and what was expected.
-- Relies on nothing. codegen/main.lua catches them and prints them without a traceback.
local M = {}

local Failure = {
    __tostring = function(self)
        return self.message
    end,
}

-- Control characters, quotes of what was read included, never reach a terminal.
local function one_line(text)
    return (text:gsub("%c", function(c)
        return ("\\x%02x"):format(c:byte())
    end))
end

-- Raises {message = fmt:format(...)}.
function M.fail(fmt, ...)
    error(setmetatable({ message = one_line(fmt:format(...)) }, Failure), 0)
end

function M.is_failure(value)
    return getmetatable(value) == Failure
end

-- A value as a message shows it: strings in quotes, long ones cut, tables and the like by kind.
function M.quote(value)
    local kind = type(value)
    if kind == "nil" then
        return "nothing"
    elseif kind == "string" then
        if #value > 60 then
            value = value:sub(1, 57) .. "..."
        end
        return '"' .. one_line(value) .. '"'
    elseif kind == "number" or kind == "boolean" then
        return tostring(value)
    elseif kind == "userdata" then -- JSON null in a list
        return "null"
    end
    return "a " .. kind
end

return M
