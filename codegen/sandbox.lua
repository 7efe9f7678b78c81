-- Loads a Lua file as data: no globals, no library, a limit of steps and of memory.
-- Relies on debug.sethook.

local failure = require("codegen.fail")
local files = require("codegen.files")

local fail = failure.fail
local M = {}

-- A file of data is a page; these are far above one and far below what hurts.
local MAX_FILE_BYTES = 65536
local MAX_INSTRUCTIONS = 100000
local MAX_KILOBYTES = 512

-- Runs a chunk that can reach nothing. The watch looks after each instruction, because memory can
-- multiply (s = s .. s) in one; the string library goes, because ("x"):rep needs no global name.
local function run_limited(chunk)
    local strings = getmetatable("")
    local methods, instructions = strings.__index, 0
    collectgarbage()
    local before = collectgarbage("count")
    local function watch()
        instructions = instructions + 1
        local excess = instructions > MAX_INSTRUCTIONS and MAX_INSTRUCTIONS .. " steps"
            or collectgarbage("count") - before > MAX_KILOBYTES and MAX_KILOBYTES .. " KiB"
        if excess then
            debug.sethook() -- the error ends the chunk; what follows must not be watched
            error("takes more than " .. excess, 0)
        end
    end
    strings.__index = nil
    debug.sethook(watch, "", 1)
    local ok, result = pcall(chunk)
    debug.sethook()
    strings.__index = methods
    return ok, result
end

-- path -> the table that the file returns. What is in it is for the caller to check.
function M.load(path)
    local chunk, message = load(files.read(path, MAX_FILE_BYTES), "=line", "t", {})
    local ok, result = false, message
    if chunk then
        ok, result = run_limited(chunk)
    end
    if not ok then
        fail("%s: %s", path, tostring(result):gsub("^line:", "line "):sub(1, 200))
    elseif type(result) ~= "table" then
        fail("%s: found a %s, expected a file that returns a table", path, type(result))
    end
    return result
end

return M
