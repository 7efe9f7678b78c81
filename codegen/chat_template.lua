-- Recognises ChatML in a Jinja chat template and finds the system prompt it inserts when the
-- conversation has none. Nothing is executed: a template is read as what it prints, its raw text
-- and the string literals of its {{ }} tags, with "\0" where a tag starts or ends, or a value is.
local M = {}

local MAX_BYTES = 1 << 16 -- published templates are under 20 KB

local ESCAPES = { n = "\n", t = "\t", r = "\r", ["\\"] = "\\", ["'"] = "'", ['"'] = '"' }

-- The string literals of one expression, subscripts such as message['role'] left out.
local function literals(expression)
    local list, at = {}, 1
    while true do
        local start = expression:find("['\"]", at)
        if not start then
            return list
        end
        local mark, stop = expression:sub(start, start), start + 1
        while stop <= #expression and expression:sub(stop, stop) ~= mark do
            stop = stop + (expression:sub(stop, stop) == "\\" and 2 or 1)
        end
        if expression:sub(start - 1, start - 1) ~= "[" then
            list[#list + 1] = expression:sub(start + 1, stop - 1):gsub("\\(.)", ESCAPES)
        end
        at = stop + 1
    end
end

-- Where the tag that starts at `start` ends: the place after its closing mark, which is not looked
-- for in string literals.
local function tag_end(template, start, close)
    local at = start + 2
    while at <= #template do
        local c = template:sub(at, at)
        if template:sub(at, at + 1) == close then
            return at + 2
        elseif (c == "'" or c == '"') and close ~= "#}" then
            local stop = at + 1
            while stop <= #template and template:sub(stop, stop) ~= c do
                stop = stop + (template:sub(stop, stop) == "\\" and 2 or 1)
            end
            at = stop
        end
        at = at + 1
    end
    return #template + 1
end

local CLOSE = { ["{{"] = "}}", ["{%"] = "%}", ["{#"] = "#}" }

-- What the template prints. Whitespace control is that of Hugging Face: {%- and -%}, and blocks
-- that are alone on their line leave nothing of it.
local function flatten(template)
    local printed, at = {}, 1
    while at <= #template do
        local start = template:find("{[{%%#]", at) or #template + 1
        local open = template:sub(start, start + 1)
        local raw = template:sub(at, start - 1)
        if template:sub(start + 2, start + 2) == "-" then
            raw = raw:match("^.*%S") or ""
        elseif open == "{%" or open == "{#" then
            raw = raw:match("^.*[^ \t]") or ""
        end
        printed[#printed + 1] = raw
        if not CLOSE[open] then
            break
        end
        at = tag_end(template, start, CLOSE[open])
        printed[#printed + 1] = "\0"
        if open == "{{" then
            printed[#printed + 1] = table.concat(literals(template:sub(start + 2, at - 3)), "\0")
            printed[#printed + 1] = "\0"
        end
        if template:sub(at - 3, at - 3) == "-" then
            at = template:find("%S", at) or #template + 1
        elseif open ~= "{{" and template:sub(at, at) == "\n" then
            at = at + 1
        end
    end
    return (table.concat(printed):gsub("%z+", "\0"))
end

-- Of a template: {system = default system prompt or ""}, or nil if it is not ChatML.
function M.chatml(template)
    if #template > MAX_BYTES then
        return nil
    end
    local text = flatten(template)
    local turn = text:find("<|im_start|>%z\n%z<|im_end|>%z?\n")
        or text:find("<|im_start|>user\n%z<|im_end|>%z?\n")
    if not turn or not text:find("<|im_start|>assistant\n%z") then
        return nil
    end
    return { system = text:match("<|im_start|>system\n([^%z]-)<|im_end|>\n") or "" }
end

return M
