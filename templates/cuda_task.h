// What the host tells a kernel: one struct, the only parameter of every kernel. Included by
// engine.c and by engine.cu; pointers are device addresses.
#ifndef CUDA_TASK_H
#define CUDA_TASK_H

// Lives in device memory, so that one captured graph serves every decode step.
struct gpu_state {
    int token;    // the id to append next; a step leaves its choice here, -1: the CPU must choose
    int position; // where it will stand
};

// How a token is chosen, see struct parscale_sampling.
struct gpu_sampling {
    float temperature, top_p, log_min_p, repeat_penalty; // log_min_p: minus infinity is off
    int top_k, filtered;                                 // filtered: by top-k, top-p or min-p
    unsigned long long seed;
};

struct gpu_best {
    float logit;
    int id;
};

struct gpu_task {
    const char *weights;       // the pack, from its first byte
    char *cache;               // [slots, kv_heads, keys and values, tiles]
    const float *rotary;       // [CONTEXT, head_dim / 2, 2]: cosine, sine
    struct gpu_state *state;   //
    const int *ids;            // [tokens]; a decode step takes state->token
    int *history;              // [CONTEXT]: the ids in the cache
    float *residual;           // [columns, hidden]
    char *input;               // bf16 activations [columns, hidden or heads * head_dim]
    char *activation;          // bf16 activations [columns, intermediate]
    unsigned short *projected; // prefill: f16 [columns, heads + 2 kv_heads, head_dim]
    char *gathered;            // prefill: f16 keys and values of a layer, see prefill_gather
    // What blocks of a decode step tell each other (see tell):
    unsigned *rounds;      // each block's own: [blocks, 2], of layers and of steps before
    float *inputs;         // [3], see struct told_input
    float *qkv;            // [streams, heads + 2 kv_heads, head_dim]: queries, keys, values
    float *partial;        // [streams, head groups, MOST_SPLITS, ATTENTION_PARTIAL]
    float *attended;       // [heads * head_dim, streams], as column_index has them
    float *inner;          // [intermediate, streams], likewise
    float *added;          // what parts of the MLP add: [teams, ADDED_FLOATS]
    float *mixed;          // one column: [hidden], as column_index has it
    float *head_input;     // the same
    float *stream_weights; // [2, streams]; this and the next two by odd and even positions, so
    float *logits;         // [2, vocab]    that a step can start before the last one is read
    struct gpu_best *best; // [2, blocks]
    const struct gpu_sampling *sampling;
    struct gpu_state *chosen; // [2]: state, in the host's memory
    unsigned *sums;           // read_memory: [blocks, WARPS]
    int layer;                //
    int tokens;               // of the block; 1 in a decode step
    int position;             // of the first token; a decode step takes state->position
    int token;                // whose logits are wanted
    int blocks;               // of a decode step: the multiprocessors
};

#endif
