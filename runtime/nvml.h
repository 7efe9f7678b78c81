// The energy that an NVIDIA GPU uses, from NVML (libnvidia-ml.so.1, which comes with the driver),
// through dlopen, with our own declarations. Source of names, types and numbers: NVIDIA's NVML API
// reference, version 12. A Jetson has no NVML that tells it.
#ifndef NVML_H
#define NVML_H

#include <stdbool.h>

enum { GPU_UUID_BYTES = 16 };

typedef int nvml_result; // 0: success

struct nvml {
    void *library, *device;
    nvml_result (*init)(void);
    nvml_result (*shutdown)(void);
    nvml_result (*device_by_uuid)(const char *uuid, void **device);
    nvml_result (*total_energy)(void *device, unsigned long long *millijoules);
    nvml_result (*power)(void *device, unsigned *milliwatts);
    nvml_result (*power_limit)(void *device, unsigned *milliwatts);
    double seconds, watts, joules; // of the last reading of power, and its integral up to then
};

// Whether there is an NVML that knows the GPU with this UUID. (A part of a GPU, under MIG, has a
// UUID of another kind; NVML tells nothing of its energy.) Takes some hundredths of a second.
static bool nvml_open(struct nvml *nvml, const unsigned char uuid[GPU_UUID_BYTES]);
static void nvml_close(struct nvml *nvml);

// Joules that the whole GPU has used since an arbitrary moment: the driver's counter, which moves
// about ten times a second; where there is none, the integral of the power over the calls since
// nvml_open, which is as good as they are frequent. Whether it could be read.
static bool nvml_energy(struct nvml *nvml, double *joules);

// The power limit in force, in watts; 0 if it is not known.
static double nvml_power_limit(const struct nvml *nvml);

#endif
