/* What the row ops share. A row op treats every row by itself; its sums run over 16 lanes with four
 * accumulators: columns in groups of 64, one accumulator for each quarter of a group, what is left
 * over to the first; the accumulators are joined as (0 + 1) + (2 + 3). The order depends on the number of
 * columns alone. */
#ifndef TM_DEVICE_CPU_ROW_H
#define TM_DEVICE_CPU_ROW_H

#include "device/cpu/cpu.h"
#include "device/cpu/simd.h"

/* Inlined where lanes are registers; where they are an array, a call keeps the code small. */
#if defined(TM_SIMD_AVX512) || defined(TM_SIMD_AVX2)
#define LANES_FN V16_FN
#else
#define LANES_FN static __attribute__((noinline, unused))
#endif

/* How many of the lanes at column i of n are in use. */
V16_FN int lanes_at(int64_t n, int64_t i) { return n - i < V16 ? (int)(n - i) : V16; }

LANES_FN v16 lanes_load(tm_tensor t, int64_t row, int64_t i, int lanes)
{
    return lanes == V16 ? v16_load(t.data, t.dtype, row * t.ld + i) : v16_load_n(t.data, t.dtype, row * t.ld + i, lanes);
}

LANES_FN void lanes_store(tm_tensor t, int64_t row, int64_t i, int lanes, v16 a)
{
    if (lanes == V16)
        v16_store(t.data, t.dtype, row * t.ld + i, a);
    else
        v16_store_n(t.data, t.dtype, row * t.ld + i, lanes, a);
}

/* Runs STATEMENT(i, lanes, accumulator) over the columns 0 .. n - 1 in the order described above. */
#define ROW_SUM(n, STATEMENT, result)                                  \
    do {                                                               \
        v16 a0_ = v16_zero(), a1_ = a0_, a2_ = a0_, a3_ = a0_;         \
        int64_t i_ = 0;                                                \
        for (; i_ + 4 * V16 <= (n); i_ += 4 * V16) {                   \
            STATEMENT(i_, V16, a0_);                                   \
            STATEMENT(i_ + V16, V16, a1_);                             \
            STATEMENT(i_ + 2 * V16, V16, a2_);                         \
            STATEMENT(i_ + 3 * V16, V16, a3_);                         \
        }                                                              \
        for (; i_ < (n); i_ += V16)                                    \
            STATEMENT(i_, lanes_at((n), i_), a0_);                     \
        (result) = v16_reduce_add(v16_add(v16_add(a0_, a1_), v16_add(a2_, a3_))); \
    } while (0)

/* --- Sharing out work ---
 *
 * A task copies its op's arguments into a local variable: stores through the tensors' pointers then
 * cannot change them as far as the compiler knows, and they stay in registers. */

enum { TASK_ELEMENTS = 16384, STRIP = 4 * V16 };

/* Rows of `cols` columns that make a task worth claiming. */
static inline int64_t task_rows(int64_t cols) { return cols >= TASK_ELEMENTS ? 1 : TASK_ELEMENTS / (cols ? cols : 1); }
static inline int64_t task_count(int64_t n, int64_t size) { return (n + size - 1) / size; }
static inline int64_t task_end(int64_t task, int64_t size, int64_t n) { return (task + 1) * size < n ? (task + 1) * size : n; }

#endif
