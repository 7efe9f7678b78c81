// Reading a pack job: a list of tensors, each with its source and its placement.
//
//     parscale-pack-job 1
//     plan HEXDIGEST
//     file INDEX PATH
//     tensor NAME FILE OFFSET DTYPE [rope]
//     zero NAME
//     same NAME FILE OFFSET        (the bytes of tensor NAME are there too: another copy of it)
//     tokenizer PATH
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

struct tensor_job {
    const struct placement *placement;
    int layer;
    int file; // -1: zero or random
    enum dtype dtype;
    uint64_t offset;
    bool interleaved;
    float mean, deviation;
};

// Another copy of a backbone's tensor, which must be equal.
struct copy_job {
    size_t tensor; // its index
    int file;
    uint64_t offset;
};

struct job_file {
    char *path;
    int descriptor;
    uint64_t bytes;
};

struct pack_job {
    struct tensor_job *tensors; // [tensor_count]
    size_t tensor_count, tensor_room;
    struct copy_job *copies; // [copy_count]
    size_t copy_count;
    struct job_file *files; // [file_count]
    size_t file_count;
    char *tokenizer; // path, or NULL
    uint64_t seed;
};

static size_t all_tensors(void) {
    size_t count = 0;
    for (size_t i = 0; i < PLACEMENT_COUNT; i++)
        count += (size_t)PLACEMENTS[i].count;
    return count;
}

static int job_start(struct pack_job *job, struct error *error) {
    *job = (struct pack_job){.tensor_room = all_tensors()};
    job->tensors = calloc(job->tensor_room, sizeof *job->tensors);
    return job->tensors ? EXIT_OK : fail(error, EXIT_MEMORY, "no memory for the pack job");
}

static void job_end(struct pack_job *job) {
    for (size_t i = 0; i < job->file_count; i++) {
        if (job->files[i].descriptor >= 0)
            close(job->files[i].descriptor);
        free(job->files[i].path);
    }
    free(job->files);
    free(job->tensors);
    free(job->copies);
    free(job->tokenizer);
}

// The placement and the layer that a tensor's name means; NULL if the plan has no such tensor.
static const struct placement *find_placement(const char *name, int *layer) {
    for (size_t i = 0; i < PLACEMENT_COUNT; i++) {
        const struct placement *placement = &PLACEMENTS[i];
        const char *mark = strstr(placement->name, "%d");
        *layer = 0;
        if (!mark) {
            if (strcmp(name, placement->name) == 0)
                return placement;
            continue;
        }
        size_t start = (size_t)(mark - placement->name);
        char *after;
        if (strncmp(name, placement->name, start) != 0 || name[start] < '0' || name[start] > '9')
            continue;
        long number = strtol(name + start, &after, 10);
        if (strcmp(after, mark + 2) == 0 && number < placement->count) {
            *layer = (int)number;
            return placement;
        }
    }
    return NULL;
}

static int job_add_file(struct pack_job *job, const char *path, struct error *error) {
    struct job_file *files = realloc(job->files, (job->file_count + 1) * sizeof *files);
    if (!files)
        return fail(error, EXIT_MEMORY, "no memory for the pack job");
    job->files = files;
    struct job_file *file = &files[job->file_count];
    *file = (struct job_file){strdup(path), open(path, O_RDONLY | O_CLOEXEC), 0};
    job->file_count++;
    struct stat status;
    if (file->descriptor < 0 || fstat(file->descriptor, &status) != 0)
        return fail(error, EXIT_PACK, "%s: %s", path, strerror(errno));
    file->bytes = (uint64_t)status.st_size;
    return file->path ? EXIT_OK : fail(error, EXIT_MEMORY, "no memory for the pack job");
}

// Bytes of a tensor in its file.
static uint64_t stored_bytes(const struct tensor_job *tensor) {
    const struct placement *placement = tensor->placement;
    const struct dtype_info *info = &DTYPES[tensor->dtype];
    uint64_t elements =
        (uint64_t)placement->blocks * (uint64_t)placement->rows * (uint64_t)placement->columns;
    return elements / info->block * info->bytes;
}

// Whether `bytes` from offset on lie in the file.
static int job_check_range(const struct pack_job *job, const char *where, const char *name,
                           int file, uint64_t offset, uint64_t bytes, struct error *error) {
    uint64_t size = job->files[file].bytes;
    if (offset > size || bytes > size - offset)
        return fail(error, EXIT_PACK, "%s: %s: found bytes %llu to %llu of a file of %llu", where,
                    name, (unsigned long long)offset, (unsigned long long)(offset + bytes),
                    (unsigned long long)size);
    return EXIT_OK;
}

static int job_add_tensor(struct pack_job *job, const char *where, const char *name,
                          struct tensor_job tensor, struct error *error) {
    tensor.placement = find_placement(name, &tensor.layer);
    if (!tensor.placement)
        return fail(error, EXIT_PACK, "%s: %s: this plan has no such tensor", where, name);
    const struct placement *placement = tensor.placement;
    for (size_t i = 0; i < job->tensor_count; i++)
        if (job->tensors[i].placement == placement && job->tensors[i].layer == tensor.layer)
            return fail(error, EXIT_PACK, "%s: %s: found twice", where, name);
    if (tensor.file >= 0) {
        if ((size_t)placement->columns % DTYPES[tensor.dtype].block != 0)
            return fail(error, EXIT_PACK, "%s: %s: found %s, which rows of %d elements do not fill",
                        where, name, DTYPES[tensor.dtype].name, placement->columns);
        int code = job_check_range(job, where, name, tensor.file, tensor.offset,
                                   stored_bytes(&tensor), error);
        if (code)
            return code;
    }
    job->tensors[job->tensor_count++] = tensor;
    return EXIT_OK;
}

static int job_tensor_line(struct pack_job *job, const char *where, char *line,
                           struct error *error) {
    char name[256], dtype[16], order[8] = "";
    struct tensor_job tensor = {.dtype = DTYPE_COUNT};
    unsigned long long offset;
    int fields =
        sscanf(line, "tensor %255s %d %llu %15s %7s", name, &tensor.file, &offset, dtype, order);
    if (fields < 4 || (fields == 5 && strcmp(order, "rope") != 0))
        return fail(error, EXIT_PACK, "%s: found '%s', expected a tensor line", where, line);
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (strcmp(dtype, DTYPES[i].name) == 0)
            tensor.dtype = (enum dtype)i;
    if (tensor.dtype == DTYPE_COUNT)
        return fail(error, EXIT_PACK, "%s: %s: dtype: found %s", where, name, dtype);
    if (tensor.file < 0 || (size_t)tensor.file >= job->file_count)
        return fail(error, EXIT_PACK, "%s: %s: no file %d", where, name, tensor.file);
    tensor.offset = offset;
    tensor.interleaved = fields == 5;
    return job_add_tensor(job, where, name, tensor, error);
}

static int job_copy_line(struct pack_job *job, const char *where, const char *line,
                         struct error *error) {
    char name[256];
    int file, layer;
    unsigned long long offset;
    if (sscanf(line, "same %255s %d %llu", name, &file, &offset) != 3)
        return fail(error, EXIT_PACK, "%s: found '%s', expected a line of a copy", where, line);
    if (file < 0 || (size_t)file >= job->file_count)
        return fail(error, EXIT_PACK, "%s: %s: no file %d", where, name, file);
    const struct placement *placement = find_placement(name, &layer);
    size_t i = 0;
    while (i < job->tensor_count &&
           (job->tensors[i].placement != placement || job->tensors[i].layer != layer))
        i++;
    if (!placement || i == job->tensor_count || job->tensors[i].file < 0)
        return fail(error, EXIT_PACK, "%s: %s: found a copy of no tensor", where, name);
    struct copy_job *copies = realloc(job->copies, (job->copy_count + 1) * sizeof *copies);
    if (!copies)
        return fail(error, EXIT_MEMORY, "no memory for the pack job");
    job->copies = copies;
    copies[job->copy_count++] = (struct copy_job){i, file, offset};
    return job_check_range(job, where, name, file, offset, stored_bytes(&job->tensors[i]), error);
}

static int job_line(struct pack_job *job, const char *where, char *line, struct error *error) {
    int index, start = 0;
    if (sscanf(line, "file %d %n", &index, &start) == 1 && start > 0) {
        if (index < 0 || (size_t)index != job->file_count)
            return fail(error, EXIT_PACK, "%s: found file %d, expected %zu", where, index,
                        job->file_count);
        return job_add_file(job, line + start, error);
    }
    if (strncmp(line, "tensor ", 7) == 0)
        return job_tensor_line(job, where, line, error);
    if (strncmp(line, "same ", 5) == 0)
        return job_copy_line(job, where, line, error);
    if (strncmp(line, "zero ", 5) == 0)
        return job_add_tensor(job, where, line + 5, (struct tensor_job){.file = -1}, error);
    if (strncmp(line, "plan ", 5) == 0)
        return strcmp(line + 5, PLAN_DIGEST) == 0
                   ? EXIT_OK
                   : fail(error, EXIT_PACK, "%s: plan: found %s, expected %s", where, line + 5,
                          PLAN_DIGEST);
    if (strncmp(line, "tokenizer ", 10) == 0 && !job->tokenizer) {
        job->tokenizer = strdup(line + 10);
        return job->tokenizer ? EXIT_OK : fail(error, EXIT_MEMORY, "no memory for the pack job");
    }
    return fail(error, EXIT_PACK, "%s: found '%s', expected a line of a pack job", where, line);
}

// Reads a whole job; every tensor of the plan must be in it, once.
static int job_read(struct pack_job *job, const char *path, struct error *error) {
    FILE *file = fopen(path, "r");
    if (!file)
        return fail(error, EXIT_PACK, "%s: %s", path, strerror(errno));
    char *line = NULL, where[300];
    size_t room = 0;
    int code = EXIT_OK, number = 0;
    for (ssize_t n; !code && (n = getline(&line, &room, file)) > 0;) {
        if (line[n - 1] == '\n')
            line[n - 1] = 0;
        snprintf(where, sizeof where, "%.250s:%d", path, ++number);
        if (number == 1)
            code = strcmp(line, "parscale-pack-job 1") == 0
                       ? EXIT_OK
                       : fail(error, EXIT_PACK, "%s: this is not a pack job", where);
        else
            code = job_line(job, where, line, error);
    }
    free(line);
    fclose(file);
    if (!code && job->tensor_count != job->tensor_room)
        return fail(error, EXIT_PACK, "%s: found %zu tensors, expected %zu", path,
                    job->tensor_count, job->tensor_room);
    return code;
}

// A job of random weights: every tensor of the plan, with the plan's mean and deviation.
static void job_random(struct pack_job *job, uint64_t seed) {
    job->seed = seed;
    for (size_t i = 0; i < PLACEMENT_COUNT; i++)
        for (int layer = 0; layer < PLACEMENTS[i].count; layer++)
            job->tensors[job->tensor_count++] = (struct tensor_job){
                .placement = &PLACEMENTS[i],
                .layer = layer,
                .file = -1,
                .mean = PLACEMENTS[i].mean,
                .deviation = PLACEMENTS[i].deviation,
            };
}
