/* What pulls to the start: EWC, EWC of LoRA's dW, L2-SP, O-LoRA. At the start there is no pull; a strong one
 * holds the weights; gradients against central differences through the whole trainer; the closed form of two parabolas; shuffled
 * importances keep less; killed and resumed, packed and alone give the same bytes. */
#include "../support/run.h"

#include "keep/importance.h"
#include "keep/keep.h"
#include "plan/plan.h"

static uint64_t seed;

static const char *const config = "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, \"vocab_size\": 23, \"hidden_size\": 12, \"intermediate_size\": 20, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 6, \"max_position_embeddings\": 64}";

static void common(args *a, const char *method, const char *out)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "method=%s", method);
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("new.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=4");
    arg(a, "train.steps=6");
    arg(a, "train.lr=0.01");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.schedule=constant");
    arg(a, "train.checkpoint_every=2");
    arg(a, "lora.r=3");
}

static const char *result_of(const char *method) { return strcmp(method, "lora") == 0 ? adapter_file() : model_file(); }

/* Row `step` of metrics.jsonl. */
static double metric(const char *dir, int64_t step, const char *key)
{
    char path[600], want[64], *text, *at;
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    snprintf(want, sizeof want, "{\"step\": %lld,", (long long)step);
    text = slurp(path, NULL);
    at = strstr(text, want);
    assert_non_null(at);
    snprintf(want, sizeof want, "\"%s\": ", key);
    at = strstr(at, want);
    assert_non_null(at);
    double value = strtod(at + strlen(want), NULL);
    free(text);
    return value;
}

static void make_importances(const args *recipe, const char *out)
{
    char *text = NULL;
    tm_fisher_request request = {.source = {.overrides = recipe->item, .override_count = recipe->count}, .out = scratch(out)};
    OK(tm_fisher(&request, NULL, &text, err));
    free(text);
}

/* --- The start --- */

/* The first step is that of a plain run, its penalty 0; the second is not. */
static void no_pull_at_the_start(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "bitfit", "lora", "lora"};
    for (int i = 0; i < 8; i++) {
        args a = {0}, b;
        common(&a, methods[i % 4], "plain");
        arg(&a, "train.steps=1");
        if (i % 4 == 3) /* continued: dW starts elsewhere */
            arg(&a, "lora.init=%s", scratch("earlier"));
        b = args_copy(&a);
        arg(&b, "out=%s", scratch("pulled"));
        if (i < 4) {
            arg(&b, "keep.ewc.lambda=1000");
            arg(&b, "keep.ewc.path=%s", scratch("old.jsonl"));
        } else
            arg(&b, "keep.l2sp.lambda=1000");
        train(&a);
        train(&b);
        const char *file = tm_dir_has(scratch("plain"), model_file()) ? model_file() : adapter_file();
        assert_true(metric(scratch("pulled"), 1, "penalty") == 0);
        if (!runs_agree(scratch("plain"), scratch("pulled"), file))
            fail_msg("%s of %s", i < 4 ? "ewc" : "l2sp", methods[i % 4]);
        OK(tm_dir_remove(scratch("plain"), err));
        OK(tm_dir_remove(scratch("pulled"), err));
        arg(&b, "train.steps=2");
        train(&b);
        assert_true(metric(scratch("pulled"), 2, "penalty") > 0);
        OK(tm_dir_remove(scratch("pulled"), err));
        args_free(&a);
        args_free(&b);
    }
}

/* --- A strong pull --- */

/* Squared distance of a run's weights from the base's, or of dW from 0. */
static double moved(const char *run, bool lora)
{
    char path[600];
    tm_safetensors *is, *was = NULL;
    double sum = 0;
    snprintf(path, sizeof path, "%s/%s", scratch(run), lora ? adapter_file() : model_file());
    OK(tm_safetensors_open(path, &is, err));
    OK(tm_safetensors_open(scratch("small/model.safetensors"), &was, err));
    for (int64_t i = 0; i < tm_safetensors_count(is); i++) {
        const tm_st_tensor *t = tm_safetensors_at(is, i);
        char other[300];
        snprintf(other, sizeof other, "%s", t->name);
        char *at = strstr(other, "lora_A");
        if (lora && !at)
            continue;
        if (!lora) {
            const float *x = t->data, *y = tm_safetensors_find(was, t->name)->data;
            for (int64_t k = 0; k < t->count; k++)
                sum += ((double)x[k] - y[k]) * ((double)x[k] - y[k]);
            continue;
        }
        memcpy(at, "lora_B", 6);
        const tm_st_tensor *b = tm_safetensors_find(is, other);
        tm_linear_delta delta = {.a = t->data, .b = b->data, .out = b->shape[0], .in = t->shape[1], .r = t->shape[0], .scale = 1};
        sum += tm_linear_delta_dot(&delta, &delta);
    }
    tm_safetensors_close(is);
    tm_safetensors_close(was);
    return sqrt(sum);
}

/* Plain gradient descent with rate * lambda near 1 stays within one step of the start, while a plain run goes `steps` of them: the ratio
 * falls as 1 / lambda. For LoRA of rank 1 the curvature of the penalty in B is lambda |A|^2, about lambda / 3. */
static void a_strong_pull_freezes(void **state)
{
    (void)state;
    static const struct {
        const char *method, *key;
        double strength;
    } cases[] = {{"full", "l2sp", 0.9}, {"lora", "l2sp", 1.5}};
    const double rate = 2e-4;
    for (size_t i = 0; i < 2; i++) {
        args a = {0}, b;
        common(&a, cases[i].method, "plain");
        arg(&a, "model=%s", scratch("small"));
        arg(&a, "train.steps=10000");
        arg(&a, "train.batch=1");
        arg(&a, "train.optimizer=sgd");
        arg(&a, "train.momentum=0");
        arg(&a, "train.weight_decay=0");
        arg(&a, "train.max_grad_norm=0");
        arg(&a, "train.lr=%g", rate);
        arg(&a, "train.checkpoint_every=10000");
        arg(&a, "train.log_every=10000");
        arg(&a, "lora.r=1");
        arg(&a, "lora.alpha=1");
        b = args_copy(&a);
        arg(&b, "out=%s", scratch("held"));
        arg(&b, "keep.%s.lambda=%g", cases[i].key, cases[i].strength / rate);
        train(&a);
        train(&b);
        bool lora = i == 1;
        double plain = moved("plain", lora), held = moved("held", lora);
        print_message("%s: moved %.3g of a plain run's way\n", cases[i].method, held / plain);
        assert_true(held < 1e-3 * plain);
        OK(tm_dir_remove(scratch("plain"), err));
        OK(tm_dir_remove(scratch("held"), err));
        args_free(&a);
        args_free(&b);
    }
}

/* --- Gradients --- */

/* A trainer in double whose weights stay where they are: a step gives the objective there and its gradient. */
typedef struct probe {
    tm_job job;
    tm_run run;
    tm_device *device;
    tm_trainer *trainer;
} probe;

static void probe_open(probe *p, const args *a, const char *importances)
{
    tm_device *counting;
    tm_trainer *counted;
    int64_t limits[TM_MEM_KINDS];
    *p = (probe){0};
    open_job(a, TM_JOB_TRAIN, &p->job);
    p->job.recipe->lr = 0;
    p->run = p->job.run;
    p->run.importances = importances;
    OK(tm_cpu_device_create(1, TM_ISA_F64, &p->device, err));
    OK(tm_counting_device_create(p->device->traits, &counting, err));
    OK(tm_trainer_create(&p->run, counting, NULL, &counted, err));
    tm_memory_peaks(&counted->memory, limits);
    tm_trainer_destroy(counted);
    tm_device_destroy(counting);
    OK(tm_trainer_create(&p->run, p->device, limits, &p->trainer, err));
    OK(tm_trainer_start(p->trainer, err));
}

static void probe_close(probe *p)
{
    tm_trainer_destroy(p->trainer);
    tm_device_destroy(p->device);
    tm_job_close(&p->job);
}

static double objective(probe *p, double *penalty)
{
    p->trainer->step = 0;
    OK(tm_trainer_step(p->trainer, err));
    if (penalty)
        *penalty = p->trainer->result[0].penalty;
    return p->trainer->result[0].loss + p->trainer->result[0].penalty;
}

/* Moves everything that is trained away from the start. */
static void scatter(probe *p, dice *d, double width)
{
    for (int64_t i = 0; i < p->trainer->trained_count; i++) {
        tm_tensor v = p->trainer->trained[i].value;
        for (int64_t k = 0; k < v.rows * v.cols; k++)
            ((double *)v.data)[k] += width * dice_spread(d);
    }
}

static void check_gradient(probe *p, dice *d, const char *name)
{
    scatter(p, d, 0.3);
    double penalty;
    int checked = 0;
    objective(p, &penalty);
    assert_true(penalty > 1e-3);
    for (int round = 0; round < 40; round++) {
        int64_t i = dice_in(d, 0, p->trainer->trained_count - 1);
        tm_tensor v = p->trainer->trained[i].value, g = p->trainer->trained[i].grad;
        int64_t k = dice_in(d, 0, v.rows * v.cols - 1);
        objective(p, NULL);
        double *value = &((double *)v.data)[k], kept = *value, is = ((double *)g.data)[k], slope[2];
        for (int wide = 0; wide < 2; wide++) {
            double eps = wide ? 4e-5 : 2e-5, up, down;
            *value = kept + eps;
            up = objective(p, NULL);
            *value = kept - eps;
            down = objective(p, NULL);
            slope[wide] = (up - down) / (2 * eps);
        }
        *value = kept;
        double want = (4 * slope[0] - slope[1]) / 3; /* without the third derivative */
        if (fabs(slope[0] - slope[1]) > 1e-3 * fabs(want) && strcmp(name, "o-lora") == 0)
            continue; /* a kink of |A_old A^T| lies between */
        checked++;
        if (!(fabs(is - want) <= 2e-6 * fabs(want) + 1e-7))
            fail_msg("%s, seed %llu: %s element %lld: gradient %.10g, differences %.10g", name, (unsigned long long)seed, p->trainer->trained_param[i]->name, (long long)k, is, want);
    }
    assert_true(checked > 30);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    static const struct {
        const char *name, *method, *arg[4];
    } cases[] = {
        {"ewc of dW", "lora", {"keep.ewc.lambda=3"}},
        {"ewc of dW, continued", "lora", {"keep.ewc.lambda=3", "lora.init=@earlier"}},
        {"ewc of dW, head and biases too", "lora", {"keep.ewc.lambda=3", "lora.target_modules=[q_proj, down_proj, lm_head]"}},
        {"ewc of A and B", "lora", {"keep.ewc.lambda=3", "keep.ewc.space=factors", "lora.init=@earlier"}},
        {"ewc of all", "full", {"keep.ewc.lambda=3"}},
        {"l2sp of dW", "lora", {"keep.l2sp.lambda=0.5"}},
        {"l2sp of all", "full", {"keep.l2sp.lambda=0.5"}},
        {"both", "lora", {"keep.l2sp.lambda=0.5", "keep.ewc.lambda=3", "keep.ewc.importance=path"}},
        {"o-lora", "lora", {"keep.orthogonal.previous=[@earlier, @second]", "keep.orthogonal.lambda=0.7"}},
    };
    dice d = {.key = seed};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        args a = {0};
        common(&a, cases[i].method, "probe");
        for (int k = 0; k < 4 && cases[i].arg[k]; k++)
            arg_at(&a, cases[i].arg[k]);
        bool ewc = strstr(cases[i].name, "ewc") || strstr(cases[i].name, "both");
        char importances[512];
        snprintf(importances, sizeof importances, "%s", scratch("probe.st"));
        if (ewc) {
            args f = args_copy(&a);
            arg(&f, "keep.ewc.path=%s", scratch("old.jsonl"));
            make_importances(&f, "probe.st");
            args_free(&f);
        }
        probe p;
        probe_open(&p, &a, ewc ? importances : NULL);
        check_gradient(&p, &d, cases[i].name);
        probe_close(&p);
        OK(tm_dir_remove(scratch("probe"), err));
        args_free(&a);
    }
}

/* lambda / 2 times the sum over all elements of dW = scale B A squared (B begins as 0), or of what weights moved. */
static double half_square(const probe *p, double lambda, double *const *start)
{
    const tm_trainer *t = p->trainer;
    tm_linear *module;
    double sum = 0;
    for (int64_t i = 0; start && i < t->trained_count; i++) {
        tm_tensor v = t->trained[i].value;
        for (int64_t k = 0; k < v.rows * v.cols; k++)
            sum += (((double *)v.data)[k] - start[i][k]) * (((double *)v.data)[k] - start[i][k]);
    }
    for (int64_t i = 0; !start && (module = tm_model_linear(&p->trainer->model, i)); i++) {
        const tm_lora *lora = module->lora;
        for (int64_t o = 0; lora && o < module->out; o++)
            for (int64_t n = 0; n < module->in; n++) {
                double dw = 0;
                for (int64_t r = 0; r < lora->r; r++)
                    dw += lora->scale * ((double *)lora->b->value.data)[o * lora->r + r] * ((double *)lora->a->value.data)[r * module->in + n];
                sum += dw * dw;
            }
    }
    return lambda / 2 * sum;
}

static void l2sp_is_half_a_square(void **state)
{
    (void)state;
    dice d = {.key = seed + 9};
    for (int lora = 0; lora < 2; lora++) {
        args a = {0};
        probe p;
        double penalty, **start;
        common(&a, lora ? "lora" : "full", "probe");
        arg(&a, "keep.l2sp.lambda=0.7");
        probe_open(&p, &a, NULL);
        start = malloc((size_t)p.trainer->trained_count * sizeof *start);
        for (int64_t i = 0; i < p.trainer->trained_count; i++) {
            tm_tensor v = p.trainer->trained[i].value;
            start[i] = malloc((size_t)(v.rows * v.cols) * sizeof **start);
            memcpy(start[i], v.data, (size_t)(v.rows * v.cols) * sizeof **start);
        }
        scatter(&p, &d, 0.3);
        objective(&p, &penalty);
        double want = half_square(&p, 0.7, lora ? NULL : start);
        if (!(fabs(penalty - want) <= 1e-6 * want)) /* the strength is given to ops in less than double */
            fail_msg("%s, seed %llu: penalty %.12g, expected %.12g", lora ? "dW" : "weights", (unsigned long long)seed, penalty, want);
        for (int64_t i = 0; i < p.trainer->trained_count; i++)
            free(start[i]);
        free(start);
        probe_close(&p);
        OK(tm_dir_remove(scratch("probe"), err));
        args_free(&a);
    }
}

/* lambda times the sum of |A_old A^T| over all modules that both adapters have. */
static void overlap_is_of_every_module(void **state)
{
    (void)state;
    dice d = {.key = seed + 10};
    args a = {0};
    probe p;
    double penalty, want = 0;
    char path[600];
    tm_safetensors *old;
    tm_linear *module;
    common(&a, "lora", "probe");
    arg(&a, "keep.orthogonal.previous=[%s]", scratch("earlier"));
    arg(&a, "keep.orthogonal.lambda=0.7");
    probe_open(&p, &a, NULL);
    scatter(&p, &d, 0.3);
    objective(&p, &penalty);
    snprintf(path, sizeof path, "%s/%s", scratch("earlier"), adapter_file());
    OK(tm_safetensors_open(path, &old, err));
    for (int64_t i = 0; (module = tm_model_linear(&p.trainer->model, i)); i++) {
        char name[400];
        snprintf(name, sizeof name, "base_model.model.%s.lora_A.weight", module->name);
        const tm_st_tensor *was = module->lora ? tm_safetensors_find(old, name) : NULL;
        for (int64_t q = 0; was && q < was->shape[0]; q++)
            for (int64_t r = 0; r < module->lora->r; r++) {
                double dot = 0;
                for (int64_t n = 0; n < module->in; n++)
                    dot += (double)((const float *)was->data)[q * module->in + n] * ((double *)module->lora->a->value.data)[r * module->in + n];
                want += 0.7 * fabs(dot);
            }
    }
    if (!(want > 0 && fabs(penalty - want) <= 1e-6 * want))
        fail_msg("seed %llu: penalty %.12g, expected %.12g", (unsigned long long)seed, penalty, want);
    tm_safetensors_close(old);
    probe_close(&p);
    OK(tm_dir_remove(scratch("probe"), err));
    args_free(&a);
}

/* The penalty is one of dW: another A and B with the same product pays the same; penalties of A and B apart do not see that. */
static void scale_of_factors_is_free(void **state)
{
    (void)state;
    for (int apart = 0; apart < 2; apart++) {
        args a = {0};
        common(&a, "lora", "probe");
        arg(&a, "keep.ewc.lambda=2");
        arg(&a, "keep.ewc.space=%s", apart ? "factors" : "delta");
        arg(&a, "lora.init=%s", scratch("earlier"));
        args f = args_copy(&a);
        arg(&f, "keep.ewc.path=%s", scratch("old.jsonl"));
        make_importances(&f, "probe.st");
        char importances[512];
        snprintf(importances, sizeof importances, "%s", scratch("probe.st"));
        probe p;
        dice d = {.key = seed};
        probe_open(&p, &a, importances);
        scatter(&p, &d, 0.3);
        double before, after;
        objective(&p, &before);
        for (int64_t i = 0; i < p.trainer->trained_count; i++) {
            tm_tensor v = p.trainer->trained[i].value;
            double c = p.trainer->trained_param[i]->kind == TM_PARAM_LORA_A ? 1 / 3.0 : 3;
            for (int64_t k = 0; k < v.rows * v.cols; k++)
                ((double *)v.data)[k] *= c;
        }
        objective(&p, &after);
        if (apart == (fabs(after - before) <= 1e-10 * before))
            fail_msg("space %d: penalty %.15g, with (3 B, A / 3) %.15g", apart, before, after);
        probe_close(&p);
        OK(tm_dir_remove(scratch("probe"), err));
        args_free(&a);
        args_free(&f);
    }
}

/* Two parabolas, the loss's around b with curvature h and EWC's around a: gradient descent with the op ends at
 * (h b + lambda F a) / (h + lambda F). */
static void parabolas_meet(void **state)
{
    (void)state;
    enum { N = 37 };
    double h[N], b[N], f[N], a[N], x[N], g[N], penalty, lambda = 0.8;
    dice d = {.key = seed};
    tm_device *device;
    OK(tm_cpu_device_create(1, TM_ISA_F64, &device, err));
    for (int i = 0; i < N; i++) {
        h[i] = 0.1 + dice_unit(&d);
        f[i] = 2 * dice_unit(&d) * (i % 5 != 0);
        b[i] = dice_spread(&d);
        x[i] = a[i] = dice_spread(&d);
    }
#define VECTOR(v) tm_tensor_make(v, TM_F64, 1, N)
    for (int step = 0; step < 2000; step++) {
        memset(g, 0, sizeof g);
        penalty = 0;
        TM_RUN(device, anchor, VECTOR(x), VECTOR(b), VECTOR(h), 1, VECTOR(g), &penalty);
        TM_RUN(device, anchor, VECTOR(x), VECTOR(a), VECTOR(f), lambda, VECTOR(g), &penalty);
        TM_RUN(device, axpy, -0.3, VECTOR(g), VECTOR(x));
    }
    double least = 0;
    for (int i = 0; i < N; i++) {
        double want = (h[i] * b[i] + lambda * f[i] * a[i]) / (h[i] + lambda * f[i]);
        assert_true(fabs(x[i] - want) < 1e-9);
        least += (h[i] * (want - b[i]) * (want - b[i]) + lambda * f[i] * (want - a[i]) * (want - a[i])) / 2;
    }
    assert_true(fabs(penalty - least) < 1e-9);
    tm_device_destroy(device);
}

/* --- Does it keep? --- */

/* Walks over 0 .. 22 by one of two strides, which only the first steps tell. */
static void write_walks(const char *name, int64_t rows, int stride, uint64_t key)
{
    tm_buf text = {0};
    dice d = {.key = key};
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = dice_in(&d, 0, 22), by = stride + dice_in(&d, 0, 1);
        tm_buf_text(&text, "{\"input_ids\": [");
        for (int t = 0; t < 10; t++)
            tm_buf_printf(&text, "%s%lld", t ? "," : "", (long long)((at + by * t) % 23));
        tm_buf_text(&text, "]}\n");
    }
    OK(tm_file_write(scratch(name), text.data, text.size, err));
    tm_buf_deinit(&text);
}

/* The same numbers elsewhere: every tensor's elements in another order. */
static void shuffle_importances(const char *from, const char *to, uint64_t key)
{
    tm_safetensors *file;
    OK(tm_importances_open(scratch(from), &file, err));
    int64_t count = tm_safetensors_count(file);
    tm_st_tensor *tensors = calloc((size_t)count, sizeof *tensors);
    for (int64_t i = 0; i < count; i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        int64_t *order = malloc((size_t)t->count * 8);
        float *value = malloc((size_t)t->count * 4);
        tm_permutation(key + (uint64_t)i, t->count, order);
        for (int64_t k = 0; k < t->count; k++)
            memcpy(&value[k], (const char *)t->data + 4 * order[k], 4);
        tensors[i] = *t;
        tensors[i].data = value;
        free(order);
    }
    tm_importance_facts facts = {.kind = "fisher", .labels = "sampled", .space = "shuffled", .weight = 1, .tasks = 1};
    OK(tm_importances_write(scratch(to), tensors, count, &facts, err));
    for (int64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    tm_safetensors_close(file);
}

static void skill_recipe(args *a, const char *model, const char *rows, const char *out, int steps, int run)
{
    arg(a, "model=%s", scratch(model));
    arg(a, "method=full");
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch(rows));
    arg(a, "threads=1");
    arg(a, "train.batch=8");
    arg(a, "train.steps=%d", steps);
    arg(a, "train.lr=0.005");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.seed=%d", run);
    arg(a, "train.checkpoint_every=100000");
    arg(a, "train.eval_every=100000");
    arg(a, "eval.0.path=%s", scratch("held-old.jsonl"));
    arg(a, "eval.0.name=old");
    arg(a, "eval.1.path=%s", scratch("held-new.jsonl"));
    arg(a, "eval.1.name=new");
}

static double last_loss(const char *run, size_t which)
{
    char path[600];
    json_t *json;
    snprintf(path, sizeof path, "%s/run.json", scratch(run));
    OK(tm_json_read(path, &json, err));
    double loss = json_number_value(json_object_get(json_array_get(json_object_get(json, "evals"), which), "last"));
    json_decref(json);
    return loss;
}

/* A base that knows one pair of strides learns another pair; what is left of the first, without a pull, with importances and with the
 * same importances shuffled. One strength for both, chosen on other seeds (100 to 105). */
static void shuffled_importances_keep_less(void **state)
{
    (void)state;
    enum { RUNS = 6 };
    double old_loss[3][RUNS], mean[3][2] = {{0}};
    int better = 0;
    write_walks("walks-old.jsonl", 200, 1, 1);
    write_walks("walks-new.jsonl", 200, 4, 2);
    write_walks("held-old.jsonl", 60, 1, 3);
    write_walks("held-new.jsonl", 60, 4, 4);
    args base = {0};
    skill_recipe(&base, "model", "walks-old.jsonl", "skilled", 300, 0);
    train(&base);
    args_free(&base);
    for (int run = 0; run < RUNS; run++) {
        args f = {0};
        skill_recipe(&f, "skilled", "walks-old.jsonl", "unused", 1, 200 + run);
        arg(&f, "keep.ewc.samples=200");
        make_importances(&f, "right.st");
        shuffle_importances("right.st", "shuffled.st", 200 + (uint64_t)run);
        args_free(&f);
        for (int kind = 0; kind < 3; kind++) {
            args a = {0};
            skill_recipe(&a, "skilled", "walks-new.jsonl", "kept", 60, 200 + run);
            if (kind) {
                arg(&a, "keep.ewc.lambda=1");
                arg(&a, "keep.ewc.importances=%s", scratch(kind == 1 ? "right.st" : "shuffled.st"));
            }
            train(&a);
            mean[kind][0] += (old_loss[kind][run] = last_loss("kept", 0)) / RUNS;
            mean[kind][1] += last_loss("kept", 1) / RUNS;
            OK(tm_dir_remove(scratch("kept"), err));
            args_free(&a);
        }
        better += old_loss[1][run] < old_loss[2][run];
    }
    static const char *const names[] = {"plain", "importances", "shuffled"};
    print_message("base: old %.3f\n", last_loss("skilled", 0));
    for (int kind = 0; kind < 3; kind++)
        print_message("%-12s old loss %.3f, new loss %.3f\n", names[kind], mean[kind][0], mean[kind][1]);
    assert_true(mean[1][0] < mean[0][0]);
    assert_true(better >= RUNS - 1);
    assert_true(mean[1][0] + mean[1][1] < mean[2][0] + mean[2][1]); /* and not because the new is learned less */
}

/* --- Killed, resumed, packed --- */

/* The run took what was planned, to the byte, and the pulls are a part of it. */
static void must_be_as_planned(const char *run)
{
    json_t *json = run_json(run);
    assert_int_equal(json_integer_value(json_object_get(json, "planned_bytes")), json_integer_value(json_object_get(json, "peak_bytes")));
    assert_true(json_integer_value(json_object_get(json_object_get(json, "planned_parts"), "keep")) > 0);
    json_decref(json);
}

static bool count_down(void *context) { return (*(int *)context)-- <= 0; }

static void resumed_runs_end_alike(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora"};
    for (int i = 0; i < 4; i++) {
        args a = {0}, b;
        common(&a, methods[i % 2], "whole");
        arg(&a, "keep.ewc.lambda=30");
        arg(&a, "keep.ewc.path=%s", scratch("old.jsonl"));
        arg(&a, "keep.ewc.samples=10");
        arg(&a, "keep.l2sp.lambda=2");
        arg(&a, "keep.ewc.importance=%s", i < 2 ? "fisher" : "path");
        b = args_copy(&a);
        arg(&b, "out=%s", scratch("broken"));
        train(&a);
        for (int left = 3, tries = 0; tries < 40; tries++, left += 2) { /* in the measurement first, then ever later */
            char *out = NULL;
            int count = left;
            tm_error problem;
            tm_callbacks callbacks = {.interrupted = count_down, .context = &count};
            tm_recipe_source source = {.overrides = b.item, .override_count = b.count};
            tm_status st = tm_train(&source, &callbacks, &out, &problem);
            free(out);
            if (st == TM_OK)
                break;
            assert_int_equal(st, TM_FAILED);
            assert_non_null(strstr(problem.message, "interrupted"));
        }
        if (!runs_agree(scratch("whole"), scratch("broken"), result_of(methods[i % 2])) || !files_agree(scratch("whole"), scratch("broken"), "importances.safetensors"))
            fail_msg("case %d", i);
        must_be_as_planned(scratch("whole"));
        char *x = run_json_text(scratch("whole"), "sha256", "importances"), *y = run_json_text(scratch("broken"), "sha256", "importances");
        assert_int_equal(strlen(x), 64);
        assert_string_equal(x, y);
        free(x);
        free(y);
        OK(tm_dir_remove(scratch("whole"), err));
        OK(tm_dir_remove(scratch("broken"), err));
        args_free(&a);
        args_free(&b);
    }
}

/* Two replicas in one process are two runs: F is shared, starts and penalties are each replica's own. */
static void replicas_are_runs(void **state)
{
    (void)state;
    static const char *const extra[][3] = {{"keep.ewc.lambda=30", "keep.l2sp.lambda=1", "threads=1"}, {"keep.ewc.lambda=30", "lora.init=@earlier", "lora.dropout=0.1"},
                                           {"keep.orthogonal.previous=[@earlier]", "lora.r=2", "keep.l2sp.lambda=1"}};
    char file[512];
    snprintf(file, sizeof file, "%s", scratch("shared.st"));
    args f = {0};
    common(&f, "lora", "unused");
    arg(&f, "keep.ewc.path=%s", scratch("old.jsonl"));
    arg(&f, "lora.target_modules=all-linear");
    make_importances(&f, "shared.st");
    args_free(&f);
    for (size_t c = 0; c < 3; c++) {
        tm_job job[2];
        tm_seeds seeds[2];
        tm_order *order[2];
        tm_run_folder *folder[2];
        for (int r = 0; r < 2; r++) {
            args a = {0};
            char name[32];
            for (int packed = 0; packed < 2; packed++) {
                snprintf(name, sizeof name, "%s-%d", packed ? "packed" : "alone", r);
                a = (args){0};
                common(&a, "lora", name);
                arg(&a, "train.seed=%d", 5 + r);
                for (int k = 0; k < 3; k++)
                    arg_at(&a, extra[c][k]);
                if (c < 2)
                    arg(&a, "keep.ewc.importances=%s", file);
                if (packed)
                    open_job(&a, TM_JOB_TRAIN, &job[r]);
                else
                    train(&a);
                args_free(&a);
            }
            seeds[r] = job[r].seeds;
            order[r] = job[r].order;
            folder[r] = &job[r].folder;
        }
        tm_run run = job[0].run;
        tm_memory_plan plan;
        tm_device *device;
        tm_trainer *trainer;
        run.replicas = 2;
        run.seeds = seeds;
        run.order = order;
        run.folder = folder;
        run.importances = c < 2 ? file : NULL;
        OK(tm_plan_memory(&run, tm_cpu_traits(), 0, &plan, err));
        OK(tm_cpu_device_create(2, TM_ISA_AUTO, &device, err));
        OK(tm_trainer_create(&run, device, plan.part, &trainer, err));
        OK(tm_trainer_start(trainer, err));
        OK(tm_trainer_run(trainer, err));
        OK(tm_trainer_save(trainer, err));
        tm_trainer_destroy(trainer);
        tm_device_destroy(device);
        for (int r = 0; r < 2; r++) {
            char alone[32], packed[32];
            tm_job_close(&job[r]);
            snprintf(alone, sizeof alone, "alone-%d", r);
            snprintf(packed, sizeof packed, "packed-%d", r);
            assert_true(metric(scratch(alone), 6, "penalty") > 0);
            if (!runs_agree(scratch(alone), scratch(packed), adapter_file()))
                fail_msg("case %zu, replica %d", c, r);
            OK(tm_dir_remove(scratch(alone), err));
            OK(tm_dir_remove(scratch(packed), err));
        }
    }
}

/* --- What is not possible says so --- */

static void refusals(void **state)
{
    (void)state;
    static const struct {
        tm_status status;
        const char *text, *method, *arg[3];
    } cases[] = {
        {TM_UNSUPPORTED, "use_dora", "lora", {"keep.ewc.lambda=1", "keep.ewc.importances=@delta.st", "lora.use_dora=true"}},
        {TM_UNSUPPORTED, "use_dora", "lora", {"keep.l2sp.lambda=1", "lora.use_dora=true"}},
        {TM_UNSUPPORTED, "embedding", "lora", {"keep.l2sp.lambda=1", "lora.target_modules=[embed_tokens, q_proj]"}},
        {TM_UNSUPPORTED, "registers", "lora", {"keep.l2sp.lambda=1", "lora.registers=[x]"}},
        {TM_RECIPE, "importances", "full", {"keep.ewc.lambda=1"}},
        {TM_INPUT, "missing", "full", {"keep.ewc.lambda=1", "keep.ewc.importances=@delta.st"}},
        {TM_INPUT, "no file of importances", "full", {"keep.ewc.lambda=1", "keep.ewc.importances=@model/model.safetensors"}},
        {TM_RECIPE, "keep.ewc.importances", "full", {"keep.ewc.lambda=1", "keep.ewc.importances=/nowhere/at/all"}},
        {TM_RECIPE, "method: lora", "full", {"keep.orthogonal.previous=[@earlier]"}},
        {TM_RECIPE, "none of the modules", "lora", {"keep.orthogonal.previous=[@earlier]", "lora.target_modules=[lm_head]"}},
        {TM_INPUT, "nowhere", "lora", {"keep.orthogonal.previous=[/nowhere]"}},
    };
    args f = {0};
    common(&f, "lora", "unused");
    arg(&f, "keep.ewc.path=%s", scratch("old.jsonl"));
    make_importances(&f, "delta.st");
    args_free(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        args a = {0};
        common(&a, cases[i].method, "refused");
        for (int k = 0; k < 3 && cases[i].arg[k]; k++)
            arg_at(&a, cases[i].arg[k]);
        tm_error problem = {0};
        tm_status st = try_train(&a, &problem);
        if (st != cases[i].status || !strstr(problem.message, cases[i].text))
            fail_msg("case %zu: status %d, \"%s\", expected %d, \"%s\"", i, (int)st, problem.message, (int)cases[i].status, cases[i].text);
        OK(tm_dir_remove(scratch("refused"), err));
        args_free(&a);
    }
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    static const char *const small = "{\"model_type\": \"llama\", \"tie_word_embeddings\": false, \"vocab_size\": 23, \"hidden_size\": 8, \"intermediate_size\": 8, "
                                     "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": 8, \"max_position_embeddings\": 32}";
    write_model(scratch("model"), config, TM_F32, 5);
    write_model(scratch("small"), small, TM_F32, 6);
    write_rows(scratch("new.jsonl"), 24, 4, 9, 23, 0.3, 9);
    write_rows(scratch("old.jsonl"), 24, 4, 9, 23, 0.3, 10);
    for (int i = 0; i < 2; i++) {
        args a = {0};
        common(&a, "lora", i ? "second" : "earlier");
        arg(&a, "train.seed=%d", 31 + i);
        if (i)
            arg(&a, "lora.target_modules=[q_proj, v_proj, up_proj]");
        train(&a);
        args_free(&a);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_pull_at_the_start), cmocka_unit_test(a_strong_pull_freezes), cmocka_unit_test(gradients_are_differences), cmocka_unit_test(l2sp_is_half_a_square), cmocka_unit_test(overlap_is_of_every_module),
        cmocka_unit_test(scale_of_factors_is_free), cmocka_unit_test(parabolas_meet), cmocka_unit_test(resumed_runs_end_alike), cmocka_unit_test(replicas_are_runs),
        cmocka_unit_test(refusals), cmocka_unit_test(shuffled_importances_keep_less)};
    return cmocka_run_group_tests_name("pulls to the start", tests, begin, scratch_end);
}
