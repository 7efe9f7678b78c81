// The engine on an NVIDIA GPU: the kernels of engine.cu, launched in the order of forward.c. Holds
// its own copy of the weights, its cache and its activations.
#ifndef GPU_H
#define GPU_H

#include <stdbool.h>
#include "engine_dims.h"
#include "error.h"
#include "pack_file.h"
#include "parscale.h"
#include "threads.h"

// gpu.c and gpu_none.c, of which an engine has one, also define GPU_PART, 1 and 0, and GPU_KERNELS:
// in words, which devices it has kernels for.
struct gpu;
struct block;

// Begins to open the device and to compile or find the kernels, in threads of its own.
static int gpu_open(struct gpu **gpu, const struct adapter *adapter, bool use_cache,
                    struct error *error);
static void gpu_close(struct gpu *gpu); // NULL is allowed

// Waits for that, takes all memory and uploads the pack. EXIT_DEVICE: there is no GPU, driver or
// compiler that can run it; EXIT_MEMORY: it does not fit. All else but gpu_close comes after it.
static int gpu_start(struct gpu *gpu, const struct pack_file *file, struct pool *pool,
                     struct error *error);

// Changes to another P. The cache is then empty. On failure all is as it was.
static int gpu_set_streams(struct gpu *gpu, const struct adapter *adapter, struct error *error);

// Fills in what parscale_info tells of a GPU that was started. note [note_bytes]: how it was.
static void gpu_describe(const struct gpu *gpu, struct parscale_info *info, char *note,
                         size_t note_bytes);

// Computes a block of at most gpu_block_tokens tokens, and with head_tokens = 1 the logits of token
// head_first. A decode step returns while it still runs.
static int gpu_compute(struct gpu *gpu, const struct block *block, struct error *error);
static size_t gpu_block_tokens(const struct gpu *gpu);

// Logits of token `token` of the block that was computed last.
static int gpu_head(struct gpu *gpu, const struct block *block, size_t token, struct error *error);

// Waits for what is under way, and copies: logits [vocab] and stream weights [P] last computed.
struct gpu_output {
    const float *logits, *stream_weights;
};
static int gpu_output(struct gpu *gpu, struct gpu_output *output, struct error *error);

// Waits: the id that parscale_sample is to return; the device has it as the next step's input, and
// goes on to choose so. -1: it failed, or the choice is beyond the device and is the caller's.
static int32_t gpu_choice(struct gpu *gpu, const struct parscale_sampling *sampling,
                          struct error *error);

// parscale_read_bandwidth and parscale_energy.
static double gpu_read_bandwidth(struct gpu *gpu);
static bool gpu_energy(struct gpu *gpu, struct parscale_energy *energy);

#endif
