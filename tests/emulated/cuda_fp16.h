/* Sixteen-bit floats for the processor: storage and conversions, rounded as the GPU rounds. */
#ifndef TM_TESTS_EMULATED_CUDA_FP16_H
#define TM_TESTS_EMULATED_CUDA_FP16_H

#include "cuda_runtime.h"

extern "C" {
#include "base/dtype.h"
}

struct __half {
    uint16_t bits;
    operator float() const { return tm_f16_to_f32(bits); }
};
struct __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
    operator float() const { return tm_bf16_to_f32(bits); }
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __half2float(__half h) { return tm_f16_to_f32(h.bits); }
static inline __half __float2half_rn(float x) { return {tm_f32_to_f16(x)}; }
static inline __half __float2half(float x) { return __float2half_rn(x); }
static inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
static inline uint16_t __half_as_ushort(__half h) { return h.bits; }
static inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
static inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
static inline float __bfloat162float(__nv_bfloat16 h) { return tm_bf16_to_f32(h.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {tm_f32_to_bf16(x)}; }
static inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }

#endif
