/* Families of models by what all of them must do: generation with a cache gives the logits of the text at once; tensors
 * are found under the other names that files use, and nothing else is taken; positions end where a table of them ends;
 * the layout of a step leaves gradients their bits; new models begin as transformers begins them. */
#include "../support/machine.h"

#include "api/inference.h"

#define SIZES "\"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 20, \"num_hidden_layers\": 3, \"num_attention_heads\": 3, " \
              "\"num_key_value_heads\": 1, \"max_position_embeddings\": 64"
#define LONG_FACTORS "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1.0, 1.1, 1.2, 1.3], \"long_factor\": [1.5, 2.0, 4.0, 9.0]}"

static uint64_t seed;

static const struct family {
    const char *name, *config;
    bool by_length; /* angles depend on the length of the text: only one that has its final length has the logits of the whole */
} families[] = {
    {"llama", "{\"model_type\": \"llama\", " SIZES "}", false},
    {"mistral", "{\"model_type\": \"mistral\", \"sliding_window\": 6, " SIZES "}", false},
    {"gemma", "{\"model_type\": \"gemma\", \"head_dim\": 8, " SIZES "}", false},
    {"gemma2", "{\"model_type\": \"gemma2\", \"head_dim\": 10, \"sliding_window\": 7, \"final_logit_softcapping\": 3.0, " SIZES "}", false},
    {"gemma3", "{\"model_type\": \"gemma3_text\", \"head_dim\": 8, \"sliding_window\": 7, \"sliding_window_pattern\": 2, " SIZES "}", false},
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 53, \"n_embd\": 24, \"n_layer\": 3, \"n_head\": 3, \"n_positions\": 40}", false},
    {"phi3", "{\"model_type\": \"phi3\", \"sliding_window\": 5, \"partial_rotary_factor\": 0.5, " SIZES "}", false},
    {"phi3-long", "{\"model_type\": \"phi3\", \"original_max_position_embeddings\": 14, " LONG_FACTORS ", " SIZES "}", false},
    {"qwen", "{\"model_type\": \"qwen\", \"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 40, \"num_hidden_layers\": 3, "
             "\"num_attention_heads\": 3, \"kv_channels\": 8, \"seq_length\": 64}", false},
    {"qwen-short", "{\"model_type\": \"qwen\", \"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 40, \"num_hidden_layers\": 3, "
                   "\"num_attention_heads\": 3, \"kv_channels\": 8, \"seq_length\": 6}", true},
    {"yarn", "{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2.0, \"original_max_position_embeddings\": 8}, " SIZES "}", false},
    {"dynamic", "{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}, \"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 20, "
                "\"num_hidden_layers\": 3, \"num_attention_heads\": 3, \"max_position_embeddings\": 8}", true},
};
enum { FAMILIES = sizeof families / sizeof *families, VOCAB = 53, PROMPT = 11, NEW = 9 };

/* --- Cache --- */

static bool append(void *context, int32_t id)
{
    int32_t **at = context;
    *(*at)++ = id;
    return true;
}

static int32_t likeliest_next(tm_inference *inf, const int32_t *ids, int32_t n)
{
    tm_batch_item item = {.ids = ids, .n = n, .scale = 1};
    tm_batch_fill(&inf->batch, &item, 1);
    tm_model_forward(&inf->model, &inf->batch);
    tm_model_logits(&inf->model, &inf->batch);
    const float *logits = (const float *)inf->model.logits.data + (n - 1) * inf->model.logits.ld;
    int32_t best = 0;
    for (int32_t v = 1; v < VOCAB; v++)
        best = logits[v] > logits[best] ? v : best;
    return best;
}

static void cached_as_whole(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        tm_inference cached, whole;
        int32_t ids[PROMPT + NEW], *at = ids + PROMPT;
        dice d = {.key = seed + (uint64_t)f};
        for (int i = 0; i < PROMPT; i++)
            ids[i] = (int32_t)dice_in(&d, 0, VOCAB - 1);
        OK(tm_inference_open(&(tm_inference_settings){.model = scratch(families[f].name), .threads = 1, .max_tokens = 4, .cache_tokens = PROMPT + NEW}, &cached, err));
        OK(tm_inference_open(&(tm_inference_settings){.model = scratch(families[f].name), .threads = 1, .max_tokens = PROMPT + NEW, .logits = true}, &whole, err));
        int64_t wanted = families[f].by_length ? 1 : NEW;
        OK(tm_generate_ids(&cached, ids, PROMPT, wanted, NULL, 0, &(tm_sampling){.top_p = 1}, append, &at, err));
        for (int i = 0; i < wanted; i++)
            if (likeliest_next(&whole, ids, PROMPT + i) != ids[PROMPT + i])
                fail_msg("%s: token %d with the cache is %d; seed %llu", families[f].name, i, ids[PROMPT + i], (unsigned long long)seed);
        tm_inference_close(&cached);
        tm_inference_close(&whole);
    }
}

/* --- Layouts --- */

/* A hash of the step's gradients: whole, or in micro-batches of one example or two; any instruction set. */
static uint64_t gradients(const struct family *f, const char *method, tm_isa isa, int64_t max_tokens, int64_t recompute)
{
    args a = {0};
    tm_job job;
    machine m;
    uint64_t hash = 14695981039346656037u;
    arg(&a, "model=%s", scratch(f->name));
    arg(&a, "out=%s", scratch("none"));
    arg(&a, "data.0.path=%s", scratch("walks.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "train.batch=5");
    arg(&a, "method=%s", method);
    open_job(&a, TM_JOB_PLAN, &job);
    machine_open(&m, &job, isa, max_tokens, (tm_model_settings){.recompute_layers = recompute});
    tm_model_begin_step(&m.model, m.step);
    machine_loss(&m, true);
    for (int64_t i = 0; i < m.model.params.count; i++) {
        const tm_param *p = m.model.params.item[i];
        const unsigned char *bytes = p->grad.data;
        for (int64_t k = 0; p->trained && k < 4 * tm_param_count(p); k++)
            hash = (hash ^ bytes[k]) * 1099511628211u;
    }
    machine_close(&m);
    tm_job_close(&job);
    args_free(&a);
    return hash;
}

static void layout_leaves_bits(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora"};
    write_rows(scratch("walks.jsonl"), 5, 5, 20, VOCAB, 0.3, seed);
    for (int f = 0; f < FAMILIES; f++)
        for (int k = 0; k < 2; k++) {
            uint64_t whole = gradients(&families[f], methods[k], TM_ISA_AUTO, 0, 0);
            bool same = gradients(&families[f], methods[k], TM_ISA_AUTO, 20, INT64_MAX) == whole && gradients(&families[f], methods[k], TM_ISA_AUTO, 41, 1) == whole &&
                        gradients(&families[f], methods[k], TM_ISA_SCALAR, 33, 2) == whole;
            if (!same)
                fail_msg("%s, %s: gradients depend on the layout; seed %llu", families[f].name, methods[k], (unsigned long long)seed);
        }
}

/* --- Names and shapes of files --- */

static char *model_path(const char *name, char path[600])
{
    snprintf(path, 600, "%s/model.safetensors", scratch(name));
    return path;
}

/* Rewrites a model's file: every name goes through `rename`; extra (may be NULL) is added. */
static void rewrite(const char *from, const char *to, void (*rename)(const char *, char[200]), const tm_st_tensor *extra)
{
    char path[600], names[128][200];
    tm_safetensors *file;
    tm_st_tensor tensors[129];
    OK(tm_safetensors_open(model_path(from, path), &file, err));
    int64_t count = tm_safetensors_count(file);
    for (int64_t i = 0; i < count; i++) {
        tensors[i] = *tm_safetensors_at(file, i);
        rename(tensors[i].name, names[i]);
        tensors[i].name = names[i];
    }
    if (extra)
        tensors[count++] = *extra;
    OK(tm_dir_create(scratch(to), err));
    OK(tm_safetensors_write(model_path(to, path), tensors, count, NULL, err));
    tm_safetensors_close(file);
}

static void write_config(const char *to, const char *config)
{
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", scratch(to));
    OK(tm_file_write(path, config, strlen(config), err));
}

static void first_logits(const char *name, float out[VOCAB])
{
    tm_inference inf;
    int32_t ids[3] = {5, 7, 11};
    OK(tm_inference_open(&(tm_inference_settings){.model = scratch(name), .threads = 1, .max_tokens = 3, .logits = true}, &inf, err));
    likeliest_next(&inf, ids, 3);
    memcpy(out, (const float *)inf.model.logits.data + 2 * inf.model.logits.ld, VOCAB * sizeof *out);
    tm_inference_close(&inf);
}

static void without_prefix(const char *name, char out[200]) { snprintf(out, 200, "%s", strncmp(name, "transformer.", 12) == 0 ? name + 12 : name); }
static void as_it_is(const char *name, char out[200]) { snprintf(out, 200, "%s", name); }
static void as_published(const char *name, char out[200]) { snprintf(out, 200, "language_model.%s", name); }

/* Checkpoints of GPT-2 as they were first published: no prefix, and the causal mask as a tensor of every layer. */
static void gpt2_without_prefix(void **state)
{
    (void)state;
    float a[VOCAB], b[VOCAB], mask[4] = {1, 0, 1, 1};
    rewrite("gpt2", "gpt2-bare", without_prefix, &(tm_st_tensor){.name = "h.0.attn.bias", .dtype = TM_F32, .ndim = 4, .shape = {1, 1, 2, 2}, .data = mask});
    write_config("gpt2-bare", families[5].config);
    first_logits("gpt2", a);
    first_logits("gpt2-bare", b);
    assert_memory_equal(a, b, sizeof a);
}

/* Gemma 3 with its vision part: the text is found below the names of both layouts, the rest is left alone. */
static void gemma3_of_a_larger_model(void **state)
{
    (void)state;
    float a[VOCAB], b[VOCAB], weight[4] = {1, 2, 3, 4};
    char config[1000];
    snprintf(config, sizeof config, "{\"model_type\": \"gemma3\", \"text_config\": %s, \"vision_config\": {}}", families[4].config);
    rewrite("gemma3", "gemma3-all", as_published, &(tm_st_tensor){.name = "vision_tower.x.weight", .dtype = TM_F32, .ndim = 1, .shape = {4}, .data = weight});
    write_config("gemma3-all", config);
    first_logits("gemma3", a);
    first_logits("gemma3-all", b);
    assert_memory_equal(a, b, sizeof a);
}

static void refused(const char *model, const char *expect)
{
    tm_error problem = {0};
    tm_inference inf;
    tm_status st = tm_inference_open(&(tm_inference_settings){.model = scratch(model), .threads = 1, .max_tokens = 3, .logits = true}, &inf, &problem);
    if (st == TM_OK)
        tm_inference_close(&inf);
    if (st == TM_OK || !strstr(problem.message, expect))
        fail_msg("%s: status %d, \"%s\", expected \"%s\"", model, (int)st, problem.message, expect);
}

static void unknown_and_misshapen(void **state)
{
    (void)state;
    float weight[4] = {1, 2, 3, 4};
    rewrite("gpt2", "gpt2-more", as_it_is, &(tm_st_tensor){.name = "transformer.h.0.mlp.c_gate.weight", .dtype = TM_F32, .ndim = 2, .shape = {2, 2}, .data = weight});
    write_config("gpt2-more", families[5].config);
    refused("gpt2-more", "transformer.h.0.mlp.c_gate.weight is not part");
    rewrite("gpt2", "gpt2-wide", as_it_is, NULL);
    write_config("gpt2-wide", "{\"model_type\": \"gpt2\", \"vocab_size\": 53, \"n_embd\": 24, \"n_layer\": 3, \"n_head\": 3, \"n_inner\": 90, \"n_positions\": 40}");
    refused("gpt2-wide", "mlp.c_fc.weight has 2 dimensions [24, 96], config.json says [24, 90]");
}

static void configs_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"model_type\": \"frog\", " SIZES "}", "model_type 'frog' is not supported (llama, mistral, "},
        {"{\"model_type\": \"phi3\", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1.0], \"long_factor\": [1.0]}, " SIZES "}", "short_factor has 1 numbers, expected one for each of 4 pairs"},
        {"{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"ntk-by-parts\", \"factor\": 2.0}, " SIZES "}", "rope scaling 'ntk-by-parts' is not supported"},
        {"{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": -2.0}, " SIZES "}", "rope: the numbers make no sense"},
        {"{\"model_type\": \"llama\", \"partial_rotary_factor\": 0.4, " SIZES "}", "3 of 8 columns of a head are rotated"},
        {"{\"model_type\": \"gemma2\", \"hidden_activation\": \"relu\", " SIZES "}", "hidden_activation 'relu' is not supported"},
        {"{\"model_type\": \"gemma2\", \"attn_logit_softcapping\": -1.0, " SIZES "}", "attn_logit_softcapping is -1"},
        {"{\"model_type\": \"gemma3_text\", \"layer_types\": [\"full_attention\"], " SIZES "}", "layer_types has 1 entries, expected 3"},
        {"{\"model_type\": \"gemma3\", \"text_config\": 3}", "text_config: expected an object"},
        {"{\"model_type\": \"gpt2\", \"vocab_size\": 53, \"n_embd\": 0, \"n_layer\": 3, \"n_head\": 3}", "n_embd is 0"},
        {"{\"model_type\": \"llama\", \"pad_token_id\": 99, " SIZES "}", "pad_token_id is 99"},
    };
    OK(tm_dir_create(scratch("config"), err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_model_config config;
        tm_error problem = {0};
        write_config("config", cases[i][0]);
        tm_status st = tm_model_config_read(scratch("config"), &config, &problem);
        if (st == TM_OK || !strstr(problem.message, cases[i][1]))
            fail_msg("status %d, \"%s\", expected \"%s\"", (int)st, problem.message, cases[i][1]);
    }
}

/* --- Positions --- */

static void positions_end(void **state)
{
    (void)state;
    tm_error problem = {0};
    tm_inference inf;
    assert_int_not_equal(tm_inference_open(&(tm_inference_settings){.model = scratch("gpt2"), .threads = 1, .max_tokens = 8, .cache_tokens = 41}, &inf, &problem), TM_OK);
    assert_non_null(strstr(problem.message, "positions for 40 tokens"));
    args a = {0}; /* rows longer than the table are cut, not read beyond it */
    write_rows(scratch("rows.jsonl"), 6, 50, 60, VOCAB, 0, seed);
    arg(&a, "model=%s", scratch("gpt2"));
    arg(&a, "out=%s", scratch("run"));
    arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "train.steps=2");
    arg(&a, "train.batch=2");
    train(&a);
    args_free(&a);
}

/* --- Published models --- */

/* What their configs say, as far as it decides sizes, and how many parameters the models have. */
static const struct published {
    const char *name, *config;
    int64_t parameters;
} published[] = {
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 768, \"n_layer\": 12, \"n_head\": 12, \"n_positions\": 1024}", 124439808},
    {"gpt2-xl", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 1600, \"n_layer\": 48, \"n_head\": 25, \"n_positions\": 1024}", 1557611200},
    {"rugpt3large", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 1536, \"n_layer\": 24, \"n_head\": 16, \"n_positions\": 2048}", 760300032},
    {"Qwen-1.8B", "{\"model_type\": \"qwen\", \"vocab_size\": 151936, \"hidden_size\": 2048, \"num_hidden_layers\": 24, \"num_attention_heads\": 16, \"intermediate_size\": 11008, "
                  "\"kv_channels\": 128, \"no_bias\": true}", 1836828672},
    {"Qwen-7B", "{\"model_type\": \"qwen\", \"vocab_size\": 151936, \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"intermediate_size\": 22016}", 7721324544},
    {"Qwen-14B", "{\"model_type\": \"qwen\", \"vocab_size\": 152064, \"hidden_size\": 5120, \"num_hidden_layers\": 40, \"num_attention_heads\": 40, \"intermediate_size\": 27392}", 14167290880},
    {"Qwen1.5-0.5B", "{\"model_type\": \"qwen2\", \"vocab_size\": 151936, \"hidden_size\": 1024, \"num_hidden_layers\": 24, \"num_attention_heads\": 16, \"num_key_value_heads\": 16, "
                     "\"intermediate_size\": 2816, \"tie_word_embeddings\": true}", 463987712},
    {"Qwen2.5-7B", "{\"model_type\": \"qwen2\", \"vocab_size\": 152064, \"hidden_size\": 3584, \"num_hidden_layers\": 28, \"num_attention_heads\": 28, \"num_key_value_heads\": 4, "
                   "\"intermediate_size\": 18944}", 7615616512},
    {"Qwen3-4B", "{\"model_type\": \"qwen3\", \"vocab_size\": 151936, \"hidden_size\": 2560, \"num_hidden_layers\": 36, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                 "\"head_dim\": 128, \"intermediate_size\": 9728, \"tie_word_embeddings\": true}", 4022468096},
    {"TinyLlama-1.1B", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 2048, \"num_hidden_layers\": 22, \"num_attention_heads\": 32, \"num_key_value_heads\": 4, "
                       "\"intermediate_size\": 5632}", 1100048384},
    {"Llama-2-7b", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"intermediate_size\": 11008}", 6738415616},
    {"Llama-3.1-8B", "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                     "\"intermediate_size\": 14336}", 8030261248},
    {"Llama-3.2-1B", "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 2048, \"num_hidden_layers\": 16, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                     "\"head_dim\": 64, \"intermediate_size\": 8192, \"tie_word_embeddings\": true}", 1235814400},
    {"Mistral-7B", "{\"model_type\": \"mistral\", \"vocab_size\": 32000, \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                   "\"intermediate_size\": 14336}", 7241732096},
    {"Mistral-Nemo-12B", "{\"model_type\": \"mistral\", \"vocab_size\": 131072, \"hidden_size\": 5120, \"num_hidden_layers\": 40, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
                         "\"head_dim\": 128, \"intermediate_size\": 14336}", 12247782400},
    {"gemma-2b", "{\"model_type\": \"gemma\", \"vocab_size\": 256000, \"hidden_size\": 2048, \"num_hidden_layers\": 18, \"num_attention_heads\": 8, \"num_key_value_heads\": 1, "
                 "\"head_dim\": 256, \"intermediate_size\": 16384}", 2506172416},
    {"gemma-2-2b", "{\"model_type\": \"gemma2\", \"vocab_size\": 256000, \"hidden_size\": 2304, \"num_hidden_layers\": 26, \"num_attention_heads\": 8, \"num_key_value_heads\": 4, "
                   "\"head_dim\": 256, \"intermediate_size\": 9216}", 2614341888},
    {"gemma-2-9b", "{\"model_type\": \"gemma2\", \"vocab_size\": 256000, \"hidden_size\": 3584, \"num_hidden_layers\": 42, \"num_attention_heads\": 16, \"num_key_value_heads\": 8, "
                   "\"head_dim\": 256, \"intermediate_size\": 14336}", 9241705984},
    {"gemma-3-1b", "{\"model_type\": \"gemma3_text\", \"vocab_size\": 262144, \"hidden_size\": 1152, \"num_hidden_layers\": 26, \"num_attention_heads\": 4, \"num_key_value_heads\": 1, "
                   "\"head_dim\": 256, \"intermediate_size\": 6912}", 999885952},
    {"Phi-3-mini", "{\"model_type\": \"phi3\", \"vocab_size\": 32064, \"hidden_size\": 3072, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"intermediate_size\": 8192}", 3821079552},
    {"Phi-4-mini", "{\"model_type\": \"phi3\", \"vocab_size\": 200064, \"hidden_size\": 3072, \"num_hidden_layers\": 32, \"num_attention_heads\": 24, \"num_key_value_heads\": 8, "
                   "\"intermediate_size\": 8192, \"partial_rotary_factor\": 0.75, \"tie_word_embeddings\": true}", 3836021760},
};

static void published_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        tm_device *counting;
        tm_memory memory;
        tm_model model;
        int64_t parameters = 0;
        write_config("config", published[i].config);
        OK(tm_counting_device_create(tm_cpu_traits(), &counting, err));
        OK(tm_memory_init(&memory, counting, NULL, err));
        OK(tm_model_create(&model, scratch("config"), NULL, TM_BF16, counting, &memory, 1, err));
        for (int64_t k = 0; k < model.params.count; k++)
            parameters += tm_param_count(model.params.item[k]);
        if (parameters != published[i].parameters)
            fail_msg("%s: %lld parameters, %lld are published", published[i].name, (long long)parameters, (long long)published[i].parameters);
        tm_model_destroy(&model);
        tm_memory_deinit(&memory);
        tm_device_destroy(counting);
    }
}

/* --- First values --- */

static double deviation(const tm_param *p)
{
    double sum = 0;
    int64_t n = tm_param_count(p);
    for (int64_t i = 0; i < n; i++)
        sum += (double)((const float *)p->value.data)[i] * ((const float *)p->value.data)[i];
    return sqrt(sum / (double)n);
}

static void first_values(void **state)
{
    (void)state;
    static const int which[] = {0, 3, 5, 8}; /* llama, gemma2, gpt2, qwen */
    for (int k = 0; k < 4; k++) {
        tm_inference inf;
        OK(tm_inference_open(&(tm_inference_settings){.model = scratch(families[which[k]].name), .threads = 1, .max_tokens = 4}, &inf, err));
        tm_model *m = &inf.model;
        OK(tm_model_init_random(m, seed, err));
        double residual = which[k] >= 5 ? 0.02 / sqrt(6) : 0.02;
        assert_true(fabs(deviation(m->block[1].slot[TM_Q].weight) / 0.02 - 1) < 0.15);
        assert_true(fabs(deviation(m->block[1].slot[TM_DOWN].weight) / residual - 1) < 0.15);
        assert_true(deviation(m->block[1].norm[TM_NORM_ATTN].weight) == (which[k] == 3 ? 0 : 1));
        if (m->block[1].norm[TM_NORM_ATTN].bias)
            assert_true(deviation(m->block[1].norm[TM_NORM_ATTN].bias) == 0);
        tm_inference_close(&inf);
    }
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    for (int i = 0; i < FAMILIES; i++)
        write_model(scratch(families[i].name), families[i].config, TM_F32, seed + 7 * (uint64_t)i);
    return 0;
}

/* Llama 3's scaling by its definition: pairs that turn often over the original positions stay, those that turn less than once are
 * slowed down, between them a mixture. */
static void llama3_has_three_bands(void **state)
{
    (void)state;
    tm_rope_config r = {.kind = TM_ROPE_LLAMA3, .size = 64, .theta = 10000, .factor = 8, .attention_factor = 1, .low_freq_factor = 1, .high_freq_factor = 4, .original_positions = 512,
                        .limit = INT64_MAX};
    float found[32];
    int band[3] = {0};
    tm_rope_frequencies(&r, 0, false, found);
    for (int i = 0; i < 32; i++) {
        double plain = pow(10000, -i / 32.0), turns = 512 * plain / (2 * M_PI), share = turns < 1 ? 0 : turns > 4 ? 1 : (turns - 1) / 3;
        double want = (1 - share) * plain / 8 + share * plain;
        band[turns < 1 ? 0 : turns > 4 ? 2 : 1]++;
        if (!(fabs(found[i] - want) <= 1e-6 * want)) /* floats there, as in PyTorch */
            fail_msg("pair %d: %.9g, expected %.9g", i, (double)found[i], want);
    }
    assert_true(band[0] > 3 && band[1] > 3 && band[2] > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama3_has_three_bands), cmocka_unit_test(cached_as_whole),       cmocka_unit_test(gpt2_without_prefix), cmocka_unit_test(gemma3_of_a_larger_model),
        cmocka_unit_test(unknown_and_misshapen), cmocka_unit_test(configs_refused),     cmocka_unit_test(positions_end),
        cmocka_unit_test(first_values),          cmocka_unit_test(layout_leaves_bits),
        cmocka_unit_test(published_sizes),
    };
    return cmocka_run_group_tests_name("families", tests, begin, scratch_end);
}
