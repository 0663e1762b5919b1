/* What the two halves of the emulated GPU share: blocks, warps and threads (simt.cpp), and what their instructions have
 * on the way (instructions.cpp). */
#ifndef TM_TESTS_EMULATED_ENGINE_H
#define TM_TESTS_EMULATED_ENGINE_H

#include "cuda_bf16.h"

template <class T> constexpr bool tm_is_bf16 = false; /* as in ptx.cuh; used by templates that are not needed here */

#include "instructions.h"

#include <deque>
#include <vector>

/* --- On the way --- */

struct emulated_copy { /* cp.async */
    void *to;
    const void *from;
    int bytes, group;
};
struct emulated_fetch { /* a tensor copy to shared memory */
    CUtensorMap map;
    uint32_t to;
    int at[3];
    uint64_t *bar;
};
struct emulated_store { /* and back: first read, then written */
    CUtensorMap map;
    uint32_t from;
    int at[3];
    bool add, read;
    int group;
    std::vector<char> held;
};
struct emulated_factors_of_warp { /* wgmma: a warp's sixteen rows */
    emulated_factors f;
    float *c[32];
    const uint32_t *registers[32];
    int first, group;
};

/* --- Threads --- */

struct emulated_block;
struct emulated_warp;

/* At the beginning of its stack, where emulated_here finds it. */
struct emulated_thread : emulated_place {
    void *stack, *fake; /* fake: AddressSanitizer's */
    emulated_block *of;
    emulated_warp *warp;
    int lane;
    bool ended;
    const char *waits; /* for what; NULL: nothing */
    void *where;
    std::vector<emulated_copy> copies;
    std::vector<emulated_store> stores;
    int copy_group, store_group;
};
static inline emulated_thread *emulated_self() { return (emulated_thread *)&emulated_here(); }

struct emulated_warp {
    int living, arrived;
    const char *kind; /* of the meeting */
    void *operand[32]; /* of the lanes that have come */
    emulated_thread *lane[32];
    std::deque<emulated_factors_of_warp> products;
    int product_group;
    bool fenced;
};

struct emulated_numbered {
    int threads, arrived, sum, last; /* last: the sum of the last time */
    std::vector<emulated_thread *> waiting;
};
struct emulated_waiter {
    emulated_thread *thread;
    uint64_t *bar;
    int parity;
};

struct emulated_block {
    const char *op;
    uint64_t dice;
    int order; /* how the next thread is chosen */
    unsigned count, left;
    void (*run)(void *);
    void *argument;
    char *shared, *fixed; /* what the launch sized, and __shared__ variables */
    size_t shared_bytes, fixed_bytes;
    std::vector<emulated_thread *> threads, ready, looking, behind; /* threads: as many as ever were; behind: waiting for products */
    std::vector<emulated_warp> warps;
    emulated_numbered barriers[16];
    std::vector<emulated_waiter> waiters; /* at barriers in memory */
    std::vector<emulated_fetch> fetches;
    void *outside, *outside_fake; /* the stack that began the block */
    const void *outside_bottom;
    size_t outside_size;
    int looks;

    unsigned draw(unsigned n) /* below n */
    {
        dice ^= dice >> 12, dice ^= dice << 25, dice ^= dice >> 27;
        return (unsigned)((dice * 0x2545F4914F6CDD1Dull >> 32) * n >> 32);
    }
};

/* This thread waits until somebody has made it ready. */
void emulated_stop(const char *waits, void *where);
/* The lanes of a warp come with an operand each; the last one runs act, then all go on. */
void emulated_meeting(unsigned mask, const char *kind, void *operand, void (*act)(emulated_warp &), void *where);
/* What an address of shared memory names, `bytes` of it. */
char *emulated_shared_at(uint32_t address, size_t bytes);
/* The threads that wait at a barrier in memory look again. */
void emulated_barrier_moved(emulated_block *b);
bool emulated_barrier_passed(const uint64_t *bar, int parity);
void emulated_fetch_now(emulated_block *b, const emulated_fetch &f);

#define EMULATED_CALLER __builtin_return_address(0)

#endif
