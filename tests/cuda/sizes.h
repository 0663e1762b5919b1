/* How much of a test is run: all of it on a GPU; on the processor (tests/emulated), and with TEST_SMALL set (under
 * compute-sanitizer, say), smaller sizes, and of many cases some, others every time. */
#ifndef TM_TESTS_CUDA_SIZES_H
#define TM_TESTS_CUDA_SIZES_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#ifdef TM_CUDA_EMULATED
enum { ON_GPU = 0 };
#else
enum { ON_GPU = 1 };
#endif
#ifdef TM_SANITIZE
enum { SPARSE = 3 };
#else
enum { SPARSE = 1 };
#endif

static inline bool all_of_it() { return ON_GPU && !getenv("TEST_SMALL"); }
static inline int64_t sized(int64_t large, int64_t small) { return all_of_it() ? large : small; }

/* The seed of a test's draws, and on the processor of the order of threads as well: TEST_SEED, or another one every time. */
static inline uint64_t fresh_seed()
{
    const char *given = getenv("TEST_SEED");
    uint64_t seed = given ? strtoull(given, nullptr, 10) : std::random_device()();
    setenv("TEMPER_EMULATED_SEED", std::to_string(seed).c_str(), 0);
    return seed;
}

/* Whether this case is run: otherwise one of `of` is. */
static inline bool chosen(int of, uint64_t random) { return all_of_it() || random % (uint64_t)(of * SPARSE) == 0; }

#endif
