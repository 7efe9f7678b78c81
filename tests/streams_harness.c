// Digests of all logits, bit for bit, of the ids on stdin with each P given, in one handle:
//
//     streams_harness PACK PATH P...     (PATH: an instruction set or cuda)
//
// One line a P, "P SCORED DECODED SWITCHED": of the ids appended in blocks; of the second half
// decoded one by one behind the first; and the same when the first half was appended with the P
// before it. The first P has no P before it: "-". Before them a line of key=value pairs on the last
// adapter and the sizes of the pack and the cache.
#include <string.h>
#include "compare.h"

enum { MOST = 4096 };

static uint64_t add_digest(uint64_t digest, const float *logits, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        digest = (digest ^ bits) * 0x100000001b3u;
    }
    return digest;
}

struct text {
    int32_t ids[MOST];
    size_t count, vocab;
};

struct visit {
    uint64_t digest;
    size_t vocab;
};

static int visit_logits(void *user, size_t i, const float *logits) {
    struct visit *visit = user;
    (void)i;
    visit->digest = add_digest(visit->digest, logits, visit->vocab);
    return 0;
}

static uint64_t score(struct parscale *model, const struct text *text) {
    struct visit visit = {1, text->vocab};
    must(model, parscale_rewind(model, 0));
    must(model, parscale_score(model, text->ids, text->count, visit_logits, &visit));
    return visit.digest;
}

// The second half behind what the cache holds.
static uint64_t decode(struct parscale *model, const struct text *text) {
    uint64_t digest = 1;
    for (size_t i = text->count / 2; i < text->count; i++) {
        must(model, parscale_decode(model, text->ids[i]));
        digest = add_digest(digest, parscale_logits(model), text->vocab);
    }
    return digest;
}

static uint64_t prefill_and_decode(struct parscale *model, const struct text *text) {
    must(model, parscale_rewind(model, 0));
    must(model, parscale_prefill(model, text->ids, text->count / 2));
    return decode(model, text);
}

static void print_sizes(struct parscale *model) {
    const struct parscale_info *info = parscale_info(model);
    struct parscale_adapter adapter;
    must(model, parscale_adapter(model, info->adapters - 1, &adapter));
    printf("adapters=%d streams=%d bytes=%zu digest=%016llx pack=%zu cache=%zu position=%zu\n",
           info->adapters, adapter.streams, adapter.bytes, (unsigned long long)adapter.digest,
           info->pack_bytes, info->cache_bytes, info->kv_bytes_position);
}

int main(int argc, char **argv) {
    static struct text text;
    if (argc < 4)
        return 2;
    while (text.count < MOST && scanf("%d", &text.ids[text.count]) == 1)
        text.count++;
    struct parscale *model = open_model(argv[1], argv[2], atoi(argv[3]));
    text.vocab = (size_t)parscale_info(model)->vocab_size;
    print_sizes(model);
    for (int i = 3; i < argc; i++) {
        char switched[24] = "-";
        if (i > 3) {
            must(model, parscale_rewind(model, 0));
            must(model, parscale_prefill(model, text.ids, text.count / 2));
            must(model, parscale_set_streams(model, atoi(argv[i])));
            snprintf(switched, sizeof switched, "%016llx",
                     (unsigned long long)decode(model, &text));
        }
        unsigned long long scored = score(model, &text);
        unsigned long long decoded = prefill_and_decode(model, &text);
        printf("%d %016llx %016llx %s\n", parscale_info(model)->streams, scored, decoded, switched);
    }
    parscale_close(model);
    return 0;
}
