/* Element types: see dtype.h. */
#include "base/dtype.h"

const char *tm_dtype_name(tm_dtype dtype)
{
    static const char *const names[] = {
#define X(name, bits) #name,
        TM_DTYPE_TABLE(X)
#undef X
    };
    return dtype < TM_DTYPE_COUNT ? names[dtype] : "?";
}

int tm_dtype_bits(tm_dtype dtype)
{
    static const uint8_t bits_of[] = {
#define X(name, bits) bits,
        TM_DTYPE_TABLE(X)
#undef X
    };
    return dtype < TM_DTYPE_COUNT ? bits_of[dtype] : 0;
}

tm_dtype tm_dtype_from_name(const char *name)
{
    for (int i = 0; i < TM_DTYPE_COUNT; i++)
        if (strcmp(name, tm_dtype_name((tm_dtype)i)) == 0)
            return (tm_dtype)i;
    return TM_DTYPE_COUNT;
}

float tm_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else if (!mantissa)
        bits = sign;
    else {
        exponent = 113;
        while (!(mantissa & 1024)) {
            mantissa <<= 1;
            exponent--;
        }
        bits = sign | exponent << 23 | (mantissa & 1023) << 13;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t tm_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u)   /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000u) { /* normal: rebias, round to even */
        uint32_t r = magnitude - 0x38000000u;
        return (uint16_t)(sign | ((r + 0xfff + ((r >> 13) & 1)) >> 13));
    }
    if (magnitude < 0x33000000u)    /* below half of the smallest subnormal */
        return sign;
    uint32_t shift = 126 - (magnitude >> 23), mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1)))));
}

/* Files may hold values at any address. */
static double load(const void *src, tm_dtype type, int64_t i)
{
    double d;
    float f;
    uint16_t h;
    switch (type) {
    case TM_F64: memcpy(&d, (const char *)src + i * 8, sizeof d); return d;
    case TM_F32: memcpy(&f, (const char *)src + i * 4, sizeof f); return f;
    case TM_BF16: memcpy(&h, (const char *)src + i * 2, sizeof h); return tm_bf16_to_f32(h);
    case TM_F16: memcpy(&h, (const char *)src + i * 2, sizeof h); return tm_f16_to_f32(h);
    default: return 0;
    }
}

static void store(void *dst, tm_dtype type, int64_t i, double value)
{
    switch (type) {
    case TM_F64: ((double *)dst)[i] = value; break;
    case TM_F32: ((float *)dst)[i] = (float)value; break;
    case TM_BF16: ((uint16_t *)dst)[i] = tm_f32_to_bf16((float)value); break;
    case TM_F16: ((uint16_t *)dst)[i] = tm_f32_to_f16((float)value); break;
    default: break;
    }
}

void tm_dtype_convert(void *dst, tm_dtype dst_type, const void *src, tm_dtype src_type, int64_t n)
{
    if (dst_type == src_type) {
        if (n)
            memcpy(dst, src, (size_t)tm_dtype_bytes(dst_type, n));
        return;
    }
    if (dst_type == TM_F32 && src_type == TM_BF16) {
        float *d = dst;
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, (const char *)src + i * 2, sizeof h);
            d[i] = tm_bf16_to_f32(h);
        }
        return;
    }
    for (int64_t i = 0; i < n; i++)
        store(dst, dst_type, i, load(src, src_type, i));
}
