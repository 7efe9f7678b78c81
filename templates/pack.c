// The packer: makes model.psc, from a pack job (a text that says which bytes of which file hold
// which tensor; the generator has checked them) or from random numbers.
//
//     pack JOB [OUT]             pack --random SEED [OUT]
//
// OUT is model.psc beside this program unless it is given. Exit codes as the engine's.
#define _GNU_SOURCE
#include "error.h"
#include "error.c"
#include "dims.h"
#include "tile.h"
#include "threads.h"
#include "threads.c"
#include "pack_format.h"
#include "checksum.c"
#include "pack_source.c"
#include "pack_place.c"
#include "pack_job.c"
#include "pack_main.c"
