/* The CUDA device: memory, one stream, graphs, and what libtemper-cuda.so exports. See cuda.cuh.
 *
 * Memory is filled with a pattern of not-a-numbers when it is handed out: what reads it before writing
 * shows at once, on every run alike. A run takes one block; it is kept for the run after it, since the driver waits for
 * all that runs on the GPU, of other devices here too, when memory is given back. */
#include "device/cuda/profile.h"

extern "C" {
#include "base/buf.h"
}

struct tm_cuda_graph {
    tm_graph base;
    cudaGraphExec_t exec;
};

void tm_cuda_note(tm_cuda *c, tm_status status, const char *what, const char *why)
{
    if (c->failure.status == TM_OK)
        tm_fail(&c->failure, status, "%s (%s): %s: %s", c->base.name, c->base.detail, what, why);
}

/* Of the driver, unless *out is there already. */
static tm_status take_memory(tm_cuda *c, int64_t bytes, void **out, tm_error *err)
{
    cudaError_t error = *out ? cudaSuccess : cudaMalloc(out, (size_t)bytes);
    if (error == cudaSuccess)
        error = cudaMemsetAsync(*out, 0xff, (size_t)bytes, c->stream);
    if (error == cudaSuccess)
        return TM_OK;
    (void)cudaGetLastError();
    size_t free_bytes = 0, all = 0;
    (void)cudaMemGetInfo(&free_bytes, &all);
    return tm_fail(err, TM_NO_MEMORY, "%s: %lld bytes of GPU memory asked for, %zu of %zu free: %s", c->detail, (long long)bytes, free_bytes, all, cudaGetErrorString(error));
}

static tm_status cuda_alloc(tm_device *d, int64_t bytes, void **out, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    *out = nullptr;
    if (c->block_lent)
        return take_memory(c, bytes, out, err);
    if (c->block && c->block_bytes < bytes) { /* it makes room */
        tm_cuda_check(c, "release", cudaFree(c->block));
        c->block = nullptr;
    }
    if (!c->block)
        c->block_bytes = bytes;
    TM_TRY(take_memory(c, bytes, &c->block, err));
    c->block_lent = true;
    *out = c->block;
    return TM_OK;
}

static void cuda_release(tm_device *d, void *address)
{
    tm_cuda *c = tm_cuda_of(d);
    if (address == c->block)
        c->block_lent = false;
    else
        tm_cuda_check(c, "release", cudaFree(address));
}

static void cuda_copy(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    if (bytes)
        tm_cuda_check(tm_cuda_of(d), "copy", cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDeviceToDevice, tm_cuda_of(d)->stream));
}

static void cuda_zero(tm_device *d, void *dst, int64_t bytes)
{
    if (bytes)
        tm_cuda_check(tm_cuda_of(d), "zero", cudaMemsetAsync(dst, 0, (size_t)bytes, tm_cuda_of(d)->stream));
}

static tm_status cuda_sync(tm_device *d, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_check(c, "sync", cudaStreamSynchronize(c->stream));
    tm_cuda_fetches_arrived(c);
    if (c->failure.status == TM_OK)
        return TM_OK;
    tm_error failure = c->failure;
    c->failure.status = TM_OK;
    return tm_fail(err, failure.status, "%s", failure.message);
}

static void cuda_lend(tm_device *d, void *address, int64_t bytes)
{
    tm_cuda_of(d)->workspace = address;
    tm_cuda_of(d)->workspace_bytes = bytes;
}

static void cuda_memory(tm_device *d, int64_t *free_bytes, int64_t *all)
{
    tm_cuda *c = tm_cuda_of(d);
    size_t f = 0, a = 0;
    tm_cuda_check(c, "memory", cudaMemGetInfo(&f, &a));
    *free_bytes = (int64_t)f + (c->block && !c->block_lent ? c->block_bytes : 0);
    *all = (int64_t)a;
}

/* --- Graphs --- */

static tm_status cuda_graph_begin(tm_device *d, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    TM_TRY(cuda_sync(d, err));
    cudaError_t error = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess)
        return tm_fail(err, TM_FAILED, "cannot begin a graph: %s", cudaGetErrorString(error));
    c->recording = true;
    return TM_OK;
}

static tm_status cuda_graph_end(tm_device *d, tm_graph **out, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_graph *g = nullptr;
    cudaGraph_t graph = nullptr;
    size_t nodes = 0;
    *out = nullptr;
    c->recording = false;
    tm_cuda_check(c, "graph", cudaStreamEndCapture(c->stream, &graph));
    tm_status st = cuda_sync(d, err);
    if (st == TM_OK)
        st = TM_NEW(&g, 1, err);
    if (st == TM_OK) {
        cudaError_t error = cudaGraphGetNodes(graph, nullptr, &nodes);
        if (error == cudaSuccess)
            error = cudaGraphInstantiate(&g->exec, graph, 0);
        if (error == cudaSuccess)
            error = cudaGraphUpload(g->exec, c->stream);
        if (error != cudaSuccess)
            st = tm_fail(err, TM_FAILED, "cannot make a graph of %zu ops: %s", nodes, cudaGetErrorString(error));
    }
    if (graph)
        cudaGraphDestroy(graph);
    if (st != TM_OK) {
        free(g);
        return st;
    }
    g->base.nodes = (int64_t)nodes;
    *out = &g->base;
    return TM_OK;
}

static void cuda_graph_run(tm_device *d, tm_graph *graph)
{
    tm_cuda_check(tm_cuda_of(d), "graph", cudaGraphLaunch(((tm_cuda_graph *)graph)->exec, tm_cuda_of(d)->stream));
}

static void cuda_graph_destroy(tm_device *, tm_graph *graph)
{
    if (!graph)
        return;
    cudaGraphExecDestroy(((tm_cuda_graph *)graph)->exec);
    free(graph);
}

/* --- Life --- */

static tm_status cuda_adopt(tm_device *d, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_fetches_forgotten(c);
    tm_cuda_check(c, "start", cudaSetDevice(c->index));
    return cuda_sync(d, err);
}

static void cuda_destroy(tm_device *d)
{
    tm_cuda *c = tm_cuda_of(d);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    cudaFree(c->partials);
    cudaFree(c->block);
    tm_cuda_stash_destroy(c);
    tm_cuda_transfer_destroy(c);
    tm_cuda_profile_destroy(c);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c);
}

static const tm_device_calls cuda_calls = {
    cuda_alloc, cuda_release, tm_cuda_upload, tm_cuda_download, cuda_copy, cuda_zero, cuda_sync, cuda_destroy,
    cuda_graph_begin, cuda_graph_end, cuda_graph_run, cuda_graph_destroy, cuda_lend, tm_cuda_fetch_later,
    tm_cuda_stash_reserve, tm_cuda_stash_away, tm_cuda_stash_back, tm_cuda_stash_wait, cuda_memory, cuda_adopt,
};

static const tm_device_calls without_graphs = {
    cuda_alloc, cuda_release, tm_cuda_upload, tm_cuda_download, cuda_copy, cuda_zero, cuda_sync, cuda_destroy,
    nullptr, nullptr, nullptr, nullptr, cuda_lend, tm_cuda_fetch_later,
    tm_cuda_stash_reserve, tm_cuda_stash_away, tm_cuda_stash_back, tm_cuda_stash_wait, cuda_memory, cuda_adopt,
};

const tm_device_calls *tm_cuda_calls_without_graphs(void) { return &without_graphs; }

/* What the device keeps for itself, counted as handed out. */
static tm_status take_own(tm_cuda *c, tm_error *err)
{
    struct {
        void **address;
        int64_t bytes;
    } own[] = {{(void **)&c->partials, (int64_t)TM_CUDA_PARTIALS * 8}};
    for (auto &block : own) {
        TM_TRY(take_memory(c, block.bytes, block.address, err));
        c->base.used_bytes += block.bytes;
    }
    c->base.peak_bytes = c->base.used_bytes;
    return TM_OK;
}

/* One sentence on why there is no such GPU. */
static tm_status find(int index, cudaDeviceProp *properties, tm_error *err)
{
    int count = 0, driver = 0;
    (void)cudaDriverGetVersion(&driver);
    cudaError_t error = cudaGetDeviceCount(&count);
    if (driver == 0)
        return tm_fail(err, TM_UNSUPPORTED, "device: no NVIDIA driver is installed here (CUDA %d.%d asks for one); device: cpu works without", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorInsufficientDriver)
        return tm_fail(err, TM_UNSUPPORTED, "device: the NVIDIA driver is for CUDA %d.%d, this build needs %d.%d: a driver from 580 on", driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && index >= count))
        return tm_fail(err, TM_UNSUPPORTED, "device: GPU %d was asked for, the driver shows %d", index, error == cudaSuccess ? count : 0);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(properties, index);
    if (error != cudaSuccess)
        return tm_fail(err, TM_UNSUPPORTED, "device: the GPU does not answer: %s", cudaGetErrorString(error));
    return TM_OK;
}

static tm_status open_device(tm_cuda *c, int index, tm_error *err)
{
    cudaDeviceProp properties;
    TM_TRY(find(index, &properties, err));
    snprintf(c->detail, sizeof c->detail, "%.200s", properties.name);
    c->index = index;
    c->architecture = 10 * properties.major + properties.minor;
    c->base.traits.act = properties.major < 8 ? TM_F16 : TM_BF16;
    c->processors = properties.multiProcessorCount;
    cudaError_t error = cudaSetDevice(index);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return tm_fail(err, TM_UNSUPPORTED, "device: %s cannot be used: %s", c->detail, cudaGetErrorString(error));
    TM_TRY(take_own(c, err));
    TM_TRY(tm_cuda_transfer_create(c, err));
    tm_cuda_profile_create(c);
    /* A kernel of another architecture fails at its first launch: say so now. */
    tm_cuda_each(&c->base, "start", 1, [=] __device__(int64_t) {});
    tm_error why;
    if (cuda_sync(&c->base, &why) != TM_OK)
        return tm_fail(err, TM_UNSUPPORTED, "device: libtemper-cuda.so has no code for %s (compute capability %d.%d): %s; build it with make cuda CUDA_ARCH=%d%d",
                       c->detail, properties.major, properties.minor, why.message, properties.major, properties.minor);
    return TM_OK;
}

static tm_status cuda_create(int index, tm_device **out, tm_error *err)
{
    tm_cuda *c;
    *out = nullptr;
    TM_TRY(TM_NEW(&c, 1, err));
    c->base.ops = &tm_cuda_ops;
    c->base.calls = &cuda_calls;
    c->base.name = "cuda";
    c->base.detail = c->detail;
    c->base.traits = tm_cuda_traits();
    c->base.real = c->base.traits.real;
    tm_status st = open_device(c, index, err);
    if (st != TM_OK)
        cuda_destroy(&c->base);
    else
        *out = &c->base;
    return st;
}

extern "C" __attribute__((visibility("default"))) const tm_cuda_plugin tm_cuda_plugin_table;
const tm_cuda_plugin tm_cuda_plugin_table = {TM_CUDA_ABI, cuda_create};
