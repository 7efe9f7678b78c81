-- Runs engine.cu of a golden folder, or of any checkpoint with expected.safetensors beside it,
-- under the emulator and prints how far it is from what was published: `make emulate FROM=DIR`.
--
--     lua5.4 tests/emulate_folder.lua DIR

local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path

local build = require("build")
local emulated = require("emulated")

local model = emulated.golden(arg[1])
local harness = build.harness(model.out, "golden_harness", "-std=c11 -O1")
local out, err = build.must("%s '%s' '%s/model.psc' cuda '%s'", emulated.environment(model),
    harness, model.out, model.expected)
local v = build.values(out)
io.stderr:write(err)
print(("%s, P = %d, %d tokens on the emulated GPU"):format(model.out:match("[^/]*$"),
    model.streams, v.tokens))
for _, row in ipairs({ { "prefill", v.kl, v.agree }, { "decode ", v.decodekl, v.decodeagree } }) do
    print(("%s: mean KL %.2g nats, the same best token at %d of %d positions"):format(row[1],
        row[2], row[3], v.tokens))
end
print(("greedy : the first %d of %d tokens are the published ones"):format(v.greedy, v.steps))
os.execute("rm -rf '" .. build.scratch .. "'")
