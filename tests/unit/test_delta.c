/* dW = s B A by its parts against dW made in full, on random shapes. */
#include "base/philox.h"
#include "model/linear.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

enum { SIDE = 24, RANK = 9 };

typedef struct random_delta {
    float a[RANK * SIDE], b[SIDE * RANK];
    tm_linear_delta delta;
    double full[SIDE * SIDE];
} random_delta;

static void make(random_delta *x, uint64_t seed, int64_t out, int64_t in, int64_t r)
{
    uint64_t key = tm_philox_key(seed, TM_PURPOSE_INIT, 0, 0);
    for (uint32_t i = 0; i < RANK * SIDE; i++) {
        tm_philox p = tm_philox_at(key, i, 0, 0, 0);
        x->a[i] = 2 * tm_philox_uniform(p.word[0]) - 1;
        x->b[i] = 2 * tm_philox_uniform(p.word[1]) - 1;
    }
    x->delta = (tm_linear_delta){x->a, x->b, out, in, r, 0.5 + tm_philox_uniform(tm_philox_at(key, 0, 1, 0, 0).word[0])};
    for (int64_t i = 0; i < out; i++)
        for (int64_t k = 0; k < in; k++) {
            double sum = 0;
            for (int64_t j = 0; j < r; j++)
                sum += (double)x->b[i * r + j] * x->a[j * in + k];
            x->full[i * in + k] = x->delta.scale * sum;
        }
}

static void parts_equal_the_product(void **state)
{
    (void)state;
    static random_delta x, y;
    uint64_t seed = 20251122;
    for (int round = 0; round < 50; round++) {
        int64_t out = 1 + (round * 7) % SIDE, in = 1 + (round * 5) % SIDE;
        make(&x, seed + 2 * (uint64_t)round, out, in, 1 + round % RANK);
        make(&y, seed + 2 * (uint64_t)round + 1, out, in, 1 + (round * 3) % RANK);
        double dot = 0, found = tm_linear_delta_dot(&x.delta, &y.delta), row[SIDE];
        for (int64_t i = 0; i < out * in; i++)
            dot += x.full[i] * y.full[i];
        if (!(fabs(found - dot) < 1e-10))
            fail_msg("seed %llu, round %d: dot %.17g, expected %.17g", (unsigned long long)seed, round, found, dot);
        for (int64_t i = 0; i < out; i++) {
            for (int64_t k = 0; k < in; k++)
                row[k] = 3;
            tm_linear_delta_add_row(&x.delta, i, -2, row);
            for (int64_t k = 0; k < in; k++)
                if (!(fabs(row[k] - (3 - 2 * x.full[i * in + k])) < 1e-12))
                    fail_msg("seed %llu, round %d: row %lld", (unsigned long long)seed, round, (long long)i);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(parts_equal_the_product)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
