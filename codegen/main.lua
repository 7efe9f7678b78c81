-- The generator's command line: checkpoint and spec -> out/NAME/{engine.c, pack.c, report.md} and
-- the pack job. Prints out/NAME. Run by the Makefile from the root of the project.

local root = arg[0]:match("^(.*)/codegen/main%.lua$") or "."
package.path = root .. "/?.lua;" .. package.path

local argparse = require("argparse")
local lfs = require("lfs")
local backbone = require("codegen.backbone")
local checkpoint = require("codegen.checkpoint")
local cubins = require("codegen.cubins")
local emit = require("codegen.emit")
local failure = require("codegen.fail")
local job = require("codegen.job")
local models = require("codegen.models")
local plan = require("codegen.plan")
local report = require("codegen.report")
local spec = require("codegen.spec")
local tokenizer = require("codegen.tokenizer")
local unicode = require("codegen.unicode")

local fail = failure.fail
local UNICODE_DIR = "/usr/share/unicode" -- Debian's package unicode-data

local function parse_arguments()
    local parser = argparse("codegen/main.lua",
        "Generates the inference engine of one ParScale model.")
    parser:option("--from", "a Hugging Face folder, a GGUF file, or random"):count(1)
    parser:option("--adapter", "safetensors with prefixes and aggregation network"):count("*")
    parser:option("--spec", "a model's name or a Lua spec, laid over those before it"):count("*")
    parser:option("--name", "folder in out/; the spec's name if not given")
    parser:option("--out", "folder of all engines"):default("out")
    parser:option("--sm", "GPU architectures to compile the kernels for now: \"87 90\""):default("")
    parser:option("--cubin", "the program that compiles them, codegen/cubin.c"):default("")
    parser:option("--nvrtc", "the folder of its compiler, libnvrtc"):default("")
    return parser:parse()
end

-- Writes a file at once or not at all, and only if its content changes, so that make sees no news
-- where there is none. Returns whether it changed.
local function write_file(path, text)
    local old = io.open(path, "rb")
    if old then
        local same = old:read("a") == text
        old:close()
        if same then return false end
    end
    local part = path .. ".part"
    local file, message = io.open(part, "wb")
    if not file then fail("%s", message) end
    local written, reason = file:write(text)
    local closed, late = file:close()
    if not (written and closed and os.rename(part, path)) then
        os.remove(part)
        fail("%s: %s", path, reason or late or "cannot be written")
    end
    return true
end

local function make_folder(path)
    if lfs.attributes(path, "mode") ~= "directory" then
        local done, message = lfs.mkdir(path)
        if not done then fail("%s: %s", path, message) end
    end
end

-- The specs laid over each other, and what messages call them; nil if there are none.
local function read_specs(list)
    local given
    for _, name_or_path in ipairs(list) do
        given = given or {}
        for key, value in pairs(models.load(name_or_path, root .. "/model_specs")) do
            given[key] = value
        end
    end
    return given, table.concat(list, " ")
end

-- The spec, and the checkpoint unless the weights are random.
local function read_input(options)
    if options.name then spec.check({ name = options.name }, "--name") end
    local overlay, overlay_where = read_specs(options.spec)
    if options.from == "random" then
        if not overlay then fail("--spec: missing, random weights need a spec") end
        if #options.adapter > 0 then fail("--adapter: random weights take none") end
        overlay.name = options.name or overlay.name
        return spec.complete(overlay, overlay_where), nil
    end
    local source = checkpoint.open(options.from, options.adapter)
    local given, where = source.spec, source.where
    if overlay then
        given = spec.merge(given, overlay, where, overlay_where)
    end
    given.name = options.name or given.name
    return spec.complete(given, where), source
end

-- The tokenizer's part of the pack; nil if the checkpoint has none.
local function tokenizer_blob(source, model)
    local from = source and source.tokenizer
    if not from then return nil end
    local tok = from.kind == "json" and tokenizer.read_json(from.path)
        or tokenizer.from_gguf(from.metadata, from.path)
    local tables = unicode.tables(UNICODE_DIR, tok.nfc)
    return tokenizer.encode(tok, tables, model.vocab_size, model.eos_token_id)
end

-- If what a pack job names has changed, the pack is made anew.
local function touch_job(path, source, blob_changed)
    local made = lfs.attributes(path, "modification")
    if blob_changed then lfs.touch(path) end
    for _, tensor in pairs(source.tensors) do
        if lfs.attributes(tensor.file, "modification") > made then
            lfs.touch(path)
            return
        end
    end
end

-- Writes engine.cu; what was compiled from another one goes first.
local function write_kernels(folder, kernels)
    local file = io.open(folder .. "/engine.cu", "rb")
    local old = file and file:read("a")
    if file then file:close() end
    if old ~= kernels then
        cubins.remove(folder)
        write_file(folder .. "/engine.cu", kernels)
    end
end

local function format_of(p)
    return p.quantized and "quantized" or "bf16"
end

-- The GPU part: engine.cu, whose text engine.c carries, and the kernels that are compiled now.
local function add_cuda(p, generated, folder, options)
    generated["cuda_dims.h"] = emit.cuda_dims(p)
    generated["cuda_warpgroup_products.cu"] = emit.cuda_warpgroup_products(p)
    generated["cuda_cache.cu"] = ('#include "cuda_cache_%s.cu"\n'):format(p.spec.cache_dtype)
    generated["cuda_weights.cu"] = ('#include "cuda_weights_%s.cu"\n'):format(format_of(p))
    local kernels = emit.cuda(root, p, generated)
    write_kernels(folder, kernels)
    local compiled = cubins.make(p, folder, options.cubin, options.nvrtc,
        cubins.architectures(options.sm))
    generated["engine_cu.h"] = emit.cuda_text(kernels)
    generated["gpu_dims.h"] = emit.gpu_dims(p)
    generated["cubins.h"] = cubins.text(compiled)
    generated["gpu_backend.c"] = '#include "gpu.c"\n'
    return compiled
end

local function generate(options)
    local model, source = read_input(options)
    local p = plan.make(model)
    local folder = options.out .. "/" .. model.name
    local job_text
    local blob = tokenizer_blob(source, model)
    if source then
        job_text = job.write(p, source, blob and folder .. "/tokenizer.bin")
    end
    local generated = {
        ["dims.h"] = emit.dims(p),
        ["engine_dims.h"] = emit.engine_dims(p),
        ["placements.h"] = emit.placements(p),
        ["cache.c"] = ('#include "cache_%s.c"\n'):format(model.cache_dtype),
        ["weights.c"] = ('#include "weights_%s.c"\n'):format(format_of(p)),
        ["gpu_backend.c"] = '#include "gpu_none.c"\n',
    }
    make_folder(options.out)
    make_folder(folder)
    local compiled
    if model.backends == "cpu+cuda" then
        compiled = add_cuda(p, generated, folder, options)
    else
        cubins.remove(folder)
        os.remove(folder .. "/engine.cu")
    end
    write_file(folder .. "/engine.c", emit.engine(root, p, generated))
    write_file(folder .. "/pack.c", emit.packer(root, p, generated))
    write_file(folder .. "/report.md",
        report(p, source and backbone.digest(source.tensors), compiled))
    local blob_changed = blob and write_file(folder .. "/tokenizer.bin", blob)
    if source then
        write_file(folder .. "/pack.job", job_text)
        touch_job(folder .. "/pack.job", source, blob_changed)
    else
        os.remove(folder .. "/pack.job")
    end
    print(folder)
end

local options = parse_arguments()
local ok, problem = pcall(generate, options)
if not ok then
    if not failure.is_failure(problem) then error(problem, 0) end
    io.stderr:write("parscale: ", problem.message, "\n")
    os.exit(2)
end
