/* exp and what is made of it, by the processor's own approximation of 2^x: relative error below 2^-22 times a
 * share of |x| 2^-24 from the product before it, far below a rounding to 16 bits. One architecture, one result. */
#ifndef TM_DEVICE_CUDA_HALF_FAST_CUH
#define TM_DEVICE_CUDA_HALF_FAST_CUH

#include "device/cuda/cuda.cuh"
#include "device/cuda/half/ptx.cuh"

#define LOG2_E 1.4426950408889634f

TM_LANE float exp_fast(float x) { return exp2_fast(x * LOG2_E); }

/* 1 / (1 + e^-x): 0 and 1 at the far ends, as e^-x becomes infinite and 0. */
TM_LANE float sigmoid_fast(float x) { return reciprocal_fast(1 + exp2_fast(x * -LOG2_E)); }

/* Absolute error 2^-22: near 0 the difference loses digits. */
TM_LANE float tanh_fast(float x) { return fmaf(-2, reciprocal_fast(1 + exp2_fast(x * (2 * LOG2_E))), 1); }

#endif
