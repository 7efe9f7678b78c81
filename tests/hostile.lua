-- For tests of what must be refused: a folder for files, and the assertion that a refusal is one
-- line that says the right thing, soon, and in little memory. Relies on lua-filesystem.

local lfs = require("lfs")
local failure = require("codegen.fail")
local tap = require("tap")

local M = {}

local SECONDS = 2
local PEAK_MIB = 512
local folder = os.tmpname()
os.remove(folder)
assert(lfs.mkdir(folder))

-- A path in a folder that finish() removes.
function M.path(name)
    return folder .. "/" .. name
end

-- f(...) must raise a failure whose one line holds every part, in bounded time.
function M.refused(name, parts, f, ...)
    local start = os.clock()
    local ok, problem = pcall(f, ...)
    local seconds = os.clock() - start
    local message = tostring(problem)
    local fine = not ok and failure.is_failure(problem) and not message:find("%c")
        and #message < 600 and seconds < SECONDS
    for _, part in ipairs(parts) do
        fine = fine and message:find(part, 1, true)
    end
    tap.ok(fine, name, ok and "was accepted" or ("%s (%.2f s)"):format(message, seconds))
end

-- Whether f(...) fails with a message: anything else is a defect of ours.
function M.fails(f, ...)
    local ok, problem = pcall(f, ...)
    return not ok and failure.is_failure(problem)
end

-- Whether f(...) returns or fails with a message.
function M.survives(f, ...)
    local ok, problem = pcall(f, ...)
    return ok or failure.is_failure(problem)
end

local function peak_kib()
    for line in io.lines("/proc/self/status") do
        local kib = line:match("^VmHWM:%s*(%d+) kB")
        if kib then
            return tonumber(kib)
        end
    end
end

function M.finish()
    local kib = peak_kib()
    tap.ok(kib < PEAK_MIB * 1024, ("all that in less than %d MiB"):format(PEAK_MIB), kib)
    os.execute("rm -rf '" .. folder .. "'")
    tap.done()
end

return M
