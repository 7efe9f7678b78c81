// See nvml.h.
#include <dlfcn.h>
#include <stdio.h>
#include "clock.h"
#include "cuda_driver.h"
#include "nvml.h"

static const struct library_symbol NVML_SYMBOLS[] = {
    {"nvmlInit_v2", offsetof(struct nvml, init)},
    {"nvmlShutdown", offsetof(struct nvml, shutdown)},
    {"nvmlDeviceGetHandleByUUID", offsetof(struct nvml, device_by_uuid)},
    {"nvmlDeviceGetTotalEnergyConsumption", offsetof(struct nvml, total_energy)},
    {"nvmlDeviceGetPowerUsage", offsetof(struct nvml, power)},
    {"nvmlDeviceGetEnforcedPowerLimit", offsetof(struct nvml, power_limit)},
};

enum { NVML_UUID_CHARS = sizeof "GPU-00000000-0000-0000-0000-000000000000" };

static void nvml_uuid(const unsigned char uuid[GPU_UUID_BYTES], char text[NVML_UUID_CHARS]) {
    int at = snprintf(text, NVML_UUID_CHARS, "GPU");
    for (int i = 0; i < GPU_UUID_BYTES; i++) {
        bool dash = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
        at += snprintf(text + at, (size_t)(NVML_UUID_CHARS - at), dash ? "-%02x" : "%02x", uuid[i]);
    }
}

static bool nvml_open(struct nvml *nvml, const unsigned char uuid[GPU_UUID_BYTES]) {
    char text[NVML_UUID_CHARS];
    *nvml = (struct nvml){.library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!nvml->library)
        return false;
    if (find_symbols(nvml->library, NVML_SYMBOLS, sizeof NVML_SYMBOLS / sizeof *NVML_SYMBOLS,
                     nvml) ||
        nvml->init() != 0) {
        dlclose(nvml->library);
        nvml->library = NULL;
        return false;
    }
    nvml_uuid(uuid, text);
    double joules;
    if (nvml->device_by_uuid(text, &nvml->device) == 0 && nvml_energy(nvml, &joules))
        return true;
    nvml_close(nvml);
    return false;
}

static void nvml_close(struct nvml *nvml) {
    if (!nvml->library)
        return;
    (void)nvml->shutdown();
    dlclose(nvml->library);
    nvml->library = NULL;
}

static bool nvml_energy(struct nvml *nvml, double *joules) {
    unsigned long long millijoules;
    unsigned milliwatts;
    if (nvml->total_energy(nvml->device, &millijoules) == 0) {
        *joules = (double)millijoules * 1e-3;
        return true;
    }
    if (nvml->power(nvml->device, &milliwatts) != 0)
        return false;
    double now = clock_seconds(), watts = milliwatts * 1e-3;
    if (nvml->seconds > 0)
        nvml->joules += (now - nvml->seconds) * (watts + nvml->watts) / 2;
    nvml->seconds = now;
    nvml->watts = watts;
    *joules = nvml->joules;
    return true;
}

static double nvml_power_limit(const struct nvml *nvml) {
    unsigned milliwatts;
    return nvml->power_limit(nvml->device, &milliwatts) == 0 ? milliwatts * 1e-3 : 0;
}
