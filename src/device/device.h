/* The device line: memory and ops of one computing device behind a table of functions.
 *
 * Invariants:
 *  1. Code above this line never looks through a device address and never knows which device it is.
 *  2. Nothing is allocated inside a step: memory comes from arenas sized before the run by building
 *     the same run on the counting device, which allocates nothing and counts everything.
 *  3. The bits of a result depend on the tensors, the layout's examples and positions and the step
 *     parameters; never on threads, instruction set, other replicas or how examples were packed. */
#ifndef TM_DEVICE_DEVICE_H
#define TM_DEVICE_DEVICE_H

#include "base/status.h"
#include "device/tensor.h"

typedef struct tm_device tm_device;

typedef enum tm_activation { TM_ACT_SILU, TM_ACT_GELU_TANH, TM_ACT_GELU, TM_ACT_RELU, TM_ACT_NONE /* a product */ } tm_activation;

typedef struct tm_attention {
    int32_t heads, kv_heads, head_size;
    float scale;   /* on the scores */
    int32_t window; /* 0 = none */
    float softcap;  /* 0 = none */
} tm_attention;

typedef struct tm_ops {
#define TM_OP(name, params) void (*name) params;
#include "device/ops.def"
#undef TM_OP
} tm_ops;

/* Work that was recorded once and can be queued again as a whole. */
typedef struct tm_graph {
    int64_t nodes; /* ops and copies in it */
} tm_graph;

/* Memory and life of a device; addresses are the device's own. */
typedef struct tm_device_calls {
    tm_status (*alloc)(tm_device *d, int64_t bytes, void **out, tm_error *err);
    void (*release)(tm_device *d, void *address);
    void (*upload)(tm_device *d, void *dst, const void *src, int64_t bytes);
    void (*download)(tm_device *d, void *dst, const void *src, int64_t bytes); /* waits */
    void (*copy)(tm_device *d, void *dst, const void *src, int64_t bytes);     /* on the device */
    void (*zero)(tm_device *d, void *dst, int64_t bytes);
    /* Waits for everything and reports the first error since the last sync. */
    tm_status (*sync)(tm_device *d, tm_error *err);
    void (*destroy)(tm_device *d);
    /* Graphs; NULL where the device has none. What is called between begin and end is recorded, not run:
     * ops, copy and zero, with the addresses, counts and layouts of that moment. graph_run queues it: it
     * reads whatever stands at those addresses by then (step parameters, ids, targets). Nothing that
     * uploads or waits may be recorded. */
    tm_status (*graph_begin)(tm_device *d, tm_error *err);
    tm_status (*graph_end)(tm_device *d, tm_graph **out, tm_error *err);
    void (*graph_run)(tm_device *d, tm_graph *graph);
    void (*graph_destroy)(tm_device *d, tm_graph *graph);
    /* Scratch of the ops themselves, valid until the next lend; a device that wants none has NULL here. How much
     * a run lends: lend_workspace in model.c. */
    void (*lend)(tm_device *d, void *address, int64_t bytes);
    /* A download that does not wait: dst is there after the next sync. NULL: download does. */
    void (*fetch)(tm_device *d, void *dst, const void *src, int64_t bytes);
    /* Host memory for what is not needed for a while; NULL where host and device share theirs. stash copies away in the
     * background what stands at src when everything queued so far has run; unstash brings it back likewise; what is
     * queued after stash_wait runs when the slot's last copy is done. stash_reserve makes `slots` of `bytes` once. */
    tm_status (*stash_reserve)(tm_device *d, int64_t slots, int64_t bytes, tm_error *err);
    void (*stash)(tm_device *d, int64_t slot, const void *src, int64_t bytes);
    void (*unstash)(tm_device *d, int64_t slot, void *dst, int64_t bytes);
    void (*stash_wait)(tm_device *d, int64_t slot);
    /* Bytes of its memory that nobody has taken, and all. NULL: it shares the machine's memory. */
    void (*memory)(tm_device *d, int64_t *free_bytes, int64_t *all);
    /* The calling thread goes on with a device that another one had, whose work is over: what was still to be fetched is
     * forgotten. NULL: a device knows no threads. An error: it is of no use any more. */
    tm_status (*adopt)(tm_device *d, tm_error *err);
} tm_device_calls;

/* What a run's memory depends on beside the recipe. */
typedef struct tm_device_traits {
    tm_dtype real;     /* F32; F64 on the device that checks gradients */
    int32_t head_rows; /* rows of the loss head that are computed at once: a multiple of TM_CHUNK_TOKENS */
    bool borrows;      /* wants a workspace: tm_device_calls.lend */
    bool apart;        /* has memory of its own: tm_device_calls.stash */
    tm_dtype act;      /* of activations where `precision: auto` decides: real; on a GPU bf16, or f16 where it has no bf16 */
} tm_device_traits;

struct tm_device {
    const tm_ops *ops;
    const tm_device_calls *calls;
    const char *name;  /* "cpu", "cuda", "counting" */
    const char *detail; /* "avx512, 2 threads", "NVIDIA H200", ... */
    tm_dtype real;     /* as in traits */
    tm_device_traits traits;
    int64_t used_bytes, peak_bytes; /* what alloc has handed out */
};

/* Runs an op: TM_RUN(device, rmsnorm_forward, rows, x, ...). */
#define TM_RUN(device, op, ...) ((device)->ops->op((device), __VA_ARGS__))

tm_status tm_device_alloc(tm_device *d, int64_t bytes, void **out, tm_error *err) TM_MUST_CHECK;
void tm_device_release(tm_device *d, void *address, int64_t bytes);
void tm_device_destroy(tm_device *d);
/* For another run, in the calling thread: as if it had just been made. Nothing of an earlier run is in use. */
tm_status tm_device_adopt(tm_device *d, tm_error *err) TM_MUST_CHECK;

/* What the device has by the next sync, or now. */
void tm_device_fetch(tm_device *d, void *dst, const void *src, int64_t bytes);

/* --- Devices --- */

/* Which kernels: the widest the processor has, or one forced (tests; TEMPER_ISA). */
typedef enum tm_isa { TM_ISA_AUTO, TM_ISA_SCALAR, TM_ISA_AVX2, TM_ISA_AVX512, TM_ISA_F64 } tm_isa;

/* threads 0 = all. TM_ISA_F64 computes everything in double: the reference of gradient checks. */
tm_status tm_cpu_device_create(int threads, tm_isa isa, tm_device **out, tm_error *err) TM_MUST_CHECK;

/* Of the CPU device (but for TM_ISA_F64), and of any CUDA device. */
tm_device_traits tm_cpu_traits(void);
tm_device_traits tm_cuda_traits(void);

/* Bytes that a CUDA device takes for itself at creation: partial sums of the ops that go over all trained tensors. */
enum { TM_CUDA_PARTIALS = 1 << 22 /* blocks of TM_TRAINED_BLOCK elements: 17 billion */ };
int64_t tm_cuda_own_bytes(void);

/* Allocates nothing, computes nothing, counts every byte. traits: of the device it stands for. */
tm_status tm_counting_device_create(tm_device_traits traits, tm_device **out, tm_error *err) TM_MUST_CHECK;

/* A GPU, through libtemper-cuda.so: `library` is its path; NULL looks beside the program, in build/cuda of
 * the tree it was built in and where the system keeps libraries. TM_UNSUPPORTED, with the reason, when there is no
 * library, driver or GPU. The library stays loaded. */
tm_status tm_cuda_device_create(const char *library, int index, tm_device **out, tm_error *err) TM_MUST_CHECK;
/* Whether an NVIDIA driver is installed: without one nobody expects a GPU to be used. */
bool tm_cuda_driver(void);

/* --- Arenas --- */

/* A stack of aligned blocks inside `limit` bytes at base, which others own. On the counting device it grows without
 * bound and only counts. */
typedef struct tm_arena {
    tm_device *device;
    const char *name;
    char *base;
    int64_t limit, used, peak;
    bool counting;
} tm_arena;

enum { TM_ALIGN = 256 };

tm_arena tm_arena_at(tm_device *d, const char *name, void *base, int64_t bytes);
/* NULL only by a programmer's mistake (asserted): arenas are sized by the plan. */
void *tm_arena_take(tm_arena *arena, int64_t bytes);
tm_tensor tm_arena_tensor(tm_arena *arena, tm_dtype dtype, int64_t rows, int64_t cols);

#endif
