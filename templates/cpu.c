// The table of CPU paths, fastest first.
#include <string.h>
#include "cpu.h"

static const struct isa *const ISAS[] = {
#ifdef __x86_64__
    &ISA_AVX512BF16, &ISA_AVX512, &ISA_AVX2,
#endif
#ifdef __aarch64__
    &ISA_NEON,
#endif
    &ISA_PLAIN,
};

static const struct isa *isa_find(const char *name) {
    for (size_t i = 0; i < sizeof ISAS / sizeof *ISAS; i++)
        if ((!name || strcmp(name, ISAS[i]->name) == 0) && ISAS[i]->usable())
            return ISAS[i];
    return NULL;
}
