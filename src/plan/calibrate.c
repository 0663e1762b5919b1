/* Rates of a device: see calibrate.h. */
#include "plan/calibrate.h"

#include "base/clock.h"

#include <math.h>

enum { SIDE_FIRST = 128, SIDE_LAST = 8192 };
static const double budget_seconds = 0.020;

/* Seconds of one y = x w^T with all sides n; infinity when the device reports a failure. */
static double time_product(tm_device *d, int64_t n, char *memory)
{
    int64_t bytes = tm_dtype_bytes(d->real, n * n);
    tm_tensor x = tm_tensor_make(memory, d->real, n, n), w = tm_tensor_make(memory + bytes, d->real, n, n);
    tm_tensor y = tm_tensor_make(memory + 2 * bytes, d->real, n, n);
    tm_rows rows = {.n = n, .replicas = 1};
    tm_error ignored;
    double start = tm_clock_seconds();
    TM_RUN(d, linear_forward, &rows, x, w, tm_tensor_none(), y);
    return d->calls->sync(d, &ignored) == TM_OK ? tm_clock_seconds() - start : INFINITY;
}

/* Best rate at one size; the first call warms up. *seconds: of the best call. */
static double best_rate(tm_device *d, int64_t n, double deadline, double *seconds)
{
    int64_t bytes = 3 * tm_dtype_bytes(d->real, n * n);
    void *memory;
    tm_error ignored;
    *seconds = INFINITY;
    if (tm_device_alloc(d, bytes, &memory, &ignored) != TM_OK)
        return 0;
    d->calls->zero(d, memory, bytes);
    for (int i = 0; i < 3 && (i < 2 || tm_clock_seconds() + *seconds < deadline); i++)
        *seconds = fmin(*seconds, time_product(d, n, memory));
    tm_device_release(d, memory, bytes);
    return 2.0 * (double)n * (double)n * (double)n / *seconds;
}

/* Sizes double while the next, eight times the work a call, fits into the time left: a fast device gets
 * a product large enough to show what it can do. */
double tm_device_peak_flops(tm_device *d)
{
    double deadline = tm_clock_seconds() + budget_seconds, best = 0, seconds = 0;
    int64_t peak_bytes = d->peak_bytes;
    for (int64_t n = SIDE_FIRST; n <= SIDE_LAST && tm_clock_seconds() + 16 * seconds < deadline; n *= 2)
        best = fmax(best, best_rate(d, n, deadline, &seconds));
    d->peak_bytes = peak_bytes;
    return best > 0 ? best : NAN;
}

/* --- Calibration --- */

int tm_side_class(int64_t side)
{
    int k = 0;
    while (k + 1 < TM_SIDES && (int64_t)TM_SIDE_FIRST << (k + 1) <= side)
        k++;
    return k;
}

/* A product of a micro-batch of 512 rows with a square weight, forward; the best of its share of the time. */
static double side_rate(tm_device *d, int64_t side, char *memory, double until, tm_error *err)
{
    enum { ROWS = 512 };
    tm_tensor w = tm_tensor_make(memory, d->real, side, side);
    tm_tensor x = tm_tensor_make(memory + tm_dtype_bytes(d->real, side * side), d->real, ROWS, side);
    tm_tensor y = tm_tensor_make((char *)x.data + tm_dtype_bytes(d->real, ROWS * side), d->real, ROWS, side);
    tm_rows rows = {.n = ROWS, .replicas = 1};
    double best = INFINITY;
    do {
        double start = tm_clock_seconds();
        for (int i = 0; i < 4; i++)
            TM_RUN(d, linear_forward, &rows, x, w, tm_tensor_none(), y);
        if (d->calls->sync(d, err) != TM_OK)
            return NAN;
        best = fmin(best, (tm_clock_seconds() - start) / 4);
    } while (tm_clock_seconds() < until);
    return 2.0 * ROWS * (double)side * (double)side / best;
}

/* y += a x: two streams read, one written. */
static double memory_rate(tm_device *d, char *memory, int64_t bytes, double until, tm_error *err)
{
    int64_t n = bytes / 2 / tm_dtype_bytes(d->real, 1);
    tm_tensor x = tm_tensor_make(memory, d->real, 1, n), y = tm_tensor_make(memory + bytes / 2, d->real, 1, n);
    double best = INFINITY;
    do {
        double start = tm_clock_seconds();
        TM_RUN(d, axpy, 0.5, x, y);
        if (d->calls->sync(d, err) != TM_OK)
            return NAN;
        best = fmin(best, tm_clock_seconds() - start);
    } while (tm_clock_seconds() < until);
    return 1.5 * (double)bytes / best;
}

tm_status tm_calibrate(tm_device *d, tm_calibration *out, tm_error *err)
{
    enum { BYTES = 128 << 20 };
    static const double share_seconds = 0.2;
    void *memory;
    tm_error problem = {0};
    *out = (tm_calibration){0};
    for (int i = 0; i < 5; i++)
        out->peak_flops = fmax(out->peak_flops, tm_device_peak_flops(d));
    TM_TRY(tm_device_alloc(d, BYTES, &memory, err));
    d->calls->zero(d, memory, BYTES);
    bool ok = out->peak_flops > 0;
    for (int i = 0; i < TM_SIDES && ok; i++) {
        out->flops[i] = side_rate(d, (int64_t)TM_SIDE_FIRST << i, memory, tm_clock_seconds() + share_seconds, &problem);
        ok = out->flops[i] > 0;
    }
    out->bytes = memory_rate(d, memory, BYTES, tm_clock_seconds() + share_seconds, &problem);
    ok = ok && out->bytes > 0;
    tm_device_release(d, memory, BYTES);
    return ok ? TM_OK : tm_fail(err, TM_FAILED, "the device's rates could not be measured: %s", problem.message);
}

double tm_seconds_per_token(const tm_calibration *c, const tm_work *work)
{
    double seconds = work->bytes / c->bytes;
    for (int i = 0; i < TM_SIDES; i++)
        seconds += work->flops[i] / c->flops[i];
    return seconds;
}
