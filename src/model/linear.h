/* Linear modules: the one place where a weight of any dtype, its bias and what is trained on it
 * (itself, LoRA, DoRA, bias) meet. Modules with the same input (q, k, v; gate, up) form a group whose
 * weights lie adjacent, so that forward and input gradient are one GEMM; LoRA belongs to modules. */
#ifndef TM_MODEL_LINEAR_H
#define TM_MODEL_LINEAR_H

#include "model/params.h"

enum { TM_GROUP_MAX = 3 };

/* What LoRA or DoRA adds to a module. */
typedef struct tm_lora {
    tm_param *a, *b;      /* [r, in], [out, r] a replica */
    tm_param *magnitude;  /* [1, out] a replica: DoRA; NULL: LoRA */
    int32_t r;
    float scale, dropout;
    uint32_t module;      /* dropout key; also the order of initialisation */
    tm_tensor norm;       /* DoRA: [1, R * out] of this step */
    int32_t gates;        /* registers: r is as many equal parts, each times its gate of the row; 0: none */
} tm_lora;

typedef struct tm_linear {
    char *name;           /* HF module name */
    int64_t in, out;
    tm_param *weight, *bias; /* bias NULL: none */
    tm_lora *lora;        /* owned; NULL: none */
} tm_linear;

typedef struct tm_linear_group {
    tm_linear *module[TM_GROUP_MAX];
    int32_t count;
    int64_t in, out;      /* out: of all modules together */
    tm_tensor weight;     /* [out, in] */
    tm_tensor bias;       /* [1, out]; absent: none */
} tm_linear_group;

/* What a group keeps from forward to backward, a module: xa [T, r] and, for DoRA, u [T, out]. */
typedef struct tm_linear_saved {
    tm_tensor xa[TM_GROUP_MAX], u[TM_GROUP_MAX];
} tm_linear_saved;

/* What every linear of a run shares. */
typedef struct tm_linear_context {
    tm_device *device;
    int32_t replicas;
    const tm_step_params *step; /* device; NULL: no dropout (evaluation) */
    bool base_only;             /* as if no adapter were there */
    tm_tensor dxa;              /* scratch [TM_GROUP_MAX * T, max r] in real: T rows a module of a group */
    tm_tensor dropped, wide;    /* scratch of DoRA with dropout: [T, max in], [T, max out] */
    /* Registers: [T, 2 r], a row's gates in the right half for the whole micro-batch; scratch like it; scratch [T, r];
     * [R r, r] an identity a replica. */
    tm_tensor gated, dgated, gated_xa, identity;
} tm_linear_context;

/* [R * n, n], an identity a replica: as A it makes of `lowrank` a product with B alone, as B one with A. */
tm_status tm_identity_take(tm_arena *arena, tm_device *device, int32_t replicas, int64_t n, tm_tensor *out, tm_error *err) TM_MUST_CHECK;

/* Takes the weights of a declared group from the arena (adjacent) and, with gradients, room for
 * those of what is trained. */
void tm_linear_group_allocate(tm_linear_group *group, tm_memory *memory, tm_dtype real, bool gradients);
/* Recomputes what depends on the weights of this step alone (DoRA's norms). */
void tm_linear_group_prepare(const tm_linear_context *c, tm_linear_group *group);
void tm_linear_saved_allocate(const tm_linear_group *group, tm_arena *arena, tm_dtype act, tm_dtype real, int64_t rows, tm_linear_saved *saved);

/* y[T, out] = group(x[T, in]). */
void tm_linear_forward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor x, tm_linear_saved *saved, tm_tensor y);
/* The same, and h[T, out / 2, or out] = the activation of y (ops.def, glu_forward): one pass where the device has one. */
void tm_linear_glu_forward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor x, tm_linear_saved *saved, tm_tensor y, tm_activation act, tm_tensor h);
/* Whether backward overwrites dy. */
bool tm_linear_overwrites(const tm_linear_group *group);
/* dx|0 [T, in] = or += ; gradients of what is trained +=. With DoRA dy is overwritten. */
void tm_linear_backward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved, bool accumulate, tm_tensor dx);
/* The same in two calls: the input's gradient first, then those of what is trained; where separable says so (no DoRA,
 * no registers, no dropout, whose masks are drawn once for both). Of x the first needs only the shape. */
bool tm_linear_separable(const tm_linear_context *c, const tm_linear_group *group);
void tm_linear_backward_input(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved, bool accumulate, tm_tensor dx);
void tm_linear_backward_weights(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved);
/* Whether anything in the group is trained, so that backward needs x. */
bool tm_linear_group_trained(const tm_linear_group *group);

/* --- What low-rank matrices add to a weight, on the host: dW = scale * B A, for merging, distances --- */

typedef struct tm_linear_delta {
    const float *a, *b; /* [r, in], [out, r] */
    int64_t out, in, r;
    double scale;
} tm_linear_delta;

/* sum[in] += factor * row of dW. */
void tm_linear_delta_add_row(const tm_linear_delta *d, int64_t row, double factor, double *sum);
/* The inner product of two deltas of one shape over all elements, by r x r products: dW is never made.
 * sqrt(dot(x, x)) is the Frobenius norm of x. */
double tm_linear_delta_dot(const tm_linear_delta *x, const tm_linear_delta *y);

#endif
