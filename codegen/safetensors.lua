-- Reads the headers of safetensors files, alone or sharded, and believes nothing in them: the data
-- of the tensors must fill the file exactly, without overlaps or gaps, as the format asks.
-- Format: 8 bytes little-endian length n, n bytes of JSON, the data.

local failure = require("codegen.fail")
local files = require("codegen.files")
local json = require("codegen.json")

local fail, quote = failure.fail, failure.quote
local M = {}

local MAX_HEADER_BYTES = 16 << 20 -- 100,000 tensors
local MAX_ELEMENTS = 1 << 48

local DTYPE_BYTES = {
    F64 = 8, F32 = 4, F16 = 2, BF16 = 2, F8_E4M3 = 1, F8_E5M2 = 1,
    I64 = 8, I32 = 4, I16 = 2, I8 = 1, U64 = 8, U32 = 4, U16 = 2, U8 = 1, BOOL = 1,
}

local function count_keys(value)
    local count = 0
    for key, entry in pairs(value) do
        count = count + (type(key) == "string" and 1 or 0)
        count = count + (type(entry) == "table" and count_keys(entry) or 0)
    end
    return count
end

-- The JSON library keeps the last of equal keys. A string before a colon is a key, so the text
-- tells how many there should be.
local function refuse_duplicate_keys(text, header, where)
    local bare = text:gsub('\\.', ""):gsub('"[^"]*"', '"')
    local _, written = bare:gsub('"%s*:', "")
    local kept = count_keys(header)
    if written ~= kept then
        fail("%s: header: found %d keys of which %d are duplicates or null, expected none", where,
            written, written - kept)
    end
end

local function read_header(path)
    local file, size = files.open(path)
    local prefix = file:read(8) or ""
    local length = #prefix == 8 and string.unpack("<i8", prefix) or 0
    if length < 2 or length > MAX_HEADER_BYTES or length > size - 8 then
        file:close()
        fail("%s: header length: found %s in a file of %d bytes, expected 2 to %d", path,
            #prefix == 8 and ("%u"):format(length) or "nothing", size,
            math.max(0, math.min(MAX_HEADER_BYTES, size - 8)))
    end
    local text = file:read(length)
    file:close()
    local header = json.decode(text, path .. ": header")
    refuse_duplicate_keys(text, header, path)
    return header, 8 + length, size
end

local function whole(value, most)
    return math.type(value) == "integer" and value >= 0 and value <= most
end

-- shape -> number of elements. No product is formed before it is known to be in range.
local function count_elements(shape, where)
    local count = 1
    for i, n in ipairs(shape) do
        if not whole(n, MAX_ELEMENTS) then
            fail("%s: shape: found %s as dimension %d, expected 0 to 2^48", where, quote(n), i)
        elseif n > MAX_ELEMENTS // math.max(count, 1) then
            fail("%s: shape: found more than 2^48 elements", where)
        end
        count = count * n
    end
    return count
end

local function check_tensor(info, data_bytes, where)
    if type(info) ~= "table" then
        fail("%s: found %s, expected an object", where, quote(info))
    elseif not DTYPE_BYTES[info.dtype] then
        fail("%s: dtype: found %s, expected one like F32, F16, BF16", where, quote(info.dtype))
    elseif type(info.shape) ~= "table" or #info.shape > 8 or count_keys(info.shape) > 0 then
        fail("%s: shape: expected a list of at most 8 numbers", where)
    end
    local offsets = type(info.data_offsets) == "table" and info.data_offsets or {}
    local first, last = offsets[1], offsets[2]
    if #offsets ~= 2 or not whole(last, data_bytes) or not whole(first, last) then
        fail("%s: data_offsets: found %s to %s, expected a range within the data's %d bytes",
            where, quote(first), quote(last), data_bytes)
    end
    local expected = count_elements(info.shape, where) * DTYPE_BYTES[info.dtype]
    if last - first ~= expected then
        fail("%s: data_offsets: found %d bytes, expected %d for %s [%s]", where, last - first,
            expected, info.dtype, table.concat(info.shape, ", "))
    end
end

local function check_coverage(tensors, start, size, path)
    local order = {}
    for name, tensor in pairs(tensors) do
        order[#order + 1] = { name = name, offset = tensor.offset, bytes = tensor.bytes }
    end
    table.sort(order, function(a, b)
        if a.offset ~= b.offset then
            return a.offset < b.offset
        end
        return a.bytes < b.bytes
    end)
    local position = start
    for _, tensor in ipairs(order) do
        if tensor.offset ~= position then
            fail("%s: %s: data_offsets: found %s at byte %d of the data, expected byte %d", path,
                quote(tensor.name), tensor.offset < position and "an overlap" or "a gap before it",
                tensor.offset - start, position - start)
        end
        position = position + tensor.bytes
    end
    if position ~= size then
        fail("%s: found %d bytes after the last tensor, expected none", path, size - position)
    end
end

-- One file -> { name -> { file, offset, bytes, dtype, shape } }, its metadata or nil; offsets count
-- from the file's start.
local function open_file(path)
    local header, start, size = read_header(path)
    local tensors = {}
    for name, info in pairs(header) do
        if type(name) ~= "string" then
            fail("%s: header: found a list, expected an object", path)
        elseif name ~= "__metadata__" then
            check_tensor(info, size - start, ("%s: %s"):format(path, quote(name)))
            local first, last = table.unpack(info.data_offsets)
            tensors[name] = {
                file = path, offset = start + first, bytes = last - first,
                dtype = info.dtype, shape = info.shape,
            }
        end
    end
    check_coverage(tensors, start, size, path)
    local metadata = header.__metadata__
    return tensors, type(metadata) == "table" and metadata or nil
end

-- A shard is named by a plain file name: it lies in the index's own folder.
local function check_shard_name(name, where)
    if type(name) ~= "string" or #name > 255 or not name:find("^[%w_][%w._-]*%.safetensors$") then
        fail("%s: found %s, expected the name of a .safetensors file in the same folder", where,
            quote(name))
    end
end

local function sorted_keys(map, path)
    local names = {}
    for name in pairs(map) do
        if type(name) ~= "string" then
            fail("%s: weight_map: found a list, expected an object", path)
        end
        names[#names + 1] = name
    end
    table.sort(names)
    return names
end

local function open_index(path)
    local map = json.read(path, MAX_HEADER_BYTES).weight_map
    if type(map) ~= "table" then
        fail("%s: weight_map: found %s, expected an object", path, quote(map))
    end
    local folder = path:match("^(.*/)") or ""
    local shards, tensors = {}, {}
    for _, name in ipairs(sorted_keys(map, path)) do
        local shard = map[name]
        check_shard_name(shard, ("%s: weight_map: %s"):format(path, quote(name)))
        shards[shard] = shards[shard] or (open_file(folder .. shard))
        tensors[name] = shards[shard][name]
        if not tensors[name] then
            fail("%s: weight_map: %s: expected in %s, which does not have it", path, quote(name),
                shard)
        end
    end
    for _, shard in ipairs(sorted_keys(shards, path)) do
        for _, name in ipairs(sorted_keys(shards[shard], path)) do
            if map[name] ~= shard then
                fail("%s: weight_map: %s is in %s, but the map has %s", path, quote(name), shard,
                    quote(map[name]))
            end
        end
    end
    return tensors
end

-- A .safetensors file or a model.safetensors.index.json ->
-- { tensors = { name -> { file, offset, bytes, dtype, shape } }, metadata = a single file's }.
-- Every tensor lies inside its file and has the bytes that its shape asks for.
function M.open(path)
    if path:find("%.json$") then
        return { tensors = open_index(path) }
    end
    local tensors, metadata = open_file(path)
    return { tensors = tensors, metadata = metadata }
end

return M
