/* The router of a bank of registers: gates from what the base makes of a prompt. g = W h + b, h the mean over the
 * prompt's tokens of the base's last hidden states, brought to a mean square of 1; W and b by ridge regression on examples whose gates are known.
 * docs/formats/registers.md. */
#ifndef TM_TUNE_ROUTER_H
#define TM_TUNE_ROUTER_H

#include "base/status.h"

#include <stdbool.h>

typedef struct tm_router {
    int64_t width, gates; /* C, K */
    double *weight;       /* [K, C + 1]; b in the last column */
} tm_router;

/* h [n, C] of any length (its direction counts) and known gates [n, K]. lambda: relative to the mean square of h. TM_INPUT when nothing is to be learned. */
tm_status tm_router_fit(const float *h, const float *gates, int64_t n, int64_t width, int64_t count, double lambda, tm_router *out, tm_error *err) TM_MUST_CHECK;
void tm_router_deinit(tm_router *router);
void tm_router_gates(const tm_router *router, const float *h, float *gates);

/* DIR/router.safetensors: weight [K, C], bias [K] in F32. */
bool tm_router_there(const char *dir);
tm_status tm_router_write(const tm_router *router, const char *dir, tm_error *err) TM_MUST_CHECK;
tm_status tm_router_read(const char *dir, int64_t width, int64_t count, tm_router *out, tm_error *err) TM_MUST_CHECK;

#endif
