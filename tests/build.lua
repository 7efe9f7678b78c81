-- For tests that make engines: a folder of their own, shell commands, the generator, the compiler.
-- Relies on lua-filesystem; CC names the compiler, gcc if it is not set.

local lfs = require("lfs")
local tap = require("tap")

local M = {}

M.here = arg[0]:match("^(.*/)") or "./"
M.root = M.here .. "../"
M.cc = os.getenv("CC") or "gcc"
M.flags = "-std=c11 -O3 -fno-trapping-math" -- the Makefile's
M.paths = { "avx2", "avx512", "avx512bf16", "neon" } -- the fast ones
M.scratch = os.tmpname()
os.remove(M.scratch)
assert(lfs.mkdir(M.scratch))

function M.quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

function M.path(name)
    return M.scratch .. "/" .. name
end

function M.read(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read("a")
    file:close()
    return text
end

function M.write(name, text)
    local file = assert(io.open(M.path(name), "wb"))
    assert(file:write(text))
    assert(file:close())
    return M.path(name)
end

-- Runs a shell command. Returns exit code (1000 + signal if a signal ended it), stdout, stderr.
function M.shell(command, ...)
    command = select("#", ...) > 0 and command:format(...) or command
    local _, how, code = os.execute(("{ %s\n} >'%s/out' 2>'%s/err' </dev/null"):format(command,
        M.scratch, M.scratch))
    return how == "exit" and code or 1000 + code, M.read(M.path("out")), M.read(M.path("err"))
end

-- Checks that an engine chooses the same ids with one, two and three threads.
function M.same_for_threads(engine)
    local first
    for threads = 1, 3 do
        local out = M.must("'%s' generate --device cpu --ids '1 2 3' -n 40 --temp 1 -s 5 "
            .. "--print-ids -t %d --ignore-eos", engine, threads)
        first = first or out
        tap.ok(out == first and #out > 100, ("%d threads: the same ids"):format(threads), out)
    end
end

function M.done()
    os.execute("rm -rf " .. M.quote(M.scratch))
    tap.done()
end

-- The command must work, else the whole test ends. Returns stdout and stderr.
function M.must(command, ...)
    local code, out, err = M.shell(command, ...)
    if code ~= 0 then
        io.stderr:write("# ", select("#", ...) > 0 and command:format(...) or command, "\n", err)
        tap.ok(false, "a command that all the rest depends on")
        M.done()
    end
    return out, err
end

-- The wall time that a command takes, which must work.
function M.seconds(command, ...)
    local out = M.must("date +%%s.%%N; { %s\n} >/dev/null && date +%%s.%%N", command:format(...))
    local start, finish = out:match("([%d.]+)\n([%d.]+)")
    return tonumber(finish) - tonumber(start)
end

-- The processor time, what it would take on a machine that does nothing else, from the output of a
-- command with `&& times` behind it.
function M.times(out)
    local seconds = 0
    for minutes, rest in out:match("([^\n]*)\n*$"):gmatch("(%d+)m([%d.]+)s") do
        seconds = seconds + 60 * tonumber(minutes) + tonumber(rest)
    end
    return seconds
end

-- The processor time of a command, which must work.
function M.processor_seconds(command, ...)
    return M.times((M.must("{ %s\n} >/dev/null && times", command:format(...))))
end

-- Runs the generator; returns the engine's folder.
function M.generate(arguments)
    local out = M.must("lua5.4 '%scodegen/main.lua' --out '%s' %s", M.root, M.path("models"),
        arguments)
    return out:match("^[^\n]+")
end

function M.generate_spec(text, name)
    return M.generate(("--from random --spec '%s'"):format(M.write(name .. ".lua", text)))
end

-- Compiles the packer in `folder` and packs: the checkpoint, or with a seed random weights.
function M.pack(folder, seed)
    M.must("%s -std=c11 -O2 -Wall -Wextra -Werror -o '%s/pack' '%s/pack.c' -lm -pthread", M.cc,
        folder, folder)
    M.must("'%s/pack' %s", folder, seed and "--random " .. seed or M.quote(folder .. "/pack.job"))
end

-- Compiles a test program with the engine in `folder` as a library; returns its path. The flags are
-- the engine's.
function M.harness(folder, name, flags)
    local program, object = M.path(name), M.path("engine.o")
    flags = (flags or M.flags) .. " -Wall -Wextra -Werror"
    M.must("%s %s -DPARSCALE_NO_MAIN -c -o '%s' '%s/engine.c'", M.cc, flags, object, folder)
    M.must("%s %s -O1 -D_GNU_SOURCE -o '%s' '%s%s.c' '%s' -lm -pthread", M.cc, flags, program,
        M.here, name, object)
    return program
end

-- The engine itself; returns its path.
function M.engine(folder, flags)
    M.must("%s %s -Wall -Wextra -Werror -o '%s/engine' '%s/engine.c' -lm -pthread", M.cc,
        flags or M.flags, folder, folder)
    return folder .. "/engine"
end

-- key=value pairs of a line -> table of numbers.
function M.values(line)
    local values = {}
    for key, value in line:gmatch("(%w+)=(%S+)") do
        values[key] = tonumber(value) or (value:find("nan") and 0 / 0) or math.huge
    end
    return values
end

-- Failure is one line on stderr that holds every part, and this exit code.
function M.fails(code, name, command, ...)
    local found, out, err = M.shell(command)
    local good = found == code and out == "" and select(2, err:gsub("\n", "")) == 1
    for _, part in ipairs({ ... }) do
        good = good and err:find(part, 1, true)
    end
    tap.ok(good, name, ("exit %d, stdout %d bytes, stderr %s"):format(found, #out, err))
end

return M
