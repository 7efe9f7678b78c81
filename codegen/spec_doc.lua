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
any other key it must agree with the checkpoint, whose tensors must then have the shapes that the
spec gives. `FROM=random` has no checkpoint: the spec then gives every key that has no default. A
spec is data: it is loaded with an empty environment, a limit of steps and one of memory.

## Names

`SPEC=` takes a file, whose path has a `/` or ends in `.lua`, or a name that `make specs` lists: the
67 published ParScale checkpoints and SmolLM2-135M, as the tables in `model_specs/` have them. It
takes several, each laid over those before it:

    $ make specs | awk '/1.8B-P4-Inst/ { print $1, $2, $5, $6 }'    # parameters, bytes, KV bytes
    ParScale-1.8B-P4-Inst 1816945156 3634311232 108288
    $ echo 'return { context = 1024, name = "chat" }' >chat.lua
    $ make model FROM=ParScale-1.8B-P4-Inst SPEC="ParScale-1.8B-P4-Inst chat.lua"
    $ make model FROM=ParScale-1.8B-P2-Inst SPEC=ParScale-1.8B-P4-Inst
    parscale: ParScale-1.8B-P4-Inst: parscale_n: found {4}, but \
        ParScale-1.8B-P2-Inst/config.json has {2}: no adapter for P = 4

## Several P

A list as `parscale_n` makes one engine for all of them. The checkpoint brings one, `ADAPTER=` the
others, a file or a whole checkpoint's folder each; P = 1 is the backbone itself. Each P of the list
needs one adapter, and there may be no other:

    make model FROM=SmolLM2.gguf SPEC=SmolLM2-135M-ParScale \
        ADAPTER="adapter_p2.safetensors adapter_p4.safetensors adapter_p8.safetensors"

An adapter must be of this backbone. Its shapes must fit; if its metadata has a `backbone_digest`,
it must be the one that `report.md` tells. Of a whole checkpoint config.json and every byte of the
backbone must agree; only its prefixes and aggregation network are taken.

## Keys

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
