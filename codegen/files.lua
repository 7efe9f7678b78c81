-- Opening input files: only regular ones, so that a pipe or a device cannot stall or flood the
-- generator. A link to a regular file is one. Relies on lua-filesystem.

local lfs = require("lfs")
local failure = require("codegen.fail")

local fail = failure.fail
local M = {}

-- path -> handle in binary mode, size in bytes.
function M.open(path)
    local attributes, problem = lfs.attributes(path)
    if not attributes then
        fail("%s", problem)
    elseif attributes.mode ~= "file" then
        fail("%s: found a %s, expected a file", path, attributes.mode)
    end
    local file, reason = io.open(path, "rb")
    if not file then
        fail("%s", reason)
    end
    return file, attributes.size
end

-- The whole text of a file of at most max_bytes.
function M.read(path, max_bytes)
    local file, size = M.open(path)
    local text = size <= max_bytes and file:read("a")
    file:close()
    if not text then
        fail("%s: found %d bytes, expected at most %d", path, size, max_bytes)
    end
    return text
end

return M
