/* Golden cases: what transformers and PEFT computed on tiny random models, step by step, against the same
 * recipes here; then the same in bf16, where logits and gradients are compared as a whole (relative L2). Bounds and their reasons: the table below; a float64 twin of the stored float32 figures
 * differs from them by an order of magnitude less. Cases that are too large to be shipped are looked for
 * beside the project and counted as skipped when they are not there. */
#include "../support/machine.h"

static const struct bounds {
    double loss, norm, logits, gradient, weights, biases, bf16_loss, bf16_norm, bf16_logits, bf16_gradient;
} bounds = {1e-5, 1e-5, 1e-5, 2e-5, 1e-4, 1e-3, 1e-2, 5e-2, 2e-2, 5e-2}, wide_bounds = {1e-5, 1e-5, 5e-5, 2e-5, 1e-4, 1e-3, 1e-2, 5e-2, 2e-2, 5e-2};

typedef struct golden {
    char dir[512];
    const char *name;
    json_t *json;
    struct bounds bound, worst;
} golden;

static const json_t *option(const golden *g, const char *key) { return json_object_get(json_object_get(g->json, "options"), key); }
static double hyper(const golden *g, const char *key) { return json_number_value(json_object_get(json_object_get(g->json, "hyperparameters"), key)); }
static bool is_lora(const golden *g) { return strcmp(json_string_value(option(g, "method")), "lora") == 0; }

static void recipe(const golden *g, args *a, const char *precision)
{
    arg(a, "model=%s/model", g->dir);
    arg(a, "out=%s", scratch(precision));
    arg(a, "data.0.path=%s/batches.jsonl", g->dir);
    arg(a, "data.0.format=tokens");
    arg(a, "method=%s", json_string_value(option(g, "method")));
    if (is_lora(g))
        arg(a, "lora.init=%s/adapter_init", g->dir);
    if (option(g, "layers"))
        arg(a, "freeze.layers=%lld", (long long)json_integer_value(option(g, "layers")));
    static const char *const same[][2] = {{"batch", "batch"}, {"accum", "accumulate"}, {"steps", "steps"}, {"warmup_steps", "warmup_steps"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        arg(a, "train.%s=%d", same[i][1], (int)hyper(g, same[i][0]));
    static const char *const numbers[] = {"lr", "beta1", "beta2", "eps", "weight_decay", "max_grad_norm"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        arg(a, "train.%s=%.17g", numbers[i], hyper(g, numbers[i]));
    arg(a, "train.schedule=%s", json_string_value(json_object_get(json_object_get(g->json, "hyperparameters"), "schedule")));
    arg(a, "train.decay=all");
    arg(a, "train.shuffle=false");
    arg(a, "train.packing=false");
    arg(a, "train.checkpoint_every=0");
    arg(a, "precision=%s", precision);
    arg(a, "threads=2");
}

/* --- The run from outside --- */

static void worse(double *worst, double value, double bound, const golden *g, const char *what)
{
    if (!(value <= bound))
        fail_msg("%s: %s is off by %.3g, allowed %.1g", g->name, what, value, bound);
    *worst = value > *worst ? value : *worst;
}

static void compare_rows(golden *g, bool bf16)
{
    char path[600], *at, *text;
    double *worst_loss = bf16 ? &g->worst.bf16_loss : &g->worst.loss, *worst_norm = bf16 ? &g->worst.bf16_norm : &g->worst.norm;
    double loss_bound = bf16 ? g->bound.bf16_loss : g->bound.loss, norm_bound = bf16 ? g->bound.bf16_norm : g->bound.norm;
    const json_t *losses = json_object_get(g->json, "losses"), *norms = json_object_get(g->json, "grad_norms");
    size_t size, row = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", scratch(bf16 ? "bf16" : "f32"));
    at = text = slurp(path, &size);
    for (char *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *json;
        OK(tm_json_parse(at, (size_t)(end - at), path, &json, err));
        double loss = json_number_value(json_array_get(losses, row)), norm = json_number_value(json_array_get(norms, row));
        assert_int_equal(json_integer_value(json_object_get(json, "step")), ++row);
        worse(worst_loss, fabs(json_number_value(json_object_get(json, "loss")) - loss), loss_bound, g, "loss");
        worse(worst_norm, fabs(json_number_value(json_object_get(json, "grad_norm")) - norm) / norm, norm_bound, g, "grad_norm");
        json_decref(json);
    }
    assert_int_equal(row, json_array_size(losses));
    free(text);
}

/* Squares of what values are off by, and of their size. */
typedef struct squares {
    double difference, size;
} squares;

static void add_squares(squares *s, const float *x, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        s->difference += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        s->size += (double)y[i] * y[i];
    }
}

static double relative(squares s) { return sqrt(s.difference / (s.size > 0 ? s.size : 1)); }

static double distance(const float *x, const float *y, int64_t n)
{
    squares s = {0};
    add_squares(&s, x, y, n);
    return relative(s);
}

/* GPT-2's key bias has no gradient in exact arithmetic: what stands there is rounding, and Adam makes steps of it. It
 * counts as equal in `mine`. */
static float *without_key_bias(const golden *g, const char *name, const float *mine, const float *theirs, int64_t n)
{
    float *copy = malloc((size_t)n * sizeof *copy);
    memcpy(copy, mine, (size_t)n * sizeof *copy);
    if (strncmp(g->name, "gpt2", 4) == 0 && strstr(name, "c_attn.bias"))
        memcpy(copy + n / 3, theirs + n / 3, (size_t)(n / 3) * sizeof *copy);
    return copy;
}

static void compare_result(golden *g)
{
    char path[600];
    tm_safetensors *mine, *theirs;
    snprintf(path, sizeof path, "%s/%s", g->dir, is_lora(g) ? "adapter_final/adapter_model.safetensors" : "full_final.safetensors");
    OK(tm_safetensors_open(path, &theirs, err));
    snprintf(path, sizeof path, "%s/%s", scratch("f32"), is_lora(g) ? adapter_file() : model_file());
    OK(tm_safetensors_open(path, &mine, err));
    assert_int_equal(tm_safetensors_count(mine), tm_safetensors_count(theirs));
    for (int64_t i = 0; i < tm_safetensors_count(mine); i++) {
        const tm_st_tensor *a = tm_safetensors_at(mine, i), *b = tm_safetensors_at(theirs, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, TM_F32);
        assert_int_equal(b->dtype, TM_F32);
        assert_int_equal(a->ndim, b->ndim);
        assert_memory_equal(a->shape, b->shape, (size_t)a->ndim * 8);
        bool bias = strstr(a->name, ".bias");
        float *values = without_key_bias(g, a->name, a->data, b->data, a->count);
        worse(bias ? &g->worst.biases : &g->worst.weights, distance(values, b->data, a->count), bias ? g->bound.biases : g->bound.weights, g, a->name);
        free(values);
    }
    tm_safetensors_close(mine);
    tm_safetensors_close(theirs);
}

/* --- The first step from inside --- */

/* The name of a parameter here, from PyTorch's with an adapter around the model. */
static void own_name(const char *theirs, char out[512])
{
    static const char *const drop[] = {"grad.", "base_model.model.", ".default", NULL};
    snprintf(out, 512, "%s", theirs);
    for (int i = 0; drop[i]; i++) {
        char *found = strstr(out, drop[i]);
        if (found)
            memmove(found, found + strlen(drop[i]), strlen(found + strlen(drop[i])) + 1);
    }
    char *magnitude = strstr(out, "lora_magnitude_vector");
    if (magnitude)
        magnitude[strlen("lora_magnitude_vector")] = 0;
}

/* expect: [rows, longest, V], rows padded on the right. */
static void compare_logits(golden *g, machine *m, const tm_st_tensor *expect)
{
    int64_t row = 0, batch = expect->shape[0], longest = expect->shape[1], vocab = expect->shape[2];
    tm_tensor logits = m->model.logits;
    tm_batch_fill(&m->batch, m->items, batch);
    tm_model_forward(&m->model, &m->batch);
    tm_model_logits(&m->model, &m->batch);
    double worst = 0;
    squares all = {0};
    float *x = calloc((size_t)vocab, sizeof *x);
    int64_t bytes = tm_dtype_bytes(logits.dtype, m->batch.rows.n * logits.ld);
    char *raw = malloc((size_t)bytes);
    m->device->calls->download(m->device, raw, logits.data, bytes);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < m->items[b].n; t++, row++) {
            const float *y = (const float *)expect->data + (b * longest + t) * vocab;
            tm_dtype_convert(x, TM_F32, raw + tm_dtype_bytes(logits.dtype, row * logits.ld), logits.dtype, vocab);
            add_squares(&all, x, y, vocab);
            for (int64_t v = 0; v < vocab; v++)
                worst = fabs((double)x[v] - y[v]) > worst || isnan(x[v]) ? fabs((double)x[v] - y[v]) : worst;
        }
    free(x);
    free(raw);
    if (logits.dtype == TM_BF16)
        worse(&g->worst.bf16_logits, relative(all), g->bound.bf16_logits, g, "logits in bf16");
    else
        worse(&g->worst.logits, worst, g->bound.logits, g, "a logit");
}

static void compare_gradients(golden *g, machine *m, const tm_safetensors *expect)
{
    int64_t compared = 0, trained = 0;
    squares all = {0};
    for (int64_t i = 0; i < m->model.params.count; i++)
        trained += m->model.params.item[i]->trained;
    for (int64_t i = 0; i < tm_safetensors_count(expect); i++) {
        const tm_st_tensor *theirs = tm_safetensors_at(expect, i);
        if (strncmp(theirs->name, "grad.", 5) != 0)
            continue;
        char name[512];
        own_name(theirs->name, name);
        const tm_param *p = tm_params_find(&m->model.params, name);
        if (!p || !p->trained || tm_param_count(p) != theirs->count)
            fail_msg("%s: %s is not trained here as %s", g->name, theirs->name, name);
        float *turned = malloc((size_t)theirs->count * sizeof *turned), *grad = malloc((size_t)theirs->count * sizeof *grad);
        OK(tm_param_read(&m->model, p, p->grad, 0, grad, TM_F32, err));
        for (int64_t row = 0; row < p->rows; row++)
            for (int64_t col = 0; col < p->cols; col++)
                turned[p->turned ? col * p->rows + row : row * p->cols + col] = grad[row * p->cols + col];
        float *values = without_key_bias(g, theirs->name, turned, theirs->data, theirs->count);
        add_squares(&all, values, theirs->data, theirs->count);
        if (m->model.settings.act != TM_BF16)
            worse(&g->worst.gradient, distance(values, theirs->data, theirs->count), g->bound.gradient, g, theirs->name);
        free(turned);
        free(grad);
        free(values);
        compared++;
    }
    if (m->model.settings.act == TM_BF16)
        worse(&g->worst.bf16_gradient, relative(all), g->bound.bf16_gradient, g, "the gradient in bf16");
    assert_int_equal(compared, trained);
}

static void look_inside(golden *g, const args *a)
{
    char path[600];
    tm_safetensors *expect;
    tm_job job;
    machine m;
    open_job(a, TM_JOB_PLAN, &job);
    snprintf(path, sizeof path, "%s/expect.safetensors", g->dir);
    OK(tm_safetensors_open(path, &expect, err));
    machine_open(&m, &job, TM_ISA_AUTO, 0, (tm_model_settings){.logits = true});
    bool bf16 = m.model.settings.act == TM_BF16;
    tm_model_begin_step(&m.model, m.step);
    const tm_st_tensor *logits = tm_safetensors_find(expect, "logits");
    assert_non_null(logits);
    compare_logits(g, &m, logits);
    double loss = json_number_value(json_array_get(json_object_get(g->json, "losses"), 0)), mine = machine_loss(&m, true);
    OK(m.device->calls->sync(m.device, err));
    worse(bf16 ? &g->worst.bf16_loss : &g->worst.loss, fabs(mine - loss), bf16 ? g->bound.bf16_loss : g->bound.loss, g, "the first loss");
    compare_gradients(g, &m, expect);
    machine_close(&m);
    tm_safetensors_close(expect);
    tm_job_close(&job);
}

/* --- Cases --- */

static void as_transformers(void **state)
{
    static const char *const places[] = {"tests/data/golden", "../shared/golden/cases", "../../shared/golden/cases"};
    golden g = {.name = *state};
    char path[600];
    g.bound = strncmp(g.name, "wide", 4) == 0 ? wide_bounds : bounds;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(g.dir, sizeof g.dir, "%s/%s", places[i], g.name);
        snprintf(path, sizeof path, "%s/case.json", g.dir);
        if (tm_path_exists(path))
            break;
    }
    if (!tm_path_exists(path)) {
        print_message("skip: %s is not shipped (4 MB) and not in ../shared/golden/cases\n", g.name);
        skip();
    }
    OK(tm_json_read(path, &g.json, err));
    args a = {0};
    recipe(&g, &a, "f32");
    train(&a);
    compare_rows(&g, false);
    compare_result(&g);
    look_inside(&g, &a);
    args_free(&a);
    recipe(&g, &a, "bf16");
    train(&a);
    compare_rows(&g, true);
    look_inside(&g, &a);
    args_free(&a);
    print_message("%-18s loss %.1e norm %.1e logits %.1e gradients %.1e weights %.1e biases %.1e; bf16 loss %.1e norm %.1e logits %.1e gradients %.1e\n", g.name, g.worst.loss, g.worst.norm,
                  g.worst.logits, g.worst.gradient, g.worst.weights, g.worst.biases, g.worst.bf16_loss, g.worst.bf16_norm, g.worst.bf16_logits, g.worst.bf16_gradient);
    OK(tm_dir_remove(scratch("f32"), err));
    OK(tm_dir_remove(scratch("bf16"), err));
    json_decref(g.json);
}

#define CASE(name) cmocka_unit_test_prestate(as_transformers, name)

int main(int argc, char **argv)
{
    struct CMUnitTest tests[] = {
        CASE("gemma2-full"), CASE("gemma2-lora"), CASE("gemma3-full"), CASE("gemma3-lora"), CASE("gpt2-full"), CASE("gpt2-lora"),
        CASE("dynamic-lora"), CASE("gemma-full"), CASE("gemma3mix-lora"), CASE("phi3-full"), CASE("phi3-lora"), CASE("qwen1-full"), CASE("qwen1-lora"), CASE("yarn-lora"),
        CASE("llama-dora"), CASE("llama-full"), CASE("llama-lora"), CASE("llama-lora-accum"), CASE("llama3rope-full"), CASE("llama3rope-lora"),
        CASE("mistral-full"), CASE("mistral-lora"), CASE("qwen2-bitfit"), CASE("qwen2-freeze1"), CASE("qwen2-full"), CASE("qwen2-lora"),
        CASE("qwen2-lora-masked"), CASE("qwen2-lora-qv"), CASE("qwen2-rslora"), CASE("qwen3-full"), CASE("qwen3-lora"), CASE("wide-lora"),
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        tests[i].name = tests[i].initial_state;
    if (argc > 1) /* cases to look at, '*' for any text */
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("golden", tests, memory_begin, scratch_end);
}
