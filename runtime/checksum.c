// The pack's checksum. See pack_format.h.
#include <stdlib.h>
#include <string.h>
#include "pack_format.h"

static const uint64_t FNV_START = 0xcbf29ce484222325u;
static const uint64_t FNV_PRIME = 0x100000001b3u;

static uint64_t checksum_block(const char *data, size_t bytes) {
    uint64_t lanes[8];
    for (size_t i = 0; i < 8; i++)
        lanes[i] = FNV_START + i;
    size_t at = 0;
    for (; at + sizeof lanes <= bytes; at += sizeof lanes) {
        for (size_t i = 0; i < 8; i++) {
            uint64_t word;
            memcpy(&word, data + at + i * 8, 8);
            lanes[i] = (lanes[i] ^ word) * FNV_PRIME;
        }
    }
    for (; at < bytes; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        lanes[at / 8 % 8] = (lanes[at / 8 % 8] ^ word) * FNV_PRIME;
    }
    uint64_t sum = FNV_START;
    for (size_t i = 0; i < 8; i++)
        sum = (sum ^ lanes[i] ^ lanes[i] >> 29) * FNV_PRIME;
    return sum;
}

struct checksum_job {
    struct pool *pool;
    const char *data;
    size_t bytes;
    uint64_t *blocks; // one result a block
};

static void checksum_share(void *argument, int thread) {
    struct checksum_job *job = argument;
    size_t blocks = (job->bytes + CHECKSUM_BLOCK - 1) / CHECKSUM_BLOCK;
    for (struct work work = pool_work(job->pool, thread, blocks); pool_next(&work);) {
        size_t i = work.item, at = i * CHECKSUM_BLOCK;
        size_t n = job->bytes - at < CHECKSUM_BLOCK ? job->bytes - at : CHECKSUM_BLOCK;
        job->blocks[i] = checksum_block(job->data + at, n);
    }
}

static int checksum(const void *data, size_t bytes, struct pool *pool, uint64_t *result,
                    struct error *error) {
    size_t blocks = (bytes + CHECKSUM_BLOCK - 1) / CHECKSUM_BLOCK;
    struct checksum_job job = {pool, data, bytes, calloc(blocks + 1, sizeof(uint64_t))};
    if (!job.blocks)
        return fail(error, EXIT_MEMORY, "no memory for the checksum of %zu blocks", blocks);
    pool_run(pool, checksum_share, &job);
    uint64_t sum = FNV_START;
    for (size_t i = 0; i < blocks; i++)
        sum = (sum ^ job.blocks[i]) * FNV_PRIME;
    free(job.blocks);
    *result = sum;
    return EXIT_OK;
}

static uint64_t header_checksum(const struct pack_header *header) {
    struct pack_header copy = *header;
    copy.header_checksum = 0;
    return checksum_block((const char *)&copy, sizeof copy);
}
