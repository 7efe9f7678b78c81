-- Unicode's character data as C tables: what runtime/unicode.c needs for \p{L}, \p{N}, White_Space
-- and for normalization form C. Relies on the files of Debian's package unicode-data.
--
-- Normalization is that of Unicode 9.0, whatever the files' version is: the tokenizers library has
-- it so, and ids must be those that the models learned. (By Unicode's stability policy it differs
-- from later ones only in that characters that are younger do not take part.) The classes are those
-- of the files: a letter or digit younger than they are counts as a symbol.
local failure = require("codegen.fail")
local fail, quote = failure.fail, failure.quote

local M = {}

local CLASS = { other = 0, letter = 1, number = 2, space = 3 } -- enum unicode_class in unicode.h
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

-- UnicodeData.txt: class and combining class of every code point (dense, from 0), and the canonical
-- decompositions in ascending order: {point, first, second or 0}. Hangul syllables have none here,
-- theirs are arithmetic.
local function read_characters(unicode_dir)
    local normalized = points_with(unicode_dir, "DerivedAge.txt", function(age)
        return tonumber(age) <= NORMALIZATION_VERSION
    end)
    local class, combining, decompositions = {}, {}, {}
    for point = 0, LAST do
        class[point], combining[point] = CLASS.other, 0
    end
    local kinds = { L = CLASS.letter, N = CLASS.number }
    local range_first
    for line in read_lines(unicode_dir, "UnicodeData.txt") do
        local point, name, category, ccc, mapping =
            line:match("^(%x+);([^;]*);(%a)%a;(%d+);[^;]*;([^;]*)")
        if not point then
            fail("%s/UnicodeData.txt: found %s, expected 15 fields", unicode_dir, quote(line))
        end
        point = tonumber(point, 16)
        if name:find(", First>", 1, true) then
            range_first = point
        end
        local first = name:find(", Last>", 1, true) and range_first or point
        for p = first, point do
            class[p] = kinds[category] or CLASS.other
            combining[p] = normalized[p] and tonumber(ccc) or 0
        end
        local one, two = mapping:match("^(%x+) ?(%x*)$") -- <compat> mappings do not match
        if one and normalized[point] then
            decompositions[#decompositions + 1] =
                { point, tonumber(one, 16), tonumber(two, 16) or 0 }
        end
    end
    local is_space = function(property)
        return property == "White_Space"
    end
    for point in pairs(points_with(unicode_dir, "PropList.txt", is_space)) do
        class[point] = CLASS.space
    end
    return class, combining, decompositions
end

-- A property of all code points as the places where it changes: point << bits | value.
local function boundaries(values, bits)
    local list, previous = {}, nil
    for point = 0, LAST do
        if values[point] ~= previous then
            previous = values[point]
            list[#list + 1] = point << bits | previous
        end
    end
    return list
end

-- Decompositions as runs of consecutive code points: point << 12 | index of its decomposition.
local function runs(decompositions)
    assert(#decompositions < 1 << 12)
    local list = {}
    for index, entry in ipairs(decompositions) do
        local before = decompositions[index - 1]
        if not before or before[1] + 1 ~= entry[1] then
            assert(entry[1] < 1 << 20)
            list[#list + 1] = entry[1] << 12 | (index - 1)
        end
    end
    return list
end

-- Indices of the decompositions that compose again, ordered by (first, second).
local function compositions(unicode_dir, decompositions)
    local excluded = points_with(unicode_dir, "DerivedNormalizationProps.txt", function(property)
        return property == "Full_Composition_Exclusion"
    end)
    local list = {}
    for index, entry in ipairs(decompositions) do
        if not excluded[entry[1]] then
            list[#list + 1] = index - 1
        end
    end
    table.sort(list, function(a, b)
        local x, y = decompositions[a + 1], decompositions[b + 1]
        return (x[2] << 32 | x[3]) < (y[2] << 32 | y[3])
    end)
    return list
end

local function column(rows, index)
    local list = {}
    for i, row in ipairs(rows) do
        list[i] = row[index]
    end
    return list
end

-- A C table, lines filled up to 100 columns.
local function c_table(comment, ctype, name, values)
    local lines = { "// " .. comment, ("static const %s %s[%d] = {"):format(ctype, name, #values) }
    local line = "   "
    for _, value in ipairs(values) do
        local item = (value < 10 and " %d," or " 0x%x,"):format(value)
        if #line + #item > 100 then
            lines[#lines + 1] = line
            line = "   "
        end
        line = line .. item
    end
    lines[#lines + 1] = line
    lines[#lines + 1] = "};\n"
    return table.concat(lines, "\n")
end

-- The text of unicode_tables.h. unicode_dir: /usr/share/unicode.
function M.generate(unicode_dir)
    local version = read_lines(unicode_dir, "PropList.txt")():match("PropList%-([%d.]+)%.txt")
    local class, combining, decompositions = read_characters(unicode_dir)
    return table.concat({
        ("// Unicode %s (normalization: %.1f), generated from UnicodeData.txt, PropList.txt,\n"
            .. "// DerivedAge.txt and DerivedNormalizationProps.txt.\n")
            :format(version or "", NORMALIZATION_VERSION)
            .. "#ifndef UNICODE_TABLES_H\n#define UNICODE_TABLES_H\n\n#include <stdint.h>\n",
        c_table("Where the class changes: code point << 2 | enum unicode_class.",
            "uint32_t", "unicode_class_starts", boundaries(class, 2)),
        c_table("Where the canonical combining class changes: code point << 8 | class.",
            "uint32_t", "combining_class_starts", boundaries(combining, 8)),
        c_table("Runs of code points with a canonical decomposition: first << 12 | its index.",
            "uint32_t", "decomposition_runs", runs(decompositions)),
        c_table("What they decompose to, one step: first code point.",
            "uint32_t", "decomposition_first", column(decompositions, 2)),
        c_table("And the second, 0 if there is none.",
            "uint32_t", "decomposition_second", column(decompositions, 3)),
        c_table("The decompositions that compose again, by first, then second code point.",
            "uint16_t", "composition_order", compositions(unicode_dir, decompositions)),
        "#endif\n",
    }, "\n")
end

return M
