/* Houlsby's bottleneck (1902.00751) behind a part of a block, inside its residual:
 * y = h + U act(D h + d) + u, a replica's own D [s, C], d [s], U [C, s], u [C]. docs/math/bottleneck.md. */
#ifndef TM_MODEL_BOTTLENECK_H
#define TM_MODEL_BOTTLENECK_H

#include "model/batch.h"
#include "model/linear.h"

typedef struct tm_bottleneck {
    tm_param *down, *down_bias, *up, *up_bias; /* [s, C], [1, s], [C, s], [1, C] a replica */
} tm_bottleneck;

/* From forward to backward: h [T, C], and [T, 2s]: D h + d, and ones beside it. */
typedef struct tm_bottleneck_saved {
    tm_tensor h, wide;
} tm_bottleneck_saved;

/* What all bottlenecks of a model share. */
typedef struct tm_bottleneck_context {
    tm_device *device;
    tm_activation act;
    int64_t size;       /* s; 0: the model has none */
    tm_tensor identity; /* [R s, s] */
    tm_tensor z, xa;    /* scratch [T, s] in real */
} tm_bottleneck_context;

tm_status tm_bottleneck_context_take(tm_bottleneck_context *c, tm_memory *memory, int32_t replicas, int64_t rows, tm_error *err) TM_MUST_CHECK;
void tm_bottleneck_allocate(tm_bottleneck *b, tm_memory *memory, tm_dtype real, bool gradients);
void tm_bottleneck_saved_take(const tm_bottleneck *b, tm_arena *arena, tm_dtype act, tm_dtype real, int64_t rows, tm_bottleneck_saved *saved);

/* y [T, C]: h on entry. */
void tm_bottleneck_forward(const tm_bottleneck_context *c, const tm_bottleneck *b, const tm_batch *batch, tm_bottleneck_saved *saved, tm_tensor y);
/* dy [T, C] becomes the gradient of h; gradients of what is trained +=. */
void tm_bottleneck_backward(const tm_bottleneck_context *c, const tm_bottleneck *b, const tm_batch *batch, tm_bottleneck_saved *saved, tm_tensor dy);

#endif
