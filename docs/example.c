// The engine as a library: continues a prompt, always with the most likely token.
//     cc -O3 -DPARSCALE_NO_MAIN out/NAME/engine.c docs/example.c -lm -pthread -o example
//     ./example out/NAME/model.psc "Once upon a time"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/parscale.h"

int main(int argc, char **argv) {
    if (argc != 3)
        return fprintf(stderr, "usage: example MODEL.PSC PROMPT\n"), 2;
    struct parscale *model;
    struct parscale_options options = {.pack = argv[1]};
    struct parscale_sampling greedy = {.temperature = 0, .repeat_penalty = 1};
    int32_t *ids = NULL;
    size_t count = 0, bytes;
    int code = parscale_open(&model, &options);
    if (code == 0)
        code = parscale_tokenize(model, argv[2], strlen(argv[2]), true, &ids, &count);
    if (code == 0)
        code = parscale_prefill(model, ids, count);
    for (int i = 0; i < 32 && code == 0; i++) {
        int32_t id = parscale_sample(model, &greedy);
        if (parscale_is_stop(model, id))
            break;
        const char *piece = parscale_piece(model, id, &bytes);
        if (piece)
            fwrite(piece, 1, bytes, stdout);
        code = parscale_decode(model, id);
    }
    if (code)
        fprintf(stderr, "example: %s\n", model ? parscale_error(model) : "no memory");
    free(ids);
    parscale_close(model);
    return code;
}
