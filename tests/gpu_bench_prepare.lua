-- Makes what tests/gpu_bench.sh measures: engines of published shapes with every P, for random
-- weights, as FOLDER/bench/SIZE-DTYPE.
--
--     lua5.4 tests/gpu_bench_prepare.lua FOLDER "0.7B 1.8B 4.7B" "bf16 int8 int4"

local lfs = require("lfs")

local SIZES = { -- hidden_size, intermediate_size, layers, heads, vocabulary, positions
    ["0.7B"] = { 896, 4864, 36, 16, 151936, 2048 },
    ["0.9B"] = { 1024, 5504, 36, 16, 151936, 2048 },
    ["1.3B"] = { 1280, 6912, 36, 16, 151936, 2048 },
    ["1.8B"] = { 1536, 8320, 36, 16, 151936, 2048 },
    ["3B"] = { 2048, 11008, 36, 16, 151936, 2048 },
    ["4.7B"] = { 2560, 13824, 36, 16, 151936, 2048 },
    test = { 64, 96, 1, 4, 100, 64 }, -- for a trial without a GPU
}

local SPEC = [[
return { name = %q, weight_dtype = %q, hidden_size = %d, intermediate_size = %d,
    num_hidden_layers = %d, num_attention_heads = %d, vocab_size = %d,
    max_position_embeddings = %d, num_key_value_heads = 2, model_type = "qwen2_parscale",
    rms_norm_eps = 1e-6, rope_theta = 10000.0, tie_word_embeddings = true,
    parscale_n = { 1, 2, 4, 8 }, parscale_n_tokens = 48, parscale_attn_smooth = 0.1,
    backends = "cpu+cuda" }
]]

local folder, sizes, dtypes = table.unpack(arg)

local function run(command, ...)
    if not os.execute(command:format(...)) then os.exit(1) end
end

for _, path in ipairs({ folder, folder .. "/bench", folder .. "/tests", folder .. "/runtime" }) do
    if not lfs.attributes(path) then assert(lfs.mkdir(path)) end
end
run("cp tests/gpu_bench.sh tests/gpu_profile.awk tests/gpu_harness.c tests/peer_torch.py "
    .. "'%s/tests/'", folder)
run("cp runtime/parscale.h runtime/clock.h '%s/runtime/'", folder)
for size in sizes:gmatch("%S+") do
    local shape = SIZES[size]
    if not shape then
        io.stderr:write(("SIZES: found %s, expected 0.7B, 0.9B, 1.3B, 1.8B, 3B or 4.7B\n")
            :format(size))
        os.exit(2)
    end
    for dtype in dtypes:gmatch("%S+") do
        local name = size .. "-" .. dtype
        local path = folder .. "/bench/" .. name .. ".lua"
        local file = assert(io.open(path, "w"))
        file:write(SPEC:format(name, dtype, table.unpack(shape)))
        file:close()
        run("lua5.4 codegen/main.lua --from random --spec '%s' --out '%s/bench' >'%s/bench/log'",
            path, folder, folder)
    end
end
