-- Byte-level BPE tokenizers: a Hugging Face tokenizer.json (with the tokenizer_config.json and the
-- chat_template.jinja beside it) or the metadata of a GGUF file, checked, and encoded as the blob
-- that the engine reads. runtime/tokenizer.h documents the blob and the two splitting rules.
-- Relies on json.lua, chat_template.lua and lua-filesystem.
--
-- A tokenizer is a table:
--   where      the file it came from, for messages
--   rule       "qwen2" or "smollm";  nfc  whether text is brought into form C first
--   texts      id -> vocabulary entry in the byte-level alphabet;  ids  the same, text -> id
--   added      id -> {content =, special =}: tokens matched in the text before everything else
--   added_ids  content -> id of those
--   size       1 + the largest id
--   merges     {left =, right =, result =}: lists of ids, in the order of their rank
--   eos        id or nil
--   chat       {system =, im_start =, im_end =}, or nil if there is no ChatML template
local chat_template = require("codegen.chat_template")
local failure = require("codegen.fail")
local files = require("codegen.files")
local json = require("codegen.json")
local lfs = require("lfs")
local fail, quote = failure.fail, failure.quote

local M = {}

local function refuse(where, place, found, expected)
    fail("%s: %s: found %s, expected %s", where, place, quote(found), expected)
end

-- The byte-level alphabet (GPT-2): printable Latin-1 bytes are their own character, the others are
-- U+0100 and up, in order.
local CHARACTER_OF, BYTE_OF = {}, {}
do
    local shifted = 0x100
    for byte = 0, 255 do
        local printable = byte >= 33 and byte <= 126 or byte >= 161 and byte ~= 173
        CHARACTER_OF[byte] = utf8.char(printable and byte or shifted)
        BYTE_OF[CHARACTER_OF[byte]] = string.char(byte)
        shifted = printable and shifted or shifted + 1
    end
end

-- The bytes of a vocabulary entry. One with a character outside the alphabet stands for itself, as
-- in the tokenizers library.
local function bytes_of(text)
    local outside = false
    local bytes = text:gsub("[\x80-\xff][\x80-\xbf]*", function(character)
        local byte = BYTE_OF[character]
        outside = outside or not byte
        return byte
    end)
    return (outside or text:find("[%c ]")) and text or bytes
end

-- What the two rules look like in pre_tokenizer, key by key.
local QWEN2_PATTERN = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    .. " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
local RULES = {
    qwen2 = {
        { type = "Split", behavior = "Isolated", invert = false, pattern = QWEN2_PATTERN },
        { type = "ByteLevel", add_prefix_space = false, use_regex = false },
    },
    smollm = {
        { type = "Digits", individual_digits = true },
        { type = "ByteLevel", add_prefix_space = false, use_regex = true },
    },
}

local function type_of(part)
    if type(part) == "table" then
        return part.type
    end
    return part
end

local function steps_match(steps, rule)
    for index, expected in ipairs(rule) do
        local step = type(steps[index]) == "table" and steps[index] or {}
        local pattern = step.pattern
        for key, value in pairs(expected) do
            local found = step[key]
            if key == "pattern" then
                found = type(pattern) == "table" and pattern.Regex
            elseif key == "use_regex" and found == nil then
                found = true
            end
            if found ~= value then
                return false
            end
        end
    end
    return #steps == #rule
end

local function find_rule(where, pre_tokenizer)
    local steps = type_of(pre_tokenizer) == "Sequence" and pre_tokenizer.pretokenizers
    for name, rule in pairs(RULES) do
        if type(steps) == "table" and steps_match(steps, rule) then
            return name
        end
    end
    local found = type_of(pre_tokenizer)
    for _, step in ipairs(type(steps) == "table" and steps or {}) do
        found = ("%s %s"):format(found, type_of(step))
    end
    refuse(where, "pre_tokenizer", found, "a Sequence of Qwen2's Split pattern and ByteLevel, or "
        .. "of Digits (individual_digits) and ByteLevel (use_regex)")
end

-- Whether the normalizer is NFC; anything but NFC and nothing is refused.
local function find_nfc(where, normalizer)
    local kind = type_of(normalizer)
    if kind == "Sequence" and type(normalizer.normalizers) == "table" then
        local nfc = false
        for _, part in ipairs(normalizer.normalizers) do
            nfc = find_nfc(where, part) or nfc
        end
        return nfc
    elseif normalizer ~= nil and kind ~= "NFC" then
        refuse(where, "normalizer", kind, "NFC or null")
    end
    return normalizer ~= nil
end

-- Options that change the result and must be off; some have a value that does nothing.
local MODEL_OPTIONS = {
    dropout = 0, continuing_subword_prefix = "", end_of_word_suffix = "",
    byte_fallback = false, ignore_merges = false,
}
local ADDED_OPTIONS = { lstrip = false, rstrip = false, single_word = false, normalized = false }

local function check_off(where, place, object, options)
    for name, off in pairs(options) do
        if object[name] ~= nil and object[name] ~= off then
            refuse(where, place .. "." .. name, object[name], quote(off) .. " or null")
        end
    end
end

-- The list or the object object[key], which may be missing if `default` is given.
local function child(where, place, object, key, default)
    local value = object[key]
    if value == nil then
        value = default
    end
    if type(value) ~= "table" then
        refuse(where, place .. key, value, "a list or an object")
    end
    return value
end

local function is_id(value)
    return math.type(value) == "integer" and value >= 0 and value < 1 << 31
end

local function add_token(tok, place, id, content, special)
    local where = tok.where
    if not is_id(id) then
        refuse(where, place .. ".id", id, "a token id")
    elseif type(content) ~= "string" or content == "" or not utf8.len(content) then
        refuse(where, place .. ".content", content, "a text in UTF-8")
    end
    local text, other_id = tok.texts[id], tok.added_ids[content] or tok.ids[content]
    if tok.added[id] or text and text ~= content then
        refuse(where, place .. ".id", id, "an id that no other token has")
    elseif tok.added_ids[content] or other_id and other_id ~= id then
        refuse(where, place .. ".content", content, ("another, token %d is that"):format(other_id))
    end
    tok.added[id] = { content = content, special = special }
    tok.added_ids[content] = id
    tok.size = math.max(tok.size, id + 1)
end

-- Merges are "left right" or {left, right}. Both and what they make must be in the vocabulary, and
-- no pair may come twice.
local function add_merges(tok, place, merges)
    local ids, seen = tok.ids, {}
    local left, right, result = {}, {}, {}
    if #merges == 0 and next(merges) ~= nil then
        refuse(tok.where, place, merges, "a list")
    end
    for rank, merge in ipairs(merges) do
        local function bad(found, expected)
            refuse(tok.where, ("%s[%d]"):format(place, rank - 1), found, expected)
        end
        local a, b
        if type(merge) == "table" then
            a, b = merge[1], merge[2]
        elseif type(merge) == "string" then
            a, b = merge:match("^([^ ]+) ([^ ]+)$")
        end
        if type(a) ~= "string" or type(b) ~= "string" then
            bad(merge, "a pair of tokens")
        end
        local one, two, joined = ids[a], ids[b], ids[a .. b]
        if not (one and two and joined) then
            bad(not one and a or not two and b or a .. b, "a token of the vocabulary")
        end
        local key = one << 32 | two
        if seen[key] then
            bad(a .. " " .. b, "a pair that was not there before")
        end
        seen[key] = true
        left[rank], right[rank], result[rank] = one, two, joined
    end
    tok.merges = { left = left, right = right, result = result }
end

-- Sets tok.chat from a template, if it is ChatML and its two marks are tokens.
local function add_chat(tok, template)
    local chat = type(template) == "string" and chat_template.chatml(template)
    local im_start, im_end = tok.added_ids["<|im_start|>"], tok.added_ids["<|im_end|>"]
    if chat and im_start and im_end then
        tok.chat = { system = chat.system, im_start = im_start, im_end = im_end }
    end
end

local function new(where)
    return { where = where, texts = {}, ids = {}, added = {}, added_ids = {}, size = 0 }
end

-- tokenizer.json -------------------------------------------------------------------------------

local function add_vocabulary(tok, vocabulary)
    local size = 0
    for text, id in pairs(vocabulary) do
        if type(text) ~= "string" or not is_id(id) then
            refuse(tok.where, "model.vocab", id, "a text with a token id")
        elseif tok.texts[id] then
            refuse(tok.where, "model.vocab", id, "every id once")
        end
        tok.texts[id] = text
        size = math.max(size, id + 1)
    end
    if size == 0 then
        refuse(tok.where, "model.vocab", vocabulary, "tokens in it")
    end
    tok.ids, tok.size = vocabulary, size
end

-- Every id up to the vocabulary's largest is a token's. (Beyond it, added tokens may leave holes.)
local function check_gaps(tok, vocabulary_size)
    for id = 0, vocabulary_size - 1 do
        if not tok.texts[id] and not tok.added[id] then
            fail("%s: model.vocab: found no token with id %d, expected every id from 0 to %d",
                tok.where, id, vocabulary_size - 1)
        end
    end
end

-- A byte that is no token is dropped; an unk_token would take its place, which is not supported.
local function check_unknown(tok, unk_token)
    for byte = 0, 255 do
        if unk_token ~= nil and not tok.ids[CHARACTER_OF[byte]] then
            refuse(tok.where, "model.unk_token", unk_token,
                ("null, as byte 0x%02x is no token"):format(byte))
        end
    end
end

local function add_tokens(tok, list)
    for index, token in ipairs(list) do
        local place = ("added_tokens[%d]"):format(index - 1)
        if type(token) ~= "table" then
            refuse(tok.where, place, token, "an object")
        end
        check_off(tok.where, place, token, ADDED_OPTIONS)
        add_token(tok, place, token.id, token.content, token.special == true)
    end
end

-- tokenizer_config.json, if it is there: sets tok.eos, returns the chat template.
local function read_config(tok, path)
    if not lfs.attributes(path) then
        return nil
    end
    local config = json.read(path)
    local eos = config.eos_token
    if type(eos) == "table" then
        eos = eos.content
    end
    if eos ~= nil then
        tok.eos = tok.added_ids[eos] or tok.ids[eos]
        if not tok.eos then
            refuse(path, "eos_token", eos, "a token of tokenizer.json")
        end
    end
    local template = config.chat_template
    for _, entry in ipairs(type(template) == "table" and template or {}) do
        if type(entry) == "table" and entry.name == "default" then
            return entry.template
        end
    end
    return template
end

-- Reads a tokenizer.json, and tokenizer_config.json and chat_template.jinja if they are beside it.
function M.read_json(path)
    local document = json.read(path, 128 << 20)
    local tok = new(path)
    local model = child(path, "", document, "model")
    if model.type ~= nil and model.type ~= "BPE" then
        refuse(path, "model.type", model.type, '"BPE"')
    end
    check_off(path, "model", model, MODEL_OPTIONS)
    tok.nfc = find_nfc(path, document.normalizer)
    tok.rule = find_rule(path, document.pre_tokenizer)
    if type_of(document.decoder) ~= "ByteLevel" then
        refuse(path, "decoder", type_of(document.decoder), "ByteLevel")
    end
    local post_processor = type_of(document.post_processor)
    if post_processor ~= nil and post_processor ~= "ByteLevel" then
        refuse(path, "post_processor", post_processor, "ByteLevel or null")
    end
    add_vocabulary(tok, child(path, "model.", model, "vocab"))
    local vocabulary_size = tok.size
    add_tokens(tok, child(path, "", document, "added_tokens", {}))
    check_gaps(tok, vocabulary_size)
    check_unknown(tok, model.unk_token)
    add_merges(tok, "model.merges", child(path, "model.", model, "merges"))
    local folder = path:match("^.*/") or ""
    local template = read_config(tok, folder .. "tokenizer_config.json")
    if lfs.attributes(folder .. "chat_template.jinja") then
        template = files.read(folder .. "chat_template.jinja", 1 << 20)
    end
    add_chat(tok, template)
    return tok
end

-- GGUF -----------------------------------------------------------------------------------------

local GGUF_RULES = { -- by tokenizer.ggml.pre
    smollm = { rule = "smollm", nfc = false },
    qwen2 = { rule = "qwen2", nfc = true },
}
local GGUF_NORMAL, GGUF_CONTROL, GGUF_USER_DEFINED, GGUF_UNUSED = 1, 3, 4, 5 -- token_type

-- Converters fill ids that the model has and the tokenizer has not with [PAD<id>].
local function is_padding(id, text, kind)
    return kind == GGUF_UNUSED or kind == GGUF_USER_DEFINED and text == ("[PAD%d]"):format(id)
end

local function add_gguf_token(tok, id, text, kind)
    local place = ("tokenizer.ggml.tokens[%d]"):format(id)
    if kind == GGUF_CONTROL or kind == GGUF_USER_DEFINED then
        add_token(tok, place, id, text, kind == GGUF_CONTROL)
    elseif kind ~= GGUF_NORMAL then
        refuse(tok.where, ("tokenizer.ggml.token_type[%d]"):format(id), kind, "1, 3, 4 or 5")
    elseif type(text) ~= "string" or tok.ids[text] or tok.added_ids[text] then
        refuse(tok.where, place, text, "a text that no other token has")
    else
        tok.texts[id], tok.ids[text], tok.size = text, id, id + 1
    end
end

-- The tokenizer in the metadata of a GGUF file, key -> value. where: the file, for messages.
function M.from_gguf(metadata, where)
    local tok = new(where)
    local function get(key, kind)
        local value = metadata["tokenizer.ggml." .. key]
        if type(value) ~= kind then
            refuse(where, "tokenizer.ggml." .. key, value, "a " .. kind)
        end
        return value
    end
    if get("model", "string") ~= "gpt2" then
        refuse(where, "tokenizer.ggml.model", get("model", "string"), '"gpt2"')
    end
    local rule = GGUF_RULES[get("pre", "string")]
    if not rule then
        refuse(where, "tokenizer.ggml.pre", get("pre", "string"), '"smollm" or "qwen2"')
    end
    tok.rule, tok.nfc = rule.rule, rule.nfc
    local types = child(where, "", metadata, "tokenizer.ggml.token_type", {})
    for index, text in ipairs(get("tokens", "table")) do
        local id, kind = index - 1, types[index] or GGUF_NORMAL
        if not is_padding(id, text, kind) then
            add_gguf_token(tok, id, text, kind)
        end
    end
    if tok.size == 0 then
        refuse(where, "tokenizer.ggml.tokens", get("tokens", "table"), "tokens in it")
    end
    add_merges(tok, "tokenizer.ggml.merges", get("merges", "table"))
    tok.eos = metadata["tokenizer.ggml.eos_token_id"]
    if tok.eos ~= nil and not (is_id(tok.eos) and tok.eos < tok.size) then
        refuse(where, "tokenizer.ggml.eos_token_id", tok.eos, "the id of a token")
    end
    add_chat(tok, metadata["tokenizer.chat_template"])
    return tok
end

-- The blob -------------------------------------------------------------------------------------

-- list[first..last] as 32-bit little-endian numbers.
local function u32s(list, first, last)
    local out = {}
    for start = first, last, 128 do
        local stop = math.min(start + 127, last)
        out[#out + 1] = ("<" .. ("I4"):rep(stop - start + 1)):pack(table.unpack(list, start, stop))
    end
    return table.concat(out)
end

-- The bytes of all ids, and where each starts (one more entry than ids).
local function pieces(tok)
    local parts, starts, at = {}, {}, 0
    for id = 0, tok.size - 1 do
        local text = tok.texts[id]
        local piece = tok.added[id] and tok.added[id].content or text and bytes_of(text) or ""
        starts[id], parts[id + 1] = at, piece
        at = at + #piece
    end
    starts[tok.size] = at
    return table.concat(parts), starts
end

-- The merges ordered by (left, right), and where each left id starts.
local function merge_table(tok)
    local merges, order = tok.merges, {}
    for rank = 1, #merges.left do
        order[rank] = merges.left[rank] << 32 | merges.right[rank]
    end
    local rank_of = {}
    for rank, key in ipairs(order) do
        rank_of[key] = rank
    end
    table.sort(order)
    local first, right, ranks, filled = {}, {}, {}, -1
    for index, key in ipairs(order) do
        while filled < key >> 32 do
            filled = filled + 1
            first[filled] = index - 1
        end
        right[index], ranks[index] = key & 0xffffffff, rank_of[key] - 1
    end
    for id = filled + 1, tok.size do
        first[id] = #order
    end
    return first, right, ranks
end

-- Added tokens ordered by their bytes: id << 1 | special.
local function added_table(tok)
    local contents, list = {}, {}
    for content in pairs(tok.added_ids) do
        contents[#contents + 1] = content
    end
    table.sort(contents)
    for index, content in ipairs(contents) do
        local id = tok.added_ids[content]
        list[index] = id << 1 | (tok.added[id].special and 1 or 0)
    end
    return list
end

-- Where generation ends: the given ids, the end of sequence, ChatML's end of turn, and the end of a
-- document as GPT-2 and its descendants name it.
local function stop_list(tok, vocab_size, stops)
    local list, seen = {}, {}
    local function add(id)
        if id and not seen[id] then
            seen[id] = true
            list[#list + 1] = id
        end
    end
    for _, id in ipairs(type(stops) == "table" and stops or { stops }) do
        if not is_id(id) or id >= vocab_size then
            refuse(tok.where, "eos_token_id", id, ("less than vocab_size %d"):format(vocab_size))
        end
        add(id)
    end
    add(tok.eos)
    add(tok.chat and tok.chat.im_end)
    local document_end = tok.added_ids["<|endoftext|>"]
    add(document_end and tok.added[document_end].special and document_end)
    table.sort(list)
    return list
end

local BLOB_RULES = { qwen2 = 1, smollm = 2 } -- enum tokenizer_rule
local NO_ID = 0xffffffff

-- The blob of a tokenizer for a model with vocab_size ids. unicode: what unicode.tables made for
-- tok.nfc. stops: a further id or a list of them where generation ends, from config.json or
-- generation_config.json; may be nil.
function M.encode(tok, unicode, vocab_size, stops)
    if tok.size > vocab_size then
        fail("%s: found a token with id %d, expected less than vocab_size %d", tok.where,
            tok.size - 1, vocab_size)
    end
    local chat = tok.chat or { system = "", im_start = NO_ID, im_end = NO_ID }
    local piece_bytes, piece_start = pieces(tok)
    local merge_first, merge_right, merge_rank = merge_table(tok)
    local added, stop_ids = added_table(tok), stop_list(tok, vocab_size, stops)
    local byte_ids = {}
    for byte = 0, 255 do
        byte_ids[byte] = tok.ids[CHARACTER_OF[byte]] or NO_ID
    end
    local header = { BLOB_RULES[tok.rule], tok.nfc and 1 or 0, tok.size, #merge_right, #added,
        #stop_ids, #piece_bytes, #chat.system, tok.chat and 1 or 0, chat.im_start, chat.im_end,
        #unicode.class_start, #unicode.combining_start, #unicode.decomposed,
        #unicode.composition // 3 }
    local function all(list)
        return u32s(list, 1, #list)
    end
    return table.concat({
        "tok2", all(header),
        u32s(piece_start, 0, tok.size), u32s(byte_ids, 0, 255), u32s(merge_first, 0, tok.size),
        all(merge_right), all(merge_rank), all(tok.merges.result), all(added), all(stop_ids),
        all(unicode.class_start), all(unicode.combining_start), all(unicode.decomposed),
        all(unicode.decomposition), all(unicode.composition), piece_bytes, chat.system,
    })
end

return M
