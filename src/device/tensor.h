/* What ops work on: views of matrices, and the layout of a micro-batch.
 *
 * Glossary of dimensions, used in every shape comment: B batch, T tokens (rows of a micro-batch),
 * C width, H heads, K key/value heads, D head size, F feed-forward, L layers, V vocabulary,
 * R replicas, E examples of a micro-batch, r rank. */
#ifndef TM_DEVICE_TENSOR_H
#define TM_DEVICE_TENSOR_H

#include "base/dtype.h"
#include "base/philox.h"

#include <stdbool.h>

/* A row-major matrix view; a vector has one row. `data` is a device address: code above the
 * device line never reads through it. A tensor with data == NULL means "absent" where an op allows
 * that. Never owns. */
typedef struct tm_tensor {
    void *data;
    tm_dtype dtype;
    int64_t rows, cols;
    int64_t ld; /* elements from one row to the next, >= cols */
} tm_tensor;

static inline tm_tensor tm_tensor_make(void *data, tm_dtype dtype, int64_t rows, int64_t cols)
{
    return (tm_tensor){data, dtype, rows, cols, cols};
}

static inline tm_tensor tm_tensor_none(void) { return (tm_tensor){0}; }

/* Columns [first, first + count) of t. */
static inline tm_tensor tm_tensor_cols(tm_tensor t, int64_t first, int64_t count)
{
    if (t.data)
        t.data = (char *)t.data + tm_dtype_bytes(t.dtype, first);
    t.cols = count;
    return t;
}

/* Rows [first, first + count) of t. */
static inline tm_tensor tm_tensor_rows(tm_tensor t, int64_t first, int64_t count)
{
    if (t.data)
        t.data = (char *)t.data + tm_dtype_bytes(t.dtype, first * t.ld);
    t.rows = count;
    return t;
}

/* Tokens a chunk holds at most. Sums over tokens (weight gradients) run as a chain over the chunks
 * of the step's examples in order; chunks restart at each example, so the chain does not depend on
 * how examples were packed into micro-batches. Below the K block of the GEMM (384), so a chunk is
 * one fused multiply-add chain. */
enum { TM_CHUNK_TOKENS = 256 };

/* The rows of a matrix of activations: to which example, position and replica each belongs.
 * Rows of an example are adjacent and ascending in position; examples of a replica are adjacent and
 * in the order of the step; replicas ascend. The arrays live on the device, the counts on both
 * sides; the bounds that the CPU device loops over are ordinary memory there. */
typedef struct tm_rows {
    int64_t n;               /* rows in use */
    int32_t replicas;        /* R */
    int64_t chunks;          /* chunks of at most TM_CHUNK_TOKENS positions */
    const int32_t *position; /* [n] position inside the example: rope, dropout key */
    const uint32_t *example; /* [n] index of the example in its replica's step: dropout key */
    const int32_t *chunk;    /* [chunks + 1] first row of every chunk; chunk[chunks] = n */
    const int32_t *group;    /* [R + 1] first row of every replica's rows; group[R] = n */
    const int32_t *group_chunk; /* [R + 1] first chunk of every replica's rows */
    bool single;             /* one token of every example, behind those in a key/value cache: as in tm_spans */
} tm_rows;

/* Which rows attend to which: example e's queries are rows [query[e], query[e + 1]), its keys rows
 * [key[e], key[e] + keys[e]) of the key and value matrices. Query i of q queries stands at position
 * keys - q + i and sees the keys of positions <= its own. In training key[e] = query[e] and
 * keys[e] = the example's length; with a key/value cache keys[e] > q. single > 0: every example has one query and at most so
 * many keys, and none has a backward. A device may have kernels of their own for such rows, whose sums run in another order: whether it takes them
 * follows from that alone, never from how many rows there are. */
typedef struct tm_spans {
    int64_t n;            /* examples */
    const int32_t *query; /* [n + 1] */
    const int32_t *key;   /* [n] */
    const int32_t *keys;  /* [n] */
    int64_t single;
} tm_spans;

/* What changes from step to step, one a replica, resident on the device so that a step can be
 * captured once and replayed. Doubles: the host computes them (bias corrections, rates) in double,
 * as PyTorch does. */
typedef struct tm_step_params {
    double lr;           /* of this step, after the schedule */
    double bias1, bias2; /* AdamW: 1 - beta1^t, 1 - beta2^t */
    double grad_norm;    /* written by the grad_norm op: global L2 norm before clipping */
    double clip;         /* written by the grad_norm op: factor on every gradient */
    double unscale;      /* 1 / the scale that the loss's gradient was multiplied by (train/loss_scale.h); for the unscale op */
    uint64_t dropout_key; /* tm_philox_key(dropout seed, DROPOUT, step, 0) */
} tm_step_params;

/* Low-rank delta of one linear module, for all replicas: y += scale * (dropout(x) A^T) B^T. */
typedef struct tm_lowrank {
    tm_tensor a; /* [R * r, in] */
    tm_tensor b; /* [R * out, r] */
    float scale; /* alpha / r, or alpha / sqrt(r) */
    float dropout;     /* probability p of dropping; kept values are divided by 1 - p */
    uint32_t module;   /* index of the module in the model: dropout key */
    const tm_step_params *step; /* [R], device */
} tm_lowrank;

/* A module's low-rank delta beside the product of its group: columns from `first` on of the group's y. */
typedef struct tm_lora_part {
    tm_lowrank lr;
    int64_t first;
    tm_tensor xa;         /* [T, r] real, kept from forward to backward */
    tm_tensor dxa;        /* [T, r] real, scratch of backward */
    tm_tensor da, db;     /* gradients, |0 */
} tm_lora_part;

/* One trained tensor of one replica, for the multi-tensor ops. Contiguous, n elements. The list of a run
 * is resident on the device, like all that ops read: it is written once and never changes. */
enum { TM_TRAINED_BLOCK = 4096, TM_TRAINED_GROUP = 64 }; /* elements, and blocks of a tensor, that the norm sums apart, then in order */
typedef struct tm_trained {
    tm_tensor value, grad; /* [rows, cols], ld = cols */
    tm_tensor m, v;        /* optimiser state; v absent for SGD, both absent for plain SGD */
    float weight_decay;    /* 0 where decay does not apply */
    float lr_ratio;        /* on the rate: LoRA+ has > 1 for B */
    int32_t replica;
    int64_t first_block;   /* blocks of all tensors before it in the list */
    uint32_t index;        /* among the model's parameters: key of random roundings */
} tm_trained;

/* What decides how elements 4 i .. 4 i + 3 of a trained tensor in bf16 are rounded after a step. Dropout has the same key and
 * never this module. */
TM_ON_DEVICE static inline tm_philox tm_rounding_words(const tm_step_params *step, uint32_t index, uint64_t i)
{
    return tm_philox_at(step->dropout_key, (uint32_t)i, (uint32_t)(i >> 32), index, UINT32_MAX);
}

#endif
