// The engine, section by section: errors and files, threads, text, the model, the command line.
#define _GNU_SOURCE
#include "parscale.h"
#include "error.h"
#include "error.c"

// The shape: every size and every place in the pack.
#include "dims.h"
#include "sample.h"
#include "engine_dims.h"
#include "tile.h"

// Threads, and the pack file.
#include "threads.h"
#include "threads.c"
#include "pack_format.h"
#include "checksum.c"
#include "pack_file.h"
#include "pack_file.c"

// Text and sampling.
#include "unicode.h"
#include "unicode.c"
#include "tokenizer.h"
#include "tokenizer.c"
#include "sample.c"

// What depends on the instruction set.
#include "cpu.h"
#include "cpu_math.h"
#include "cpu_plain.c"
#include "cpu_x86.c"
#include "cpu_neon.c"
#include "cpu.c"

// The model.
#include "model.h"
#include "weights.c"
#include "cache.h"
#include "cache.c"
#include "attention.c"
#include "project.c"
#include "head.c"
#include "forward.c"
#include "gpu_backend.c"
#include "model.c"

#ifndef PARSCALE_NO_MAIN
// The command line.
#include "cli.h"
#include "output.c"
#include "input.h"
#include "input.c"
#include "options.c"
#include "logprob.h"
#include "logprob.c"
#include "bandwidth.h"
#include "bandwidth.c"
#include "generate.c"
#include "chat.c"
#include "score.c"
#include "tokenize.c"
#include "bench.c"
#include "info.c"
#include "cli.c"

int main(int argc, char **argv) {
    if (GPU_PART) // one queue of work is enough here; CUDA takes 60 ms longer to make eight
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 0);
    return cli_main(argc, argv);
}
#endif
