/* Element types, as safetensors names them, and conversions between bit patterns and float. */
#ifndef TM_BASE_DTYPE_H
#define TM_BASE_DTYPE_H

#include "base/on_device.h"

#include <stdint.h>
#include <string.h>

/* X(name, bits an element). The names are those of the safetensors format. */
#define TM_DTYPE_TABLE(X)                                                               \
    X(F64, 64) X(F32, 32) X(F16, 16) X(BF16, 16) X(I64, 64) X(I32, 32) X(I16, 16)       \
    X(I8, 8) X(U64, 64) X(U32, 32) X(U16, 16) X(U8, 8) X(BOOL, 8) X(F8_E4M3, 8)         \
    X(F8_E5M2, 8) X(F8_E8M0, 8) X(C64, 64) X(F6_E2M3, 6) X(F6_E3M2, 6) X(F4, 4)

typedef enum tm_dtype {
#define X(name, bits) TM_##name,
    TM_DTYPE_TABLE(X)
#undef X
    TM_DTYPE_COUNT
} tm_dtype;

const char *tm_dtype_name(tm_dtype dtype);   /* "F32" */
int tm_dtype_bits(tm_dtype dtype);
/* TM_DTYPE_COUNT when no such name. */
tm_dtype tm_dtype_from_name(const char *name);

/* Bytes of n elements of a dtype of whole bytes. */
static inline int64_t tm_dtype_bytes(tm_dtype dtype, int64_t n) { return n * (tm_dtype_bits(dtype) / 8); }

TM_ON_DEVICE static inline float tm_bf16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest even; NaN stays NaN (quiet). */
TM_ON_DEVICE static inline uint16_t tm_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* One of the two neighbours, the farther from zero with the share of their distance by which f is beyond the
 * nearer: unbiased. random: its lower 16 bits count. Infinities and NaN as above. */
TM_ON_DEVICE static inline uint16_t tm_f32_to_bf16_at_random(float f, uint32_t random)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7f800000u) == 0x7f800000u)
        return tm_f32_to_bf16(f);
    return (uint16_t)((bits + (random & 0xffff)) >> 16);
}

float tm_f16_to_f32(uint16_t h);
uint16_t tm_f32_to_f16(float f);   /* round to nearest even */

/* n elements from one of F64, F32, F16, BF16 to another of these; ranges do not overlap. Via
 * double only where F64 is involved; narrowing rounds to nearest even. */
void tm_dtype_convert(void *dst, tm_dtype dst_type, const void *src, tm_dtype src_type, int64_t n);

#endif
