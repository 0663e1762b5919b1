/* Random models of families that differ in what attention sees, and texts that they write many at a time: what each says,
 * and a hash of all logits that it saw. */
#ifndef TM_TESTS_TEXTS_H
#define TM_TESTS_TEXTS_H

#include "run.h"

#include "api/inference.h"
#include "io/hf.h"
#include "model/generate.h"

#define SIZES "\"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 20, \"num_hidden_layers\": 2, \"num_attention_heads\": 3, " \
              "\"num_key_value_heads\": 1, \"max_position_embeddings\": 64"
#define LONG_FACTORS "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1.0, 1.1, 1.2, 1.3], \"long_factor\": [1.5, 2.0, 4.0, 9.0]}"

static uint64_t seed;

static const char *const families[][2] = {
    {"llama", "{\"model_type\": \"llama\", " SIZES "}"}, /* three heads share one of keys */
    {"mistral", "{\"model_type\": \"mistral\", \"sliding_window\": 6, " SIZES "}"},
    {"gemma2", "{\"model_type\": \"gemma2\", \"head_dim\": 10, \"sliding_window\": 7, \"attn_logit_softcapping\": 2.0, \"final_logit_softcapping\": 3.0, " SIZES "}"},
    {"gemma3", "{\"model_type\": \"gemma3_text\", \"head_dim\": 8, \"sliding_window\": 7, \"sliding_window_pattern\": 2, " SIZES "}"},
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 53, \"n_embd\": 24, \"n_layer\": 2, \"n_head\": 3, \"n_positions\": 40}"},
    {"phi3-long", "{\"model_type\": \"phi3\", \"original_max_position_embeddings\": 14, " LONG_FACTORS ", " SIZES "}"},
    {"qwen-short", "{\"model_type\": \"qwen\", \"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 40, \"num_hidden_layers\": 2, "
                   "\"num_attention_heads\": 3, \"kv_channels\": 8, \"seq_length\": 6}"},
    {"qwen3", "{\"model_type\": \"qwen3\", \"head_dim\": 16, " SIZES "}"},
    {"dynamic", "{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}, \"vocab_size\": 53, \"hidden_size\": 24, \"intermediate_size\": 20, "
                "\"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"max_position_embeddings\": 8}"},
};
enum { FAMILIES = sizeof families / sizeof *families, VOCAB = 53, PROMPT = 13, NEW = 12, TEXTS = 9, PREFIX = 3, RANK = 3 };

/* --- A model that writes --- */

typedef struct machine {
    tm_recipe *recipe;
    tm_safetensors *file;
    tm_device *device;
    tm_memory memory;
    tm_model model;
    tm_tuning tuning;
    tm_batch batch;
} machine;

typedef struct layout {
    int64_t chunk, slots;
    int threads;
    const char *library; /* of a GPU; NULL: the CPU */
} layout;

static inline void build(machine *m, const char *model, tm_dtype act, layout l, const int64_t *limits)
{
    tm_model_settings settings = {.act = act, .max_tokens = l.chunk, .cache_tokens = PREFIX + PROMPT + NEW - 4 /* some texts fill it */, .cache_slots = l.slots};
    OK(tm_memory_init(&m->memory, m->device, limits, err));
    OK(tm_model_create(&m->model, model, m->file, TM_F32, m->device, &m->memory, 1, err));
    OK(tm_tuning_select(&m->tuning, m->recipe, NULL, &m->model, err));
    OK(tm_model_allocate(&m->model, &settings, err));
    OK(tm_batch_create(&m->batch, &m->memory, m->device, l.chunk, l.slots, 1, err));
    OK(tm_model_fit_batch(&m->model, &m->batch, err));
}

static inline void unbuild(machine *m)
{
    tm_batch_destroy(&m->batch);
    tm_tuning_deinit(&m->tuning);
    tm_model_destroy(&m->model);
    tm_memory_deinit(&m->memory);
    tm_device_destroy(m->device);
    m->tuning = (tm_tuning){0};
}

/* Values for what a method adds, half of which starts at 0. */
static inline void stir(tm_model *model, tm_param *p, uint64_t key)
{
    dice d = {.key = key};
    float *value = malloc(sizeof *value * (size_t)tm_param_count(p));
    for (int64_t i = 0; i < tm_param_count(p); i++)
        value[i] = (float)dice_spread(&d);
    OK(tm_param_write(model, p, 0, value, TM_F32, err));
    free(value);
}

/* Takes the memory that the counting device planned, no more. */
static inline void machine_open(machine *m, const char *model, const char *method, tm_dtype act, layout l)
{
    *m = (machine){0};
    int64_t limits[TM_MEM_KINDS];
    args a = {0};
    bool bank = strcmp(method, "bank") == 0, dora = strcmp(method, "dora") == 0;
    arg(&a, "method=%s", bank || dora ? "lora" : method);
    if (bank)
        arg(&a, "lora.registers=[left, right]");
    if (dora)
        arg(&a, "lora.use_dora=true");
    arg(&a, "lora.r=%d", RANK);
    arg(&a, "adapter.size=%d", RANK);
    arg(&a, "prompt.tokens=%d", PREFIX);
    OK(tm_recipe_load(NULL, a.item, a.count, &m->recipe, err));
    args_free(&a);
    OK(tm_hf_open_weights(model, &m->file, err));
    OK(tm_counting_device_create(l.library ? tm_cuda_traits() : tm_cpu_traits(), &m->device, err));
    build(m, model, act, l, NULL);
    tm_memory_peaks(&m->memory, limits);
    unbuild(m);
    if (l.library)
        OK(tm_cuda_device_create(l.library, 0, &m->device, err));
    else
        OK(tm_cpu_device_create(l.threads, TM_ISA_AUTO, &m->device, err));
    build(m, model, act, l, limits);
    OK(tm_model_load(&m->model, m->file, model, err));
    if (m->tuning.method->start)
        OK(m->tuning.method->start(&m->tuning, 0, 5, err));
    for (int64_t i = 0; m->tuning.method->start && i < m->model.params.count; i++)
        if (m->model.params.item[i]->added)
            stir(&m->model, m->model.params.item[i], seed + (uint64_t)i);
    tm_model_begin_step(&m->model, NULL);
}

static inline void machine_close(machine *m)
{
    unbuild(m);
    tm_safetensors_close(m->file);
    tm_recipe_destroy(m->recipe);
}

/* --- Texts --- */

typedef struct story {
    int32_t prompt[PROMPT], said[NEW];
    int64_t n, most, count;
    int32_t stop;
    uint64_t hash; /* of all logits that were seen; of what is likeliest alone: nothing */
    bool ended;
} story;

typedef struct telling {
    story story[TEXTS];
    int64_t order[TEXTS], count, next, refuse_at; /* refuse_at: the next that fails; -1: none */
    double temperature;
    bool likeliest; /* the device chooses */
    const float *gates; /* of all texts; NULL: none */
    void *scratch;
} telling;

static inline void invent(telling *t, dice *d)
{
    *t = (telling){.count = dice_in(d, 1, TEXTS), .temperature = dice_in(d, 0, 1) ? 2.5 : 0, .refuse_at = -1};
    for (int64_t i = 0; i < t->count; i++) {
        story *s = &t->story[i];
        *s = (story){.n = dice_in(d, 1, PROMPT), .most = dice_in(d, 0, NEW), .stop = (int32_t)dice_in(d, 0, VOCAB - 1)};
        for (int64_t k = 0; k < s->n; k++)
            s->prompt[k] = (int32_t)dice_in(d, 0, VOCAB - 1);
        t->order[i] = i;
    }
}

static inline tm_status next_text(void *context, tm_text *out, bool *there, tm_error *problem)
{
    telling *t = context;
    if (t->next == t->refuse_at)
        return tm_fail(problem, TM_FAILED, "no more");
    *there = t->next < t->count;
    if (!*there)
        return TM_OK;
    int64_t number = t->order[t->next++];
    const story *s = &t->story[number];
    *out = (tm_text){.prompt = {.ids = s->prompt, .n = (int32_t)s->n, .gates = t->gates}, .max_tokens = s->most, .number = number};
    return TM_OK;
}

static inline int32_t choose(void *context, int64_t number, const float *logits, int64_t position)
{
    telling *t = context;
    story *s = &t->story[number];
    tm_sampling sampling = {t->temperature, 0, 1, seed + (uint64_t)number};
    for (int64_t v = 0; v < VOCAB; v++) {
        uint32_t bits;
        memcpy(&bits, &logits[v], 4);
        s->hash = (s->hash ^ bits) * 1099511628211u;
    }
    return tm_sample(logits, VOCAB, &sampling, position, t->scratch);
}

static inline tm_status put_token(void *context, int64_t number, int32_t id, bool *more, tm_error *problem)
{
    telling *t = context;
    story *s = &t->story[number];
    (void)problem;
    assert_true(!s->ended && s->count < NEW && *more);
    s->said[s->count++] = id;
    *more = id != s->stop;
    return TM_OK;
}

static inline tm_status ended(void *context, int64_t number, tm_error *problem)
{
    telling *t = context;
    (void)problem;
    assert_false(t->story[number].ended);
    t->story[number].ended = true;
    return TM_OK;
}

static inline tm_status tell(machine *m, telling *t, tm_error *problem)
{
    tm_texts texts = {next_text, t->likeliest ? NULL : choose, put_token, ended, NULL, t};
    t->scratch = malloc(tm_sample_scratch_bytes(VOCAB));
    tm_status st = tm_decode(&m->model, &m->batch, &texts, problem);
    free(t->scratch);
    return st;
}

static inline void shuffle(telling *t, dice *d)
{
    for (int64_t i = t->count - 1; i > 0; i--) {
        int64_t k = dice_in(d, 0, i), other = t->order[k];
        t->order[k] = t->order[i];
        t->order[i] = other;
    }
}

static inline void same_stories(const telling *a, const telling *b, const char *what)
{
    for (int64_t i = 0; i < a->count; i++) {
        const story *x = &a->story[i], *y = &b->story[i];
        if (!x->ended || !y->ended || x->count != y->count || x->hash != y->hash || memcmp(x->said, y->said, sizeof x->said) != 0)
            fail_msg("%s: text %d of %d is another among others: %d and %d tokens; seed %llu", what, (int)i, (int)a->count, (int)x->count, (int)y->count, (unsigned long long)seed);
    }
}

static inline int texts_begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    for (int i = 0; i < FAMILIES; i++)
        write_model(scratch(families[i][0]), families[i][1], TM_F32, seed + 7 * (uint64_t)i);
    return 0;
}

#endif
