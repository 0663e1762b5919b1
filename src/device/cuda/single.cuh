/* Products of single tokens (tm_rows.single): the plain ones (single.cu) and those on tensor cores (half/single.cu). */
#ifndef TM_DEVICE_CUDA_SINGLE_CUH
#define TM_DEVICE_CUDA_SINGLE_CUH

#include "device/cuda/math.cuh"

enum { TM_SINGLE_PARTS = 4 };

/* y = x w^T + the low-rank parts + bias |0: x [n, k] of 16 bits, w [columns, k], y [n, columns]. A part: columns first .. end - 1
 * get scale xa b^T, xa [n, r] and b [end - first, r] in f32, a chain over the rank behind the sum over k. */
struct tm_single_product {
    tm_tensor x, w, bias, y;
    int32_t parts;
    struct {
        tm_tensor b, xa;
        int64_t first, end;
        float scale;
    } part[TM_SINGLE_PARTS];
};

/* Column n of row t, from its sum over k. */
TM_LANE void finish(const tm_single_product &p, int64_t t, int64_t n, float sum)
{
    for (int32_t i = 0; i < p.parts; i++) {
        const auto &part = p.part[i];
        if (n >= part.first && n < part.end)
            for (int64_t j = 0; j < part.b.cols; j++)
                sum = fmaf(at(part.xa, t, j) * part.scale, at(part.b, n - part.first, j), sum);
    }
    put(p.y, t, n, p.bias.data ? sum + at(p.bias, 0, n) : sum);
}

/* false: an architecture before sm_80. x and w of rows that can be read eight by eight; w is rounded to x's type. */
bool tm_half_single_product(tm_device *d, const char *op, const tm_single_product *p, int64_t rows);

#endif
