-- The pack job: which tensor of the plan lies where in which file, as the text that the generated
-- pack program reads. Here the checkpoint's tensors meet the plan's: names, shapes and types must
-- agree, and nothing may be left over. Relies on lua-filesystem.

local lfs = require("lfs")
local failure = require("codegen.fail")

local fail, quote = failure.fail, failure.quote
local M = {}

-- What the pack program converts (templates/pack.c).
local DTYPES = { F32 = true, F16 = true, BF16 = true, Q8_0 = true, Q4_0 = true, Q4_1 = true }

local function shape_text(shape)
    return "[" .. table.concat(shape, ", ") .. "]"
end

local function same_shape(a, b)
    return shape_text(a) == shape_text(b)
end

-- "p4:model.x" -> the adapter's file, "model.x"; a backbone's name -> its file, the name.
local function describe(name, checkpoint)
    local streams, own_name = name:match("^p(%d+):(.*)$")
    local tensor = checkpoint.tensors[name]
    local source = checkpoint.sources[tonumber(streams or 1)] or checkpoint.sources[1]
    return tensor and tensor.file or source, quote(own_name or name)
end

local function check_tensor(wanted, tensor, checkpoint)
    local file, name = describe(wanted.name, checkpoint)
    if not same_shape(tensor.shape, wanted.shape) then
        fail("%s: %s: found shape %s, expected %s", file, name, shape_text(tensor.shape),
            shape_text(wanted.shape))
    elseif not DTYPES[tensor.dtype] then
        fail("%s: %s: found dtype %s, expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1", file, name,
            tensor.dtype)
    end
end

-- Biases that no layer has are zero; one that some layers have and this one lacks is lost.
local function check_absent(wanted, checkpoint, has_optional)
    if not wanted.optional or has_optional then
        local file, name = describe(wanted.name, checkpoint)
        fail("%s: %s: missing, expected shape %s", file, name, shape_text(wanted.shape))
    end
end

-- Tensors that a checkpoint may have and the engine does not need: tables of angles in old
-- checkpoints, and a copy of the embedding where the head is tied to it.
local function is_harmless(name, checkpoint, tensor)
    if name:find("rotary_emb%.inv_freq$") then
        return true
    end
    local embedding = checkpoint.tensors["model.embed_tokens.weight"]
    return name == "lm_head.weight"
        and same_shape(tensor.shape, embedding.shape)
end

-- What an adapter carries of a backbone must be our backbone, stored in the same way: the packer
-- compares the bytes. Returns a line for each.
local function same_lines(wanted, checkpoint, number)
    local lines = {}
    for _, copy in ipairs(checkpoint.copies) do
        local ours, other = checkpoint.tensors[copy.name], copy.tensor
        if ours and wanted[copy.name] then
            local found = other.dtype .. " " .. shape_text(other.shape)
            local expected = ours.dtype .. " " .. shape_text(ours.shape)
            if found ~= expected or ours.rope then
                fail("%s: %s: found %s, but the backbone in %s has %s%s", other.file,
                    quote(copy.name), found, ours.file, expected,
                    ours.rope and " in another order" or "")
            end
            lines[#lines + 1] = ("same %s %d %d"):format(copy.name, number(other.file),
                other.offset)
        elseif not is_harmless(copy.name, checkpoint, other) then
            fail("%s: %s: found neither in an adapter nor in the backbone", other.file,
                quote(copy.name))
        end
    end
    return lines
end

local function check_extra(wanted, checkpoint)
    local extra = {}
    for name, tensor in pairs(checkpoint.tensors) do
        if not wanted[name] and not is_harmless(name, checkpoint, tensor) then
            extra[#extra + 1] = name
        end
    end
    if #extra > 0 then
        table.sort(extra)
        local file, name = describe(extra[1], checkpoint)
        fail("%s: %s: found a tensor of shape %s that the model does not have", file, name,
            shape_text(checkpoint.tensors[extra[1]].shape))
    end
end

-- A path takes the rest of a line in the job, so it must not hold a line's end.
local function absolute(path)
    if path:find("%c") then
        fail("%s: found a control character in the path, expected none", path)
    end
    return path:sub(1, 1) == "/" and path or lfs.currentdir() .. "/" .. path
end

local function index_tensors(plan, checkpoint)
    local wanted, has_optional = {}, false
    for _, entry in ipairs(plan.tensors) do
        wanted[entry.name] = entry
        has_optional = has_optional or entry.optional and checkpoint.tensors[entry.name] ~= nil
    end
    return wanted, has_optional
end

-- Numbers the files in the order of their first use, from 0.
local function file_numbers()
    local lines, numbers = {}, {}
    return lines, function(path)
        if not numbers[path] then
            numbers[path] = #lines
            lines[#lines + 1] = ("file %d %s"):format(#lines, absolute(path))
        end
        return numbers[path]
    end
end

local function tensor_lines(plan, checkpoint, has_optional)
    local files, number = file_numbers()
    local lines = {}
    for i, wanted in ipairs(plan.tensors) do
        local tensor = checkpoint.tensors[wanted.name]
        if tensor then
            check_tensor(wanted, tensor, checkpoint)
            lines[i] = ("tensor %s %d %d %s%s"):format(wanted.name, number(tensor.file),
                tensor.offset, tensor.dtype, tensor.rope and " rope" or "")
        else
            check_absent(wanted, checkpoint, has_optional)
            lines[i] = "zero " .. wanted.name
        end
    end
    return files, lines, number
end

-- plan: see plan.lua; checkpoint: see checkpoint.lua; tokenizer_blob_path: may be nil.
-- Returns the text of the job.
function M.write(plan, checkpoint, tokenizer_blob_path)
    local wanted, has_optional = index_tensors(plan, checkpoint)
    local files, tensors, number = tensor_lines(plan, checkpoint, has_optional)
    check_extra(wanted, checkpoint)
    local same = same_lines(wanted, checkpoint, number)
    local lines = { "parscale-pack-job 1", "plan " .. plan.digest }
    table.move(files, 1, #files, #lines + 1, lines)
    table.move(tensors, 1, #tensors, #lines + 1, lines)
    table.move(same, 1, #same, #lines + 1, lines)
    if tokenizer_blob_path then
        lines[#lines + 1] = "tokenizer " .. absolute(tokenizer_blob_path)
    end
    return table.concat(lines, "\n") .. "\n"
end

return M
