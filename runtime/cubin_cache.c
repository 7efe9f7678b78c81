// See cubin_cache.h.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cubin_cache.h"

enum { CUBIN_MOST_BYTES = 64 << 20 };

// A cache file: this, then the cubin.
struct cubin_header {
    char magic[8]; // "PSCUBIN1"
    char key[40];
    uint64_t bytes;
    uint64_t digest; // FNV-1a of the cubin
};

static uint64_t cubin_hash(const void *data, size_t bytes, uint64_t hash) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static void cubin_key(const char *source, const char *const *option, int options, int nvrtc_version,
                      int driver_version, char key[CUBIN_KEY_CHARS]) {
    const int versions[2] = {nvrtc_version, driver_version};
    uint64_t hash[2] = {UINT64_C(0xcbf29ce484222325), UINT64_C(0x84222325cbf29ce4)};
    for (int i = 0; i < 2; i++) { // two seeds: 128 bits
        hash[i] = cubin_hash(source, strlen(source) + 1, hash[i]);
        for (int o = 0; o < options; o++)
            hash[i] = cubin_hash(option[o], strlen(option[o]) + 1, hash[i]);
        hash[i] = cubin_hash(versions, sizeof versions, hash[i]);
    }
    snprintf(key, CUBIN_KEY_CHARS, "%016llx%016llx", (unsigned long long)hash[0],
             (unsigned long long)hash[1]);
}

// Opens the cache's folder, making it if it is missing; -1 and a note if there is none, or if it is
// not ours alone.
static int cubin_folder(char *note, size_t note_bytes) {
    char path[PATH_MAX];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool own = cache && cache[0] == '/';
    if (!own && (!home || home[0] != '/')) {
        snprintf(note, note_bytes, "kernel cache: neither XDG_CACHE_HOME nor HOME is set");
        return -1;
    }
    int length = snprintf(path, sizeof path, "%s%s", own ? cache : home, own ? "" : "/.cache");
    if (length < 0 || (size_t)length + sizeof "/parscale" > sizeof path) {
        snprintf(note, note_bytes, "kernel cache: its path is too long");
        return -1;
    }
    (void)mkdir(path, 0700);
    strcpy(path + length, "/parscale");
    (void)mkdir(path, 0700);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    if (folder < 0) {
        snprintf(note, note_bytes, "kernel cache: %.200s: %s", path, strerror(errno));
        return -1;
    }
    if (fstat(folder, &status) != 0 || status.st_uid != geteuid() || (status.st_mode & 077)) {
        snprintf(note, note_bytes,
                 "kernel cache: %.180s: not used, it is not this user's alone (mode 0700)", path);
        close(folder);
        return -1;
    }
    return folder;
}

static bool read_all(int file, void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(file, (char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static bool write_all(int file, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(file, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

// Reads an open cache file; NULL, or what is wrong with it.
static const char *cubin_read(int file, const char *key, char **cubin, size_t *bytes) {
    struct stat status;
    struct cubin_header header;
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != geteuid() ||
        (status.st_mode & 022))
        return "not a file of this user alone";
    if (!read_all(file, &header, sizeof header) || memcmp(header.magic, "PSCUBIN1", 8) != 0)
        return "not a cache file, or cut off";
    if (strncmp(header.key, key, sizeof header.key) != 0)
        return "of another engine";
    if (header.bytes == 0 || header.bytes > CUBIN_MOST_BYTES ||
        (uint64_t)status.st_size != sizeof header + header.bytes)
        return "cut off";
    *bytes = (size_t)header.bytes;
    *cubin = malloc(*bytes);
    if (!*cubin)
        return "no memory to read it";
    if (read_all(file, *cubin, *bytes) &&
        cubin_hash(*cubin, *bytes, UINT64_C(0xcbf29ce484222325)) == header.digest)
        return NULL;
    free(*cubin);
    *cubin = NULL;
    return "damaged";
}

static bool cubin_load(const char *key, char **cubin, size_t *bytes, char *note,
                       size_t note_bytes) {
    *cubin = NULL;
    note[0] = '\0';
    int folder = cubin_folder(note, note_bytes);
    if (folder < 0)
        return false;
    int file = openat(folder, key, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    const char *wrong = NULL;
    if (file >= 0) {
        wrong = cubin_read(file, key, cubin, bytes);
        close(file);
    } else if (errno != ENOENT) {
        wrong = strerror(errno);
    }
    if (wrong)
        snprintf(note, note_bytes, "kernel cache: %s: %s; compiled again", key, wrong);
    close(folder);
    return *cubin != NULL;
}

static void cubin_store(const char *key, const char *cubin, size_t bytes, char *note,
                        size_t note_bytes) {
    struct cubin_header header = {.magic = {'P', 'S', 'C', 'U', 'B', 'I', 'N', '1'}};
    char name[CUBIN_KEY_CHARS + 32];
    int folder = cubin_folder(note, note_bytes);
    if (folder < 0)
        return;
    memcpy(header.key, key, strlen(key));
    header.bytes = bytes;
    header.digest = cubin_hash(cubin, bytes, UINT64_C(0xcbf29ce484222325));
    snprintf(name, sizeof name, "%s.%ld.part", key, (long)getpid());
    (void)unlinkat(folder, name, 0);
    int file = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool written =
        file >= 0 && write_all(file, &header, sizeof header) && write_all(file, cubin, bytes);
    int problem = errno;
    if (file >= 0 && close(file) != 0)
        written = false;
    if (!written || renameat(folder, name, folder, key) != 0) {
        snprintf(note, note_bytes, "kernel cache: not kept: %s",
                 strerror(written ? errno : problem));
        (void)unlinkat(folder, name, 0);
    }
    close(folder);
}
