-- The engine of smollm2-135m-streams.lua with the GGUF's own blocks of 4 bits.
return { parscale_n = { 1, 2, 4, 8 }, weight_dtype = "int4" }
