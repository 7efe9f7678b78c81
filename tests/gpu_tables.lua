-- From the CSV of tests/gpu_bench.sh: the GPU tables of docs/performance.md, which replace what
-- stands between two markers there, and a figure, ms a token over P. What was not measured is a
-- dash. Rows of another device than parscale.c's are left out. Relies on gnuplot.
--
--     lua5.4 tests/gpu_tables.lua docs/performance.md docs/gpu.svg CSV...
--
-- A row: source,device,driver,power_limit_w,size,dtype,streams,what,context,value; of two rows of
-- the same figure the later one counts.

local BEGIN = "<!-- tests/gpu_tables.lua: begin -->\n"
local END = "<!-- tests/gpu_tables.lua: end -->\n"
local COLUMNS = { "source", "device", "driver", "power_limit_w", "size", "dtype", "streams", "what",
                  "context", "value" }
local OWN = "parscale.c"
local DTYPES = { bf16 = 1, int8 = 2, int4 = 3 }
local STREAMS = { 1, 2, 4, 8 }
local COLORS = { bf16 = "#0060ad", int8 = "#cc3311", int4 = "#228833" }
local PLOTTED_PEERS = 6 -- those up to so many times the slowest own figure

local function die(text, ...)
    io.stderr:write(text:format(...), "\n")
    os.exit(1)
end

-- ---- reading -----------------------------------------------------------------------------------

local function read_text(path)
    local file = io.open(path, "rb")
    if not file then die("%s: cannot be read", path) end
    local text = file:read("a")
    file:close()
    return text
end

local function read_rows(paths)
    local rows = {}
    for _, path in ipairs(paths) do
        for line in read_text(path):gmatch("[^\r\n]+") do
            local row, n = {}, 0
            for field in (line .. ","):gmatch("([^,]*),") do
                n = n + 1
                if n <= #COLUMNS then row[COLUMNS[n]] = field end
            end
            if n ~= #COLUMNS then
                die("%s: found %d fields in %q, expected %d", path, n, line, #COLUMNS)
            end
            row.streams, row.value = tonumber(row.streams), tonumber(row.value)
            if row.source ~= "source" then rows[#rows + 1] = row end
        end
    end
    return rows
end

-- figures[what][context][line][P]; lines: what is compared, a size, a dtype and a source, in order.
local function arrange(rows, device)
    local figures, lines, known, left_out = {}, {}, {}, 0
    for _, row in ipairs(rows) do
        if row.device == device and row.value then
            local id = row.size .. "\n" .. row.dtype .. "\n" .. row.source
            if not known[id] then
                known[id] = { size = row.size, dtype = row.dtype, source = row.source, id = id }
                lines[#lines + 1] = known[id]
            end
            local by_context = figures[row.what] or {}
            figures[row.what] = by_context
            by_context[row.context] = by_context[row.context] or {}
            by_context[row.context][id] = by_context[row.context][id] or {}
            by_context[row.context][id][row.streams] = row.value
        else
            left_out = left_out + 1
        end
    end
    if left_out > 0 then io.stderr:write(left_out, " rows of other devices are left out\n") end
    local function rank(line)
        return tonumber(line.size:match("[%d.]+")) or 0, DTYPES[line.dtype] or 9,
            line.source == OWN and "" or line.source
    end
    table.sort(lines, function(a, b)
        local size_a, dtype_a, source_a = rank(a)
        local size_b, dtype_b, source_b = rank(b)
        if size_a ~= size_b then return size_a < size_b end
        if dtype_a ~= dtype_b then return dtype_a < dtype_b end
        return source_a < source_b
    end)
    return figures, lines
end

local function contexts_of(by_context)
    local list = {}
    for context in pairs(by_context or {}) do list[#list + 1] = context end
    table.sort(list, function(a, b) return (tonumber(a) or 0) < (tonumber(b) or 0) end)
    return list
end

local results = {}

function results.new(rows)
    local self = {}
    for _, row in ipairs(rows) do
        if row.source == OWN then
            self.device, self.driver = row.device, row.driver
            self.power_limit = row.power_limit_w:gsub("%.0+$", "")
        end
    end
    if not self.device then die("found no row of %s", OWN) end
    self.figures, self.lines = arrange(rows, self.device)
    -- A figure, or nil.
    function self.get(what, context, line, streams)
        local by_line = (self.figures[what] or {})[context] or {}
        return (by_line[line.id] or {})[streams]
    end
    -- The least time of a step, ms: what it reads over the read bandwidth.
    function self.floor(context, line, streams)
        local bytes = self.get("bytes_token", context, line, streams)
        local rate = self.get("read_gb_s", "", line, streams)
        return bytes and rate and rate > 0 and bytes / rate * 1e-6 or nil
    end
    return self
end

-- ---- tables ------------------------------------------------------------------------------------

local function number(value)
    if not value then return "-" end
    local decimals = value < 1 and 3 or value < 10 and 2 or value < 100 and 1 or 0
    return ("%." .. decimals .. "f"):format(value)
end

local function put(out, ...)
    out[#out + 1] = "| " .. table.concat({ ... }, " | ") .. " |"
end

local function name_of(line)
    return line.size .. " " .. line.dtype .. (line.source == OWN and "" or ", " .. line.source)
end

-- A row of cells, one for each P; nothing if all are missing.
local function put_streams(out, name, cell)
    local cells, any = {}, false
    for i, P in ipairs(STREAMS) do
        cells[i] = cell(P)
        any = any or cells[i] ~= "-"
    end
    if any then put(out, name, table.unpack(cells)) end
end

local function head(out, title)
    out[#out + 1] = ""
    put(out, title, "P = 1", "2", "4", "8")
    put(out, "---", "---:", "---:", "---:", "---:")
end

local function decode_table(out, all, context)
    head(out, "decode behind " .. context .. " positions, ms a token (% of the read bandwidth)")
    for _, line in ipairs(all.lines) do
        put_streams(out, name_of(line), function(P)
            local ms, floor = all.get("decode_ms", context, line, P), all.floor(context, line, P)
            return number(ms) .. (ms and floor and (" (%.0f)"):format(floor / ms * 100) or "")
        end)
        put_streams(out, name_of(line) .. ": its bytes over the bandwidth", function(P)
            return number(all.floor(context, line, P))
        end)
    end
end

local function plain_table(out, all, title, what, context)
    head(out, title)
    for _, line in ipairs(all.lines) do
        put_streams(out, name_of(line), function(P)
            return number(all.get(what, context, line, P))
        end)
    end
end

-- What the largest P takes.
local function start_table(out, all)
    out[#out + 1] = ""
    put(out, "largest P", "first start, s", "later, ms", "of it the driver, ms", "upload, s",
        "pack, MB", "cache, MB", "other GPU memory, MB")
    put(out, "---", "---:", "---:", "---:", "---:", "---:", "---:", "---:")
    for _, line in ipairs(all.lines) do
        local function last(what, unit)
            for i = #STREAMS, 1, -1 do
                local value = all.get(what, "", line, STREAMS[i])
                if value then return number(value / unit) end
            end
            return "-"
        end
        if line.source == OWN then
            put(out, name_of(line), last("first_start_s", 1), last("later_start_s", 1e-3),
                last("driver_start_s", 1e-3), last("upload_s", 1), last("pack_bytes", 1e6),
                last("gpu_cache_bytes", 1e6), last("gpu_activation_bytes", 1e6))
        end
    end
end

local function bandwidth_text(all)
    local least, most = math.huge, 0
    for _, by_streams in pairs((all.figures.read_gb_s or {})[""] or {}) do
        for _, rate in pairs(by_streams) do
            least, most = math.min(least, rate), math.max(most, rate)
        end
    end
    if most == 0 then return "its read bandwidth is not known" end
    return ("it reads %.0f to %.0f GB/s, measured in each run"):format(least, most)
end

-- figure: where it lies, for the document.
local function document(all, figure)
    local out = { ("%s, driver %s, power limit %s W;\n%s. Random weights,\nbatch 1; medians. A "
        .. "start is without the upload. [Figure](%s)."):format(all.device, all.driver,
        all.power_limit, bandwidth_text(all), figure) }
    for _, context in ipairs(contexts_of(all.figures.decode_ms)) do
        decode_table(out, all, context)
    end
    for _, prompt in ipairs(contexts_of(all.figures.prefill_ms)) do
        plain_table(out, all, "prefill of " .. prompt .. " tokens, ms", "prefill_ms", prompt)
    end
    for _, context in ipairs(contexts_of(all.figures.joules_token)) do
        plain_table(out, all, ("decode behind %s positions, J a token; the power limit is %s W")
            :format(context, all.power_limit), "joules_token", context)
    end
    start_table(out, all)
    return table.concat(out, "\n") .. "\n"
end

local function replace_between(path, text)
    local whole = read_text(path)
    local _, first = whole:find(BEGIN, 1, true)
    local last = whole:find(END, 1, true)
    if not first or not last then die("%s: found no markers, expected %s", path, BEGIN) end
    local file = assert(io.open(path .. ".part", "wb"))
    file:write(whole:sub(1, first), text, whole:sub(last))
    file:close()
    assert(os.rename(path .. ".part", path))
end

-- ---- the figure --------------------------------------------------------------------------------

-- The curves of a size: own figures, their floors, and peers that are not far off.
local function curves_of(all, size, context)
    local curves, slowest = {}, 0
    local function add(title, style, value)
        local points, any = {}, false
        for i, P in ipairs(STREAMS) do
            local ms = value(P)
            any = any or ms
            points[i] = ("%d %s"):format(P, ms or "?")
        end
        if any then
            curves[#curves + 1] = { title = title, style = style,
                                    data = table.concat(points, "\n") }
        end
    end
    for _, line in ipairs(all.lines) do
        local least = math.huge
        for _, P in ipairs(line.size == size and STREAMS or {}) do
            local ms = all.get("decode_ms", context, line, P)
            least = math.min(least, ms or math.huge)
            if ms and line.source == OWN then slowest = math.max(slowest, ms) end
        end
        if line.size == size and least <= PLOTTED_PEERS * slowest then
            local own, color = line.source == OWN, COLORS[line.dtype] or "black"
            add(line.dtype .. ", " .. line.source, ('lw %g pt %d lc "%s"'):format(own and 2.5 or 1,
                own and 7 or 2 * (#curves % 4) + 4, color), function(P)
                return all.get("decode_ms", context, line, P)
            end)
            local dashed = ('lw 1 dt 2 pt 0 lc "%s"'):format(color)
            add(line.dtype .. ": its bytes over the bandwidth", dashed, function(P)
                return all.floor(context, line, P)
            end)
        end
    end
    return curves
end

local function draw(all, path)
    local context = contexts_of(all.figures.decode_ms)[1]
    local sizes, panels = {}, {}
    for _, line in ipairs(all.lines) do
        if line.source == OWN and not sizes[line.size] then
            sizes[line.size] = true
            local curves = curves_of(all, line.size, context)
            if #curves > 0 then panels[#panels + 1] = { size = line.size, curves = curves } end
        end
    end
    if #panels == 0 then die("found no decode_ms of %s", OWN) end
    local out = {
        ('set terminal svg size %d,560 font "sans,12" background "white"'):format(420 * #panels),
        ('set output "%s.part"'):format(path),
        ('set multiplot layout 1,%d title "ms a token behind %s positions, %s"'):format(#panels,
            context, all.device),
        'set datafile missing "?"', "set logscale x 2", "set xtics (1,2,4,8)", "set xrange [0.9:9]",
        "set yrange [0:*]", "set grid", 'set key outside bottom center font ",9"',
        'set xlabel "P, streams"',
    }
    for i, panel in ipairs(panels) do
        local plots = {}
        for j, curve in ipairs(panel.curves) do
            out[#out + 1] = ("$d%d_%d << EOD\n%s\nEOD"):format(i, j, curve.data)
            plots[j] = ('$d%d_%d using 1:2 with linespoints %s title "%s" noenhanced'):format(i, j,
                curve.style, curve.title)
        end
        out[#out + 1] = ('set title "%s"\nplot %s'):format(panel.size, table.concat(plots, ", "))
    end
    local pipe = assert(io.popen("gnuplot", "w"))
    pipe:write(table.concat(out, "\n"), "\n")
    if not pipe:close() then die("%s: gnuplot failed", path) end
    assert(os.rename(path .. ".part", path))
end

local doc, svg = arg[1], arg[2]
if not arg[3] then die("usage: gpu_tables.lua DOCUMENT SVG CSV...") end
local all = results.new(read_rows({ table.unpack(arg, 3) }))
draw(all, svg)
replace_between(doc, document(all, svg:match("[^/]+$")))
