/* The table of ops: the fast kernel where there is one for what is asked, the plain one otherwise. */
#include "device/cuda/half/half.h"

#define TM_OP(name, params) \
    __attribute__((weak)) bool tm_half_##name params { return false; }
#include "device/ops.def"
#undef TM_OP

template <auto FAST, auto PLAIN> struct serve;
template <class... P, bool (*FAST)(tm_device *, P...), void (*PLAIN)(tm_device *, P...)> struct serve<FAST, PLAIN> {
    static void run(tm_device *d, P... p)
    {
        if (tm_cuda_of(d)->plain || !FAST(d, p...))
            PLAIN(d, p...);
    }
};

const tm_ops tm_cuda_ops = {
#define TM_OP(name, params) serve<tm_half_##name, tm_cuda_##name>::run,
#include "device/ops.def"
#undef TM_OP
};
