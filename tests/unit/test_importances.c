/* Importances: the files, and what is in them. The Fisher information is held against the expectation over every sequence of labels
 * (a toy vocabulary, gradients in double), and that against the curvature of KL; path integrals against their closed form for one
 * step; and none of it depends on how the run is laid out. */
#include "../support/machine.h"

#include "keep/importance.h"

static uint64_t seed;

static const char *const config = "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": false, \"vocab_size\": 5, \"hidden_size\": 8, \"intermediate_size\": 12, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 4, \"max_position_embeddings\": 32}";

enum { VOCAB = 5, ROW = 3, LABELS = VOCAB * VOCAB };

static args measured(const char *rows, const char *method)
{
    args a = {0};
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "method=%s", method);
    arg(&a, "out=%s", scratch("unused"));
    arg(&a, "data.0.path=%s", scratch(rows));
    arg(&a, "data.0.format=tokens");
    arg(&a, "threads=1");
    arg(&a, "keep.ewc.samples=100000");
    return a;
}

static tm_status try_fisher(const args *a, const char *out, const char *add, tm_error *err)
{
    tm_fisher_request request = {.source = {.overrides = a->item, .override_count = a->count}, .out = out, .add = add};
    char *text = NULL;
    tm_status st = tm_fisher(&request, NULL, &text, err);
    assert_true((st == TM_OK) == (text != NULL));
    free(text);
    return st;
}

static tm_safetensors *fisher(const args *a, const char *out, const char *add)
{
    tm_safetensors *file;
    OK(try_fisher(a, scratch(out), add, err));
    OK(tm_importances_open(scratch(out), &file, err));
    return file;
}

static float element(const tm_st_tensor *t, int64_t i)
{
    float value;
    memcpy(&value, (const char *)t->data + 4 * i, 4);
    return value;
}

/* --- The expectation over labels --- */

/* Gradients and probabilities of a model in double, all of it trained. */
typedef struct reference {
    tm_job job;
    machine m;
    double **fisher; /* [params][count] */
} reference;

static void reference_open(reference *r, const char *rows)
{
    args a = measured(rows, "full");
    arg(&a, "train.batch=1000000");
    *r = (reference){0};
    open_job(&a, TM_JOB_PLAN, &r->job);
    machine_open(&r->m, &r->job, TM_ISA_F64, 0, (tm_model_settings){.logits = true});
    r->fisher = calloc((size_t)r->m.model.params.count, sizeof *r->fisher);
    for (int64_t i = 0; i < r->m.model.params.count; i++)
        r->fisher[i] = calloc((size_t)tm_param_count(r->m.model.params.item[i]), sizeof(double));
    args_free(&a);
}

static void reference_close(reference *r)
{
    for (int64_t i = 0; i < r->m.model.params.count; i++)
        free(r->fisher[i]);
    free(r->fisher);
    machine_close(&r->m);
    tm_job_close(&r->job);
}

/* Log-probabilities [n, VOCAB] of what follows every token of an item. */
static void log_probabilities(reference *r, int64_t item, double *out)
{
    machine *m = &r->m;
    tm_model_begin_step(&m->model, NULL);
    tm_batch_fill(&m->batch, &m->items[item], 1);
    tm_model_forward(&m->model, &m->batch);
    tm_model_logits(&m->model, &m->batch);
    const double *x = m->model.logits.data;
    for (int64_t t = 0; t < m->items[item].n; t++) {
        double sum = 0;
        for (int v = 0; v < VOCAB; v++)
            sum += exp(x[t * VOCAB + v]);
        for (int v = 0; v < VOCAB; v++)
            out[t * VOCAB + v] = x[t * VOCAB + v] - log(sum);
    }
}

/* fisher += weight * (gradient of the log-likelihood of these labels)^2. On this device, memory is ours to look at. */
static void add_labels(reference *r, int64_t item, const int32_t *label, double weight)
{
    machine *m = &r->m;
    m->items[item].scale = 1;
    for (int64_t i = 0; i < m->model.params.count; i++)
        memset(m->model.params.item[i]->grad.data, 0, (size_t)tm_param_count(m->model.params.item[i]) * 8);
    tm_model_begin_step(&m->model, NULL);
    tm_batch_fill(&m->batch, &m->items[item], 1);
    memcpy((void *)(uintptr_t)m->batch.target, label, (size_t)m->batch.targets * 4);
    tm_model_forward(&m->model, &m->batch);
    tm_model_loss(&m->model, &m->batch, tm_tensor_none(), tm_tensor_none(), true);
    tm_model_backward(&m->model, &m->batch);
    tm_model_finish_gradients(&m->model);
    for (int64_t i = 0; i < m->model.params.count; i++) {
        const double *g = m->model.params.item[i]->grad.data;
        for (int64_t k = 0; k < tm_param_count(m->model.params.item[i]); k++)
            r->fisher[i][k] += weight * g[k] * g[k];
    }
}

/* The diagonal, by every pair of labels. */
static void enumerate(reference *r)
{
    for (int64_t e = 0; e < r->m.item_count; e++) {
        double p[ROW * VOCAB];
        log_probabilities(r, e, p);
        for (int32_t y = 0; y < LABELS; y++) {
            int32_t label[2] = {y / VOCAB, y % VOCAB};
            add_labels(r, e, label, exp(p[label[0]] + p[VOCAB + label[1]]));
        }
    }
}

static void observe(reference *r) /* the data's own labels */
{
    for (int64_t e = 0; e < r->m.item_count; e++)
        add_labels(r, e, r->m.items[e].ids + 1, 1);
}

/* |a - b| / |b| over all elements, b being divided by its mean. */
static double distance(const tm_safetensors *file, const reference *r)
{
    double sum = 0, count = 0, off = 0, all = 0;
    for (int64_t i = 0; i < r->m.model.params.count; i++)
        for (int64_t k = 0; k < tm_param_count(r->m.model.params.item[i]); k++) {
            sum += r->fisher[i][k];
            count++;
        }
    assert_int_equal(tm_safetensors_count(file), r->m.model.params.count);
    for (int64_t i = 0; i < r->m.model.params.count; i++) {
        const tm_param *p = r->m.model.params.item[i];
        const tm_st_tensor *t;
        OK(tm_importances_find(file, "file", p->name, p->rows, p->cols, &t, err));
        for (int64_t k = 0; k < t->count; k++) {
            double want = r->fisher[i][k] * count / sum, is = element(t, k);
            off += (is - want) * (is - want);
            all += want * want;
        }
    }
    return sqrt(off / all);
}

/* The same rows again and again: every copy draws its own labels. */
static void write_copies(const char *name, int64_t copies)
{
    static const char *const row[] = {"{\"input_ids\": [1, 3, 0]}\n", "{\"input_ids\": [4, 2, 2]}\n", "{\"input_ids\": [0, 1, 4]}\n"};
    tm_buf text = {0};
    for (int64_t i = 0; i < copies; i++)
        for (int k = 0; k < 3; k++)
            tm_buf_text(&text, row[k]);
    OK(tm_file_write(scratch(name), text.data, text.size, err));
    tm_buf_deinit(&text);
}

static void fisher_is_the_expectation(void **state)
{
    (void)state;
    reference r;
    args a = measured("copies.jsonl", "full");
    reference_open(&r, "once.jsonl");
    enumerate(&r);
    tm_safetensors *sampled = fisher(&a, "sampled.st", NULL), *few;
    args b = measured("few.jsonl", "full");
    few = fisher(&b, "few.st", NULL);
    arg(&b, "keep.ewc.fisher=empirical");
    tm_safetensors *empirical = fisher(&b, "empirical.st", NULL);
    double many_off = distance(sampled, &r), few_off = distance(few, &r), biased = distance(empirical, &r);
    print_message("distance to the expectation: %.4f of 6,000 samples, %.4f of 60; with the data's labels %.4f\n", many_off, few_off, biased);
    assert_true(many_off < 0.08);
    assert_true(many_off < few_off);
    assert_true(biased > 3 * many_off);
    tm_safetensors_close(sampled);
    tm_safetensors_close(few);
    tm_safetensors_close(empirical);
    args_free(&a);
    args_free(&b);
    reference_close(&r);
}

static void empirical_is_the_squared_gradient(void **state)
{
    (void)state;
    reference r;
    args a = measured("once.jsonl", "full");
    arg(&a, "keep.ewc.fisher=empirical");
    reference_open(&r, "once.jsonl");
    observe(&r);
    tm_safetensors *file = fisher(&a, "once.st", NULL);
    double off = distance(file, &r);
    if (!(off < 1e-5))
        fail_msg("distance %g", off);
    tm_safetensors_close(file);
    args_free(&a);
    reference_close(&r);
}

/* F_ii = 2 KL(theta, theta + eps e_i) / eps^2: the expectation itself is the curvature that it should be. */
static void fisher_is_curvature(void **state)
{
    (void)state;
    reference r;
    dice d = {.key = seed};
    reference_open(&r, "once.jsonl");
    enumerate(&r);
    for (int round = 0; round < 40; round++) {
        int64_t i = dice_in(&d, 0, r.m.model.params.count - 1);
        const tm_param *p = r.m.model.params.item[i];
        int64_t k = dice_in(&d, 0, tm_param_count(p) - 1);
        double *value = p->value.data, kept = value[k], kl = 0, eps = 1e-4;
        for (int64_t e = 0; e < r.m.item_count; e++) {
            double before[ROW * VOCAB], after[2][ROW * VOCAB];
            log_probabilities(&r, e, before);
            for (int side = 0; side < 2; side++) { /* of both sides the mean: without the third derivative */
                value[k] = kept + (side ? -eps : eps);
                log_probabilities(&r, e, after[side]);
                value[k] = kept;
                for (int v = 0; v < 2 * VOCAB; v++)
                    kl += exp(before[v]) * (before[v] - after[side][v]) / 2;
            }
        }
        double curvature = 2 * kl / (eps * eps), is = r.fisher[i][k];
        if (!(fabs(curvature - is) <= 1e-4 * is + 1e-6))
            fail_msg("seed %llu: %s element %lld: F is %.9g, 2 KL / eps^2 %.9g", (unsigned long long)seed, p->name, (long long)k, is, curvature);
    }
    reference_close(&r);
}

/* --- The layout --- */

static void layout_never_enters(void **state)
{
    (void)state;
    static const char *const layouts[][2] = {{"threads=3", "train.batch=7"}, {"train.micro_tokens=64", "train.packing=false"}, {"train.recompute=full", "threads=2"}};
    static const char *const methods[][3] = {{"full", "fisher"}, {"lora", "fisher"}, {"bitfit", "fisher"}, {"full", "path"}, {"lora", "path"}};
    for (size_t i = 0; i < 5; i++) {
        args a = measured("walks.jsonl", methods[i][0]);
        arg(&a, "keep.ewc.importance=%s", methods[i][1]);
        arg(&a, "keep.ewc.samples=12");
        OK(try_fisher(&a, scratch("one.st"), NULL, err));
        for (size_t k = 0; k < 3; k++) {
            if (k == 0 && i > 2)
                continue; /* of a path the batch is a part */
            args b = args_copy(&a);
            arg(&b, "%s", layouts[k][0]);
            arg(&b, "%s", layouts[k][1]);
            OK(try_fisher(&b, scratch("other.st"), NULL, err));
            char other[512];
            snprintf(other, sizeof other, "%s", scratch("other.st"));
            OK(tm_path_move(other, scratch("moved/one.st"), err));
            if (!files_agree(scratch_dir, scratch("moved"), "one.st"))
                fail_msg("%s of %s with %s %s", methods[i][1], methods[i][0], layouts[k][0], layouts[k][1]);
            args_free(&b);
        }
        args_free(&a);
    }
}

/* --- Online --- */

static void tasks_add_up(void **state)
{
    (void)state;
    args a = measured("once.jsonl", "full"), b = measured("walks.jsonl", "full"), c = measured("few.jsonl", "full");
    arg(&b, "keep.ewc.gamma=0.5");
    arg(&c, "keep.ewc.gamma=0.5");
    tm_safetensors *f[3] = {fisher(&a, "1.st", NULL), fisher(&b, "2.st", NULL), fisher(&c, "3.st", NULL)};
    tm_safetensors *two = fisher(&b, "12.st", scratch("1.st")), *three = fisher(&c, "123.st", scratch("12.st"));
    assert_string_equal(tm_safetensors_metadata(three, "tasks"), "3");
    assert_string_equal(tm_safetensors_metadata(three, "weight"), "1.75");
    for (int64_t i = 0; i < tm_safetensors_count(three); i++) {
        const tm_st_tensor *t = tm_safetensors_at(three, i);
        for (int64_t k = 0; k < t->count; k++) {
            double want = 0;
            for (int j = 0; j < 3; j++)
                want += (double)element(tm_safetensors_at(f[j], i), k) * (j == 0 ? 0.25 : j == 1 ? 0.5 : 1) / 1.75;
            assert_true(fabs(want - element(t, k)) <= 1e-5 * want);
        }
    }
    args other = measured("once.jsonl", "bitfit");
    FAILS(TM_INPUT, "same parameters", try_fisher(&other, scratch("x.st"), scratch("1.st"), err));
    assert_false(tm_path_exists(scratch("x.st")));
    for (int j = 0; j < 3; j++)
        tm_safetensors_close(f[j]);
    tm_safetensors_close(two);
    tm_safetensors_close(three);
    args_free(&a);
    args_free(&b);
    args_free(&c);
    args_free(&other);
}

/* --- The path integral --- */

/* One step of plain gradient descent: omega = rate g^2 and the way is rate g, so F = rate g^2 / (rate^2 g^2 + xi) with xi the mean of
 * rate^2 g^2, times the layer's coefficient. */
static void path_of_one_step(void **state)
{
    (void)state;
    const double rate = 0.05;
    reference r;
    args a = measured("once.jsonl", "full");
    arg(&a, "keep.ewc.importance=path");
    arg(&a, "train.optimizer=sgd");
    arg(&a, "train.momentum=0");
    arg(&a, "train.weight_decay=0");
    arg(&a, "train.max_grad_norm=0");
    arg(&a, "train.lr=%g", rate);
    arg(&a, "train.batch=3");
    tm_safetensors *file = fisher(&a, "path.st", NULL);
    reference_open(&r, "once.jsonl");
    machine *m = &r.m;
    for (int64_t e = 0; e < m->item_count; e++)
        m->items[e].scale = 1.0 / 6;
    tm_model_begin_step(&m->model, NULL);
    machine_loss(m, true);
    double way = 0, count = 0, square[3] = {0}, elements[3] = {0}, mean = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < m->model.params.count; i++) {
            const tm_param *p = m->model.params.item[i];
            const double *g = p->grad.data;
            for (int64_t k = 0; k < tm_param_count(p); k++) {
                double step = rate * g[k];
                if (pass == 0) {
                    way += step * step;
                    count++;
                    continue;
                }
                r.fisher[i][k] = rate * g[k] * g[k] / (step * step + way / count);
                square[p->layer + 1] += r.fisher[i][k] * r.fisher[i][k];
                elements[p->layer + 1]++;
            }
        }
    for (int g = 0; g < 3; g++)
        mean += sqrt(square[g] / elements[g]) / 3;
    for (int64_t i = 0; i < m->model.params.count; i++) {
        const tm_param *p = m->model.params.item[i];
        for (int64_t k = 0; k < tm_param_count(p); k++)
            r.fisher[i][k] *= sqrt(square[p->layer + 1] / elements[p->layer + 1]) / mean;
    }
    double off = distance(file, &r);
    if (!(off < 1e-3))
        fail_msg("distance %g", off);
    tm_safetensors_close(file);
    args_free(&a);
    reference_close(&r);
}

/* --- What LoRA would change --- */

/* Of the adapted matrices, and the same numbers as the whole model's there (up to the mean). */
static void delta_is_of_the_weights(void **state)
{
    (void)state;
    args a = measured("walks.jsonl", "lora"), b = measured("walks.jsonl", "full");
    arg(&a, "lora.target_modules=[q_proj, down_proj]");
    tm_safetensors *part = fisher(&a, "part.st", NULL), *whole = fisher(&b, "whole.st", NULL);
    assert_int_equal(tm_safetensors_count(part), 4);
    assert_string_equal(tm_safetensors_metadata(part, "space"), "delta");
    double ratio = 0;
    for (int64_t i = 0; i < 4; i++) {
        const tm_st_tensor *t = tm_safetensors_at(part, i), *u = tm_safetensors_find(whole, t->name);
        assert_non_null(u);
        assert_int_equal(t->count, u->count);
        for (int64_t k = 0; k < t->count; k++) {
            if (element(u, k) < 1e-3)
                continue;
            double here = element(t, k) / element(u, k);
            ratio = ratio > 0 ? ratio : here;
            assert_true(fabs(here / ratio - 1) < 1e-4);
        }
    }
    tm_safetensors_close(part);
    tm_safetensors_close(whole);
    args_free(&a);
    args_free(&b);
}

/* --- Files --- */

typedef struct odd_file {
    const char *expect, *kind;
    tm_dtype dtype;
    float value[4];
    int64_t rows, cols;
} odd_file;

static void damaged_files_are_refused(void **state)
{
    (void)state;
    static const odd_file cases[] = {
        {"mean", "fisher", TM_F32, {1, 1, 1, 2}, 2, 2},
        {"not negative", "fisher", TM_F32, {1, -1, 2, 2}, 2, 2},
        {"not negative", "path", TM_F32, {1, NAN, 1, 1}, 2, 2},
        {"finite", "fisher", TM_F32, {1, INFINITY, 1, 1}, 2, 2},
        {"mean", "fisher", TM_F32, {0, 0, 0, 0}, 2, 2},
        {"kind guess", "guess", TM_F32, {1, 1, 1, 1}, 2, 2},
        {"expected F32", "fisher", TM_I32, {1, 1, 1, 1}, 2, 2},
        {"missing", "fisher", TM_F32, {1, 1, 1, 1}, 2, 2},
        {"another model", "fisher", TM_F32, {1, 1, 1, 1}, 4, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const odd_file *c = &cases[i];
        const tm_st_tensor *found;
        tm_safetensors *file = NULL;
        tm_st_tensor t = {.name = "w", .dtype = c->dtype, .ndim = 2, .shape = {c->rows, c->cols}, .data = c->value};
        tm_importance_facts facts = {.kind = c->kind, .labels = "sampled", .space = "trained", .weight = 1, .tasks = 1};
        OK(tm_importances_write(scratch("odd.st"), &t, 1, &facts, err));
        tm_error problem = {0};
        tm_status st = tm_importances_open(scratch("odd.st"), &file, &problem);
        if (st == TM_OK)
            st = tm_importances_find(file, "odd.st", i == 7 ? "v" : "w", 2, 2, &found, &problem);
        if (st != TM_INPUT || !strstr(problem.message, c->expect))
            fail_msg("case %zu: status %d, \"%s\"", i, (int)st, problem.message);
        tm_safetensors_close(file);
    }
    tm_safetensors *file;
    FAILS(TM_INPUT, "no file of importances", tm_importances_open(scratch("model/model.safetensors"), &file, err));
    OK(tm_file_write(scratch("odd.st"), "{}", 2, err));
    FAILS(TM_INPUT, "odd.st", tm_importances_open(scratch("odd.st"), &file, err));
    FAILS(TM_INPUT, "none.st", tm_importances_open(scratch("none.st"), &file, err));
}

/* Bytes of a good file changed at random: refused, or read as a file that keeps the rules. */
static void mutated_files_never_crash(void **state)
{
    (void)state;
    args a = measured("once.jsonl", "bitfit");
    OK(try_fisher(&a, scratch("good.st"), NULL, err));
    size_t size;
    char *good = slurp(scratch("good.st"), &size);
    dice d = {.key = seed};
    for (int round = 0; round < 400; round++) {
        char *bad = malloc(size);
        memcpy(bad, good, size);
        size_t length = dice_unit(&d) < 0.2 ? (size_t)dice_in(&d, 0, (int64_t)size) : size;
        for (int64_t k = dice_in(&d, 1, 6); k; k--)
            bad[dice_in(&d, 0, (int64_t)(dice_unit(&d) < 0.5 ? size : size / 3) - 1)] = (char)dice_word(&d);
        OK(tm_file_write(scratch("bad.st"), bad, length, err));
        tm_safetensors *file = NULL;
        tm_error problem;
        if (tm_importances_open(scratch("bad.st"), &file, &problem) == TM_OK)
            tm_safetensors_close(file);
        free(bad);
    }
    free(good);
    args_free(&a);
}

static bool at_once(void *context)
{
    (void)context;
    return true;
}

static void interruption_leaves_nothing(void **state)
{
    (void)state;
    args a = measured("walks.jsonl", "full");
    tm_callbacks callbacks = {.interrupted = at_once};
    tm_fisher_request request = {.source = {.overrides = a.item, .override_count = a.count}, .out = scratch("stopped.st")};
    char *text = NULL;
    FAILS(TM_FAILED, "interrupted", tm_fisher(&request, &callbacks, &text, err));
    assert_null(text);
    assert_false(tm_path_exists(scratch("stopped.st")));
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"), config, TM_F32, 5);
    write_copies("once.jsonl", 1);
    write_copies("few.jsonl", 20);
    write_copies("copies.jsonl", 2000);
    write_rows(scratch("walks.jsonl"), 24, 4, 9, VOCAB, 0.3, 9);
    OK(tm_dir_create(scratch("moved"), err));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empirical_is_the_squared_gradient), cmocka_unit_test(fisher_is_the_expectation), cmocka_unit_test(fisher_is_curvature),
        cmocka_unit_test(layout_never_enters), cmocka_unit_test(tasks_add_up), cmocka_unit_test(path_of_one_step), cmocka_unit_test(delta_is_of_the_weights),
        cmocka_unit_test(damaged_files_are_refused), cmocka_unit_test(mutated_files_never_crash), cmocka_unit_test(interruption_leaves_nothing)};
    return cmocka_run_group_tests_name("importances", tests, begin, scratch_end);
}
