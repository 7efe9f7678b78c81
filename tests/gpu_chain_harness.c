// An engine, linked as a library, that generates on a GPU with options that change, with ids of the
// caller's own and with rewinds in between: each choice must be what sample.c makes of the logits
// that the engine shows, and logits and stream weights must be those, to the bit, of the same ids
// fed one by one without a choice. Prints key=value pairs.
//
//     gpu_chain_harness PACK STEPS
#include "compare.h"
#include "../runtime/sample.h"
#include "../runtime/sample.c"

enum { PROMPT = 3, MOST_CONTEXT = 1 << 12 };

// What was seen of one position.
struct seen {
    int32_t id;
    float *logits, weights[16];
};

static const struct parscale_sampling OPTIONS[] = {
    {.temperature = 0, .top_p = 1, .repeat_penalty = 1},
    {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1},
    {.temperature = 0, .top_p = 1, .repeat_penalty = 1.3f},
    {.temperature = 1, .top_p = 1, .repeat_penalty = 0.01f, .seed = 7}, // the same ids again
    {.temperature = 1.5f, .top_k = 0, .top_p = 0.9f, .repeat_penalty = 1, .seed = 8},
};

static struct parscale *model;
static size_t vocab;
static struct seen seen[MOST_CONTEXT];

static void look(int position) {
    struct seen *s = &seen[position];
    if (!s->logits)
        s->logits = must_have(malloc(vocab * sizeof *s->logits));
    memcpy(s->logits, parscale_logits(model), vocab * sizeof *s->logits);
    memcpy(s->weights, parscale_stream_weights(model),
           (size_t)parscale_info(model)->streams * sizeof(float));
}

// What sample.c chooses behind the last position.
static int32_t expected(const struct parscale_sampling *sampling, int position) {
    static int32_t history[MOST_CONTEXT];
    struct sample_scratch scratch = {
        must_have(malloc(vocab * sizeof *scratch.candidates)),
        must_have(malloc(vocab * sizeof *scratch.penalized)),
    };
    for (int i = 0; i < position; i++)
        history[i] = seen[i].id;
    int32_t id = sample(seen[position - 1].logits, (int)vocab, history, position, sampling,
                        (uint64_t)position, &scratch);
    free(scratch.candidates);
    free(scratch.penalized);
    return id;
}

// Returns the number of wrong choices.
static int generate(int steps) {
    int wrong = 0, context = parscale_info(model)->context;
    for (int i = 0; i < PROMPT; i++) {
        seen[i].id = 5 * i + 1;
        must(model, parscale_decode(model, seen[i].id));
        look(i);
    }
    for (int i = 0; i < steps; i++) {
        int position = parscale_position(model);
        if (position == context || i % 13 == 12) {
            position -= i % 13 == 12 ? 2 : context / 2;
            parscale_rewind(model, position);
            seen[position].id = i % (int)vocab;
            must(model, parscale_decode(model, seen[position].id));
            look(position++);
        }
        const struct parscale_sampling *sampling = &OPTIONS[i / 7 % 5];
        bool first = i % 3 == 0; // the choice before a look at the logits
        int32_t id = first ? parscale_sample(model, sampling) : 0;
        look(position - 1);
        id = first ? id : parscale_sample(model, sampling);
        wrong += id != expected(sampling, position);
        if (i % 11 == 10)
            id = (id + 1) % (int32_t)vocab;
        if (i % 17 == 16) // asks again, in another way
            (void)parscale_sample(model, &OPTIONS[0]);
        if (position < context)
            must(model, parscale_decode(model, seen[position].id = id));
    }
    return wrong;
}

// Returns the number of positions whose logits or weights differ.
static int replay(int positions) {
    int different = 0;
    must(model, parscale_rewind(model, 0));
    for (int i = 0; i < positions; i++) {
        must(model, parscale_decode(model, seen[i].id));
        const float *weights = parscale_stream_weights(model);
        different += memcmp(parscale_logits(model), seen[i].logits, vocab * sizeof(float)) != 0 ||
                     memcmp(weights, seen[i].weights,
                            (size_t)parscale_info(model)->streams * sizeof(float)) != 0;
    }
    return different;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    model = open_model(argv[1], "cuda", 0);
    vocab = (size_t)parscale_info(model)->vocab_size;
    int steps = atoi(argv[2]), wrong = generate(steps), positions = parscale_position(model);
    look(positions - 1);
    int different = replay(positions);
    bool measured = parscale_read_bandwidth(model) > 0;
    printf("steps=%d wrong=%d positions=%d different=%d\n", steps, wrong, positions, different);
    for (int i = 0; i < MOST_CONTEXT; i++)
        free(seen[i].logits);
    parscale_close(model);
    return measured ? 0 : 1;
}
