/* The table of ops: the kernel for single tokens (single.cu) or the fast one where there is one for what is asked, the plain one otherwise. */
#include "device/cuda/half/half.h"
#include "device/cuda/profile.h"
#include "device/cuda/single.cuh"

#define TM_OP(name, params) \
    __attribute__((weak)) bool tm_half_##name params { return false; } \
    __attribute__((weak)) bool tm_single_##name params { return false; }
#include "device/ops.def"
#undef TM_OP

__attribute__((weak)) bool tm_half_single_product(tm_device *, const char *, const tm_single_product *, int64_t) { return false; }

/* Bytes that an op's operand stands for: of its tensors. */
template <class T> static int64_t operand_bytes(const T &) { return 0; }
template <> int64_t operand_bytes(const tm_tensor &t) { return t.data ? tm_dtype_bytes(t.dtype, t.rows * t.cols) : 0; }

#define NAMED(op) struct named_##op { static constexpr const char *name = #op; };
#define TM_OP(name, params) NAMED(name)
#include "device/ops.def"
#undef TM_OP

template <class NAME, auto SINGLE, auto FAST, auto PLAIN> struct serve;
template <class NAME, class... P, bool (*SINGLE)(tm_device *, P...), bool (*FAST)(tm_device *, P...), void (*PLAIN)(tm_device *, P...)> struct serve<NAME, SINGLE, FAST, PLAIN> {
    static void run(tm_device *d, P... p)
    {
        tm_cuda *c = tm_cuda_of(d);
        int at = c->profile ? tm_cuda_profile_begin(c, NAME::name, (operand_bytes(p) + ... + 0)) : -1;
        if (!SINGLE(d, p...) && !FAST(d, p...))
            PLAIN(d, p...);
        if (c->profile)
            tm_cuda_profile_end(c, at);
    }
};

const tm_ops tm_cuda_ops = {
#define TM_OP(name, params) serve<named_##name, tm_single_##name, tm_half_##name, tm_cuda_##name>::run,
#include "device/ops.def"
#undef TM_OP
};
