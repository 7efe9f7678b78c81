// The C API: one model, one KV cache, one position. Compile engine.c with -DPARSCALE_NO_MAIN and
// link it; every function below is then the whole interface. No function but parscale_open,
// parscale_tokenize, parscale_adapter and, on a GPU, parscale_set_streams allocates; none writes to
// stdout or stderr. A handle is used by one thread at a time.
//
// Functions that can fail return 0 or an exit code (runtime/error.h; docs/engine.md lists them),
// and parscale_error tells in one line what happened.
#ifndef PARSCALE_H
#define PARSCALE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct parscale;

struct parscale_options {
    const char *pack; // path of model.psc
    const char
        *isa;    // NULL: the fastest this processor has; or plain, avx2, avx512, avx512bf16, neon
    int threads; // 0: one per processor that the process may use
    int streams; // 0: the largest P of the plan; else one of the plan's parscale_n
    const char *device;   // NULL or cpu; cuda: the first GPU; auto: the GPU if it can run the model
    bool no_kernel_cache; // compile the GPU's kernels even if they are in the cache
};

// Seconds that the parts of parscale_open took. Those of a GPU are 0 without one. device and
// kernels begin together, beside check; upload comes after device and check.
struct parscale_start {
    double check;        // mapping and checking the pack
    double device;       // starting the driver and opening the device
    double kernels;      // finding or compiling the GPU's kernels
    double upload;       // copying the weights to the GPU,
    double upload_alone; // and how much of that when kernels was over
    double load;         // loading the kernels and making the graph of a decode step
};

// What the engine was generated for, and what it runs with. All sizes in elements, memory in bytes.
struct parscale_info {
    const char *name;                       // spec.name
    const char *plan_digest;                // 16 hex digits; equal in the engine and in its pack
    const char *weight_dtype, *cache_dtype; // as in the spec
    const char *isa;                        // the path in use
    const char *device;                     // cpu, or the GPU's name
    const char *device_note; // why not the GPU, or how it was started; "" if there was no choice
    const char *gpu_kernels; // none; by NVRTC at the first start; or the architectures embedded
    int hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size;
    int streams;       // P in use
    int prefix_tokens; // T, learned key/value positions per stream; they use no context
    int context;       // positions the cache holds
    int threads;
    bool has_tokenizer;
    size_t pack_bytes;                            // the file
    size_t weight_bytes;                          // read per decoded token, whatever P is
    size_t adapter_bytes;                         // read besides: what belongs to the P in use
    size_t cache_bytes;                           // KV cache, for the largest P
    size_t activation_bytes;                      // everything else taken at start-up
    size_t gpu_cache_bytes, gpu_activation_bytes; // the same on the GPU; 0 without one
    struct parscale_start start;
    size_t kv_bytes_position; // cache bytes of one position: all layers, the streams in use
    int adapters;             // how many P there are to choose from
};

// One P that the engine can run with. P = 1, the plain backbone, has no bytes of its own.
struct parscale_adapter {
    int streams;       // P
    int prefix_tokens; // T
    size_t bytes;      // its prefixes and aggregation network in the pack
    uint64_t digest;   // of these bytes: equal adapters have equal ones, in whatever pack
};

// Opens a pack. On failure *handle is still a handle if memory allowed (so that parscale_error
// works) and must be closed; NULL otherwise.
int parscale_open(struct parscale **handle, const struct parscale_options *options);
void parscale_close(struct parscale *handle);              // NULL is allowed
const char *parscale_error(const struct parscale *handle); // "" if nothing failed yet
const struct parscale_info *parscale_info(const struct parscale *handle);

// Adapter `index`, from 0 to info.adapters - 1, in the order of P.
int parscale_adapter(struct parscale *handle, int index, struct parscale_adapter *adapter);

// Goes on with another P (0: the largest). A cache holds for one P alone: the ids in it are
// prefilled again, which takes the time of a prefill. EXIT_USAGE: the engine has no such P;
// EXIT_DEVICE: no kernels for it; all is then as it was. After another failure the cache is empty.
int parscale_set_streams(struct parscale *handle, int streams);

// The cache holds parscale_position() positions. Rewinding is free; 0 starts over.
int parscale_position(const struct parscale *handle);
int parscale_rewind(struct parscale *handle, int position);

// Appends n ids [n] to the cache. Afterwards parscale_logits are those of the last one.
// EXIT_INPUT if they do not fit the context or an id is outside the vocabulary; nothing is appended
// then.
int parscale_prefill(struct parscale *handle, const int32_t *ids, size_t n);

// The same, and calls visit(user, i, logits [vocab_size]) for every i in 0..n-1, in order.
// A visit that returns non-zero ends the call with that value.
int parscale_score(struct parscale *handle, const int32_t *ids, size_t n,
                   int (*visit)(void *user, size_t i, const float *logits), void *user);

// One decode step: appends id.
int parscale_decode(struct parscale *handle, int32_t id);

const float *parscale_logits(const struct parscale *handle); // [vocab_size], fp32
// How the streams were weighed for those logits: [streams], sums to 1 (P = 1: {1}).
const float *parscale_stream_weights(const struct parscale *handle);

struct parscale_sampling {
    float temperature; // 0: greedy
    int top_k;         // 0: off
    float top_p;       // 1: off
    float min_p;       // 0: off
    float
        repeat_penalty; // 1: off; over the last 64 ids given to parscale_sample and appended before
    uint64_t seed;
};
// Chooses the next id from parscale_logits. Deterministic: it depends on the logits, on the ids
// appended so far, on `sampling` and on the position alone.
int32_t parscale_sample(struct parscale *handle, const struct parscale_sampling *sampling);

// Text to ids. special: special added tokens such as <|im_start|> in the text become their ids,
// else they are text. *ids is malloc'ed, the caller frees it. EXIT_INPUT: the model has no
// tokenizer, or text is not UTF-8.
int parscale_tokenize(struct parscale *handle, const char *text, size_t bytes, bool special,
                      int32_t **ids, size_t *n);
// The bytes of one id, not terminated; NULL if there are none. A token may end inside a character.
const char *parscale_piece(const struct parscale *handle, int32_t id, size_t *bytes);
// Whether generation stops at id (end of sequence, end of turn).
bool parscale_is_stop(const struct parscale *handle, int32_t id);
// How a conversation is written: "chatml", or NULL if the model has no template that is known.
const char *parscale_chat_template(const struct parscale *handle);
// The system prompt that the template starts with if a conversation has none; NULL: it starts
// without.
const char *parscale_system_prompt(const struct parscale *handle);

// For measurements, of the GPU in use. Bytes a second that it reads, measured now on up to 4 GiB of
// its free memory; 0 if it could not be measured, or without a GPU.
double parscale_read_bandwidth(struct parscale *handle);

struct parscale_energy {
    double joules;      // that the whole GPU has used since an arbitrary moment
    double power_limit; // watts; 0: unknown
};
// Whether the GPU's driver tells it. Its counter moves about ten times a second; where it has none,
// the power is summed up over the calls, which should then be frequent.
bool parscale_energy(struct parscale *handle, struct parscale_energy *energy);

#endif
