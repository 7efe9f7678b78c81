-- The command line of cost: what P streams take against a larger model that loses as little, which
-- model meets a loss, and specs of both for measuring. The Makefile runs it.

local root = arg[0]:match("^(.*)/codegen/cost_main%.lua$") or "."
package.path = root .. "/?.lua;" .. package.path

local argparse = require("argparse")
local cjson = require("cjson")
local lfs = require("lfs")
local cost = require("codegen.cost")
local devices = require("codegen.devices")
local failure = require("codegen.fail")
local law = require("codegen.law")
local models = require("codegen.models")
local spec = require("codegen.spec")

local fail = failure.fail
local MODELS, LOSSES = root .. "/model_specs", root .. "/model_specs/losses.csv"
local FLOPS_EFFICIENCY, BANDWIDTH_EFFICIENCY = 0.7, 0.9 -- of the published analysis
local BATCHES, STREAMS = { 1, 2, 4, 8 }, { 1, 2, 4, 8 }
local GIB = 2 ^ 30

-- ---- what is given -----------------------------------------------------------------------------

local function load_model(name)
    return spec.complete(models.load(name, MODELS), name)
end

local function choose_corpus(key)
    if not law.corpora[key] then
        fail("--corpus: found %s, expected python or pile", failure.quote(key))
    end
    return law.corpora[key]
end

local function device_keys()
    local keys = {}
    for _, device in ipairs(devices) do
        if device.tflops then keys[#keys + 1] = device.key end
    end
    return table.concat(keys, ", ")
end

local function memory_here()
    for line in io.lines("/proc/meminfo") do
        local kib = line:match("^MemTotal:%s*(%d+) kB")
        if kib then return kib * 1024 / 1e9 end
    end
    return math.huge
end

-- What the engine attains here: `bench` measures bandwidth and prefill, which does two operations
-- for each parameter, stream and token.
local function measure_cpu(engine)
    local pipe = io.popen(("'%s' info --json --device cpu && '%s' bench -p 256 -n 16 -r 3 -o json "
        .. "--device cpu 2>/dev/null"):format(engine, engine))
    local info, rows = pipe:read("a"):match("^({.-\n})\n(%[.*)$")
    if not (pipe:close() and rows) then fail("--engine: %s: bench failed", engine) end
    info, rows = cjson.decode(info), cjson.decode(rows)
    local shape = { hidden_size = info.hidden_size, intermediate_size = info.intermediate_size,
        head_dim = info.head_dim, num_attention_heads = info.num_attention_heads,
        num_key_value_heads = info.num_key_value_heads, parscale_n_tokens = 0,
        num_hidden_layers = info.num_hidden_layers }
    local operations = 2 * cost.parameters(shape, 1) * info.parscale_n
    return { key = "cpu", name = ("this CPU (%d threads, %s)"):format(info.threads, info.isa),
        memory = memory_here(), bandwidth = rows[2].machine_gb_s,
        tflops = rows[1].avg_ts * operations / 1e12, flops_efficiency = 1,
        bandwidth_efficiency = 1 }
end

-- key: of a device, "cpu", or nil for all of the table.
local function choose_devices(key, engine)
    if key == "cpu" then
        if not engine then fail("--engine: missing, the CPU is measured with an engine") end
        return { measure_cpu(engine) }
    end
    local chosen = {}
    for _, device in ipairs(devices) do
        if device.tflops and (not key or key == device.key) then
            device.flops_efficiency = FLOPS_EFFICIENCY
            device.bandwidth_efficiency = BANDWIDTH_EFFICIENCY
            chosen[#chosen + 1] = device
        end
    end
    if #chosen == 0 then
        fail("GPU: found %s, expected one of %s, cpu", failure.quote(key), device_keys())
    end
    return chosen
end

-- ---- the analysis ------------------------------------------------------------------------------

-- The six published sizes in their order: { spec of one stream, loss = P -> loss, N = P -> N }.
local function published_sizes(corpus_key)
    local list, by_size = {}, {}
    for _, row in ipairs(law.read(LOSSES)[corpus_key]) do
        local entry = by_size[row.size]
        if not entry then
            local name = ("ParScale-%s-P1-%s"):format(row.size,
                corpus_key == "python" and "Python" or "Pile")
            entry = { spec = load_model(name), loss = {}, N = {} }
            by_size[row.size] = entry
            list[#list + 1] = entry
        end
        entry.loss[row.P], entry.N[row.P] = row.loss, row.N
    end
    return list
end

-- Memory and time of one stream at a loss, between those of the two published sizes around it (the
-- way of the published figures), or nil.
local function at_loss(sizes, loss, device, batch)
    for i = 1, #sizes - 1 do
        local a, b = sizes[i], sizes[i + 1]
        if loss <= a.loss[1] and loss >= b.loss[1] then
            local share = (a.loss[1] - loss) / (a.loss[1] - b.loss[1])
            local bytes_a, seconds_a = cost.average(a.spec, 1, device, batch)
            local bytes_b, seconds_b = cost.average(b.spec, 1, device, batch)
            return bytes_a + share * (bytes_b - bytes_a),
                seconds_a + share * (seconds_b - seconds_a)
        end
    end
end

local function published_loss(sizes, s, P)
    for _, entry in ipairs(sizes) do
        if cost.parameters(entry.spec, 1) == cost.parameters(s, 1) then
            return entry.loss[P]
        end
    end
end

-- Rows of one device and batch, in the order of P: `streams` of the model, `law` grown to the loss
-- that the law predicts for them, `losses` grown to the loss that was published for them.
local function analyse(s, corpus, sizes, device, batch)
    local rows, base = {}, nil
    local function add(way, P, shape, N, loss, bytes, seconds)
        local row = { device = device.key, batch = batch, P = P, way = way, N = N, loss = loss,
            bytes = bytes, seconds = seconds, hidden_size = shape and shape.hidden_size,
            intermediate_size = shape and shape.intermediate_size,
            head_dim = shape and shape.head_dim }
        rows[#rows + 1] = row
        return row
    end
    for _, P in ipairs(STREAMS) do
        local N = cost.parameters(s, P)
        local predicted = law.loss(corpus, N, P)
        local streams = add("streams", P, s, N, predicted, cost.average(s, P, device, batch))
        base = base or streams
        local function compare(row)
            row.less_memory = (row.bytes - base.bytes) / (streams.bytes - base.bytes)
            row.less_latency = (row.seconds - base.seconds) / (streams.seconds - base.seconds)
        end
        if P > 1 then
            local grown = cost.grow(s, law.worth(corpus, N, P))
            local n = cost.parameters(grown, 1)
            compare(add("law", P, grown, n, law.loss(corpus, n, 1),
                cost.average(grown, 1, device, batch)))
            local loss = published_loss(sizes, s, P)
            local bytes, seconds = at_loss(sizes, loss or 0, device, batch)
            if bytes then
                compare(add("losses", P, nil, nil, loss, bytes, seconds))
            end
        end
    end
    return rows
end

-- ---- text, CSV, SVG ----------------------------------------------------------------------------

local COLUMNS = { "device", "batch", "P", "way", "N", "hidden_size", "intermediate_size",
    "head_dim", "loss", "bytes", "seconds", "less_memory", "less_latency" }
local FORMATS = { loss = "%.4f", bytes = "%.0f", seconds = "%.6f", less_memory = "%.3f",
    less_latency = "%.3f" }

local function write_csv(path, rows)
    local lines = { table.concat(COLUMNS, ",") }
    for _, row in ipairs(rows) do
        local cells = {}
        for i, column in ipairs(COLUMNS) do
            local value = row[column]
            cells[i] = value and (FORMATS[column] or "%s"):format(value) or ""
        end
        lines[#lines + 1] = table.concat(cells, ",")
    end
    local file, message = io.open(path .. ".part", "w")
    if not file then fail("%s", message) end
    file:write(table.concat(lines, "\n"), "\n")
    if not (file:close() and os.rename(path .. ".part", path)) then
        fail("%s: cannot be written", path)
    end
end

local function describe(device)
    return ("%s: %.4g TFLOP/s at %.0f %%, %.4g GB/s at %.0f %%"):format(device.name, device.tflops,
        100 * device.flops_efficiency, device.bandwidth, 100 * device.bandwidth_efficiency)
end

-- One row of text for each P > 1: the streams, then both ways to grow.
local function print_rows(rows)
    local by = {}
    for _, row in ipairs(rows) do
        by[row.way .. row.P] = row
    end
    local one = by.streams1
    print(("\nbatch %d; one stream: loss %.4f, %.3f GiB, %.4f s"):format(one.batch, one.loss,
        one.bytes / GIB, one.seconds))
    print("          P streams       |  a larger model, same predicted loss            |"
        .. " same published loss")
    print(" P    loss     GiB       s |    N/1e9  hidden  inter.     GiB       s   less |"
        .. "     GiB       s   less")
    for _, P in ipairs(STREAMS) do
        local a, b, c = by["streams" .. P], by["law" .. P], by["losses" .. P]
        if P > 1 then
            local function less(row)
                return ("%.3f %7.4f %5.1f/%.2f"):format(row.bytes / GIB, row.seconds,
                    row.less_memory, row.less_latency)
            end
            print((" %d  %.4f  %6.3f %7.4f | %8.3f %7d %7d  %s | %s"):format(P, a.loss,
                a.bytes / GIB, a.seconds, b.N / 1e9, b.hidden_size, b.intermediate_size, less(b),
                c and less(c) or "-"))
        end
    end
end

-- A line if the law has seen no losses of models as small or as large.
local function print_range(sizes, rows)
    local low, high = sizes[1].N[1], sizes[#sizes].N[STREAMS[#STREAMS]]
    for _, row in ipairs(rows) do
        if row.N and (row.N < low or row.N > high) then
            print(("extrapolated: the law was fitted to N of %.3g to %.3g, not to %.3g"):format(
                low, high, row.N))
            return
        end
    end
end

-- How many times less memory / latency the largest P adds, for all devices.
local function print_summary(all)
    print(("\nHow many times less memory / latency P = %d adds than a larger model of the same "
        .. "predicted loss"):format(STREAMS[#STREAMS]))
    io.write(("%-24s"):format("device"))
    for _, batch in ipairs(BATCHES) do
        io.write(("%14s"):format("batch " .. batch))
    end
    print()
    for _, entry in ipairs(all) do
        io.write(("%-24s"):format(entry.device.name))
        for _, rows in ipairs(entry.batches) do
            for _, row in ipairs(rows) do
                if row.way == "law" and row.P == STREAMS[#STREAMS] then
                    io.write(("%14s"):format(("%.1f / %.2f"):format(row.less_memory,
                        row.less_latency)))
                end
            end
        end
        print()
    end
end

local function command_cost(options)
    local s, corpus = load_model(options.model), choose_corpus(options.corpus)
    local sizes = published_sizes(options.corpus)
    local chosen = choose_devices(options.gpu, options.engine)
    local flat, all = {}, {}
    print(("%s, %s, input = output = %s tokens, averaged"):format(s.name, corpus.name,
        table.concat(cost.LENGTHS, ", ")))
    for _, device in ipairs(chosen) do
        local entry = { device = device, batches = {} }
        all[#all + 1] = entry
        if #chosen == 1 then print(describe(device)) end
        for i, batch in ipairs(BATCHES) do
            local rows = analyse(s, corpus, sizes, device, batch)
            entry.batches[i] = rows
            table.move(rows, 1, #rows, #flat + 1, flat)
            if #chosen == 1 then print_rows(rows) end
        end
    end
    if #chosen > 1 then
        print_summary(all)
    else
        print("\nless: how many times less memory/latency the streams add")
    end
    print_range(sizes, flat)
    if options.csv then write_csv(options.csv, flat) end
end

-- ---- which model meets a loss ------------------------------------------------------------------

local function print_choice(title, row)
    print(("%-15s %s: %.2f GB, %.3f s; loss published %.4f, predicted %.4f"):format(title,
        row.name, row.bytes / 1e9, row.seconds, row.loss, row.predicted))
end

local function command_choose(options)
    local corpus = choose_corpus(options.corpus)
    local device = choose_devices(options.gpu or "", options.engine)[1]
    local memory = (options.memory or device.memory) * 1e9
    local memory_best, latency_best, least
    for _, entry in ipairs(published_sizes(options.corpus)) do
        for _, P in ipairs(STREAMS) do
            local bytes, seconds = cost.average(entry.spec, P, device, options.batch)
            local row = { name = entry.spec.name:gsub("%-P1%-", ("-P%d-"):format(P)),
                bytes = bytes, seconds = seconds, loss = entry.loss[P],
                predicted = law.loss(corpus, entry.N[P], P) }
            if bytes <= memory then
                least = math.min(least or row.loss, row.loss)
                if row.loss <= options.loss then
                    memory_best = memory_best and memory_best.bytes <= bytes and memory_best or row
                    latency_best = latency_best and latency_best.seconds <= seconds
                        and latency_best or row
                end
            end
        end
    end
    if not memory_best then
        fail("LOSS: found %g, but with %.4g GB %s", options.loss, memory / 1e9,
            least and ("the least is %.4f"):format(least) or "no published model fits")
    end
    print(describe(device))
    print(("%s, loss at most %g, %.4g GB, batch %d, input = output = %s tokens, averaged"):format(
        corpus.name, options.loss, memory / 1e9, options.batch, table.concat(cost.LENGTHS, ", ")))
    print_choice("least memory:", memory_best)
    print_choice("least latency:", latency_best)
end

-- ---- specs to measure --------------------------------------------------------------------------

local SHAPE_KEYS = { "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps",
    "rope_theta", "tie_word_embeddings", "attention_bias", "max_position_embeddings",
    "parscale_n_tokens" }

local function write_spec(folder, name, s, streams, context)
    local file, message = io.open(folder .. "/" .. name .. ".lua", "w")
    if not file then fail("%s", message) end
    file:write(("return {\n    name = %q,\n"):format(name))
    for _, key in ipairs(SHAPE_KEYS) do
        file:write(("    %s = %s,\n"):format(key,
            type(s[key]) == "string" and ("%q"):format(s[key]) or tostring(s[key])))
    end
    file:write(("    parscale_n = %d,\n    context = %d,\n}\n"):format(streams, context))
    if not file:close() then fail("%s: cannot be written", folder) end
end

-- FOLDER/shapes.csv and a spec for each of its rows: the model with each P, and grown with one
-- stream.
local function command_shapes(options)
    local s, corpus = load_model(options.model), choose_corpus(options.corpus)
    local rows = { "name,way,P,N,hidden_size,intermediate_size,head_dim,loss" }
    local function add(way, P, shape, streams)
        local name = way .. "-" .. P
        local N = cost.parameters(shape, streams)
        write_spec(options.folder, name, shape, streams, options.context)
        rows[#rows + 1] = ("%s,%s,%d,%d,%d,%d,%d,%.4f"):format(name, way, P, N, shape.hidden_size,
            shape.intermediate_size, shape.head_dim, law.loss(corpus, N, streams))
    end
    for _, P in ipairs(STREAMS) do
        add("streams", P, s, P)
        if P > 1 then
            add("grown", P, cost.grow(s, law.worth(corpus, cost.parameters(s, P), P)), 1)
        end
    end
    local file, message = io.open(options.folder .. "/shapes.csv", "w")
    if not file then fail("%s", message) end
    file:write(table.concat(rows, "\n"), "\n")
    if not file:close() then fail("%s: cannot be written", options.folder) end
end

-- ---- the command line --------------------------------------------------------------------------

local function positive(text)
    local n = tonumber(text)
    return n and n > 0 and n < math.huge and n or nil, "expected a number above 0"
end

local function parse_arguments()
    local parser = argparse("codegen/cost_main.lua", "What parallel streams cost.")
    parser:command_target("command")
    local function command(name, text)
        local c = parser:command(name, text)
        c:option("--corpus", "whose law: python or pile"):default("python")
        return c
    end
    local function on_device(c)
        c:option("--gpu", device_keys() .. ", or cpu, which is measured")
        c:option("--engine", "the engine that measures the CPU")
        return c
    end
    local analysis = on_device(command("cost", "streams against a larger model"))
    analysis:option("--model", "name or path of a spec"):count(1)
    analysis:option("--csv", "file for all rows")
    local choose = on_device(command("choose", "which published model meets a loss"))
    choose:option("--loss", "at most"):convert(positive):count(1)
    choose:option("--memory", "GB; what the device has, if not given"):convert(positive)
    choose:option("--batch", "requests at once"):convert(positive):default("1")
    local shapes = command("shapes", "specs of both ways, to measure them")
    shapes:option("--model", "name or path of a spec"):count(1)
    shapes:option("--folder", "where the specs go"):count(1)
    shapes:option("--context", "positions"):convert(math.tointeger):default("1024")
    return parser:parse()
end

local COMMANDS = { cost = command_cost, choose = command_choose, shapes = command_shapes }
local options = parse_arguments()
if options.folder then lfs.mkdir(options.folder) end
local ok, problem = pcall(COMMANDS[options.command], options)
if not ok then
    if not failure.is_failure(problem) then error(problem, 0) end
    io.stderr:write("parscale: ", problem.message, "\n")
    os.exit(2)
end
