// Compiled kernels on disk: one file for each source, set of options, NVRTC and driver, in
// $XDG_CACHE_HOME/parscale or ~/.cache/parscale. Nothing depends on it: what cannot be read or does
// not fit is compiled again.
#ifndef CUBIN_CACHE_H
#define CUBIN_CACHE_H

#include <stdbool.h>
#include <stddef.h>

enum { CUBIN_KEY_CHARS = 33 };

// The key of a source and everything else that decides what is compiled from it.
static void cubin_key(const char *source, const char *const *option, int options, int nvrtc_version,
                      int driver_version, char key[CUBIN_KEY_CHARS]);

// Whether the cache had the kernels; *cubin is malloc'ed. note [note_bytes]: one line on what was
// wrong with the cache, or "".
static bool cubin_load(const char *key, char **cubin, size_t *bytes, char *note, size_t note_bytes);

// Keeps them, under a temporary name until they are complete.
static void cubin_store(const char *key, const char *cubin, size_t bytes, char *note,
                        size_t note_bytes);

#endif
