-- The kernels compiled ahead of time: engine.cu to machine code for some GPU architectures, by
-- NVRTC through codegen/cubin.c; as a table of engine.c, and for the report.

local lfs = require("lfs")
local files = require("codegen.files")
local fail = require("codegen.fail").fail

local cubins = {}

-- Architectures that the kernels are written for, and the KB of shared memory of a block, at most.
local SHARED = { [80] = 163, [86] = 99, [87] = 163, [89] = 99, [90] = 227, [100] = 227, [103] = 227,
                 [110] = 227, [120] = 99, [121] = 99 }

local HEAD = [[
// Kernels compiled when this engine was generated: for each architecture and P, where its words
// start in CUBIN_WORDS. shared_bytes: what a block must be allowed to have.
static const struct cubin {
    int sm, streams;
    size_t shared_bytes, first_word;
} CUBINS[] = {
%s
    { 0, 0, 0, 0 }, // the end
};

static const char GPU_KERNELS[] = "%s";

static const uint64_t CUBIN_WORDS[] = {
%s
};
]]

-- "87 90" -> { 87, 90 }
function cubins.architectures(text)
    local list = {}
    for word in text:gmatch("%S+") do
        local sm = math.tointeger(tonumber(word))
        if not SHARED[sm] then
            fail("--sm: found %q, expected numbers of 80 86 87 89 90 100 103 110 120 121", word)
        end
        list[#list + 1] = sm
    end
    return list
end

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- Runs the compiler unless `path` is there, made by this NVRTC; it is removed when engine.cu
-- changes. Beside the machine code lies what the assembler said.
local function compile(compiler, nvrtc, folder, path, sm, streams, shared)
    local report = path .. ".txt"
    local same = lfs.attributes(path) and lfs.attributes(report)
        and files.read(report, 1 << 20):match("^[^\n]*") == nvrtc
    if not same then
        local command = ("{ echo %s; LD_LIBRARY_PATH=%s %s %s %s/engine.cu %d %d %d %s.part; } >%s")
            :format(quote(nvrtc), quote(nvrtc), quote(compiler), quote(nvrtc), quote(folder), sm,
                streams, shared, quote(path), quote(report))
        local done = os.execute(command)
        if not done or not os.rename(path .. ".part", path) then
            fail("%s: the kernels could not be compiled for sm_%d", folder, sm)
        end
    end
    local kernels = {}
    for name, registers, own, memory in files.read(path .. ".txt", 1 << 20):gmatch(
            "(%S+) (%d+) (%d+) (%d+)\n") do
        kernels[#kernels + 1] = { name = name, registers = tonumber(registers),
                                  shared = tonumber(own), memory = tonumber(memory) }
    end
    return { sm = sm, streams = streams, shared = shared, kernels = kernels,
             image = files.read(path, 64 << 20) }
end

function cubins.remove(folder)
    if lfs.attributes(folder, "mode") ~= "directory" then return end
    for name in lfs.dir(folder) do
        if name:find("^sm_%d+_p%d+%.cubin") then os.remove(folder .. "/" .. name) end
    end
end

-- Machine code of every architecture in `list` and every P of the plan; compiler: codegen/cubin.c,
-- nvrtc: the folder of its library.
function cubins.make(p, folder, compiler, nvrtc, list)
    local all = {}
    for _, sm in ipairs(list) do
        for _, streams in ipairs(p.streams) do
            local path = ("%s/sm_%d_p%d.cubin"):format(folder, sm, streams)
            all[#all + 1] = compile(compiler, nvrtc, folder, path, sm, streams,
                SHARED[sm] << 10)
        end
    end
    return all
end

local function words(image, out)
    image = image .. ("\0"):rep(-#image % 8)
    for at = 1, #image, 32 do
        local line = {}
        for word = at, math.min(at + 31, #image), 8 do
            line[#line + 1] = ("0x%x"):format((string.unpack("<I8", image, word)))
        end
        out[#out + 1] = "    " .. table.concat(line, ", ") .. ","
    end
    return #image // 8
end

-- The table of engine.c; `all` may be empty.
function cubins.text(all)
    local rows, data, first, seen = {}, {}, 0, {}
    for _, cubin in ipairs(all) do
        rows[#rows + 1] = ("    { %d, %d, %d, %d },"):format(cubin.sm, cubin.streams, cubin.shared,
            first)
        first = first + words(cubin.image, data)
        if seen[#seen] ~= cubin.sm then seen[#seen + 1] = cubin.sm end
    end
    if #all == 0 then
        return HEAD:format("", "compiled by NVRTC at the first start", "    0")
    end
    return HEAD:format(table.concat(rows, "\n"), "embedded for sm_" ..
        table.concat(seen, " sm_") .. ", which need no NVRTC", table.concat(data, "\n"))
end

return cubins
