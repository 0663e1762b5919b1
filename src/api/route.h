/* Which module of several answers which prompt, and what comes of it: separate modules of a sequence. */
#ifndef TM_API_ROUTE_H
#define TM_API_ROUTE_H

#include "lab/sequence.h"

/* tm_lab_calls.route. */
tm_status tm_route_modules(void *context, const tm_lab_routing *routing, double *scores, int64_t *confusion, tm_error *err) TM_MUST_CHECK;

#endif
