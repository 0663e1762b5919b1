/* Between host and GPU: everything goes through pinned memory of the device's own, so that the host never waits
 * for work that is queued before a copy.
 *
 * Uploads take slots of a ring in turn; a slot is free when its last copy has been done. Large ones (weights from
 * mapped files: the copy into pinned memory is what takes long, and reading the file) are cut into slots that several
 * threads fill at once. Fetches wait in pinned memory for the next sync. */
#include "device/cuda/cuda.cuh"

#include <atomic>
#include <thread>

enum { SLOTS = 16, SLOT_BYTES = 4 << 20, FETCH_BYTES = 8 << 20, FETCHES = 4096, THREADS = 8, MANY_BYTES = 32 << 20 };

struct tm_cuda_fetch {
    void *dst;
    int64_t from, bytes; /* of the pinned memory */
};

struct tm_cuda_transfer {
    char *slot, *fetched;       /* pinned */
    cudaEvent_t done[SLOTS];    /* the last copy out of a slot */
    int next;
    tm_cuda_fetch fetch[FETCHES];
    int fetches;
    int64_t fetched_bytes;
};

tm_status tm_cuda_transfer_create(tm_cuda *c, tm_error *err)
{
    tm_cuda_transfer *t = (tm_cuda_transfer *)calloc(1, sizeof *t);
    c->transfer = t;
    if (!t)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    cudaError_t error = cudaMallocHost((void **)&t->slot, (size_t)SLOTS * SLOT_BYTES);
    if (error == cudaSuccess)
        error = cudaMallocHost((void **)&t->fetched, FETCH_BYTES);
    for (int i = 0; i < SLOTS && error == cudaSuccess; i++)
        error = cudaEventCreateWithFlags(&t->done[i], cudaEventDisableTiming);
    if (error != cudaSuccess)
        return tm_fail(err, TM_NO_MEMORY, "%s: no pinned memory for transfers: %s", c->detail, cudaGetErrorString(error));
    return TM_OK;
}

void tm_cuda_transfer_destroy(tm_cuda *c)
{
    tm_cuda_transfer *t = c->transfer;
    if (!t)
        return;
    for (int i = 0; i < SLOTS; i++)
        if (t->done[i])
            cudaEventDestroy(t->done[i]);
    cudaFreeHost(t->slot);
    cudaFreeHost(t->fetched);
    free(t);
}

/* One piece of at most SLOT_BYTES through slot s. */
static cudaError_t send(tm_cuda *c, int s, void *dst, const void *src, size_t bytes)
{
    tm_cuda_transfer *t = c->transfer;
    cudaError_t error = cudaEventSynchronize(t->done[s]);
    if (error != cudaSuccess)
        return error;
    memcpy(t->slot + (size_t)s * SLOT_BYTES, src, bytes);
    error = cudaMemcpyAsync(dst, t->slot + (size_t)s * SLOT_BYTES, bytes, cudaMemcpyHostToDevice, c->stream);
    return error == cudaSuccess ? cudaEventRecord(t->done[s], c->stream) : error;
}

static size_t piece_bytes(int64_t bytes, int64_t piece)
{
    int64_t left = bytes - piece * SLOT_BYTES;
    return (size_t)(left < SLOT_BYTES ? left : SLOT_BYTES);
}

/* Threads claim pieces; each has slots of its own. */
static cudaError_t send_many(tm_cuda *c, char *dst, const char *src, int64_t bytes)
{
    std::atomic<int64_t> claimed{0};
    std::atomic<int> failure{cudaSuccess};
    int64_t pieces = (bytes + SLOT_BYTES - 1) / SLOT_BYTES;
    auto work = [&](int thread) {
        if (cudaSetDevice(c->index) != cudaSuccess)
            return;
        int own = SLOTS / THREADS;
        int64_t i;
        for (int turn = 0; (i = claimed++) < pieces; turn++) {
            cudaError_t error = send(c, thread * own + turn % own, dst + i * SLOT_BYTES, src + i * SLOT_BYTES, piece_bytes(bytes, i));
            if (error != cudaSuccess)
                failure = error;
        }
    };
    std::thread threads[THREADS - 1];
    int started = 0;
    try {
        for (; started < THREADS - 1; started++)
            threads[started] = std::thread(work, started + 1);
    } catch (...) { /* no more threads: the ones there are do it */
    }
    work(0);
    for (int i = 0; i < started; i++)
        threads[i].join();
    return claimed >= pieces ? (cudaError_t)failure.load() : cudaErrorMemoryAllocation;
}

/* src may be changed as soon as this returns. */
void tm_cuda_upload(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    tm_cuda *c = tm_cuda_of(d);
    if (c->recording) {
        tm_cuda_note(c, TM_FAILED, "upload", "not possible while a graph is recorded");
        return;
    }
    if (bytes >= MANY_BYTES) {
        tm_cuda_check(c, "upload", send_many(c, (char *)dst, (const char *)src, bytes));
        return;
    }
    for (int64_t i = 0; i * SLOT_BYTES < bytes; i++) {
        int s = c->transfer->next;
        c->transfer->next = (s + 1) % SLOTS;
        tm_cuda_check(c, "upload", send(c, s, (char *)dst + i * SLOT_BYTES, (const char *)src + i * SLOT_BYTES, piece_bytes(bytes, i)));
    }
}

void tm_cuda_download(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    tm_cuda *c = tm_cuda_of(d);
    if (c->recording)
        tm_cuda_note(c, TM_FAILED, "download", "not possible while a graph is recorded");
    else if (bytes) {
        tm_cuda_check(c, "download", cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDeviceToHost, c->stream));
        tm_cuda_check(c, "download", cudaStreamSynchronize(c->stream));
    }
}

void tm_cuda_fetch_later(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_transfer *t = c->transfer;
    int64_t room = (bytes + 255) / 256 * 256;
    if (t->fetches == FETCHES || t->fetched_bytes + room > FETCH_BYTES) {
        tm_cuda_check(c, "fetch", cudaStreamSynchronize(c->stream));
        tm_cuda_fetches_arrived(c);
    }
    if (room > FETCH_BYTES || c->recording) {
        tm_cuda_download(d, dst, src, bytes);
        return;
    }
    if (!bytes)
        return;
    tm_cuda_check(c, "fetch", cudaMemcpyAsync(t->fetched + t->fetched_bytes, src, (size_t)bytes, cudaMemcpyDeviceToHost, c->stream));
    t->fetch[t->fetches++] = {dst, t->fetched_bytes, bytes};
    t->fetched_bytes += room;
}

/* --- Stash: host memory beside the GPU's, through a stream of its own --- */

struct tm_cuda_stash {
    char *host;
    int64_t slots, bytes;
    cudaStream_t stream;
    cudaEvent_t queued; /* what the next copy has to wait for */
    cudaEvent_t *done;  /* [slots] the last copy of each */
};

void tm_cuda_stash_destroy(tm_cuda *c)
{
    tm_cuda_stash *s = c->stash;
    if (!s)
        return;
    if (s->stream)
        cudaStreamSynchronize(s->stream);
    for (int64_t i = 0; s->done && i < s->slots; i++)
        if (s->done[i])
            cudaEventDestroy(s->done[i]);
    if (s->queued)
        cudaEventDestroy(s->queued);
    if (s->stream)
        cudaStreamDestroy(s->stream);
    if (s->host)
        cudaFreeHost(s->host);
    free(s->done);
    free(s);
    c->stash = nullptr;
}

tm_status tm_cuda_stash_reserve(tm_device *d, int64_t slots, int64_t bytes, tm_error *err)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_stash_destroy(c);
    tm_cuda_stash *s = (tm_cuda_stash *)calloc(1, sizeof *s);
    c->stash = s;
    if (!s || !(s->done = (cudaEvent_t *)calloc((size_t)slots, sizeof *s->done)))
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    s->slots = slots;
    s->bytes = bytes;
    cudaError_t error = cudaMallocHost((void **)&s->host, (size_t)(slots * bytes));
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaEventCreateWithFlags(&s->queued, cudaEventDisableTiming);
    for (int64_t i = 0; i < slots && error == cudaSuccess; i++)
        error = cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming);
    if (error != cudaSuccess)
        return tm_fail(err, TM_NO_MEMORY, "%s: %lld bytes of pinned host memory for offloaded activations: %s", c->detail, (long long)(slots * bytes), cudaGetErrorString(error));
    return TM_OK;
}

static void stash_copy(tm_cuda *c, int64_t slot, void *dst, const void *src, int64_t bytes, cudaMemcpyKind kind)
{
    tm_cuda_stash *s = c->stash;
    tm_cuda_check(c, "offload", cudaEventRecord(s->queued, c->stream));
    tm_cuda_check(c, "offload", cudaStreamWaitEvent(s->stream, s->queued, 0));
    tm_cuda_check(c, "offload", cudaMemcpyAsync(dst, src, (size_t)bytes, kind, s->stream));
    tm_cuda_check(c, "offload", cudaEventRecord(s->done[slot], s->stream));
}

void tm_cuda_stash_away(tm_device *d, int64_t slot, const void *src, int64_t bytes)
{
    stash_copy(tm_cuda_of(d), slot, tm_cuda_of(d)->stash->host + slot * tm_cuda_of(d)->stash->bytes, src, bytes, cudaMemcpyDeviceToHost);
}

void tm_cuda_stash_back(tm_device *d, int64_t slot, void *dst, int64_t bytes)
{
    stash_copy(tm_cuda_of(d), slot, dst, tm_cuda_of(d)->stash->host + slot * tm_cuda_of(d)->stash->bytes, bytes, cudaMemcpyHostToDevice);
}

void tm_cuda_stash_wait(tm_device *d, int64_t slot)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_check(c, "offload", cudaStreamWaitEvent(c->stream, c->stash->done[slot], 0));
}

void tm_cuda_fetches_arrived(tm_cuda *c)
{
    tm_cuda_transfer *t = c->transfer;
    for (int i = 0; i < t->fetches; i++)
        memcpy(t->fetch[i].dst, t->fetched + t->fetch[i].from, (size_t)t->fetch[i].bytes);
    tm_cuda_fetches_forgotten(c);
}

void tm_cuda_fetches_forgotten(tm_cuda *c)
{
    c->transfer->fetches = 0;
    c->transfer->fetched_bytes = 0;
}
