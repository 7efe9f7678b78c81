-- Which backbone an adapter was trained on. Told by the last norm: every training moves it, no
-- quantised format touches it, and it is small enough to read at each run.

local failure = require("codegen.fail")
local digest = require("codegen.digest")
local files = require("codegen.files")

local fail, quote = failure.fail, failure.quote
local M = {}

local NORM = "model.norm.weight"
local MAX_BYTES = 1 << 20

-- Stored little-endian numbers -> the same as fp32, as bytes.
local widen = {}

function widen.F32(bytes)
    return bytes
end

function widen.BF16(bytes)
    return (bytes:gsub("..", "\0\0%0"))
end

function widen.F16(bytes)
    local parts = {}
    for at = 1, #bytes, 2 do
        local half = string.unpack("<I2", bytes, at)
        local exponent, fraction = half >> 10 & 31, half & 1023
        local magnitude = exponent == 0 and fraction * 2.0 ^ -24
            or exponent == 31 and (fraction == 0 and 1 / 0 or 0 / 0)
            or (fraction + 1024) * 2.0 ^ (exponent - 25)
        parts[#parts + 1] = string.pack("<f", half & 0x8000 ~= 0 and -magnitude or magnitude)
    end
    return table.concat(parts)
end

-- tensors: name -> { file, offset, bytes, dtype }. Returns the digest of the last norm as fp32, or
-- nil if it is not among them.
function M.digest(tensors)
    local norm = tensors[NORM]
    if not norm then return nil end
    if not widen[norm.dtype] or norm.bytes > MAX_BYTES then
        fail("%s: %s: found %d bytes of %s, expected F32, F16 or BF16", norm.file, quote(NORM),
            norm.bytes, norm.dtype)
    end
    local file = files.open(norm.file)
    file:seek("set", norm.offset)
    local bytes = file:read(norm.bytes)
    file:close()
    return digest(widen[norm.dtype](bytes))
end

-- An adapter may name its backbone, with `backbone_digest` in its metadata, or carry it.
function M.check(adapter, path, backbone_tensors, backbone_path)
    local named = adapter.metadata and adapter.metadata.backbone_digest
        or M.digest(adapter.tensors)
    local found = named and M.digest(backbone_tensors)
    if found and named ~= found then
        fail("%s: an adapter of another backbone: found digest %s, but %s has %s", path,
            quote(named), backbone_path, found)
    end
end

return M
