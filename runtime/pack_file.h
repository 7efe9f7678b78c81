// Opening a pack: mapped read-only, and checked before a byte of it is used.
#ifndef PACK_FILE_H
#define PACK_FILE_H

#include "pack_format.h"

struct pack_file {
    const char *base; // the mapped file
    size_t bytes;
    const struct pack_header *header;
};

// What the engine expects: a pack of another plan is refused.
struct pack_expectation {
    const char *plan_digest;
    const char *name;
    size_t weights_end;
};

// Maps `path` and checks everything, the data's checksum too, with the pool's threads.
static int pack_open(struct pack_file *file, const char *path,
                     const struct pack_expectation *expected, struct pool *pool,
                     struct error *error);
static void pack_close(struct pack_file *file);

#endif
