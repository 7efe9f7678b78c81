// The GPU part of an engine whose spec says backends = "cpu": there is none. See gpu.h; without a
// struct gpu, no function but gpu_open and gpu_close is ever called.
#include "gpu.h"

enum { GPU_PART = 0 };

static const char GPU_KERNELS[] = "none";

static int gpu_open(struct gpu **gpu, const struct adapter *adapter, bool use_cache,
                    struct error *error) {
    (void)adapter, (void)use_cache;
    *gpu = NULL;
    return fail(error, EXIT_DEVICE,
                "--device: %s was generated for the CPU alone, a GPU needs backends = \"cpu+cuda\" "
                "in its spec",
                SPEC_NAME);
}

static void gpu_close(struct gpu *gpu) {
    (void)gpu;
}

static int gpu_start(struct gpu *gpu, const struct pack_file *file, struct pool *pool,
                     struct error *error) {
    (void)file, (void)pool;
    return gpu_compute(gpu, NULL, error);
}

static int gpu_set_streams(struct gpu *gpu, const struct adapter *adapter, struct error *error) {
    (void)adapter;
    return gpu_compute(gpu, NULL, error);
}

static void gpu_describe(const struct gpu *gpu, struct parscale_info *info, char *note,
                         size_t note_bytes) {
    (void)gpu, (void)info, (void)note, (void)note_bytes;
}

static int gpu_compute(struct gpu *gpu, const struct block *block, struct error *error) {
    (void)gpu, (void)block;
    return fail(error, EXIT_INTERNAL, "no GPU");
}

static size_t gpu_block_tokens(const struct gpu *gpu) {
    (void)gpu;
    return 1;
}

static int gpu_head(struct gpu *gpu, const struct block *block, size_t token, struct error *error) {
    (void)token;
    return gpu_compute(gpu, block, error);
}

static int gpu_output(struct gpu *gpu, struct gpu_output *output, struct error *error) {
    *output = (struct gpu_output){0};
    return gpu_compute(gpu, NULL, error);
}

static int32_t gpu_choice(struct gpu *gpu, const struct parscale_sampling *sampling,
                          struct error *error) {
    (void)sampling;
    (void)gpu_compute(gpu, NULL, error);
    return -1;
}

static double gpu_read_bandwidth(struct gpu *gpu) {
    (void)gpu;
    return 0;
}

static bool gpu_energy(struct gpu *gpu, struct parscale_energy *energy) {
    (void)gpu, (void)energy;
    return false;
}
