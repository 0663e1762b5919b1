/* Unpacking ggml's blocks: see ggml_quant.h.
 *
 * Every value is (f16 scale x small integer) x small integer [- f16 minimum x small integer]: the products
 * fit the 24 bits of a float, so each is exact and a value is rounded at most once, at the subtraction or
 * addition. That is why the bits agree with ggml's however its compiler fused the operations. */
#include "io/ggml_quant.h"

#include <stddef.h>

/* 4-bit indices of IQ4_NL and IQ4_XS stand for these (constants of the format). */
static const int8_t nonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static float get_half(const uint8_t *p) { return tm_f16_to_f32(get16(p)); }

/* --- Blocks of 32: element j < 16 in the low nibble of byte j, j + 16 in the high one --- */

static void unpack_q4_0(const uint8_t *b, float *out)
{
    float d = get_half(b);
    for (int j = 0; j < 16; j++) {
        out[j] = (float)((b[2 + j] & 15) - 8) * d;
        out[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
    }
}

static void unpack_q4_1(const uint8_t *b, float *out)
{
    float d = get_half(b), m = get_half(b + 2);
    for (int j = 0; j < 16; j++) {
        out[j] = (float)(b[4 + j] & 15) * d + m;
        out[j + 16] = (float)(b[4 + j] >> 4) * d + m;
    }
}

/* The fifth bits of 32 elements lie in a word of their own. */
static int fifth(uint32_t bits, int j) { return (int)(bits >> j & 1) << 4; }

static void unpack_q5_0(const uint8_t *b, float *out)
{
    float d = get_half(b);
    uint32_t high = get32(b + 2);
    for (int j = 0; j < 16; j++) {
        out[j] = (float)(((b[6 + j] & 15) | fifth(high, j)) - 16) * d;
        out[j + 16] = (float)((b[6 + j] >> 4 | fifth(high, j + 16)) - 16) * d;
    }
}

static void unpack_q5_1(const uint8_t *b, float *out)
{
    float d = get_half(b), m = get_half(b + 2);
    uint32_t high = get32(b + 4);
    for (int j = 0; j < 16; j++) {
        out[j] = (float)((b[8 + j] & 15) | fifth(high, j)) * d + m;
        out[j + 16] = (float)(b[8 + j] >> 4 | fifth(high, j + 16)) * d + m;
    }
}

static void unpack_q8_0(const uint8_t *b, float *out)
{
    float d = get_half(b);
    for (int j = 0; j < 32; j++)
        out[j] = (float)(int8_t)b[2 + j] * d;
}

static void unpack_iq4_nl(const uint8_t *b, float *out)
{
    float d = get_half(b);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)nonlinear[b[2 + j] & 15];
        out[j + 16] = d * (float)nonlinear[b[2 + j] >> 4];
    }
}

/* --- Blocks of 256 --- */

/* 16 scales and minima of 4 bits, 64 bytes of 2-bit values, scale, minimum. A group of 128 elements lies
 * in 32 bytes, its quarter k in the bits 2k. */
static void unpack_q2_k(const uint8_t *b, float *out)
{
    const uint8_t *q = b + 16;
    float d = get_half(b + 80), m = get_half(b + 82);
    for (int i = 0; i < 256; i++) {
        int scale = b[i / 16];
        int v = q[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
        out[i] = d * (float)(scale & 15) * (float)v - m * (float)(scale >> 4);
    }
}

/* 32 bytes of third bits, 64 of the low two, 12 of sixteen 6-bit scales, scale. */
static void unpack_q3_k(const uint8_t *b, float *out)
{
    const uint8_t *q = b + 32, *s = b + 96;
    float d = get_half(b + 108);
    for (int i = 0; i < 256; i++) {
        int g = i / 16;
        int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> 2 * (g / 4) & 3;
        int v = q[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
        if (!(b[i % 32] >> i / 32 & 1))
            v -= 4;
        out[i] = d * (float)((low | high << 4) - 32) * (float)v;
    }
}

/* Scale, minimum, 12 bytes of eight 6-bit scales and minima, then nibbles: 64 elements in 32 bytes. */
static void unpack_q4_k(const uint8_t *b, float *out)
{
    const uint8_t *q = b + 16;
    float d = get_half(b), m = get_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        tm_scale_min_get(b + 4, j, &scale, &min);
        float ds = d * (float)scale, ms = m * (float)min;
        for (int l = 0; l < 32; l++)
            out[32 * j + l] = ds * (float)(q[32 * (j / 2) + l] >> 4 * (j % 2) & 15) - ms;
    }
}

/* As Q4_K, with 32 bytes of fifth bits before the nibbles. */
static void unpack_q5_k(const uint8_t *b, float *out)
{
    const uint8_t *high = b + 16, *q = b + 48;
    float d = get_half(b), m = get_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        tm_scale_min_get(b + 4, j, &scale, &min);
        float ds = d * (float)scale, ms = m * (float)min;
        for (int l = 0; l < 32; l++) {
            int v = (q[32 * (j / 2) + l] >> 4 * (j % 2) & 15) | (high[l] >> j & 1) << 4;
            out[32 * j + l] = ds * (float)v - ms;
        }
    }
}

/* 128 bytes of nibbles, 64 of the upper two bits, 16 scales of 8 bits, scale. */
static void unpack_q6_k(const uint8_t *b, float *out)
{
    const uint8_t *high = b + 128;
    float d = get_half(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        int low = b[64 * half + 32 * (quarter % 2) + l] >> 4 * (quarter / 2) & 15;
        int v = (low | (high[32 * half + l] >> 2 * quarter & 3) << 4) - 32;
        out[i] = d * (float)(int8_t)b[192 + i / 16] * (float)v;
    }
}

/* Scale, the upper two bits of eight 6-bit scales, their low four, then nibbles as in IQ4_NL. */
static void unpack_iq4_xs(const uint8_t *b, float *out)
{
    float d = get_half(b);
    int high = get16(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | (high >> 2 * j & 3) << 4;
        float ds = d * (float)(scale - 32);
        for (int l = 0; l < 16; l++) {
            out[32 * j + l] = ds * (float)nonlinear[b[8 + 16 * j + l] & 15];
            out[32 * j + l + 16] = ds * (float)nonlinear[b[8 + 16 * j + l] >> 4];
        }
    }
}

/* Ternary: 64 bytes of 2-bit values, scale. */
static void unpack_tq2_0(const uint8_t *b, float *out)
{
    float d = get_half(b + 64);
    for (int i = 0; i < 256; i++)
        out[i] = (float)((b[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3) - 1) * d;
}

/* --- The table --- */

static const tm_ggml_type types[] = {
    {TM_GGML_F32, "F32", 1, 4, NULL, NULL},
    {TM_GGML_F16, "F16", 1, 2, NULL, NULL},
    {TM_GGML_BF16, "BF16", 1, 2, NULL, NULL},
    {TM_GGML_F64, "F64", 1, 8, NULL, NULL},
    {TM_GGML_Q4_0, "Q4_0", 32, 18, unpack_q4_0, tm_pack_q4_0},
    {TM_GGML_Q4_1, "Q4_1", 32, 20, unpack_q4_1, NULL},
    {TM_GGML_Q5_0, "Q5_0", 32, 22, unpack_q5_0, tm_pack_q5_0},
    {TM_GGML_Q5_1, "Q5_1", 32, 24, unpack_q5_1, tm_pack_q5_1},
    {TM_GGML_Q8_0, "Q8_0", 32, 34, unpack_q8_0, tm_pack_q8_0},
    {TM_GGML_Q2_K, "Q2_K", 256, 84, unpack_q2_k, NULL},
    {TM_GGML_Q3_K, "Q3_K", 256, 110, unpack_q3_k, NULL},
    {TM_GGML_Q4_K, "Q4_K", 256, 144, unpack_q4_k, tm_pack_q4_k},
    {TM_GGML_Q5_K, "Q5_K", 256, 176, unpack_q5_k, tm_pack_q5_k},
    {TM_GGML_Q6_K, "Q6_K", 256, 210, unpack_q6_k, tm_pack_q6_k},
    {TM_GGML_IQ4_NL, "IQ4_NL", 32, 18, unpack_iq4_nl, NULL},
    {TM_GGML_IQ4_XS, "IQ4_XS", 256, 136, unpack_iq4_xs, NULL},
    {TM_GGML_TQ2_0, "TQ2_0", 256, 66, unpack_tq2_0, NULL},
};

const tm_ggml_type *tm_ggml_type_of(uint32_t number)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if ((uint32_t)types[i].type == number)
            return &types[i];
    return NULL;
}

tm_dtype tm_ggml_dtype(const tm_ggml_type *type)
{
    switch (type->type) {
    case TM_GGML_F16: return TM_F16;
    case TM_GGML_BF16: return TM_BF16;
    case TM_GGML_F64: return TM_F64;
    default: return TM_F32;
    }
}

void tm_ggml_unpack(const tm_ggml_type *type, const void *blocks, float *out, int64_t n)
{
    const uint8_t *b = blocks;
    if (!type->unpack) {
        tm_dtype_convert(out, TM_F32, blocks, tm_ggml_dtype(type), n);
        return;
    }
    for (int64_t i = 0; i < n; i += type->block, b += type->bytes)
        type->unpack(b, out + i);
}

void tm_ggml_pack(const tm_ggml_type *type, const float *x, void *blocks, int64_t n)
{
    uint8_t *b = blocks;
    if (!type->unpack) {
        tm_dtype_convert(blocks, tm_ggml_dtype(type), x, TM_F32, n);
        return;
    }
    for (int64_t i = 0; i < n; i += type->block, b += type->bytes)
        type->pack(x + i, b);
}
