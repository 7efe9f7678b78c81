-- Laid over SmolLM2-135M with its three adapters: the plain backbone, P = 1, in the same engine.
return { parscale_n = { 1, 2, 4, 8 } }
