// The packer's work: the output file is made beside its final name, filled by all threads, summed,
// and renamed when it is complete.
#include <libgen.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { WRITE_BYTES = 64 << 20 }; // written at a time

struct packing {
    const struct pack_job *job;
    struct pool *pool;
    char *pack; // the mapped output
    atomic_size_t next, done;
    bool progress; // stderr is a terminal
    struct error errors[MAX_THREADS];
};

static size_t widest_row(void) {
    size_t widest = 1;
    for (size_t i = 0; i < PLACEMENT_COUNT; i++)
        if ((size_t)PLACEMENTS[i].columns > widest)
            widest = (size_t)PLACEMENTS[i].columns;
    return widest;
}

static void pack_tensor(struct packing *packing, size_t index, float *row, char *stored,
                        struct error *error) {
    const struct pack_job *job = packing->job;
    const struct tensor_job *tensor = &job->tensors[index];
    struct source source = {
        .path = tensor->file < 0 ? "" : job->files[tensor->file].path,
        .descriptor = tensor->file < 0 ? -1 : job->files[tensor->file].descriptor,
        .dtype = tensor->dtype,
        .offset = tensor->offset,
        .seed = mix64(job->seed * 0x9e3779b97f4a7c15u + index),
        .mean = tensor->mean,
        .deviation = tensor->deviation,
        .buffer = stored,
    };
    tensor->placement->place(tensor->placement, tensor->layer, &source, tensor->interleaved,
                             packing->pack, row, error);
}

// Compares a copy of a tensor with the tensor; row and stored have room for `room` bytes each.
static void compare_copy(const struct packing *packing, const struct copy_job *copy, char *row,
                         char *stored, size_t room, struct error *error) {
    const struct tensor_job *tensor = &packing->job->tensors[copy->tensor];
    const struct job_file *ours = &packing->job->files[tensor->file];
    const struct job_file *other = &packing->job->files[copy->file];
    const uint64_t bytes = stored_bytes(tensor);
    for (uint64_t at = 0; at < bytes && !error->code; at += room) {
        size_t n = bytes - at < room ? (size_t)(bytes - at) : room;
        int code = read_range(ours->descriptor, ours->path, tensor->offset + at, n, row, error);
        if (!code)
            code = read_range(other->descriptor, other->path, copy->offset + at, n, stored, error);
        char name[128];
        snprintf(name, sizeof name, tensor->placement->name, tensor->layer);
        if (!code && memcmp(row, stored, n) != 0)
            fail(error, EXIT_PACK,
                 "%s: an adapter of another backbone: %s differs from the one in %s", other->path,
                 name, ours->path);
    }
}

static void pack_share(void *argument, int thread) {
    struct packing *packing = argument;
    const struct pack_job *job = packing->job;
    struct error *error = &packing->errors[thread];
    size_t width = widest_row();
    float *row = malloc(width * sizeof *row);
    char *stored = malloc(width * sizeof *row);
    if (!row || !stored)
        fail(error, EXIT_MEMORY, "no memory for a row of %zu elements", width);
    while (!error->code) {
        size_t index = atomic_fetch_add(&packing->next, 1);
        if (index >= job->copy_count + job->tensor_count)
            break;
        if (index < job->copy_count)
            compare_copy(packing, &job->copies[index], (char *)row, stored, width * sizeof *row,
                         error);
        else
            pack_tensor(packing, index - job->copy_count, row, stored, error);
        size_t done = atomic_fetch_add(&packing->done, 1) + 1;
        if (packing->progress)
            fprintf(stderr, "\rpacking: %zu of %zu tensors", done,
                    job->copy_count + job->tensor_count);
    }
    free(row);
    free(stored);
}

// The whole tokenizer blob, malloc'ed.
static int read_blob(const char *path, char **blob, size_t *bytes, struct error *error) {
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status) != 0 || status.st_size < 0) {
        fail(error, EXIT_PACK, "%s: %s", path, strerror(errno));
        if (file)
            fclose(file);
        return error->code;
    }
    *bytes = (size_t)status.st_size;
    *blob = malloc(*bytes + 1);
    bool complete = *blob && fread(*blob, 1, *bytes, file) == *bytes;
    fclose(file);
    return complete ? EXIT_OK : fail(error, EXIT_PACK, "%s: cannot be read", path);
}

static int fill(struct packing *packing, const char *blob, size_t blob_bytes, struct error *error) {
    char *pack = packing->pack;
    size_t bytes = LAYOUT.end + (blob_bytes + 7) / 8 * 8;
    pool_run(packing->pool, pack_share, packing);
    if (packing->progress)
        fprintf(stderr, "\r\033[K");
    for (int i = 0; i < MAX_THREADS; i++) {
        if (packing->errors[i].code) {
            *error = packing->errors[i];
            return error->code;
        }
    }
    if (blob_bytes)
        memcpy(pack + LAYOUT.end, blob, blob_bytes);
    struct pack_header *header = (struct pack_header *)pack;
    *header = (struct pack_header){
        .version = PACK_VERSION,
        .header_bytes = PACK_HEADER_BYTES,
        .file_bytes = bytes,
        .weights_end = LAYOUT.end,
        .tokenizer_bytes = blob_bytes,
    };
    int code = checksum(pack + PACK_HEADER_BYTES, bytes - PACK_HEADER_BYTES, packing->pool,
                        &header->data_checksum, error);
    memcpy(header->magic, "PARSCALE", sizeof header->magic);
    memcpy(header->plan_digest, PLAN_DIGEST, sizeof PLAN_DIGEST);
    memcpy(header->name, SPEC_NAME, sizeof SPEC_NAME);
    header->header_checksum = header_checksum(header);
    return code;
}

static int write_file(const char *path, const char *data, size_t bytes, struct error *error) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return fail(error, EXIT_OUTPUT, "%s: %s", path, strerror(errno));
    int code = EXIT_OK;
    for (size_t at = 0; at < bytes && !code;) {
        size_t n = bytes - at < WRITE_BYTES ? bytes - at : WRITE_BYTES;
        ssize_t part = write(descriptor, data + at, n);
        if (part > 0)
            at += (size_t)part;
        else if (errno != EINTR)
            code = fail(error, EXIT_OUTPUT, "%s: %zu bytes: %s", path, bytes, strerror(errno));
    }
    if (close(descriptor) != 0 && !code)
        code = fail(error, EXIT_OUTPUT, "%s: %s", path, strerror(errno));
    return code;
}

// Makes the pack in memory and writes it to `path` in large pieces: a file that was written so lies
// in large pages of the page cache, from which an engine reads faster.
static int write_pack(struct packing *packing, const char *path, const char *blob,
                      size_t blob_bytes, struct error *error) {
    size_t bytes = LAYOUT.end + (blob_bytes + 7) / 8 * 8;
    void *pack = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pack == MAP_FAILED)
        return fail(error, EXIT_MEMORY, "%s: no memory for the pack's %zu bytes: %s", path, bytes,
                    strerror(errno));
    packing->pack = pack;
    int code = fill(packing, blob, blob_bytes, error);
    if (!code)
        code = write_file(path, pack, bytes, error);
    munmap(pack, bytes);
    return code;
}

static int run_job(const struct pack_job *job, const char *out, struct error *error) {
    struct packing packing = {.job = job, .progress = isatty(STDERR_FILENO)};
    char *blob = NULL, part[PATH_MAX];
    size_t blob_bytes = 0;
    if ((size_t)snprintf(part, sizeof part, "%s.part", out) >= sizeof part)
        return fail(error, EXIT_USAGE, "%s: the path is too long", out);
    int code = job->tokenizer ? read_blob(job->tokenizer, &blob, &blob_bytes, error) : EXIT_OK;
    if (!code)
        code = pool_start(&packing.pool, usable_processors(), error);
    if (!code) {
        code = write_pack(&packing, part, blob, blob_bytes, error);
        if (!code && rename(part, out) != 0)
            code = fail(error, EXIT_OUTPUT, "%s: %s", out, strerror(errno));
        if (code)
            unlink(part);
    }
    pool_stop(packing.pool);
    free(blob);
    return code;
}

// model.psc in the folder of this program.
static int default_output(char *out, size_t size, struct error *error) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return fail(error, EXIT_USAGE, "cannot tell where this program lies; name an output file");
    self[n] = 0;
    snprintf(out, size, "%s/model.psc", dirname(self));
    return EXIT_OK;
}

static int parse_seed(const char *text, uint64_t *seed, struct error *error) {
    char *end;
    errno = 0;
    *seed = strtoull(text, &end, 10);
    if (errno || *text < '0' || *text > '9' || *end)
        return fail(error, EXIT_USAGE, "--random: found '%s', expected a number from 0 to 2^64 - 1",
                    text);
    return EXIT_OK;
}

int main(int argc, char **argv) {
    struct error error = {0};
    struct pack_job job = {0};
    char out[PATH_MAX];
    bool random = argc > 1 && strcmp(argv[1], "--random") == 0;
    int first = random ? 2 : 1, code = EXIT_OK;
    if (argc <= first || argc > first + 2)
        code = fail(&error, EXIT_USAGE, "usage: %s JOB [OUT], or %s --random SEED [OUT]", argv[0],
                    argv[0]);
    if (!code)
        code = job_start(&job, &error);
    if (!code && random) {
        uint64_t seed;
        code = parse_seed(argv[first], &seed, &error);
        if (!code)
            job_random(&job, seed);
    } else if (!code) {
        code = job_read(&job, argv[first], &error);
    }
    if (!code)
        code = argc == first + 2 ? (snprintf(out, sizeof out, "%s", argv[first + 1]), EXIT_OK)
                                 : default_output(out, sizeof out, &error);
    if (!code)
        code = run_job(&job, out, &error);
    if (code)
        fprintf(stderr, "pack: %s\n", error.text);
    job_end(&job);
    return code;
}
