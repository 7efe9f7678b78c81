-- Laid over the spec of a random engine that is made for a GPU: the P that are measured.
return { parscale_n = { 1, 2, 4, 8 } }
