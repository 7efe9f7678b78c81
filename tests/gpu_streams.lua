-- Laid over the spec of a random engine in gpu_prepare.sh: the P that gpu.sh measures.
return { parscale_n = { 1, 2, 4, 8 } }
