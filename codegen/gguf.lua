-- Reads the header of a GGUF file (versions 2 and 3, little-endian): the metadata and where each
-- tensor lies. Counts and lengths are checked before anything of that size is read or kept.
-- Format: magic, version, two counts, metadata, tensor descriptions, padding, data.

local failure = require("codegen.fail")
local files = require("codegen.files")

local fail, quote = failure.fail, failure.quote
local M = {}

local CHUNK = 1 << 20
local MAX_METADATA = 65536    -- keys
local MAX_TENSORS = 65536
local MAX_STRING = 1 << 20    -- bytes; chat templates are the longest
local MAX_NAME = 65535        -- bytes of a key; GGUF's own limit
local MAX_ITEMS = 4 << 20     -- items of all arrays together
local MAX_HEADER = 256 << 20  -- bytes
local MAX_ELEMENTS = 1 << 48

-- Value types: string.unpack format and bytes.
local SCALARS = {
    [0] = { "<B", 1 }, { "<b", 1 }, { "<I2", 2 }, { "<i2", 2 }, { "<I4", 4 }, { "<i4", 4 },
    { "<f", 4 }, [10] = { "<i8", 8 }, [11] = { "<i8", 8 }, [12] = { "<d", 8 },
}
local BOOL, STRING, ARRAY = 7, 8, 9

-- Tensor types: name, elements and bytes of a block. Those without a size are only known by name.
local TENSOR_TYPES = {
    [0] = { "F32", 1, 4 }, [1] = { "F16", 1, 2 }, [2] = { "Q4_0", 32, 18 },
    [3] = { "Q4_1", 32, 20 }, [8] = { "Q8_0", 32, 34 }, [30] = { "BF16", 1, 2 },
    [6] = { "Q5_0" }, [7] = { "Q5_1" }, [9] = { "Q8_1" }, [10] = { "Q2_K" }, [11] = { "Q3_K" },
    [12] = { "Q4_K" }, [13] = { "Q5_K" }, [14] = { "Q6_K" }, [15] = { "Q8_K" },
    [16] = { "IQ2_XXS" }, [17] = { "IQ2_XS" }, [18] = { "IQ3_XXS" }, [19] = { "IQ1_S" },
    [20] = { "IQ4_NL" }, [21] = { "IQ3_S" }, [22] = { "IQ2_S" }, [23] = { "IQ4_XS" },
    [29] = { "IQ1_M" },
}

-- A cursor over the file, a chunk at a time: text[at] is the next byte, `before` bytes precede
-- text.
local Reader = {}
Reader.__index = Reader

local function open_reader(path)
    local file, size = files.open(path)
    return setmetatable(
        { path = path, file = file, size = size, text = "", at = 1, before = 0, items = 0 },
        Reader)
end

function Reader:position()
    return self.before + self.at - 1
end

-- Makes the next n bytes part of the text.
function Reader:need(n, what)
    if #self.text - self.at + 1 >= n then
        return
    end
    local position = self:position()
    if n > self.size - position or position + n > MAX_HEADER then
        fail("%s: %s: found the file's end or 256 MiB of header, expected %d more bytes at byte %d",
            self.path, what, n, position)
    end
    local more = self.file:read(math.max(n, CHUNK)) or ""
    self.text = self.text:sub(self.at) .. more
    self.before, self.at = position, 1
    if #self.text < n then
        fail("%s: %s: cannot be read", self.path, what)
    end
end

function Reader:unpack(format, bytes, what)
    self:need(bytes, what)
    local value
    value, self.at = string.unpack(format, self.text, self.at)
    return value
end

-- A 64-bit count or length, at most `most`. Those past 2^63 read as negative.
function Reader:count(most, what)
    local n = self:unpack("<i8", 8, what)
    if n < 0 or n > most then
        fail("%s: %s: found %u, expected at most %d", self.path, what, n, most)
    end
    return n
end

function Reader:string(most, what)
    local length = self:count(most, what)
    self:need(length, what)
    local first = self.at
    self.at = first + length
    return self.text:sub(first, self.at - 1)
end

function Reader:bool(what)
    local byte = self:unpack("<B", 1, what)
    if byte > 1 then
        fail("%s: %s: found %d, expected a boolean, 0 or 1", self.path, what, byte)
    end
    return byte == 1
end

function Reader:value(kind, what)
    local scalar = SCALARS[kind]
    if scalar then
        return self:unpack(scalar[1], scalar[2], what)
    elseif kind == STRING then
        return self:string(MAX_STRING, what)
    elseif kind == BOOL then
        return self:bool(what)
    end
    fail("%s: %s: found value type %d, expected 0 to 12, no array in an array", self.path, what,
        kind)
end

function Reader:array(what)
    local kind = self:unpack("<I4", 4, what)
    local count = self:count(MAX_ITEMS - self.items, what .. ": items")
    self.items = self.items + count
    local list = {}
    for i = 1, count do
        list[i] = self:value(kind, what)
    end
    return list
end

local function read_metadata(reader, count)
    local metadata = {}
    for _ = 1, count do
        local key = reader:string(MAX_NAME, "metadata key")
        local what = quote(key)
        if metadata[key] ~= nil then
            fail("%s: %s: found a second time", reader.path, what)
        end
        local kind = reader:unpack("<I4", 4, what)
        if kind == ARRAY then
            metadata[key] = reader:array(what)
        else
            metadata[key] = reader:value(kind, what)
        end
    end
    return metadata
end

-- Dimensions, row-major as everywhere else here: GGUF lists the fastest first.
local function read_shape(reader, where)
    local rank = reader:unpack("<I4", 4, where)
    if rank < 1 or rank > 4 then
        fail("%s: %s: found %d dimensions, expected 1 to 4", reader.path, where, rank)
    end
    local shape, elements = {}, 1
    for i = rank, 1, -1 do
        local n = reader:count(MAX_ELEMENTS, where .. ": dimension")
        if n > MAX_ELEMENTS // math.max(elements, 1) then
            fail("%s: %s: dimensions: found more than 2^48 elements", reader.path, where)
        end
        shape[i], elements = n, elements * n
    end
    return shape, elements
end

local function read_tensor(reader, alignment)
    local name = reader:string(MAX_NAME, "tensor name")
    local where = quote(name)
    local shape, elements = read_shape(reader, where)
    local type_id = reader:unpack("<I4", 4, where)
    local offset = reader:unpack("<i8", 8, where)
    if offset < 0 or offset % alignment ~= 0 then
        fail("%s: %s: offset: found %u, expected a multiple of %d", reader.path, where, offset,
            alignment)
    end
    local dtype = TENSOR_TYPES[type_id] or { ("type %d"):format(type_id) }
    local tensor = { file = reader.path, offset = offset, dtype = dtype[1], shape = shape }
    if dtype[2] then
        if shape[#shape] % dtype[2] ~= 0 then
            fail("%s: %s: found rows of %d elements, expected a multiple of %d for %s", reader.path,
                where, shape[#shape], dtype[2], dtype[1])
        end
        tensor.bytes = elements // dtype[2] * dtype[3]
    end
    return name, tensor
end

-- Turns offsets into those of the file; the tensors must lie in it, one after the other. The end of
-- a tensor of a type without a size is unknown and not checked.
local function place_tensors(tensors, start, size, path)
    local order = {}
    for name, tensor in pairs(tensors) do
        tensor.name, order[#order + 1] = name, tensor
    end
    table.sort(order, function(a, b)
        return a.offset == b.offset and a.name < b.name or a.offset < b.offset
    end)
    local position = 0
    for _, tensor in ipairs(order) do
        local bytes = tensor.bytes or 0
        if tensor.offset < position then
            fail("%s: %s: offset: found %d, in another tensor, expected at least %d", path,
                quote(tensor.name), tensor.offset, position)
        elseif tensor.offset > size - start or bytes > size - start - tensor.offset then
            fail("%s: %s: found %d bytes at %d, expected them within the data's %d bytes", path,
                quote(tensor.name), bytes, tensor.offset, math.max(0, size - start))
        end
        position = tensor.offset + bytes
        tensor.offset, tensor.name = start + tensor.offset, nil
    end
end

local function read_alignment(metadata, path)
    local alignment = metadata["general.alignment"] or 32
    local valid = math.type(alignment) == "integer" and alignment >= 8 and alignment <= 65536
    if not valid or alignment & (alignment - 1) ~= 0 then
        fail("%s: general.alignment: found %s, expected a power of two from 8 to 65536", path,
            quote(alignment))
    end
    return alignment
end

local function check_version(reader)
    local path = reader.path
    local magic = reader:unpack("<c4", 4, "magic")
    if magic ~= "GGUF" then
        fail('%s: magic: found %s, expected "GGUF"', path, quote(magic))
    end
    local version = reader:unpack("<I4", 4, "version")
    if version ~= 2 and version ~= 3 then
        fail("%s: version: found %d, expected 2 or 3, little-endian", path, version)
    end
end

local function read_header(reader)
    check_version(reader)
    local tensor_count = reader:count(MAX_TENSORS, "tensor count")
    local metadata = read_metadata(reader, reader:count(MAX_METADATA, "metadata count"))
    local alignment = read_alignment(metadata, reader.path)
    local tensors = {}
    for _ = 1, tensor_count do
        local name, tensor = read_tensor(reader, alignment)
        if tensors[name] then
            fail("%s: %s: found a second time", reader.path, quote(name))
        end
        tensors[name] = tensor
    end
    local start = (reader:position() + alignment - 1) // alignment * alignment
    place_tensors(tensors, start, reader.size, reader.path)
    return { metadata = metadata, tensors = tensors }
end

-- path -> { metadata = { key -> value or list }, tensors = { name -> { file, offset, bytes, dtype,
-- shape } } }. bytes is nil for a tensor type that this program cannot read.
function M.open(path)
    local reader = open_reader(path)
    local ok, result = pcall(read_header, reader)
    reader.file:close()
    if not ok then
        error(result, 0)
    end
    return result
end

return M
