/* The CPU device: what its kernels see of it. Every file of this folder except cpu.c is compiled
 * once per instruction set (TM_KERNEL_ISA); TM_KERNEL(name) is the name of that build's symbol. */
#ifndef TM_DEVICE_CPU_CPU_H
#define TM_DEVICE_CPU_CPU_H

#include "base/pool.h"
#include "device/device.h"

enum {
    TM_CPU_ALIGN = 64,
    TM_CPU_SCRATCH_BYTES = 4 << 20, /* a thread */
    TM_CPU_SHARED_BYTES = 7 << 20, /* all threads: the packed operands of a matrix product */
};

typedef struct tm_cpu {
    tm_device base;
    tm_pool *pool;
    char *scratch; /* threads * TM_CPU_SCRATCH_BYTES; a task may use its thread's part freely */
    char *shared;  /* TM_CPU_SHARED_BYTES; of the op that runs */
    bool bf16_dot; /* vdpbf16ps is there and does what pairs.h says */
    char detail[48];
} tm_cpu;

static inline tm_cpu *tm_cpu_of(tm_device *d) { return (tm_cpu *)d; }

/* Scratch memory of one thread, TM_CPU_ALIGN aligned. */
static inline void *tm_cpu_scratch(const tm_cpu *cpu, int thread)
{
    return cpu->scratch + (int64_t)thread * TM_CPU_SCRATCH_BYTES;
}

#define TM_KERNEL_JOIN2(isa, name) tm_##isa##_##name
#define TM_KERNEL_JOIN(isa, name) TM_KERNEL_JOIN2(isa, name)
#define TM_KERNEL(name) TM_KERNEL_JOIN(TM_KERNEL_ISA, name)

#ifdef TM_KERNEL_ISA
/* The ops of this build: TM_KERNEL(rmsnorm_forward) and so on, defined by the op files. */
#define TM_OP(name, params) void TM_KERNEL(name) params;
#include "device/ops.def"
#undef TM_OP
extern const tm_ops TM_KERNEL(table);
#endif

#endif
