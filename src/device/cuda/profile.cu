/* Where a GPU's time goes: see profile.h. */
#include "device/cuda/profile.h"

extern "C" {
#include "base/env.h"
}

#include <cerrno>

enum { EVENTS = 8192, ROWS = 1024 };

struct profile_span {
    cudaEvent_t from, to;
    int row;
};

struct profile_row {
    const char *op;
    int64_t bytes, calls;
    double ms;
};

struct tm_cuda_profile {
    char path[1024];
    profile_span span[EVENTS];
    profile_row row[ROWS];
    int spans, rows;
    bool served; /* the op that runs is inside another one */
};

void tm_cuda_profile_create(tm_cuda *c)
{
    const char *path = tm_env("TEMPER_CUDA_PROFILE");
    if (!path || !*path)
        return;
    tm_cuda_profile *p = (tm_cuda_profile *)calloc(1, sizeof *p);
    if (!p)
        return;
    snprintf(p->path, sizeof p->path, "%s", path);
    for (profile_span &s : p->span)
        if (cudaEventCreateWithFlags(&s.from, 0) != cudaSuccess || cudaEventCreateWithFlags(&s.to, 0) != cudaSuccess) {
            free(p);
            return;
        }
    c->base.calls = tm_cuda_calls_without_graphs();
    c->profile = p;
}

/* Adds up what was recorded. */
static void collect(tm_cuda *c)
{
    tm_cuda_profile *p = c->profile;
    tm_cuda_check(c, "profile", cudaStreamSynchronize(c->stream));
    for (int i = 0; i < p->spans; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, p->span[i].from, p->span[i].to) == cudaSuccess) {
            p->row[p->span[i].row].ms += ms;
            p->row[p->span[i].row].calls++;
        }
    }
    p->spans = 0;
}

int tm_cuda_profile_begin(tm_cuda *c, const char *op, int64_t bytes)
{
    tm_cuda_profile *p = c->profile;
    if (p->served)
        return -1;
    if (p->spans == EVENTS)
        collect(c);
    int row = 0;
    while (row < p->rows && (p->row[row].op != op || p->row[row].bytes != bytes))
        row++;
    if (row == ROWS)
        return -1;
    if (row == p->rows)
        p->row[p->rows++] = {op, bytes, 0, 0};
    p->served = true;
    p->span[p->spans].row = row;
    cudaEventRecord(p->span[p->spans].from, c->stream);
    return p->spans;
}

void tm_cuda_profile_end(tm_cuda *c, int at)
{
    if (at < 0)
        return;
    cudaEventRecord(c->profile->span[at].to, c->stream);
    c->profile->spans = at + 1;
    c->profile->served = false;
}

/* The first of FILE, FILE.2, ... that is not there; no two devices get the same, in whatever threads or processes they end. */
static FILE *new_file(const char *path)
{
    enum { MOST = 10000 };
    char name[1100];
    for (int n = 1; n < MOST; n++) {
        snprintf(name, sizeof name, n == 1 ? "%s" : "%s.%d", path, n);
        FILE *f = fopen(name, "wxe");
        if (f || errno != EEXIST)
            return f;
    }
    return nullptr;
}

void tm_cuda_profile_destroy(tm_cuda *c)
{
    tm_cuda_profile *p = c->profile;
    if (!p)
        return;
    collect(c);
    FILE *f = new_file(p->path);
    if (f) {
        fprintf(f, "%-24s %14s %8s %12s %12s %8s\n", "op", "operand bytes", "calls", "ms", "us a call", "GB/s");
        for (int i = 0; i < p->rows; i++) {
            const profile_row *r = &p->row[i];
            double each = r->calls ? r->ms / (double)r->calls : 0;
            fprintf(f, "%-24s %14lld %8lld %12.3f %12.2f %8.0f\n", r->op, (long long)r->bytes, (long long)r->calls, r->ms, each * 1e3, each > 0 ? (double)r->bytes / each * 1e-6 : 0);
        }
        fclose(f);
    }
    for (profile_span &s : p->span) {
        cudaEventDestroy(s.from);
        cudaEventDestroy(s.to);
    }
    free(p);
    c->profile = nullptr;
}
