-- Prints docs/spec.md from the schema in spec.lua:  lua5.4 codegen/spec_doc.lua >docs/spec.md

package.path = (arg[0]:match("^(.*)/codegen/") or ".") .. "/?.lua;" .. package.path
local spec = require("codegen.spec")

print([[
# The spec

A spec says the shape of a model and how it is deployed. It is a Lua file that returns a table:

```lua
return {
    context = 4096,
    weight_dtype = "bf16",
}
```

With a checkpoint (`make model FROM=...`) the shape comes from its config.json or GGUF metadata; a
spec given with `SPEC=` is laid over it. It may set the keys marked *ours* and `eos_token_id`; for
any other key it must agree with the checkpoint. `FROM=random` has no checkpoint: the spec then
gives every key that has no default. A spec is data: it is loaded with an empty environment, a
limit of steps and one of memory.

The keys are those of the published config.json. Not supported, and refused by name when a
checkpoint asks for them: `rope_scaling`, sliding windows, an activation other than silu, biases in
the feed-forward layer, partial rotary embedding, quantised safetensors.

| key | allowed | default | meaning |
| --- | --- | --- | --- |]])

local function default_of(entry)
    if entry.default_doc then return entry.default_doc end
    local default = entry.default
    if default == nil then return "none: required" end
    return type(default) == "table" and "none" or tostring(default)
end

for _, entry in ipairs(spec.schema) do
    print(("| `%s`%s | %s | %s | %s |"):format(entry.key, entry.ours and " *(ours)*" or "",
        spec.allowed(entry), default_of(entry), entry.doc))
end

print([[

The pack's bytes and their meaning depend on all keys but `name`, `context`, `cache_dtype` and
`eos_token_id`'s use: engines that agree on the rest share packs. Their digest is in both.]])
