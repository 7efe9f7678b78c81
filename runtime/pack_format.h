// The format of the model pack, model.psc: a header of 4096 bytes, then sections whose places the
// plan fixes. The packer writes it, the engine maps it read-only. All numbers are little-endian, as
// every supported machine is.
#ifndef PACK_FORMAT_H
#define PACK_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"
#include "threads.h"

enum {
    PACK_HEADER_BYTES = 4096,
    PACK_VERSION = 2,
    CHECKSUM_BLOCK = 1 << 20, // bytes that one thread sums at a time
};

struct pack_header {
    char magic[8]; // "PARSCALE"
    uint32_t version;
    uint32_t header_bytes;
    char plan_digest[24];     // 16 hex digits, zero padded
    char name[72];            // the spec's name, for messages only
    uint64_t file_bytes;      //
    uint64_t weights_end;     // weights and adapters: [header_bytes, weights_end)
    uint64_t tokenizer_bytes; // the tokenizer, from weights_end on; zeros up to a multiple of 8
    uint64_t data_checksum;   // of everything after the header
    uint64_t header_checksum; // of the header with this field 0
};

// Checksum of `bytes` bytes, a multiple of 8, by all threads of the pool: eight FNV-1a lanes over
// 64-bit words in every block of CHECKSUM_BLOCK bytes, then FNV-1a over the blocks' results. Any
// flipped bit changes it.
static int checksum(const void *data, size_t bytes, struct pool *pool, uint64_t *result,
                    struct error *error);
static uint64_t header_checksum(const struct pack_header *header);

#endif
