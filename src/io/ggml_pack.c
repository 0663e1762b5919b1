/* Quantising floats into ggml's blocks: see ggml_quant.h. The searches are those of ggml's reference
 * quantisers without importance weights (llama.cpp, ggml-quants.c, quantize_row_*_ref), step by step, so
 * that the bytes are the reference's too; input is finite. */
#include "io/ggml_quant.h"

#include "base/dtype.h"

#include <math.h>
#include <string.h>

/* Below this a group of a K type is taken for zeros. */
static const float group_epsilon = 1e-15f;

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static float put_half(uint8_t *p, float v)
{
    uint16_t h = tm_f32_to_f16(v);
    put16(p, h);
    return tm_f16_to_f32(h);
}

static int clamp(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }

/* The whole part in [0, top]. Of a block so small that 1 / scale is infinite, infinities and NaN come here. */
static int code_of(float v, int top) { return v >= (float)top ? top : v > 0 ? (int)v : 0; }

/* To the nearest integer, ties to even, for |v| < 2^22. */
static int nearest(float v)
{
    float shifted = v + 12582912.0f; /* 1.5 x 2^23: the fraction falls off */
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return (bits & 0x7fffff) - 0x400000;
}

/* --- Blocks of 32 --- */

void tm_pack_q8_0(const float *x, uint8_t *block)
{
    float most = 0;
    for (int j = 0; j < 32; j++)
        most = fmaxf(most, fabsf(x[j]));
    float d = most / 127, inverse = d != 0 ? 1.0f / d : 0;
    put_half(block, d);
    for (int j = 0; j < 32; j++)
        block[2 + j] = (uint8_t)(int8_t)roundf(fmaxf(-127, fminf(127, x[j] * inverse)));
}

/* The element of largest magnitude (the first) becomes the lowest code; codes are q + bias in [0, 2 bias). */
static float extreme_code(const float *x, int bias, int code[32])
{
    float most = 0, extreme = 0;
    for (int j = 0; j < 32; j++)
        if (fabsf(x[j]) > most) {
            most = fabsf(x[j]);
            extreme = x[j];
        }
    float d = extreme / (float)-bias, inverse = d != 0 ? 1.0f / d : 0;
    for (int j = 0; j < 32; j++)
        code[j] = code_of(x[j] * inverse + ((float)bias + 0.5f), 2 * bias - 1);
    return d;
}

static void put_codes(const int code[32], uint8_t *fifths, uint8_t *nibbles)
{
    uint32_t high = 0;
    for (int j = 0; j < 16; j++)
        nibbles[j] = (uint8_t)((code[j] & 15) | (code[j + 16] & 15) << 4);
    for (int j = 0; j < 32; j++)
        high |= (uint32_t)(code[j] >> 4) << j;
    for (int k = 0; fifths && k < 4; k++)
        fifths[k] = (uint8_t)(high >> 8 * k);
}

void tm_pack_q4_0(const float *x, uint8_t *block)
{
    int code[32];
    put_half(block, extreme_code(x, 8, code));
    put_codes(code, NULL, block + 2);
}

void tm_pack_q5_0(const float *x, uint8_t *block)
{
    int code[32];
    put_half(block, extreme_code(x, 16, code));
    put_codes(code, block + 2, block + 6);
}

void tm_pack_q5_1(const float *x, uint8_t *block)
{
    int code[32];
    float lo = x[0], hi = x[0];
    for (int j = 1; j < 32; j++) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    float d = (hi - lo) / 31, inverse = d != 0 ? 1.0f / d : 0;
    put_half(block, d);
    put_half(block + 2, lo);
    for (int j = 0; j < 32; j++)
        code[j] = code_of((x[j] - lo) * inverse + 0.5f, 31);
    put_codes(code, block + 4, block + 8);
}

/* --- Q4_K and Q5_K: x ~ scale q - min, eight groups of 32 --- */

/* Weighted least squares for scale and minimum over a range of trial scales. Gives the scale; *min >= 0,
 * and the best codes. */
static float fit_scale_min(const float *x, const float *weight, int top, float first, int steps, float *min,
                           uint8_t code[32])
{
    uint8_t trial[32];
    float lo = x[0], hi = x[0], sum_w = weight[0], sum_x = sum_w * x[0];
    for (int i = 1; i < 32; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    if (lo > 0)
        lo = 0;
    *min = -lo;
    memset(code, 0, 32);
    if (hi == lo)
        return 0;
    float base = lo, inverse = (float)top / (hi - lo), scale = 1 / inverse, best = 0;
    for (int i = 0; i < 32; i++) {
        code[i] = (uint8_t)clamp(nearest(inverse * (x[i] - lo)), 0, top);
        float diff = scale * (float)code[i] + lo - x[i];
        best += weight[i] * (diff * diff);
    }
    for (int s = 0; s <= steps; s++) {
        /* Trials measure from the minimum found so far, over the range from the first to the top. */
        inverse = (first + 0.1f * (float)s + (float)top) / (hi - base);
        float sum_l = 0, sum_l2 = 0, sum_xl = 0, error = 0;
        for (int i = 0; i < 32; i++) {
            trial[i] = (uint8_t)clamp(nearest(inverse * (x[i] - base)), 0, top);
            float w = weight[i], l = trial[i];
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x[i];
        }
        float det = sum_w * sum_l2 - sum_l * sum_l;
        if (!(det > 0))
            continue;
        float s_try = (sum_w * sum_xl - sum_x * sum_l) / det, m_try = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        if (m_try > 0) {
            m_try = 0;
            s_try = sum_xl / sum_l2;
        }
        for (int i = 0; i < 32; i++) {
            float diff = s_try * (float)trial[i] + m_try - x[i];
            error += weight[i] * (diff * diff);
        }
        if (error < best) {
            memcpy(code, trial, 32);
            best = error;
            scale = s_try;
            base = m_try;
        }
    }
    *min = -base;
    return scale;
}

static void put_scale_min(uint8_t s[12], int j, int scale, int min)
{
    if (j < 4) {
        s[j] = (uint8_t)scale;
        s[j + 4] = (uint8_t)min;
        return;
    }
    s[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
    s[j - 4] |= (uint8_t)(scale >> 4 << 6);
    s[j] |= (uint8_t)(min >> 4 << 6);
}

/* Fills scale, minimum and the 12 bytes of groups (block[0..15]); code[256] in [0, top]. */
static void pack_groups(const float *x, int top, float first, int steps, uint8_t *block, uint8_t *code)
{
    float scale[8], min[8], most_scale = 0, most_min = 0;
    for (int j = 0; j < 8; j++) {
        const float *g = x + 32 * j;
        float weight[32], square = 0;
        for (int l = 0; l < 32; l++)
            square += g[l] * g[l];
        float typical = sqrtf(square / 32);
        for (int l = 0; l < 32; l++)
            weight[l] = typical + fabsf(g[l]);
        scale[j] = fit_scale_min(g, weight, top, first, steps, &min[j], code + 32 * j);
        most_scale = scale[j] > most_scale ? scale[j] : most_scale;
        most_min = min[j] > most_min ? min[j] : most_min;
    }
    float per_scale = most_scale > 0 ? 63.0f / most_scale : 0, per_min = most_min > 0 ? 63.0f / most_min : 0;
    for (int j = 0; j < 8; j++)
        put_scale_min(block + 4, j, clamp(nearest(per_scale * scale[j]), 0, 63), clamp(nearest(per_min * min[j]), 0, 63));
    float d = put_half(block, most_scale / 63), m = put_half(block + 2, most_min / 63);
    for (int j = 0; j < 8; j++) {
        int s, lo;
        tm_scale_min_get(block + 4, j, &s, &lo);
        float ds = d * (float)s, ms = m * (float)lo;
        for (int l = 32 * j; l < 32 * j + 32 && ds != 0; l++)
            code[l] = (uint8_t)clamp(nearest((x[l] + ms) / ds), 0, top);
    }
}

static void put_nibbles(const uint8_t *code, uint8_t *out)
{
    for (int i = 0; i < 128; i++) {
        const uint8_t *c = code + i / 32 * 64 + i % 32;
        out[i] = (uint8_t)((c[0] & 15) | (c[32] & 15) << 4);
    }
}

void tm_pack_q4_k(const float *x, uint8_t *block)
{
    uint8_t code[256];
    pack_groups(x, 15, -1.0f, 20, block, code);
    put_nibbles(code, block + 16);
}

void tm_pack_q5_k(const float *x, uint8_t *block)
{
    uint8_t code[256];
    pack_groups(x, 31, -0.5f, 15, block, code);
    memset(block + 16, 0, 32);
    for (int i = 0; i < 256; i++)
        block[16 + i % 32] |= (uint8_t)(code[i] >> 4 << i / 32);
    put_nibbles(code, block + 48);
}

/* --- Q6_K: x ~ scale q, sixteen groups of 16 --- */

/* The scale with the least error weighted by x^2, over trial scales around the one that maps the extreme
 * element to -32; code in [0, 63]. 0: all zeros. */
static float fit_scale(const float *x, uint8_t code[16])
{
    float most = 0, extreme = 0, scale = 0, best = 0;
    for (int i = 0; i < 16; i++)
        if (fabsf(x[i]) > most) {
            most = fabsf(x[i]);
            extreme = x[i];
        }
    memset(code, 0, 16);
    if (most < group_epsilon)
        return 0;
    for (int k = 0; k < 19; k++) {
        /* The plain scale first: another must be better, not as good. */
        int trial = k == 0 ? 0 : k <= 9 ? k - 10 : k - 9;
        float inverse = -(32 + 0.1f * (float)trial) / extreme, sum_xl = 0, sum_l2 = 0;
        uint8_t tried[16];
        for (int i = 0; i < 16; i++) {
            int q = clamp(nearest(inverse * x[i]), -32, 31);
            float l = (float)q, w = x[i] * x[i];
            tried[i] = (uint8_t)(q + 32);
            sum_xl += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        if (k == 0 || (sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2)) {
            memcpy(code, tried, 16);
            scale = sum_l2 != 0 ? sum_xl / sum_l2 : 0;
            best = scale * sum_xl;
        }
    }
    return scale;
}

void tm_pack_q6_k(const float *x, uint8_t *block)
{
    float scale[16], most = 0, extreme = 0;
    uint8_t code[256];
    for (int g = 0; g < 16; g++) {
        scale[g] = fit_scale(x + 16 * g, code + 16 * g);
        if (fabsf(scale[g]) > most) {
            most = fabsf(scale[g]);
            extreme = scale[g];
        }
    }
    memset(block, 0, 210);
    if (most < group_epsilon)
        return;
    float inverse = -128.0f / extreme, d = put_half(block + 208, 1 / inverse);
    for (int g = 0; g < 16; g++) {
        int s = clamp(nearest(inverse * scale[g]), -128, 127);
        block[192 + g] = (uint8_t)(int8_t)s;
        float ds = d * (float)s;
        for (int i = 16 * g; i < 16 * g + 16 && ds != 0; i++)
            code[i] = (uint8_t)(clamp(nearest(x[i] / ds), -32, 31) + 32);
    }
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        block[64 * half + 32 * (quarter % 2) + l] |= (uint8_t)((code[i] & 15) << 4 * (quarter / 2));
        block[128 + 32 * half + l] |= (uint8_t)(code[i] >> 4 << 2 * quarter);
    }
}
