/* OSF: singular directions against matrices whose directions are known; and what training leaves as it was. */
#include "../support/run.h"

#include "api/adapter_file.h"
#include "keep/svd.h"

static uint64_t seed;

/* --- Singular directions --- */

/* k orthonormal rows of n at random, by Gram-Schmidt in long double. */
static double *orthonormal(dice *d, int64_t k, int64_t n)
{
    double *q = malloc((size_t)(k * n) * sizeof *q);
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < n; j++)
            q[i * n + j] = dice_spread(d);
        for (int pass = 0; pass < 3; pass++)
            for (int64_t p = 0; p <= i; p++) {
                long double sum = 0;
                for (int64_t j = 0; j < n; j++)
                    sum += (long double)q[p * n + j] * q[i * n + j];
                for (int64_t j = 0; j < n; j++)
                    q[i * n + j] = p < i ? (double)(q[i * n + j] - sum * q[p * n + j]) : (double)(q[i * n + j] / sqrtl(sum));
            }
    }
    return q;
}

/* How far rows are from orthonormal, at most. */
static double skew(const double *q, int64_t k, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t t = 0; t < n; t++)
                sum += q[i * n + t] * q[j * n + t];
            most = fmax(most, fabs(sum - (i == j)));
        }
    return most;
}

/* The largest element of a - sum over k of s u v^T, and of a. */
static double left_over(const float *a, int64_t rows, int64_t cols, int64_t k, const double *u, const double *s, const double *v)
{
    double most = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = a[i * cols + j];
            for (int64_t t = 0; t < k; t++)
                sum -= s[t] * u[t * rows + i] * v[t * cols + j];
            most = fmax(most, fabs(sum));
        }
    return most;
}

static void known_singular_values(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1}, {1, 7, 1}, {5, 1, 1}, {2, 2, 2}, {12, 12, 12}, {9, 40, 9}, {40, 9, 9}, {33, 70, 33}, {70, 33, 20}, {24, 24, 11}};
    dice d = {.key = seed};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++)
        for (int way = 0; way < 4; way++) { /* spread, equal in groups, many decades, most of them zero */
            int64_t rows = sizes[c][0], cols = sizes[c][1], n = rows < cols ? rows : cols, k = sizes[c][2];
            double *p = orthonormal(&d, n, rows), *q = orthonormal(&d, n, cols), known[64];
            float *a = calloc((size_t)(rows * cols), sizeof *a);
            for (int64_t i = 0; i < n; i++)
                known[i] = way == 0 ? 3.0 / (double)(i + 1) : way == 1 ? (double)(4 - i * 4 / n) : way == 2 ? exp(-0.7 * (double)i) : (i < (n + 3) / 4 ? 2 - 0.1 * (double)i : 0);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++) {
                    double sum = 0;
                    for (int64_t t = 0; t < n; t++)
                        sum += known[t] * p[t * rows + i] * q[t * cols + j];
                    a[i * cols + j] = (float)sum;
                }
            double *u = malloc((size_t)(k * rows) * 8), *v = malloc((size_t)(k * cols) * 8), *s = malloc((size_t)k * 8);
            OK(tm_svd_top(a, rows, cols, k, u, s, v, err));
            double worst = fmax(skew(u, k, rows), skew(v, k, cols)), off = 0;
            for (int64_t i = 0; i < k; i++)
                off = fmax(off, fabs(s[i] - known[i])); /* the matrix was rounded to floats */
            double left = left_over(a, rows, cols, k, u, s, v), rest = k < n ? known[k] : 0;
            if (!(worst <= 1e-9) || !(off <= 3e-7 * known[0]) || !(left <= rest + 3e-6 * known[0]))
                fail_msg("[%lld, %lld], %lld of way %d: skew %.3g, singular values %.3g off, %.3g left of %.3g; seed %llu", (long long)rows, (long long)cols, (long long)k, way,
                         worst, off, left, known[0], (unsigned long long)seed);
            free(p);
            free(q);
            free(a);
            free(u);
            free(v);
            free(s);
        }
}

static void matrices_of_zeros(void **state)
{
    (void)state;
    float a[6 * 9] = {0};
    double u[36], s[6], v[54];
    OK(tm_svd_top(a, 6, 9, 6, u, s, v, err));
    assert_true(skew(u, 6, 6) < 1e-12 && skew(v, 6, 9) < 1e-12 && s[0] == 0 && s[5] == 0);
    a[20] = NAN;
    tm_error problem = {0};
    assert_int_equal(tm_svd_top(a, 6, 9, 6, u, s, v, &problem), TM_INPUT);
}

/* --- Training --- */

static const char *const config = "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"vocab_size\": 41, \"hidden_size\": 24, \"intermediate_size\": 40, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

static const char *const of_method[][7] = {
    {"method=full", "train.lr=0.01", "train.weight_decay=0.3"},
    {"method=full", "train.lr=0.1", "train.optimizer=sgd", "train.momentum=0.9", "train.weight_decay=0.1"},
    {"method=freeze", "freeze.layers=1", "train.lr=0.01"},
    {"method=lora", "lora.r=4", "train.lr=0.02", "lora.dropout=0.1", "train.weight_decay=0.1"},
    {"method=lora", "lora.r=3", "train.lr=0.02", "lora.target_modules=[q_proj, down_proj]", "lora.use_rslora=true"},
};
enum { METHODS = sizeof of_method / sizeof *of_method, STEPS = 12 };

static bool is_lora(int method) { return method > 2; }
static const char *file_of(int method) { return is_lora(method) ? adapter_file() : model_file(); }

static args run_with(int method, const char *out, double share, const char *const *more)
{
    args a = {0};
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "out=%s", scratch(out));
    arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "threads=1");
    arg(&a, "train.batch=3");
    arg(&a, "train.steps=%d", STEPS);
    arg(&a, "train.warmup_steps=0");
    arg(&a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(&a, "train.checkpoint_every=0");
    arg(&a, "train.eval_every=6");
    arg(&a, "eval.0={name: held, format: tokens, path: '%s'}", scratch("rows.jsonl"));
    for (int i = 0; i < 7 && of_method[method][i]; i++)
        arg(&a, "%s", of_method[method][i]);
    for (int i = 0; more && more[i]; i++)
        arg(&a, "%s", more[i]);
    if (share >= 0)
        arg(&a, "keep.osf.share=%g", share);
    return a;
}

static void train_with(int method, const char *out, double share, const char *const *more)
{
    args a = run_with(method, out, share, more);
    OK(tm_dir_remove(scratch(out), err));
    train(&a);
    args_free(&a);
}

static tm_safetensors *open_file(const char *dir, const char *file)
{
    char path[1024];
    tm_safetensors *opened;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    OK(tm_safetensors_open(path, &opened, err));
    return opened;
}

static double length(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

/* What of dW [out, in] lies in the top directions of w, as shares of |w| and of |dW|. */
static void leak(const float *w, const double *dw, int64_t out, int64_t in, double share, double *of_w, double *of_dw)
{
    int64_t k = (int64_t)floor(share * (double)(out < in ? out : in) + 0.5);
    double *u = malloc((size_t)(k * out) * 8), *v = malloc((size_t)(k * in) * 8), *s = malloc((size_t)k * 8), sum = 0, size = 0;
    OK(tm_svd_top(w, out, in, k, u, s, v, err));
    for (int64_t t = 0; t < k; t++) {
        for (int64_t j = 0; j < in; j++) {
            double inner = 0;
            for (int64_t i = 0; i < out; i++)
                inner += u[t * out + i] * dw[i * in + j];
            sum += inner * inner;
        }
        for (int64_t i = 0; i < out; i++) {
            double inner = 0;
            for (int64_t j = 0; j < in; j++)
                inner += v[t * in + j] * dw[i * in + j];
            sum += inner * inner;
        }
    }
    for (int64_t i = 0; i < out * in; i++)
        size += (double)w[i] * w[i];
    *of_w = sqrt(sum / size);
    *of_dw = sqrt(sum) / length(dw, out * in);
    free(u);
    free(v);
    free(s);
}

/* dW of a matrix by the files; NULL: it is not trained. free() */
static double *change_of(int method, const char *dir, const tm_st_tensor *base)
{
    int64_t n = base->count, in = base->shape[1];
    if (!is_lora(method)) {
        tm_safetensors *file = open_file(dir, model_file());
        const float *now = tm_safetensors_find(file, base->name)->data, *then = base->data;
        double *dw = malloc((size_t)n * 8);
        for (int64_t i = 0; i < n; i++)
            dw[i] = (double)now[i] - then[i];
        tm_safetensors_close(file);
        return dw;
    }
    tm_adapter_file f;
    char name[300];
    snprintf(name, sizeof name, "%.*s", (int)(strlen(base->name) - strlen(".weight")), base->name);
    OK(tm_adapter_file_open(dir, &f, err));
    const tm_adapter_module *m = tm_adapter_file_find(&f, name);
    double *dw = m ? calloc((size_t)n, 8) : NULL;
    for (int64_t i = 0; m && i < base->shape[0]; i++)
        tm_linear_delta_add_row(&m->delta, i, 1, dw + i * in);
    tm_adapter_file_close(&f);
    return dw;
}

/* The largest leak of all matrices; how many are trained. */
static int64_t leaks(int method, const char *dir, double share, double *of_w, double *of_dw)
{
    tm_safetensors *base = open_file(scratch("model"), model_file());
    int64_t trained = 0;
    *of_w = *of_dw = 0;
    for (int64_t i = 0; i < tm_safetensors_count(base); i++) {
        const tm_st_tensor *t = tm_safetensors_at(base, i);
        if (!strstr(t->name, "proj.weight"))
            continue;
        double *dw = change_of(method, dir, t), a, b;
        if (dw && length(dw, t->count) > 0) {
            leak(t->data, dw, t->shape[0], t->shape[1], share, &a, &b);
            *of_w = fmax(*of_w, a);
            *of_dw = fmax(*of_dw, b);
            trained++;
        }
        free(dw);
    }
    tm_safetensors_close(base);
    return trained;
}

static void updates_stay_out_of_the_top(void **state)
{
    (void)state;
    static const int64_t expect[] = {14, 14, 7, 14, 4};
    for (int m = 0; m < METHODS; m++)
        for (int i = 0; i < 2; i++) {
            double share = i ? 0.75 : 0.25, of_w, of_dw, plain_w, plain_dw;
            train_with(m, "kept", share, NULL);
            train_with(m, "plain", -1, NULL);
            assert_int_equal(leaks(m, scratch("kept"), share, &of_w, &of_dw), expect[m]);
            leaks(m, scratch("plain"), share, &plain_w, &plain_dw);
            print_message("%s, share %g: %.2g of |W|, %.2g of |dW|; plain %.2g and %.2g\n", of_method[m][0], share, of_w, of_dw, plain_w, plain_dw);
            if (!(of_w <= 1e-6) || !(plain_dw > 0.1) || !(of_dw <= 1e-4))
                fail_msg("%s, share %g: %.3g of |W| leaks in, %.3g of |dW| (plain: %.3g); seed %llu", of_method[m][0], share, of_w, of_dw, plain_dw, (unsigned long long)seed);
        }
}

/* In how many left directions of w, from the top on, dw has nothing; in the others it has. */
static int64_t still(const float *w, const double *dw, int64_t out, int64_t in)
{
    int64_t least = out < in ? out : in, count = 0;
    double *u = malloc((size_t)(least * out) * 8), *v = malloc((size_t)(least * in) * 8), *s = malloc((size_t)least * 8), all = length(dw, out * in);
    OK(tm_svd_top(w, out, in, least, u, s, v, err));
    for (int64_t t = 0; t < least; t++) {
        double sum = 0;
        for (int64_t j = 0; j < in; j++) {
            double inner = 0;
            for (int64_t i = 0; i < out; i++)
                inner += u[t * out + i] * dw[i * in + j];
            sum += inner * inner;
        }
        if (sqrt(sum) > 1e-3 * all)
            break;
        count++;
    }
    free(u);
    free(v);
    free(s);
    return count;
}

/* The share of the directions of each matrix, of the shorter side, to the nearest whole number, halves up. */
static void shares_are_rounded(void **state)
{
    (void)state;
    static const struct {
        double share;
        int64_t of_24, of_12;
    } cases[] = {{0.1875, 5, 2}, {0.125, 3, 2}, {0.27, 6, 3}, {0.29, 7, 3}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        train_with(0, "kept", cases[c].share, NULL);
        tm_safetensors *base = open_file(scratch("model"), model_file());
        int64_t seen = 0;
        for (int64_t i = 0; i < tm_safetensors_count(base); i++) {
            const tm_st_tensor *t = tm_safetensors_at(base, i);
            if (!strstr(t->name, "proj.weight"))
                continue;
            double *dw = change_of(0, scratch("kept"), t);
            int64_t least = t->shape[0] < t->shape[1] ? t->shape[0] : t->shape[1], want = least == 24 ? cases[c].of_24 : cases[c].of_12;
            int64_t got = still(t->data, dw, t->shape[0], t->shape[1]);
            if (got != want)
                fail_msg("share %g: %lld of %lld directions of %s stay, expected %lld; seed %llu", cases[c].share, (long long)got, (long long)least, t->name, (long long)want,
                         (unsigned long long)seed);
            free(dw);
            seen++;
        }
        assert_int_equal(seen, 14);
        tm_safetensors_close(base);
    }
}

/* Share 0 is no method at all; with all directions kept, or a rate of 0, matrices keep their bits. */
static void shares_at_the_ends(void **state)
{
    (void)state;
    for (int m = 0; m < METHODS; m++) {
        double of_w, of_dw;
        train_with(m, "plain", -1, NULL);
        train_with(m, "other", 0, NULL);
        if (!runs_agree(scratch("plain"), scratch("other"), file_of(m)))
            fail_msg("%s: share 0 is not the plain run; seed %llu", of_method[m][0], (unsigned long long)seed);
        train_with(m, "other", 0.5, (const char *const[]){"train.lr=0", "train.weight_decay=0", NULL});
        assert_int_equal(leaks(m, scratch("other"), 0.5, &of_w, &of_dw), 0);
        train_with(m, "other", 1, NULL);
        leaks(m, scratch("other"), 1, &of_w, &of_dw);
        if (!(of_w <= 1e-6))
            fail_msg("%s: %.3g of |W| moves with share 1; seed %llu", of_method[m][0], of_w, (unsigned long long)seed);
    }
}

/* Norm and clipping are of projected gradients: where all directions of what is trained stay, nothing is left of them. */
static void gradients_are_projected_first(void **state)
{
    (void)state;
    static const char *const more[] = {"lora.target_modules=[q_proj]", "train.max_grad_norm=0.01", NULL};
    double norm[2];
    for (int i = 0; i < 2; i++) {
        json_t *row;
        size_t size;
        train_with(4, "plain", i ? 1 : -1, more);
        char *text = slurp(scratch("plain/metrics.jsonl"), &size), *first = strstr(text, "{\"step\": 1, "), *end = strchr(first, '\n');
        OK(tm_json_parse(first, (size_t)(end - first), "metrics.jsonl", &row, err));
        norm[i] = json_number_value(json_object_get(row, "grad_norm"));
        json_decref(row);
        free(text);
    }
    if (!(norm[0] > 1e-3) || !(norm[1] < 1e-5 * norm[0]))
        fail_msg("norm of projected gradients %.3g, of plain ones %.3g; seed %llu", norm[1], norm[0], (unsigned long long)seed);
}

static void refused(void **state)
{
    (void)state;
    static const char *const cases[][4] = {{"method", "method=bitfit"}, {"DoRA", "method=lora", "lora.use_dora=true"}, {"master", "precision=bf16", "train.master=bf16"}};
    for (size_t i = 0; i < 3; i++) {
        args a = run_with(0, "refused", 0.5, cases[i] + 1);
        tm_error problem = {0};
        tm_status st = try_train(&a, &problem);
        if ((st != TM_RECIPE && st != TM_UNSUPPORTED) || !strstr(problem.message, "keep.osf") || !strstr(problem.message, cases[i][0]))
            fail_msg("%s: status %d, %s", cases[i][1], (int)st, problem.message);
        args_free(&a);
    }
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), config, TM_F32, seed);
    write_rows(scratch("rows.jsonl"), 20, 4, 20, 41, 0.3, seed + 1);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_singular_values), cmocka_unit_test(matrices_of_zeros), cmocka_unit_test(updates_stay_out_of_the_top),
        cmocka_unit_test(shares_are_rounded), cmocka_unit_test(shares_at_the_ends), cmocka_unit_test(gradients_are_projected_first), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests_name("osf", tests, begin, scratch_end);
}
