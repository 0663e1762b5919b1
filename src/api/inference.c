/* Inference: see inference.h. */
#include "api/inference.h"

#include "api/job.h"
#include "base/clock.h"
#include "base/exact.h"
#include "base/json.h"
#include "base/philox.h"
#include "model/generate.h"
#include "io/adapter_kind.h"
#include "tune/registers.h"
#include "io/hf.h"

#include <stdlib.h>

static tm_status build(tm_inference *inf, const tm_inference_settings *s, tm_device *device, const int64_t *limits, tm_error *err)
{
    tm_model_settings settings = {.act = s->logits ? device->real : device->traits.act, .max_tokens = s->max_tokens, .logits = s->logits, .cache_tokens = s->cache_tokens, .cache_slots = s->texts};
    TM_TRY(tm_memory_init(&inf->memory, device, limits, err));
    TM_TRY(tm_model_create(&inf->model, s->model, inf->file, TM_F32, device, &inf->memory, 1, err));
    int64_t tokens = s->cache_tokens ? s->cache_tokens : s->max_tokens, longest = tm_model_config_longest(&inf->model.config);
    if (tokens > longest)
        return tm_fail(err, TM_USAGE, "%s: the model has positions for %lld tokens, prompt and answer need %lld: ask for fewer tokens", s->model,
                       (long long)longest, (long long)tokens);
    TM_TRY(tm_tuning_select(&inf->tuning, inf->recipe, NULL, &inf->model, err));
    TM_TRY(tm_model_allocate(&inf->model, &settings, err));
    TM_TRY(tm_batch_create(&inf->batch, &inf->memory, device, s->max_tokens, s->cache_tokens ? s->texts : s->max_tokens / 2 + 1, 1, err));
    return tm_model_fit_batch(&inf->model, &inf->batch, err);
}

static void drop_model(tm_inference *inf)
{
    tm_batch_destroy(&inf->batch);
    tm_tuning_deinit(&inf->tuning);
    tm_model_destroy(&inf->model);
    tm_memory_deinit(&inf->memory);
}

/* What it takes; s->texts: as many as memory allows. */
static tm_status measure(tm_inference *inf, tm_inference_settings *s, int64_t limits[TM_MEM_KINDS], tm_error *err)
{
    tm_device *counting;
    TM_TRY(tm_counting_device_create(inf->device->traits, &counting, err));
    tm_status st = build(inf, s, counting, NULL, err);
    int64_t needed = tm_memory_peaks(&inf->memory, limits), available = tm_device_available(inf->device);
    drop_model(inf);
    tm_device_destroy(counting);
    if (st == TM_OK && available >= 0 && needed > available && s->texts > 1) {
        s->texts /= 2;
        return measure(inf, s, limits, err);
    }
    if (st == TM_OK && available >= 0 && needed > available)
        return tm_fail(err, TM_NO_FIT, "%s: the model needs %.2f GiB of memory, %.2f GiB are available", s->model, (double)needed / (1 << 30), (double)available / (1 << 30));
    return st;
}

static tm_status make_recipe(const tm_inference_settings *s, tm_recipe **out, tm_error *err)
{
    tm_adapter_kind kind = TM_ADAPTER_LORA;
    tm_buf line[2] = {{0}, {0}};
    if (s->adapter)
        TM_TRY(tm_adapter_kind_of(s->adapter, &kind, err));
    tm_buf_printf(&line[0], "method=%s", s->adapter ? tm_adapter_kind_method(kind) : "none");
    tm_buf_printf(&line[1], "%s.init=", tm_adapter_kind_method(kind));
    tm_json_put_string(&line[1], s->adapter ? s->adapter : "");
    tm_status st = tm_buf_check(&line[0], err);
    if (st == TM_OK)
        st = tm_buf_check(&line[1], err);
    if (st == TM_OK)
        st = tm_recipe_load(NULL, (char *[]){line[0].data, line[1].data}, s->adapter ? 2 : 1, out, err);
    tm_buf_deinit(&line[0]);
    tm_buf_deinit(&line[1]);
    return st;
}

tm_status tm_inference_open(const tm_inference_settings *settings, tm_inference *inf, tm_error *err)
{
    *inf = (tm_inference){0};
    tm_status st = TM_OK;
    int64_t limits[TM_MEM_KINDS];
    tm_inference_settings settled = *settings, *s = &settled;
    if (s->texts < 1)
        s->texts = 1;
    TM_GO(make_recipe(s, &inf->recipe, err));
    if (inf->recipe->method == TM_METHOD_PROMPT) { /* its rows stand before every text */
        tm_prompt_config prompt;
        TM_GO(tm_prompt_config_read(s->adapter, &prompt, err));
        s->max_tokens += prompt.tokens;
        s->cache_tokens += s->cache_tokens ? prompt.tokens : 0;
    }
    TM_GO(tm_hf_open_weights(s->model, &inf->file, err));
    TM_GO(tm_device_open(s->logits ? "cpu" : s->device ? s->device : inf->recipe->device, s->threads, &inf->device, NULL, err));
    TM_GO(measure(inf, s, limits, err));
    TM_GO(build(inf, s, inf->device, limits, err));
    TM_GO(tm_model_load(&inf->model, inf->file, s->model, err));
    if (inf->tuning.method->start)
        TM_GO(inf->tuning.method->start(&inf->tuning, 0, 0, err));
    tm_model_begin_step(&inf->model, NULL);
    TM_GO(TM_NEW(&inf->gates, inf->tuning.registers.count + 1, err));
    if (s->registers && strcmp(s->registers, "auto") == 0) {
        if (!s->adapter || !tm_router_there(s->adapter))
            TM_GO(tm_fail(err, TM_USAGE, "--register auto: %s has no router (lora.router: true learns one)", s->adapter ? s->adapter : "the base"));
        TM_GO(tm_router_read(s->adapter, inf->model.config.width, inf->tuning.registers.count, &inf->router, err));
    } else if (s->registers)
        TM_GO(tm_registers_parse(&inf->tuning.registers, s->registers, "--register", inf->gates, err));
out:
    if (st != TM_OK)
        tm_inference_close(inf);
    return st;
}

void tm_inference_close(tm_inference *inf)
{
    drop_model(inf);
    tm_ids_deinit(&inf->fed);
    tm_device_destroy(inf->device);
    tm_safetensors_close(inf->file);
    tm_recipe_destroy(inf->recipe);
    free(inf->gates);
    tm_router_deinit(&inf->router);
    free(inf->prompt_gates);
    *inf = (tm_inference){0};
}

/* --- Sampling --- */

typedef struct candidate {
    double weight;
    int32_t id;
} candidate;

size_t tm_sample_scratch_bytes(int64_t vocab) { return (size_t)vocab * sizeof(candidate); }

/* Whether a comes before b: by weight, then by id. */
static bool before(const candidate *a, const candidate *b) { return a->weight != b->weight ? a->weight > b->weight : a->id < b->id; }

/* The candidates of a heap, whose first comes before all others, but for the one at i. */
static void sift(candidate *c, int64_t n, int64_t i)
{
    candidate moved = c[i];
    for (int64_t next; (next = 2 * i + 1) < n; i = next) {
        next += next + 1 < n && before(&c[next + 1], &c[next]);
        if (!before(&c[next], &moved))
            break;
        c[i] = c[next];
    }
    c[i] = moved;
}

/* Of a heap of n - done candidates the first goes behind the others: the last `done` of all n are in order, from the end on. */
static void take_first(candidate *c, int64_t n, int64_t done)
{
    candidate first = c[0];
    int64_t last = n - 1 - done;
    c[0] = c[last];
    sift(c, last, 0);
    c[last] = first;
}

/* Weights relative to the likeliest's; their sum in the order of ids. */
static double weigh(const float *logits, int64_t vocab, float most, double temperature, candidate *c)
{
    enum { AT_ONCE = 64 };
    double sum = 0, weight[AT_ONCE];
    for (int64_t from = 0; from < vocab; from += AT_ONCE) {
        int64_t n = vocab - from < AT_ONCE ? vocab - from : AT_ONCE;
        for (int64_t i = 0; i < n; i++)
            weight[i] = ((double)logits[from + i] - most) / temperature;
        tm_exp_all(weight, n);
        for (int64_t i = 0; i < n; i++) {
            c[from + i] = (candidate){weight[i], (int32_t)(from + i)};
            sum += weight[i];
        }
    }
    return sum;
}

int32_t tm_sample(const float *logits, int64_t vocab, const tm_sampling *s, int64_t position, void *scratch)
{
    int32_t best = tm_most_likely(logits, vocab);
    if (s->temperature <= 0)
        return best;
    candidate *c = scratch, *end = c + vocab - 1;
    double sum = weigh(logits, vocab, logits[best], s->temperature, c), kept = 0;
    bool few = s->top_k > 0 && s->top_k < vocab, ordered = few || s->top_p < 1;
    int64_t n = few ? s->top_k : vocab, done = 0, k = 0;
    for (int64_t i = ordered ? vocab / 2 : 0; i > 0; i--)
        sift(c, vocab, i - 1);
    if (few)
        for (sum = 0; done < n; done++) {
            take_first(c, vocab, done);
            sum += end[-done].weight;
        }
    if (s->top_p < 1) { /* the fewest candidates whose probabilities reach top_p */
        for (; k < n && (k == 0 || kept < s->top_p * sum); k++) {
            if (k == done)
                take_first(c, vocab, done++);
            kept += end[-k].weight;
        }
        n = k;
        sum = kept;
    }
    tm_philox random = tm_philox_at(tm_philox_key(s->seed, TM_PURPOSE_SAMPLE, 0, 0), (uint32_t)position, 0, 0, 0);
    double at = sum * ((double)((uint64_t)random.word[0] << 21 | random.word[1] >> 11) * 0x1p-53);
    for (int64_t i = 0; i < n; i++) {
        const candidate *drawn = ordered ? end - i : c + i;
        at -= drawn->weight;
        if (at < 0 || i == n - 1)
            return drawn->id;
    }
    return best;
}

/* --- Generation --- */

typedef struct sampler {
    tm_inference *inf;
    tm_text text;
    bool given;
    const tm_sampling *sampling;
    const int32_t *stop;
    size_t stops;
    bool (*token)(void *context, int32_t id);
    void *context, *scratch;
    int32_t last; /* chosen and, when the next is there, in the cache; -1: none */
} sampler;

static tm_status next_text(void *context, tm_text *out, bool *there, tm_error *err)
{
    sampler *s = context;
    (void)err;
    *there = !s->given;
    s->given = true;
    *out = s->text;
    return TM_OK;
}

static int32_t choose(void *context, int64_t number, const float *logits, int64_t position)
{
    const sampler *s = context;
    (void)number;
    return tm_sample(logits, s->inf->model.config.vocab, s->sampling, position, s->scratch);
}

static tm_status put_token(void *context, int64_t number, int32_t id, bool *more, tm_error *err)
{
    sampler *s = context;
    (void)number;
    (void)err;
    if (s->last >= 0)
        s->inf->fed.id[s->inf->fed.count++] = s->last;
    s->last = id;
    for (size_t k = 0; k < s->stops; k++)
        *more &= id != s->stop[k];
    *more = *more && (!s->token || s->token(s->context, id));
    return TM_OK;
}

tm_status tm_inference_knows(const tm_inference *inf, const char *model, const char *what, const int32_t *ids, size_t count, tm_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= inf->model.config.vocab)
            return tm_fail(err, TM_INPUT, "%s: token %d of the %s is outside the model's vocabulary of %lld: tokenizer and model do not belong together", model, ids[i],
                           what, (long long)inf->model.config.vocab);
    return TM_OK;
}

tm_status tm_inference_route(tm_inference *inf, const int32_t *prompt, int64_t count, tm_error *err)
{
    tm_model *m = &inf->model;
    int64_t C = m->config.width, most = inf->batch.max_tokens;
    double *sum = NULL;
    float *rows = NULL;
    void *raw = NULL;
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&sum, C, err));
    TM_GO(TM_NEW(&rows, most * C, err));
    TM_GO(tm_alloc(&raw, (size_t)(most * C), 4, err));
    m->linear.base_only = true;
    inf->batch.cached = true;
    inf->fed.count = 0; /* what the cache holds from here on is the base's */
    for (int64_t past = 0, n; past < count; past += n) {
        n = count - past < most ? count - past : most;
        tm_batch_item item = {.ids = prompt + past, .n = (int32_t)n, .past = (int32_t)past, .gates = inf->gates};
        tm_batch_fill(&inf->batch, &item, 1);
        tm_model_forward(m, &inf->batch);
        inf->device->calls->download(inf->device, raw, m->hidden.data, tm_dtype_bytes(m->hidden.dtype, n * C));
        tm_dtype_convert(rows, TM_F32, raw, m->hidden.dtype, n * C);
        for (int64_t i = past == 0 && count > 1 ? C : 0; i < n * C; i++)
            sum[i % C] += rows[i];
    }
    m->linear.base_only = inf->batch.cached = false;
    for (int64_t c = 0; c < C; c++)
        rows[c] = (float)(sum[c] / (double)count);
    tm_router_gates(&inf->router, rows, inf->gates);
    st = inf->device->calls->sync(inf->device, err);
out:
    free(sum);
    free(rows);
    free(raw);
    return st;
}

tm_status tm_generate_ids(tm_inference *inf, const int32_t *prompt, size_t prompt_count, int64_t max_tokens, const int32_t *stop, size_t stop_count,
                          const tm_sampling *sampling, bool (*token)(void *context, int32_t id), void *context, tm_error *err)
{
    tm_status st;
    size_t known = 0, room = (size_t)inf->model.settings.cache_tokens + 1;
    sampler s = {.inf = inf, .sampling = sampling, .stop = stop, .stops = stop_count, .token = token, .context = context, .last = -1};
    TM_TRY(tm_alloc(&s.scratch, tm_sample_scratch_bytes(inf->model.config.vocab), 1, err));
    TM_GO(TM_GROW(&inf->fed.id, &inf->fed.capacity, room > prompt_count ? room : prompt_count, err));
    while (known < inf->fed.count && known + 1 < prompt_count && inf->fed.id[known] == prompt[known])
        known++;
    memcpy(inf->fed.id + known, prompt + known, (prompt_count - known) * sizeof *prompt);
    inf->fed.count = prompt_count;
    s.text = (tm_text){.prompt = {.ids = prompt, .n = (int32_t)prompt_count, .past = (int32_t)known, .gates = inf->prompt_gates ? inf->prompt_gates : inf->gates,
                                  .gates_by_token = inf->prompt_gates},
                       .max_tokens = max_tokens};
    TM_GO(tm_decode(&inf->model, &inf->batch, &(tm_texts){.next = next_text, .choose = sampling->temperature > 0 ? choose : NULL, .token = put_token, .context = &s}, err));
out:
    if (st != TM_OK)
        inf->fed.count = 0;
    free(s.scratch);
    return st;
}
