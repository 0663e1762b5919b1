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
