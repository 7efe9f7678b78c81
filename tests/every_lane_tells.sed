# Of engine.cu or engine.c: racecheck does not follow a thread that meets others in __syncwarp and
# then tells a barrier in shared memory for all of them; here every lane tells it.
s/init_barrier(&w->empty\[i\], WARPS);/init_barrier(\&w->empty[i], THREADS);/
s/->empty\[i\], consumers);/->empty[i], consumers * WARP);/
/void arrive_as_warp(/,/^ *"\{0,1\}}/{
    /if (/d
}
