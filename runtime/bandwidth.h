// How fast this machine reads memory.
#ifndef BANDWIDTH_H
#define BANDWIDTH_H

// Bytes a second that `threads` threads together read from a buffer larger than the caches, the
// best of several passes; 0 if memory or threads could not be had. Takes a fraction of a second.
static double bandwidth_measure(int threads);

#endif
