/* The instructions of src/device/cuda/half/ptx.cuh on the processor: names and meanings are those of there. */
#ifndef TM_TESTS_EMULATED_INSTRUCTIONS_H
#define TM_TESTS_EMULATED_INSTRUCTIONS_H

#include "cuda.h"
#include "simt.h"

static inline uint32_t shared_address(const void *p) { return emulated_shared_address(p); }

/* The approximations lose numbers below the smallest normal one. */
static inline float emulated_flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
static inline float exp2_fast(float x) { return emulated_flushed(exp2f(emulated_flushed(x))); }
static inline float reciprocal_fast(float x) { return emulated_flushed(1 / emulated_flushed(x)); }

/* --- A warp's products --- */

void emulated_mma(bool is_bf16, float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
template <class T = __nv_bfloat16> static inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { emulated_mma(tm_is_bf16<T>, c, a, b0, b1); }

void load_matrices(uint32_t (&r)[4], const void *p);
void load_matrices_transposed(uint32_t (&r)[4], const void *p);
void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d);

void copy_async_bytes(void *shared, const void *global, int bytes);
void copy_commit();
void emulated_copy_wait(int pending);
template <int PENDING> static inline void copy_wait() { emulated_copy_wait(PENDING); }

/* --- Barriers --- */

static inline void group_barrier(int number, int threads) { emulated_barrier(number, threads, true, 0); }
static inline void group_arrive(int number, int threads) { emulated_barrier(number, threads, false, 0); }
template <int COUNT> static inline void registers_more() { emulated_meet(~0u); }
template <int COUNT> static inline void registers_less() { emulated_meet(~0u); }
static inline void store_release(int *to, int value) { __atomic_store_n(to, value, __ATOMIC_SEQ_CST); }
static inline int load_acquire(const int *from) { return emulated_look(from); }
static inline void fence_barriers() {}
static inline void fence_engine() {}
void fence_shared();
static inline void schedule_wall(int) {}

void barrier_init(uint64_t *bar, int count);
void barrier_expect(uint64_t *bar, int bytes);
void barrier_arrive(uint64_t *bar);
void barrier_wait(uint64_t *bar, int parity);

/* --- Products of warpgroups --- */

void products_begin();
void products_commit();
void emulated_products_wait(int pending);
template <int PENDING> static inline void products_wait() { emulated_products_wait(PENDING); }
template <int N> static inline void products_keep(float (&)[N][4]) {}

/* c[64 x 8 n] = or += a b; a in shared memory (registers NULL) or in registers. */
struct emulated_factors {
    const uint32_t *registers;
    uint64_t a, b;
    int n;
    bool a_turned, b_turned, is_bf16, add;
};
void emulated_product(float *c, const emulated_factors &f);
template <int TRANSPOSED, int A_TRANSPOSED = 0, class T = __nv_bfloat16, int N> static inline void product(float (&c)[N][4], uint64_t a, uint64_t b, int add)
{
    emulated_product(c[0], {nullptr, a, b, N, A_TRANSPOSED != 0, TRANSPOSED != 0, tm_is_bf16<T>, add != 0});
}
template <int TRANSPOSED, class T = __nv_bfloat16, int N> static inline void product(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b)
{
    emulated_product(c[0], {a, 0, b, N, false, TRANSPOSED != 0, tm_is_bf16<T>, true});
}

/* --- Tensor copies --- */

void fetch_box(void *to, const CUtensorMap *map, int column, int row, int matrix, uint64_t *bar);
static inline void fetch_box(void *to, const CUtensorMap *map, int column, int row, uint64_t *bar) { fetch_box(to, map, column, row, 0, bar); }
void store_box(const CUtensorMap *map, const void *from, int column, int row, int matrix, bool add);
void store_commit();
void emulated_store_wait(int pending, bool written);
template <int PENDING = 0> static inline void store_wait_read() { emulated_store_wait(PENDING, false); }
static inline void store_wait() { emulated_store_wait(0, true); }

#endif
