-- Prints SmolLM2's prompts and what the published code computed of them with P streams, as
-- real_harness reads them:  lua5.4 tests/real_prompts.lua P >FILE

local here = arg[0]:match("^(.*/)") or "./"
local cjson = require("cjson")

local file = assert(io.open(here .. "data/smollm2/expected.json"))
local expected = cjson.decode(file:read("a"))
file:close()

-- From `first` on, in `format`: JSON's numbers are all floats.
local function numbers(list, format, first)
    local texts = {}
    for i = first or 1, #list do
        texts[#texts + 1] = format:format(list[i])
    end
    return table.concat(texts, " ")
end

for _, prompt in ipairs(expected[arg[1]]) do
    io.write(("%d %s %s %d %s %s\n"):format(#prompt.ids, numbers(prompt.ids, "%d"),
        numbers(prompt.token_logprobs, "%.9g", 2), #prompt.greedy_ids,
        numbers(prompt.greedy_ids, "%d"), numbers(prompt.greedy_margin, "%.9g")))
end
