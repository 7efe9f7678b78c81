// The command info: what the engine was generated for and what it runs with. See cli.h.
#include "cli.h"

enum info_kind { INFO_TEXT, INFO_COUNT, INFO_BYTES, INFO_BOOL };

struct info_row {
    const char *key;
    enum info_kind kind;
    const char *text;
    size_t number;
};

static const char *info_compiler(void) {
#ifdef __clang__
    return __VERSION__; // names itself
#else
    return "gcc " __VERSION__;
#endif
}

static const char *info_processor(void) {
#if defined(__x86_64__)
    return "x86_64";
#elif defined(__aarch64__)
    return "aarch64";
#else
    return "other";
#endif
}

static void info_print_text(const struct info_row *rows, int count) {
    for (int i = 0; i < count; i++) {
        printf("%-20s ", rows[i].key);
        if (rows[i].kind == INFO_TEXT)
            printf("%s\n", rows[i].text);
        else if (rows[i].kind == INFO_BOOL)
            printf("%s\n", rows[i].number ? "yes" : "no");
        else if (rows[i].kind == INFO_BYTES)
            printf("%zu (%.1f MiB)\n", rows[i].number, (double)rows[i].number / (1 << 20));
        else
            printf("%zu\n", rows[i].number);
    }
}

static void info_print_json(const struct info_row *rows, int count) {
    for (int i = 0; i < count; i++) {
        printf("%s  \"%s\": ", i == 0 ? "" : ",\n", rows[i].key);
        if (rows[i].kind == INFO_TEXT)
            json_write_string(stdout, rows[i].text);
        else if (rows[i].kind == INFO_BOOL)
            printf(rows[i].number ? "true" : "false");
        else
            printf("%zu", rows[i].number);
    }
}

// The P to choose from, one a line or as a member of the JSON object.
static int info_adapters(struct session *session) {
    const bool json = session->arguments.json;
    if (json)
        printf(",\n  \"adapters\": [");
    for (int i = 0; i < session->info->adapters; i++) {
        struct parscale_adapter adapter;
        char digest[24] = "";
        int code = parscale_adapter(session->handle, i, &adapter);
        if (code)
            return session_api_error(session, code);
        if (adapter.bytes > 0)
            snprintf(digest, sizeof digest, "%016llx", (unsigned long long)adapter.digest);
        if (json)
            printf("%s\n    {\"parscale_n\": %d, \"parscale_n_tokens\": %d, \"bytes\": %zu, "
                   "\"digest\": \"%s\"}",
                   i ? "," : "", adapter.streams, adapter.prefix_tokens, adapter.bytes, digest);
        else
            printf("%-20s P = %d: %d prefix tokens, %zu bytes%s%s\n", "adapter", adapter.streams,
                   adapter.prefix_tokens, adapter.bytes, *digest ? ", digest " : "", digest);
    }
    if (json)
        printf("\n  ]");
    return EXIT_OK;
}

static int info_command(struct session *session) {
    const struct parscale_info *info = session->info;
    const char *chat_template = parscale_chat_template(session->handle);
    const struct info_row rows[] = {
        {"name", INFO_TEXT, info->name, 0},
        {"plan_digest", INFO_TEXT, info->plan_digest, 0},
        {"hidden_size", INFO_COUNT, NULL, (size_t)info->hidden_size},
        {"intermediate_size", INFO_COUNT, NULL, (size_t)info->intermediate_size},
        {"num_hidden_layers", INFO_COUNT, NULL, (size_t)info->layers},
        {"num_attention_heads", INFO_COUNT, NULL, (size_t)info->heads},
        {"num_key_value_heads", INFO_COUNT, NULL, (size_t)info->kv_heads},
        {"head_dim", INFO_COUNT, NULL, (size_t)info->head_dim},
        {"vocab_size", INFO_COUNT, NULL, (size_t)info->vocab_size},
        {"parscale_n", INFO_COUNT, NULL, (size_t)info->streams},
        {"parscale_n_tokens", INFO_COUNT, NULL, (size_t)info->prefix_tokens},
        {"context", INFO_COUNT, NULL, (size_t)info->context},
        {"weight_dtype", INFO_TEXT, info->weight_dtype, 0},
        {"cache_dtype", INFO_TEXT, info->cache_dtype, 0},
        {"tokenizer", INFO_BOOL, NULL, info->has_tokenizer},
        {"chat_template", INFO_TEXT, chat_template ? chat_template : "none", 0},
        {"device", INFO_TEXT, info->device, 0},
        {"device_note", INFO_TEXT, info->device_note[0] ? info->device_note : "none", 0},
        {"gpu_kernels", INFO_TEXT, info->gpu_kernels, 0},
        {"isa", INFO_TEXT, info->isa, 0},
        {"threads", INFO_COUNT, NULL, (size_t)info->threads},
        {"pack_bytes", INFO_BYTES, NULL, info->pack_bytes},
        {"weight_bytes", INFO_BYTES, NULL, info->weight_bytes},
        {"adapter_bytes", INFO_BYTES, NULL, info->adapter_bytes},
        {"cache_bytes", INFO_BYTES, NULL, info->cache_bytes},
        {"activation_bytes", INFO_BYTES, NULL, info->activation_bytes},
        {"gpu_cache_bytes", INFO_BYTES, NULL, info->gpu_cache_bytes},
        {"gpu_activation_bytes", INFO_BYTES, NULL, info->gpu_activation_bytes},
        {"kv_bytes_position", INFO_BYTES, NULL, info->kv_bytes_position},
        {"compiler", INFO_TEXT, info_compiler(), 0},
        {"processor", INFO_TEXT, info_processor(), 0},
    };
    const bool json = session->arguments.json;
    const int count = sizeof rows / sizeof rows[0];
    if (json)
        printf("{\n");
    (json ? info_print_json : info_print_text)(rows, count);
    int code = info_adapters(session);
    if (code)
        return code;
    if (json)
        printf("\n}\n");
    return output_flush(&session->error);
}
