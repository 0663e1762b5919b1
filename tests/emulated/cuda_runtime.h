/* The part of the CUDA runtime that src/device/cuda uses, on the processor: "device" memory is ordinary memory, a launch
 * is a loop over items (the plain kernels, tm_cuda_each) or runs the kernel's threads as fibers (simt.h). With it the
 * GPU's sources are compiled by g++ and tested where there is no GPU: their arithmetic, their synchronisation, their
 * layout reading, and what goes into a graph.
 *
 * Items of a loop run from the last to the first, so an op that leans on their order is found. */
#ifndef TM_TESTS_EMULATED_CUDA_RUNTIME_H
#define TM_TESTS_EMULATED_CUDA_RUNTIME_H

#define TM_CUDA_EMULATED
#define CUDART_VERSION 13000

#include "simt.h"

#include <functional>
#include <tuple>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInsufficientDriver, cudaErrorNoDevice, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaStreamNonBlocking = 1, cudaStreamCaptureModeThreadLocal = 1 };

typedef std::vector<std::function<void()>> *cudaGraph_t, *cudaGraphExec_t;
struct emulated_stream {
    cudaGraph_t recorded; /* NULL: run at once */
};
typedef emulated_stream *cudaStream_t;

struct cudaDeviceProp {
    char name[64];
    int major, minor, multiProcessorCount;
};

template <class F> static inline cudaError_t emulated_queue(cudaStream_t s, F f)
{
    if (s->recorded)
        s->recorded->push_back(f);
    else
        f();
    return cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorInvalidValue ? "invalid argument (emulated)" : "emulated error"; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaDriverGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
static inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    const char *sm = getenv("TEMPER_EMULATED_SM"); /* a compute capability, 75 for instance */
    int number = sm ? atoi(sm) : 80;
    *p = {"emulated", number / 10, number % 10, EMULATED_PROCESSORS};
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaMemGetInfo(size_t *a, size_t *b) { return *a = *b = (size_t)8 << 30, cudaSuccess; }
static inline cudaError_t cudaMalloc(void *out, size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memcpy(out, &p, sizeof p);
    return p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFree(void *p) { return free(p), cudaSuccess; }
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int) { return *s = new emulated_stream{nullptr}, cudaSuccess; }
static inline cudaError_t cudaStreamDestroy(cudaStream_t s) { return delete s, cudaSuccess; }
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind, cudaStream_t s)
{
    return emulated_queue(s, [=] { memmove(dst, src, bytes); });
}
static inline cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s)
{
    return emulated_queue(s, [=] { memset(dst, value, bytes); });
}

typedef void *cudaEvent_t;
enum { cudaEventDisableTiming = 2 };
static inline cudaError_t cudaMallocHost(void **out, size_t bytes) { return (*out = malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation; }
static inline cudaError_t cudaFreeHost(void *p) { return free(p), cudaSuccess; }
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, int) { return *e = nullptr, cudaSuccess; }
static inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { return *ms = 0, cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, int) { return cudaSuccess; }
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

static inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, int) { return s->recorded = new std::vector<std::function<void()>>, cudaSuccess; }
static inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    *out = s->recorded;
    s->recorded = nullptr;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphGetNodes(cudaGraph_t g, void *, size_t *n) { return *n = g->size(), cudaSuccess; }
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, int)
{
    *out = new std::vector<std::function<void()>>(*g);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t)
{
    for (auto &work : *g)
        work();
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete g, cudaSuccess; }
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return delete g, cudaSuccess; }

/* --- Launches of kernels --- */

enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum { EMULATED_SHARED_USUAL = 48 << 10, EMULATED_SHARED_MOST = 227 << 10 };

static inline cudaError_t cudaDeviceGetAttribute(int *value, int, int) { return *value = EMULATED_SHARED_MOST, cudaSuccess; }
template <class... P> static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), int, int bytes)
{
    return emulated_allow_shared((void *)kernel, bytes) ? cudaSuccess : cudaErrorInvalidValue;
}
template <class... P> static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(P...), int, size_t) { return *blocks = 1, cudaSuccess; }

/* What a GPU refuses is refused: more threads or shared memory than a block may have, grids that are empty or too high. */
template <class... P, class... A> static inline cudaError_t emulated_launch(cudaStream_t s, const char *op, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared, const A &...args)
{
    bool grids = grid.x && grid.y && grid.z && grid.x <= INT32_MAX && grid.y <= 65535 && grid.z <= 65535;
    if (!grids || threads.y * threads.z != 1 || !threads.x || threads.x > 1024 || shared > (size_t)emulated_shared_allowed((void *)kernel))
        return cudaErrorInvalidValue;
    std::tuple<P...> copy(args...);
    return emulated_queue(s, [=] {
        auto thread = [&] { std::apply(kernel, copy); };
        emulated_run(op, grid, threads, shared, [](void *f) { (*(decltype(thread) *)f)(); }, &thread);
    });
}

/* What the programs of tests/cuda use beside. */
static inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
static inline cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind) { return memmove(dst, src, bytes), cudaSuccess; }
static inline cudaError_t cudaMemset(void *dst, int value, size_t bytes) { return memset(dst, value, bytes), cudaSuccess; }
static inline cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int value, size_t width, size_t height, cudaStream_t s)
{
    return emulated_queue(s, [=] {
        for (size_t i = 0; i < height; i++)
            memset((char *)dst + i * pitch, value, width);
    });
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = nullptr, cudaSuccess; }

#endif
