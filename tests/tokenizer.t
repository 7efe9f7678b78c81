#!/usr/bin/env lua5.4
-- The tokenizer: vectors of the tokenizers library, Unicode's own normalization test, the time it
-- takes, and refusals of bad input. Needs gcc, xz, bzip2 and unicode-data. PARSCALE_GGUF may name
-- SmolLM2-135M-Instruct.Q4_1.gguf; without it that one test is skipped.

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local cjson = require("cjson")
local hostile = require("hostile")
local tap = require("tap")
local chat_template = require("codegen.chat_template")
local gguf = require("codegen.gguf")
local json = require("codegen.json")
local tokenizer = require("codegen.tokenizer")
local unicode = require("codegen.unicode")

local UNICODE_DIR = "/usr/share/unicode"
local DATA = here .. "data/tokenizers/"
local path, refused = hostile.path, hostile.refused

-- A text as the name of a test shows it.
local function show(text)
    return (text:gsub("[^ -~]", function(byte)
        return ("\\x%02x"):format(byte:byte())
    end))
end

local function write(name, text)
    local file = assert(io.open(path(name), "wb"))
    assert(file:write(text))
    assert(file:close())
    return path(name)
end

local function run(command, ...)
    command = command:format(...)
    local pipe = assert(io.popen(command, "r"))
    local output = pipe:read("a")
    local ok = pipe:close()
    if not ok then
        error(("%s: failed\n%s"):format(command, output))
    end
    return output
end

-- The harness, once to find bad memory accesses and once to measure.
local function build(name, flags)
    run("gcc -std=c11 -Wall -Wextra -Werror %s -I'%s../runtime' '%stokenizer_harness.c' -o '%s'",
        flags, here, here, path(name))
    return path(name)
end
local checked = build("checked", "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all")
local fast = build("fast", "-O2")

-- The blob of a tokenizer; tables: of Unicode, if not the right ones.
local UNICODE = {
    [true] = unicode.tables(UNICODE_DIR, true), [false] = unicode.tables(UNICODE_DIR, false),
}
local function encode_blob(tok, vocab_size, stops, tables)
    return tokenizer.encode(tok, tables or UNICODE[tok.nfc], vocab_size, stops)
end

for name, list in pairs(unicode.tables(UNICODE_DIR, true)) do
    tap.is(table.concat(list, " "), table.concat(UNICODE[true][name], " "),
        name .. " is the same every time")
    tap.is(#list > 0 and #UNICODE[false][name], name == "class_start" and #list or 0,
        name .. ": only the classes are there without form C")
end

-- Texts -> {ids = "1 2 3", bytes = what the ids stand for} or {error = }.
local function encode(blob, texts, special)
    local records = {}
    for i, text in ipairs(texts) do
        records[i] = ("=BI4"):pack(special == false and 0 or 1, #text) .. text
    end
    local input = write("records", table.concat(records))
    local results = {}
    for line in run("'%s' '%s' encode < '%s'", checked, blob, input):gmatch("([^\n]*)\n") do
        local ids, hex = line:match("^([%d ]*)\t(%x*)$")
        results[#results + 1] = ids and { ids = ids, bytes = hex:gsub("%x%x", function(byte)
            return string.char(tonumber(byte, 16))
        end) } or { error = line }
    end
    assert(#results == #texts)
    return results
end

local function read_unicode(name)
    local command = name:find("%.bz2$") and "bzip2 -dc" or "cat"
    return run("%s '%s/%s'", command, UNICODE_DIR, name):gmatch("([^\n]+)")
end

-- The code points of the lines "0041..005A ; Value" that has(value) holds for.
local function points_with(name, has)
    local set = {}
    for line in read_unicode(name) do
        local first, last, value = line:match("^(%x+)%.*(%x*)%s*; *([%w._]+)")
        if first and has(value) then
            for point = tonumber(first, 16), tonumber(last ~= "" and last or first, 16) do
                set[point] = true
            end
        end
    end
    return set
end

-- The tokenizers library normalizes as Unicode 9.0 does: younger characters do not take part.
local known = points_with("DerivedAge.txt", function(age)
    return tonumber(age) <= 9.0
end)

local function is_known(text)
    for _, point in utf8.codes(text) do
        if not known[point] then
            return false
        end
    end
    return true
end

-- Published vectors ----------------------------------------------------------------------------

local MODELS = {
    { name = "qwen2", vocab_size = 151936, seconds = 3, nfc = true },
    { name = "smollm2", vocab_size = 49152, seconds = 1, nfc = false },
}

local function unpack_data(model)
    local folder = model.name .. "/"
    run("mkdir '%s'", path(model.name))
    for _, name in ipairs({ "tokenizer.json", "vectors.json" }) do
        run("xz -dc '%s' > '%s'", DATA .. folder .. name .. ".xz", path(folder .. name))
    end
    run("cp '%s'* '%s'", DATA .. folder, path(folder))
    return path(folder .. "tokenizer.json")
end

local function vectors_match(model, vectors, results)
    local different = 0
    for i, vector in ipairs(vectors) do
        if table.concat(vector.ids, " ") ~= results[i].ids then
            different = different + 1
        end
    end
    tap.ok(#vectors == 372 and different == 0, model.name .. ": ids of all 372 vectors", different)
end

-- nfc.json: the vectors' texts that change, as Python's unicodedata has them in form C.
local function round_trips(model, vectors, results)
    local nfc, different = json.read(DATA .. "nfc.json"), 0
    for i, vector in ipairs(vectors) do
        local expected = model.nfc and nfc[vector.text] or vector.text
        if results[i].bytes ~= expected and is_known(vector.text) then
            different = different + 1
        end
    end
    tap.ok(different == 0, model.name .. ": ids of all vectors back to text", different)
end

for _, model in ipairs(MODELS) do
    local file = unpack_data(model)
    local start = os.clock()
    model.tok = tokenizer.read_json(file)
    local blob = encode_blob(model.tok, model.vocab_size)
    local seconds = os.clock() - start
    tap.ok(seconds < model.seconds, ("%s: read and encoded in less than %d s"):format(model.name,
        model.seconds), seconds)
    tap.ok(blob == encode_blob(tokenizer.read_json(file), model.vocab_size),
        model.name .. ": the blob is the same every time")
    model.blob = write(model.name .. "/blob", blob)
    local vectors, texts = json.read(path(model.name .. "/vectors.json")), {}
    for i, vector in ipairs(vectors) do
        texts[i] = vector.text
    end
    local results = encode(model.blob, texts)
    vectors_match(model, vectors, results)
    round_trips(model, vectors, results)
    refused(model.name .. ": more ids than the model has", { file, "vocab_size" }, encode_blob,
        model.tok, model.tok.size - 1)
end
local qwen2, smollm2 = MODELS[1], MODELS[2]

-- Unicode --------------------------------------------------------------------------------------

-- Every line has five forms c1 to c5 of a text: NFC(c1) = NFC(c2) = NFC(c3) = c2, and
-- NFC(c4) = NFC(c5) = c4.
local function normalization_test()
    local texts, expected = {}, {}
    for line in read_unicode("NormalizationTest.txt.bz2") do
        local forms = {}
        for form in line:gmatch("([%x ]+);") do
            forms[#forms + 1] = form:gsub("(%x+) ?", function(point)
                return utf8.char(tonumber(point, 16))
            end)
        end
        for i = 1, #forms >= 5 and is_known(forms[1]) and 5 or 0 do
            texts[#texts + 1] = forms[i]
            expected[#expected + 1] = forms[i <= 3 and 2 or 4]
        end
    end
    local different = 0
    for i, result in ipairs(encode(qwen2.blob, texts)) do
        different = different + (result.bytes == expected[i] and 0 or 1)
    end
    tap.ok(#texts > 90000 and different == 0, "form C of all lines of NormalizationTest.txt",
        ("%d of %d"):format(different, #texts))
end
normalization_test()

local function classes_test()
    local different = 0
    local expected = {
        points_with("extracted/DerivedGeneralCategory.txt", function(category)
            return category:find("^L[ultmo]$")
        end),
        points_with("extracted/DerivedGeneralCategory.txt", function(category)
            return category:find("^N[dlo]$")
        end),
        points_with("PropList.txt", function(property)
            return property == "White_Space"
        end),
    }
    local runs = run("'%s' '%s' classes", fast, qwen2.blob)
    for first, last, class in runs:gmatch("(%x+) (%x+) (%d)") do
        for point = tonumber(first, 16), tonumber(last, 16) do
            for i = 1, 3 do
                local is = tonumber(class) == i
                different = different + (is == (expected[i][point] or false) and 0 or 1)
            end
        end
    end
    tap.ok(runs:find("10ffff") and different == 0, "letters, numbers and white space", different)
end
classes_test()

-- Added tokens, NUL, text that is not UTF-8 ----------------------------------------------------

-- Ids of the tokenizers library; without special: with the special added tokens taken away.
local SPECIAL = {
    { qwen2, "<|im_start|>system\nhi<|im_end|>", true, "151644 8948 198 6023 151645" },
    { qwen2, "<|im_start|>system\nhi<|im_end|>", false,
        "27 91 318 4906 91 29 8948 198 6023 27 91 318 6213 91 29" },
    { qwen2, "<|im_start|><|im_end", true, "151644 27 91 318 6213" },
    { qwen2, "a<tool_call>b", false, "64 151657 65" },
    { smollm2, "<|im_start|>system\nhi<|im_end|>", true, "1 9690 198 6004 2" },
    { smollm2, "<|im_start|>system\nhi<|im_end|>", false,
        "44 108 306 79 3738 108 46 9690 198 6004 44 108 306 79 486 108 46" },
    { qwen2, "a\0b", true, "64 188 65" },
    { smollm2, "a\0b", true, "81 190 82" },
    { smollm2, "x\4y", true, "104 105" }, -- byte 4 is no token of SmolLM2
    { qwen2, "it'SX'll", true, "275 13272 55 3278" },
    { smollm2, "it'SX'll", true, "269 23 67 72 3060" },
}
for _, case in ipairs(SPECIAL) do
    local model, text, special, ids = table.unpack(case)
    local name = ("%s: ids of %s%s"):format(model.name, show(text), special and "" or " as text")
    tap.is(encode(model.blob, { text }, special)[1].ids, ids, name)
end

local NOT_UTF8 = {
    { "\x80", 0 }, { "abc\xff", 3 }, { "\xc3", 0 }, { "a\xc3(", 1 }, { "\xc0\x80", 0 },
    { "\xe0\x80\x80", 0 }, { "\xed\xa0\x80", 0 }, { "\xe2\x82", 0 }, { "\xf0\x80\x80\x80", 0 },
    { "\xf4\x90\x80\x80", 0 }, { "\xf8\x88\x80\x80\x80", 0 }, { "a\0\xf0\x9f\x98", 2 },
}
for _, case in ipairs(NOT_UTF8) do
    local text, offset = table.unpack(case)
    local expected = ("error 5 text: byte %d: found 0x%02x, expected UTF-8"):format(offset,
        text:byte(offset + 1))
    tap.is(encode(qwen2.blob, { text })[1].error, expected, "not UTF-8: " .. show(text))
end

-- Time and damage ------------------------------------------------------------------------------

local REPEATED = {
    "a", " ", "<", "\n ", "!", "if x == 10:\n    return y\n",
    "\u{316}\u{301}", -- combining classes 220 and 230: all of them must be sorted
}
for _, model in ipairs(MODELS) do
    for _, text in ipairs(REPEATED) do
        local output = run("'%s' '%s' repeat '%s' 1000000", fast, model.blob, text)
        local seconds = tonumber(output:match("([%d.]+) s"))
        tap.ok(seconds < 2, ("%s: 1 MB of %s in 2 s"):format(model.name, show(text)), seconds)
    end
    local opened = run("'%s' '%s' corrupt 300", checked, model.blob):match("opened (%d+)")
    tap.ok(tonumber(opened) > 0, model.name .. ": damaged blobs are refused or harmless", opened)
end

-- Stops and chat -------------------------------------------------------------------------------

local function info(blob)
    return run("'%s' '%s' info", checked, blob)
end

tap.is(info(qwen2.blob), "stop 151643 \nstop 151645 \n"
    .. "chatml 151644 151645 You are a helpful assistant.\nids 151665\n", "qwen2: stops and chat")
tap.is(info(smollm2.blob), "stop 0 \nstop 2 \nchatml 1 2 You are a helpful AI assistant named "
    .. "SmolLM, trained by Hugging Face\nids 49152\n", "smollm2: stops and chat")
tap.ok(info(write("stops", encode_blob(smollm2.tok, 49152, { 7, 2 })))
    :find("^stop 0 \nstop 2 \nstop 7 \nchatml"), "stop ids that the model's config adds")
refused("a stop id outside the vocabulary", { "eos_token_id", "49152" }, encode_blob,
    smollm2.tok, 49152, 49152)

local LOOP = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    .. "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
local PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
local QWEN25 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
local TEMPLATES = { -- template, default system prompt or nil
    { "{{- '<|im_start|>system\\n" .. QWEN25 .. "<|im_end|>\\n' }}" .. LOOP .. PROMPT, QWEN25 },
    { LOOP .. PROMPT, "" },
    { "{% if x %}\n<|im_start|>system\nBe \"it\"<|im_end|>\n{% endif %}\n{% for m in messages %}\n"
        .. "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\n"
        .. "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", 'Be "it"' },
    { LOOP .. PROMPT:gsub("assistant\\n", "assistant\\n<think>\\n") },
    { LOOP },
    { "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}" },
    { "{{ '<|im_start|>" }, { "{%-" }, { "" }, { LOOP .. PROMPT .. (" "):rep(70000) },
}
for i, case in ipairs(TEMPLATES) do
    local chat = chat_template.chatml(case[1])
    tap.is(chat and chat.system, case[2], ("chat template %d"):format(i))
end

-- GGUF -----------------------------------------------------------------------------------------

-- The metadata that llama.cpp's converter writes for a tokenizer.json.
local function as_gguf(model, pre)
    local document = json.read(path(model.name .. "/tokenizer.json"), 1 << 26)
    local tokens, types, merges = {}, {}, {}
    for text, id in pairs(document.model.vocab) do
        tokens[id + 1], types[id + 1] = text, 1
    end
    for _, token in ipairs(document.added_tokens) do
        tokens[token.id + 1], types[token.id + 1] = token.content, token.special and 3 or 4
    end
    for id = #tokens, model.vocab_size - 1 do
        tokens[id + 1], types[id + 1] = ("[PAD%d]"):format(id), id % 2 == 0 and 4 or 5
    end
    for i, merge in ipairs(document.model.merges) do
        merges[i] = table.concat(merge, " ")
    end
    local chat = model.tok.chat
    return {
        ["tokenizer.ggml.model"] = "gpt2", ["tokenizer.ggml.pre"] = pre,
        ["tokenizer.ggml.tokens"] = tokens, ["tokenizer.ggml.token_type"] = types,
        ["tokenizer.ggml.merges"] = merges, ["tokenizer.ggml.eos_token_id"] = model.tok.eos,
        ["tokenizer.chat_template"] = "{{ '<|im_start|>system\\n" .. chat.system
            .. "<|im_end|>\\n' }}" .. LOOP .. PROMPT,
    }
end

local function is_same_blob(model, metadata, name)
    local tok = tokenizer.from_gguf(metadata, "x.gguf")
    local blob = encode_blob(model.tok, model.vocab_size)
    tap.ok(encode_blob(tok, model.vocab_size) == blob, name)
end
is_same_blob(qwen2, as_gguf(qwen2, "qwen2"), "qwen2: the same tokenizer from GGUF metadata")
is_same_blob(smollm2, as_gguf(smollm2, "smollm"), "smollm2: the same tokenizer from GGUF metadata")
if os.getenv("PARSCALE_GGUF") then
    is_same_blob(smollm2, gguf.open(os.getenv("PARSCALE_GGUF")).metadata, "the published GGUF")
else
    tap.skip("the published GGUF", "PARSCALE_GGUF names no file")
end

-- Bad input ------------------------------------------------------------------------------------

-- A small tokenizer.json: the bytes, two merges, two added tokens.
local function small()
    local vocab, added, shifted = {}, {}, 0x100
    for byte = 0, 255 do
        local printable = byte >= 33 and byte <= 126 or byte >= 161 and byte ~= 173
        vocab[utf8.char(printable and byte or shifted)] = byte
        shifted = printable and shifted or shifted + 1
    end
    vocab["ab"], vocab["abc"] = 256, 257
    for i, content in ipairs({ "<|im_start|>", "<|im_end|>" }) do
        added[i] = { id = 259 + i, content = content, special = true, normalized = false }
    end
    return {
        added_tokens = added, normalizer = cjson.null, decoder = { type = "ByteLevel" },
        pre_tokenizer = { type = "Sequence", pretokenizers = {
            { type = "Digits", individual_digits = true },
            { type = "ByteLevel", add_prefix_space = false, use_regex = true },
        } },
        model = { type = "BPE", vocab = vocab, merges = { "a b", { "ab", "c" } } },
    }
end

local function read_small(text)
    return tokenizer.read_json(write("tokenizer.json", text))
end

-- The small tokenizer.json with one thing changed: at("a.2.b", value) sets document.a[2].b.
local function at(place, value)
    local document = small()
    local object, last = document, nil
    for key in place:gmatch("[^.]+") do
        object = last and object[last] or object
        last = math.tointeger(key) or key
    end
    object[last] = value
    return document
end

local function damaged_blobs(name, blob, count)
    local opened = run("timeout 60 '%s' '%s' corrupt %d", checked, blob, count)
        :match("opened (%d+)")
    tap.ok(tonumber(opened) > count // 100, name .. ", damaged: refused or harmless", opened)
end

local small_blob = write("small", encode_blob(read_small(cjson.encode(small())), 262))
tap.is(encode(small_blob, { "xabcab<|im_end|>" })[1].ids, "120 257 256 261", "a small tokenizer")
damaged_blobs("a small one", small_blob, 20000)
local with_nfc = read_small(cjson.encode(at("normalizer", { type = "NFC" })))
damaged_blobs("a small one with form C", write("nfc", encode_blob(with_nfc, 262)), 2000)

-- Unicode tables that would take a lookup out of a table, or a text out of the memory it has or of
-- UTF-8: the message, what becomes of which number (nil: of all) of which table.
local UNICODE_BAD = {
    { "empty table", { "class_start", nil, {} } },
    { "empty table", { "combining_start", nil, {} } },
    { "empty table", { "decomposed", nil, {} }, { "decomposition", nil, {} } },
    { "unordered", { "class_start", 2, 0 } },
    { "unordered", { "combining_start", 3, 0xffffffff } },
    { "unordered", { "decomposed", 5, 0 } },
    { "decomposition[0]: found U+0000, expected that of U+00C0", { "decomposition", 1, 0 } },
    { "decomposition[0]: found U+0041, expected that of U+00C0", { "decomposition", 2, 0xd800 } },
    { "decomposition[1]: found U+0041, expected that of U+00C1", { "decomposition", 6, 0x110000 } },
    { "decomposition[0]: found U+0041, expected that of U+00C0", { "decomposition", 3, 0x10ffff } },
    { "decomposition[0]: found U+0041, expected that of U+0041", { "decomposed", 1, 0x41 },
        { "decomposition", 2, 0x41 }, { "decomposition", 3, 0x41 } },
    { "composition[0]: found U+DFFF, expected that of U+003C U+0338",
        { "composition", 3, 0xdfff } },
    { "composition[0]: found U+10FFFF, expected that of U+003C", { "composition", 3, 0x10ffff } },
    { "composition[1]: found U+2260, expected that of U+0000 U+0338", { "composition", 4, 0 } },
}
for i, case in ipairs(UNICODE_BAD) do
    local tables = {}
    for name, list in pairs(UNICODE[true]) do
        tables[name] = table.move(list, 1, #list, 1, {})
    end
    for _, change in ipairs({ table.unpack(case, 2) }) do
        local name, index, value = table.unpack(change, 1, 3)
        if index then tables[name][index] = value else tables[name] = value end
    end
    local blob = write("bad", encode_blob(with_nfc, 262, nil, tables))
    local output = run("'%s' '%s' info 2>&1; test $? = 99", checked, blob)
    tap.ok(output:find(case[1], 1, true), ("damaged Unicode table %d: %s"):format(i, case[1]),
        output)
end

local BAD = { -- name, document, parts of the message
    { "no model", at("model", nil), "model", "nothing" },
    { "model of another kind", at("model.type", "Unigram"), "model.type", "Unigram" },
    { "dropout", at("model.dropout", 0.1), "model.dropout", "0.1" },
    { "byte_fallback", at("model.byte_fallback", true), "model.byte_fallback" },
    { "ignore_merges", at("model.ignore_merges", true), "model.ignore_merges" },
    { "word suffix", at("model.end_of_word_suffix", "</w>"), "model.end_of_word_suffix" },
    { "vocabulary is a text", at("model.vocab", "x"), "model.vocab" },
    { "vocabulary is empty", at("model.vocab", {}), "model.vocab" },
    { "vocabulary is a list", at("model.vocab", { 1, 2 }), "model.vocab" },
    { "a gap", at("model.vocab.abc", 258), "model.vocab", "no token with id 257" },
    { "a huge gap", at("model.vocab.abc", 2 ^ 31 - 1), "model.vocab", "no token with id 257" },
    { "id past 2^31", at("model.vocab.abc", 2 ^ 32), "model.vocab", "4294967296" },
    { "id is negative", at("model.vocab.abc", -1), "model.vocab", "-1" },
    { "id is a fraction", at("model.vocab.abc", 1.5), "model.vocab", "1.5" },
    { "id is a text", at("model.vocab.abc", "257"), "model.vocab", '"257"' },
    { "duplicate id", at("model.vocab.abc", 256), "model.vocab", "256", "once" },
    { "no merges", at("model.merges", nil), "model.merges" },
    { "merges is an object", at("model.merges", { x = 1 }), "model.merges" },
    { "merge of unknown token", at("model.merges.1", "a q!"), "model.merges[0]", '"q!"' },
    { "merge into unknown token", at("model.merges.2", "b a"), "model.merges[1]", '"ba"' },
    { "merge of three", at("model.merges.1", "a b c"), "model.merges[0]", "pair" },
    { "merge of numbers", at("model.merges.1", { 1, 2 }), "model.merges[0]", "pair" },
    { "merge is null", at("model.merges.1", cjson.null), "model.merges[0]", "null" },
    { "merge twice", at("model.merges.3", "a b"), "model.merges[2]", '"a b"' },
    { "normalizer", at("normalizer", { type = "NFKC" }), "normalizer", "NFKC" },
    { "normalizer in a sequence", at("normalizer", { type = "Sequence", normalizers = {
        { type = "NFC" }, { type = "Lowercase" } } }), "normalizer", "Lowercase" },
    { "pre_tokenizer", at("pre_tokenizer", { type = "Digits" }), "pre_tokenizer", "Digits" },
    { "no pre_tokenizer", at("pre_tokenizer", nil), "pre_tokenizer", "nothing" },
    { "another pattern", at("pre_tokenizer.pretokenizers.1", { type = "Split", invert = false,
        behavior = "Isolated", pattern = { Regex = "\\p{N}{1,3}" } }), "Split ByteLevel" },
    { "prefix space", at("pre_tokenizer.pretokenizers.2.add_prefix_space", true), "pre_tokenizer" },
    { "decoder", at("decoder.type", "WordPiece"), "decoder", "WordPiece" },
    { "post_processor", at("post_processor", { type = "Template" }), "post_processor", "Template" },
    { "added_tokens is a number", at("added_tokens", 5), "added_tokens" },
    { "added token is null", at("added_tokens.1", cjson.null), "added_tokens[0]" },
    { "added token without id", at("added_tokens.1.id", nil), "added_tokens[0].id" },
    { "added token is empty", at("added_tokens.2.content", ""), "added_tokens[1].content" },
    { "added token not UTF-8", at("added_tokens.2.content", "\xff"), "added_tokens[1].content" },
    { "added token's id taken", at("added_tokens.2.id", 260), "added_tokens[1].id", "260" },
    { "added token twice", at("added_tokens.2.content", "<|im_start|>"), "added_tokens[1]", "260" },
    { "added token with another id", at("added_tokens.2.content", "ab"), "added_tokens[1]", "256" },
    { "added token strips", at("added_tokens.1.lstrip", true), "added_tokens[0].lstrip" },
    { "added token normalized", at("added_tokens.1.normalized", true), "[0].normalized" },
}
local function refused_text(name, document, parts)
    parts[#parts + 1] = path("tokenizer.json")
    refused("tokenizer.json: " .. name, parts, read_small, document)
end

for _, case in ipairs(BAD) do
    refused_text(case[1], cjson.encode(case[2]), { table.unpack(case, 3) })
end
local without_byte = at("model.vocab.\u{ff}", nil)
without_byte.model.vocab["zz"], without_byte.model.unk_token = 255, "zz"
refused_text("unk_token", cjson.encode(without_byte), { "model.unk_token", "0xff" })
refused_text("empty", "", { "not valid JSON" })
refused_text("not an object", "7", { "JSON object" })
refused_text("deeply nested", ("["):rep(100000), { "nested" })

local text, accepted = cjson.encode(small()), 0
for length = 0, #text - 1, 7 do
    accepted = accepted + (hostile.fails(read_small, text:sub(1, length)) and 0 or 1)
end
tap.is(accepted, 0, "tokenizer.json cut anywhere")

for name, case in pairs({
    ["is cut"] = { '{"eos', "not valid JSON" },
    ["names an unknown token"] = { '{"eos_token": "<none>"}', "eos_token" },
    ["has a number for a token"] = { '{"eos_token": 5}', "eos_token" },
}) do
    write("tokenizer_config.json", case[1])
    refused("tokenizer_config.json " .. name, { path("tokenizer_config.json"), case[2] },
        read_small, text)
end
os.remove(path("tokenizer_config.json"))

local GGUF_BAD = {
    { "ggml.model", "llama" }, { "ggml.pre", "llama-bpe" }, { "ggml.pre" }, { "ggml.tokens" },
    { "ggml.tokens", "x" }, { "ggml.merges" }, { "ggml.merges", { "a b" } },
    { "ggml.token_type", { 6 } }, { "ggml.tokens", { "a", "a" } }, { "ggml.tokens", { 5 } },
    { "ggml.tokens", {} }, { "ggml.eos_token_id", 2 }, { "ggml.eos_token_id", "x" },
}
for i, case in ipairs(GGUF_BAD) do
    local metadata = {
        ["tokenizer.ggml.model"] = "gpt2", ["tokenizer.ggml.pre"] = "qwen2",
        ["tokenizer.ggml.tokens"] = { "a", "c" }, ["tokenizer.ggml.merges"] = {},
    }
    metadata["tokenizer." .. case[1]] = case[2]
    refused(("GGUF metadata %d: %s"):format(i, case[1]), { "x.gguf", "tokenizer." .. case[1] },
        tokenizer.from_gguf, metadata, "x.gguf")
end

hostile.finish()
