-- Unicode's character data as lists of numbers: what runtime/unicode.c needs for \p{L}, \p{N},
-- White_Space and for normalization form C. Relies on the files of Debian's package unicode-data.
--
-- Normalization is that of Unicode 9.0, whatever the files' version is: the tokenizers library has
-- it so, and ids must be those that the models learned. (By Unicode's stability policy it differs
-- from later ones only in that characters that are younger do not take part.) The classes are those
-- of the files: a letter or digit younger than they are counts as a symbol.
local failure = require("codegen.fail")
local fail, quote = failure.fail, failure.quote

local M = {}

local CLASS = { letter = 1, number = 2, space = 3 } -- enum unicode_class in unicode.h; others: 0
local DECOMPOSITION_MAX = 4 -- as there
local LAST = 0x10ffff
local NORMALIZATION_VERSION = 9.0

local function read_lines(unicode_dir, name)
    local file, problem = io.open(unicode_dir .. "/" .. name, "r")
    if not file then
        fail("%s: expected the files of the package unicode-data", problem)
    end
    local text = file:read("a")
    file:close()
    return text:gmatch("([^\n]+)")
end

-- Calls visit(first, last, value) for the lines "0041..005A ; Value" of a file.
local function each_range(unicode_dir, name, visit)
    for line in read_lines(unicode_dir, name) do
        local first, last, value = line:match("^(%x+)%.*(%x*)%s*;%s*([%w_.]+)")
        if first then
            first = tonumber(first, 16)
            visit(first, tonumber(last, 16) or first, value)
        end
    end
end

-- The set of the code points that have a value in a file.
local function points_with(unicode_dir, name, has)
    local set = {}
    each_range(unicode_dir, name, function(first, last, value)
        for point = first, has(value) and last or -1 do
            set[point] = true
        end
    end)
    return set
end

-- Calls visit(first, last, category, combining class, mapping) for what UnicodeData.txt has. Two
-- lines make a range: "3400;<CJK Ideograph Extension A, First>;..." and "4DBF;<..., Last>;...".
local function each_character(unicode_dir, visit)
    local range_first
    for line in read_lines(unicode_dir, "UnicodeData.txt") do
        local point, name, category, combining, mapping =
            line:match("^(%x+);([^;]*);(%a%a);(%d+);[^;]*;([^;]*)")
        if not point then
            fail("%s/UnicodeData.txt: found %s, expected 15 fields", unicode_dir, quote(line))
        end
        point = tonumber(point, 16)
        if name:find(", First>", 1, true) then
            range_first = point
        else
            local first = name:find(", Last>", 1, true) and range_first or point
            visit(first, point, category, tonumber(combining), mapping)
        end
    end
end

-- A property of code points, 0 where values has none, as the places where it changes:
-- point << bits | value.
local function boundaries(values, bits)
    local list, previous = {}, nil
    for point = 0, LAST do
        local value = values[point] or 0
        if value ~= previous then
            previous = value
            list[#list + 1] = point << bits | value
        end
    end
    return list
end

local function class_starts(unicode_dir)
    local class, kinds = {}, { L = CLASS.letter, N = CLASS.number }
    each_character(unicode_dir, function(first, last, category)
        for point = first, kinds[category:sub(1, 1)] and last or -1 do
            class[point] = kinds[category:sub(1, 1)]
        end
    end)
    local spaces = points_with(unicode_dir, "PropList.txt", function(property)
        return property == "White_Space"
    end)
    for point in pairs(spaces) do
        class[point] = CLASS.space
    end
    return boundaries(class, 2)
end

-- The combining classes, and the canonical decompositions by one step: a list of the code points
-- that have one, ascending, and for each of these {first} or {first, second}. Hangul syllables have
-- none here, theirs are arithmetic.
local function read_form_c(unicode_dir)
    local young = points_with(unicode_dir, "DerivedAge.txt", function(age)
        return tonumber(age) > NORMALIZATION_VERSION
    end)
    local combining, decomposed, parts = {}, {}, {}
    each_character(unicode_dir, function(first, _, _, class, mapping)
        if young[first] then return end
        combining[first] = class -- of a range: 0, and it has no mapping
        local one, two = mapping:match("^(%x+) ?(%x*)$") -- <compat> mappings do not match
        if one then
            decomposed[#decomposed + 1] = first
            parts[first] = { tonumber(one, 16), tonumber(two, 16) }
        end
    end)
    return combining, decomposed, parts
end

-- Appends the full decomposition of a code point to list.
local function decompose(point, parts, list)
    for _, part in ipairs(parts[point] or {}) do
        decompose(part, parts, list)
    end
    if not parts[point] then
        list[#list + 1] = point
    end
end

-- The full decompositions, each in DECOMPOSITION_MAX numbers, 0 after its end.
local function decompositions(decomposed, parts)
    local list = {}
    for index, point in ipairs(decomposed) do
        decompose(point, parts, list)
        assert(#list <= index * DECOMPOSITION_MAX)
        while #list < index * DECOMPOSITION_MAX do
            list[#list + 1] = 0
        end
    end
    return list
end

-- The pairs that compose, each as first, second, composite; ordered by first, then second.
local function compositions(unicode_dir, decomposed, parts)
    local excluded = points_with(unicode_dir, "DerivedNormalizationProps.txt", function(property)
        return property == "Full_Composition_Exclusion"
    end)
    local composite, keys, list = {}, {}, {}
    for _, point in ipairs(decomposed) do
        if not excluded[point] then
            keys[#keys + 1] = parts[point][1] << 32 | parts[point][2]
            composite[keys[#keys]] = point
        end
    end
    table.sort(keys)
    for _, key in ipairs(keys) do
        table.move({ key >> 32, key & 0xffffffff, composite[key] }, 1, 3, #list + 1, list)
    end
    return list
end

-- The lists that struct unicode_tables in runtime/unicode.h points to, by their names there; those
-- for form C are empty unless nfc. unicode_dir: /usr/share/unicode.
function M.tables(unicode_dir, nfc)
    local tables = { class_start = class_starts(unicode_dir), combining_start = {},
        decomposed = {}, decomposition = {}, composition = {} }
    if nfc then
        local combining, decomposed, parts = read_form_c(unicode_dir)
        tables.combining_start = boundaries(combining, 8)
        tables.decomposed = decomposed
        tables.decomposition = decompositions(decomposed, parts)
        tables.composition = compositions(unicode_dir, decomposed, parts)
    end
    return tables
end

return M
