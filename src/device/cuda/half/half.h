/* The fast kernels of the CUDA device: activations of 16 bits ("half" here: bf16 or f16), sums in f32, tensor cores.
 *
 * The device asks the function of an op's name here first (serve.cu). false: this architecture, these dtypes or these
 * sizes are not served, and the plain kernel runs.
 *
 * Invariants:
 *  1. Whether an op is served depends on the architecture, the dtypes and the sizes of the model (columns, heads,
 *     rank), never on the number of rows or examples or on the layout: so a row's bits do not depend on its neighbours.
 *  2. No float atomics; a sum's order follows from the sizes of the model and the chunks of the row's example.
 *  3. Rows beyond a tensor's end are not written, and not read but by attention: see there.
 *  4. The workspace of the device is an op's own while it runs: tm_half_scratch. */
#ifndef TM_DEVICE_CUDA_HALF_HALF_H
#define TM_DEVICE_CUDA_HALF_HALF_H

#include "device/cuda/cuda.cuh"

static inline bool tm_is_half(tm_dtype t) { return t == TM_BF16 || t == TM_F16; }

/* `bytes` of the lent workspace from *used on, aligned to 256; *used moves on. NULL: not so much was lent. */
static inline void *tm_half_scratch(tm_cuda *c, int64_t *used, int64_t bytes)
{
    int64_t end = *used + (bytes + 255) / 256 * 256;
    if (end > c->workspace_bytes)
        return nullptr;
    void *at = (char *)c->workspace + *used;
    *used = end;
    return at;
}

/* c[m, n] = or += a b + bias, sums in f32, in the order of k, one order for every m (docs/math/linear.md):
 *   a [m, k], or [k, m] when a_turned; b [n, k], or [k, n] when b_turned (an input gradient: the weight as it lies);
 *   both turned: a weight's gradient, dy^T x.
 * a, b: one 16-bit type. out: that type, or f32. bias |0: [1, n], f32, bf16 or f16.
 * The low-rank part |0: + low_a low_b, added to the same sum after k: low_a [m, low] and low_b [n, low] ([low, n] when
 * b_turned), of a's type; low is a multiple of 16; not with a_turned. With replicas > 1 low_b holds one matrix a replica,
 * one below the other, and row t of low_a meets that of the replica whose rows it is among (group, on the device:
 * tm_rows.group; group[0] is 0, group[replicas] is m).
 * h |0: glu_forward of out with `activation` follows, h [m, n / 2] or [m, n]; where the product makes it itself (Hopper, SiLU,
 * n / 2 a multiple of 8), with the same bits.
 * Any sizes and leading dimensions; fast where n, k (m, n when a is turned) and leading dimensions are multiples of 8 and
 * addresses of 16 bytes. m or n 0: nothing happens. Uses tm_cuda.partials. false: these types, or an architecture before sm_80. */
typedef struct tm_half_product {
    int64_t m, n, k;
    tm_tensor a, b, out, bias, low_a, low_b;
    bool a_turned, b_turned, add;
    int32_t replicas;
    const int32_t *group;
    tm_tensor h;
    tm_activation activation;
} tm_half_product;
bool tm_half_multiply(tm_device *d, const char *op, const tm_half_product *p);

/* linear_forward, and where there is an h, glu_forward of y into it. */
bool tm_half_linear(tm_device *d, const char *op, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y, tm_activation act, tm_tensor h);

/* y = w rounded to y's 16-bit type; w is f32 or the other one. Columns of y from w.cols to y.ld (a multiple of 8) are zeros. */
void tm_half_round(tm_device *d, const char *op, tm_tensor w, tm_tensor y);

/* The ops of ops.def, with their parameters. One that nobody defines serves nothing (weak definitions in serve.cu).
 * attention: rows of q, k, v, dout up to the next multiple of 128 beyond the last may be read, where the buffer has
 * them; what stands there never reaches a result. */
#define TM_OP(name, params) bool tm_half_##name params;
#include "device/ops.def"
#undef TM_OP

#endif
