// Opening a pack. See pack_file.h.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "pack_file.h"

// Every field before the data: what a pack of another engine, or a damaged one, fails on.
static int check_header(const struct pack_file *file, const char *path,
                        const struct pack_expectation *expected, struct error *error) {
    const struct pack_header *header = file->header;
    if (memcmp(header->magic, "PARSCALE", 8) != 0)
        return fail(error, EXIT_PACK, "%s: magic: this is not a model pack", path);
    if (header->version != PACK_VERSION)
        return fail(error, EXIT_PACK, "%s: version: found %u, expected %d", path, header->version,
                    PACK_VERSION);
    if (header_checksum(header) != header->header_checksum)
        return fail(error, EXIT_PACK, "%s: header: checksum differs, the file is damaged", path);
    if (strncmp(header->plan_digest, expected->plan_digest, sizeof header->plan_digest) != 0)
        return fail(error, EXIT_PACK,
                    "%s: plan: found %.24s (%.72s), expected %s (%s): pack and engine are of "
                    "different models",
                    path, header->plan_digest, header->name, expected->plan_digest, expected->name);
    if (header->file_bytes != file->bytes)
        return fail(error, EXIT_PACK, "%s: size: found %zu bytes, expected %zu", path, file->bytes,
                    (size_t)header->file_bytes);
    if (header->weights_end != expected->weights_end ||
        (header->tokenizer_bytes + 7) / 8 * 8 != file->bytes - expected->weights_end)
        return fail(error, EXIT_PACK, "%s: sections: found weights up to %zu, expected %zu", path,
                    (size_t)header->weights_end, expected->weights_end);
    return EXIT_OK;
}

// Nothing follows the header in its page: what lies there is damage.
static int check_padding(const struct pack_file *file, const char *path, struct error *error) {
    const char *page = (const char *)file->header;
    for (size_t i = sizeof *file->header; i < PACK_HEADER_BYTES; i++)
        if (page[i] != 0)
            return fail(error, EXIT_PACK, "%s: byte %zu: found %d, expected 0", path, i, page[i]);
    return EXIT_OK;
}

static int check_pack(const struct pack_file *file, const char *path,
                      const struct pack_expectation *expected, struct pool *pool,
                      struct error *error) {
    int code = check_header(file, path, expected, error);
    if (!code)
        code = check_padding(file, path, error);
    if (code)
        return code;
    uint64_t sum = 0;
    code = checksum(file->base + PACK_HEADER_BYTES, file->bytes - PACK_HEADER_BYTES, pool, &sum,
                    error);
    if (code)
        return code;
    if (sum != file->header->data_checksum)
        return fail(error, EXIT_PACK, "%s: data: checksum differs, the file is damaged", path);
    return EXIT_OK;
}

static int map_file(struct pack_file *file, int descriptor, const char *path, struct error *error) {
    struct stat status;
    if (fstat(descriptor, &status) != 0)
        return fail(error, EXIT_PACK, "%s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return fail(error, EXIT_PACK, "%s: not a regular file", path);
    if (status.st_size < PACK_HEADER_BYTES || status.st_size % 8)
        return fail(error, EXIT_PACK, "%s: size: found %lld bytes: not a model pack, or cut off",
                    path, (long long)status.st_size);
    file->bytes = (size_t)status.st_size;
    void *base = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, descriptor, 0);
    if (base == MAP_FAILED)
        return fail(error, EXIT_MEMORY, "%s: cannot map %zu bytes: %s", path, file->bytes,
                    strerror(errno));
    file->base = base;
    file->header = base;
    return EXIT_OK;
}

static int pack_open(struct pack_file *file, const char *path,
                     const struct pack_expectation *expected, struct pool *pool,
                     struct error *error) {
    *file = (struct pack_file){0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return fail(error, EXIT_PACK, "%s: %s", path, strerror(errno));
    int code = map_file(file, descriptor, path, error);
    close(descriptor);
    if (!code)
        code = check_pack(file, path, expected, pool, error);
    if (code)
        pack_close(file);
    return code;
}

static void pack_close(struct pack_file *file) {
    if (file->base)
        munmap((void *)file->base, file->bytes);
    *file = (struct pack_file){0};
}
