/* Derivatives: backward of every op against central differences of its forward, in double (the
 * TM_ISA_F64 device). Iterates the list of ops: an op without an entry in `checks` does not build. */
#include "cases.h"

#include <setjmp.h>
#include <cmocka.h>

#include <time.h>

/* Where each op's derivative is checked: "cases" here, or the test file that does it, or why there is none. */
#define CHECK_embed_forward "cases"
#define CHECK_embed_backward "cases"
#define CHECK_rmsnorm_forward "cases"
#define CHECK_rmsnorm_backward "cases"
#define CHECK_layernorm_forward "cases"
#define CHECK_layernorm_backward "cases"
#define CHECK_linear_forward "tests/grad/linear_cases.h"
#define CHECK_linear_backward_input "tests/grad/linear_cases.h"
#define CHECK_linear_backward_weight "tests/grad/linear_cases.h"
#define CHECK_lowrank_forward "tests/grad/linear_cases.h"
#define CHECK_lowrank_backward "tests/grad/linear_cases.h"
#define CHECK_lora_forward "tests/unit/test_linear.c"
#define CHECK_lora_backward "tests/unit/test_linear.c"
#define CHECK_dora_norm "tests/unit/test_linear.c"
#define CHECK_dora_forward "tests/grad/linear_cases.h"
#define CHECK_dora_backward "tests/grad/linear_cases.h"
#define CHECK_rope_forward "cases"
#define CHECK_rope_backward "cases"
#define CHECK_attention_forward "cases"
#define CHECK_attention_backward "cases"
#define CHECK_glu_forward "cases"
#define CHECK_glu_backward "cases"
#define CHECK_xent "cases"
#define CHECK_softcap "tests/unit/test_ops.c"
#define CHECK_most_likely "tests/unit/test_ops.c"
#define CHECK_gather_rows "cases"
#define CHECK_scatter_rows "cases"
#define CHECK_cast "tests/unit/test_ops.c"
#define CHECK_axpy "tests/unit/test_ops.c"
#define CHECK_fill "tests/unit/test_ops.c"
#define CHECK_dropout "cases"
#define CHECK_unscale "tests/unit/test_optim.c"
#define CHECK_grad_norm "tests/unit/test_optim.c"
#define CHECK_adamw "tests/unit/test_optim.c"
#define CHECK_sgd "tests/unit/test_optim.c"
#define CHECK_trail "tests/unit/test_optim.c"
#define CHECK_anchor "tests/grad/keep_cases.h"
#define CHECK_delta_anchor "tests/grad/keep_cases.h"
#define CHECK_overlap "tests/grad/keep_cases.h"
#define CHECK_square_add "tests/grad/keep_cases.h"
#define CHECK_path_add "tests/grad/keep_cases.h"
#define CHECK_sample_targets "tests/unit/test_keep_ops.c"

static uint64_t seed;

static const struct check {
    const char *op, *where;
} checks[] = {
#define TM_OP(name, params) {#name, CHECK_##name},
#include "device/ops.def"
#undef TM_OP
};

static void every_op_is_checked(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        const char *path = strcmp(checks[i].where, "cases") == 0 ? "tests/grad/cases.h" : checks[i].where;
        FILE *f = fopen(path, "r");
        if (!f)
            fail_msg("op %s: its check should be in %s, which is not there", checks[i].op, path);
        char line[1024];
        bool found = false;
        while (fgets(line, sizeof line, f))
            found |= strstr(line, checks[i].op) != NULL && (strstr(line, "RUN(") || strstr(line, "ops->"));
        fclose(f);
        if (!found)
            fail_msg("op %s: %s does not run it", checks[i].op, path);
    }
}

/* sum over outputs of gradient * output, with field `i` element `at` moved by h */
static double loss(const opcase *c, tm_device *d, int i, int64_t at, double h)
{
    buffers b;
    buffers_init(&b, c, d, types_f64);
    run_view v = buffers_view(&b, c, d);
    const field *f = &c->f[i];
    double *place = (double *)b.data[i] + at / f->cols * field_ld(f) + at % f->cols, moved = *place + h;
    d->calls->upload(d, place, &moved, sizeof moved);
    c->forward(c, &v);
    double sum = 0;
    for (int k = 0; k < c->n_outs; k++) {
        const field *out = &c->f[c->outs[k].value];
        double *value = malloc(sizeof(double) * (size_t)(out->rows * out->cols + 1));
        buffers_read(&b, c, d, c->outs[k].value, value, NULL);
        for (int64_t j = 0; j < out->rows * out->cols; j++)
            sum += value[j] * c->f[c->outs[k].grad].value[j];
        free(value);
    }
    buffers_deinit(&b, c, d);
    return sum;
}

static double check_element(const opcase *c, tm_device *d, double *const *got, const grad_pair *in, int64_t at)
{
    const field *grad = &c->f[in->grad];
    double h = 1e-4, near = loss(c, d, in->value, at, h) - loss(c, d, in->value, at, -h);
    double far = loss(c, d, in->value, at, 2 * h) - loss(c, d, in->value, at, -2 * h);
    double want = (8 * near - far) / (12 * h); /* central, exact up to the fourth power of h */
    double start = grad->role == ADDED && strcmp(grad->name, "dlogits") != 0 ? grad->value[at] : 0;
    double have = got[in->grad][at] - start;
    double error = fabs(have - want) / (fabs(want) + 1);
    if (!(error < 1e-7))
        fail_msg("%s: %s[%lld] is %.12g, differences say %.12g", c->note, grad->name, (long long)at, have, want);
    return error;
}

static void derivatives(void **state)
{
    (void)state;
    tm_device *d;
    tm_error err;
    must(tm_cpu_device_create(2, TM_ISA_F64, &d, &err), &err);
    for (int k = 0; k < CASE_KINDS; k++) {
        double worst = 0;
        for (int variant = 0; variant < case_kinds[k].variants; variant++) {
            opcase *c = case_make(&case_kinds[k], variant, seed);
            double **got = case_values(c);
            bool clean;
            case_run(c, d, types_f64, false, got, &clean);
            assert_true(clean);
            for (int i = 0; i < c->n_ins; i++) {
                const field *f = &c->f[c->ins[i].value];
                for (int n = 0; n < 10 && f->rows * f->cols > 0; n++)
                    worst = fmax(worst, check_element(c, d, got, &c->ins[i], rng_in(&c->random, 0, f->rows * f->cols - 1)));
            }
            values_free(got);
            case_free(c);
        }
        printf("%-10s largest error %.1e\n", case_kinds[k].name, worst);
    }
    tm_device_destroy(d);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL); /* a seed to repeat */
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_op_is_checked), cmocka_unit_test(derivatives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
