/* The fast kernels of 16 bits against the plain ones, on a GPU: values, the same bits in every run, rows beyond the data
 * and columns beyond the last untouched; then times and rates. Prints what failed and counts it.
 *
 *   test_half [check [xent]]  checks of all ops, or of those whose name has the text
 *   test_half rate [xent]     times and rates; 24 GB of memory for all */
#include "device/cuda/half/vec.cuh"
#include "sizes.h"

#include <cstdarg>
#include <functional>
#include <string>
#include <vector>

extern "C" const tm_cuda_plugin tm_cuda_plugin_table;

static tm_device *device;
static int failures, checks;
static uint64_t dice_state;
static const char *only = "";

static uint64_t dice()
{
    uint64_t x = dice_state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(dice() % (uint64_t)(high - low + 1)); }
static const char *type_name(tm_dtype t) { return t == TM_BF16 ? "bf16" : t == TM_F16 ? "f16" : "f32"; }

static std::string now; /* what runs */

static void must()
{
    tm_error err;
    if (device->calls->sync(device, &err) != TM_OK) {
        printf("FAILED %s: %s\n", now.c_str(), err.message);
        exit(1);
    }
}

static std::string text(const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return line;
}

/* --- Tensors --- */

enum { GRID = ON_GPU ? 1024 : 2 };

__device__ static uint32_t hashed(uint64_t seed, uint64_t i)
{
    uint64_t x = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(x >> 32);
}

/* About normal times scale, plus shift; NAN in rows from `used` on and between columns. */
static __global__ void fill_values(tm_tensor t, int64_t used, uint64_t seed, float scale, float shift)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < t.rows * t.ld; i += gridDim.x * (int64_t)blockDim.x) {
        float x = 0;
        for (int k = 0; k < 4; k++)
            x += (float)hashed(seed + (uint64_t)k * 77, (uint64_t)i) * 0x1p-32f - 0.5f;
        put_element(t, i, i / t.ld < used && i % t.ld < t.cols ? x * 1.7f * scale + shift : NAN);
    }
}

static __global__ void compare_values(tm_tensor a, tm_tensor b, int64_t rows, double *sums)
{
    double difference = 0, norm = 0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < rows * a.cols; i += gridDim.x * (int64_t)blockDim.x) {
        double x = at(a, i / a.cols, i % a.cols), y = at(b, i / a.cols, i % a.cols);
        difference += x == y ? 0 : (x - y) * (x - y);
        norm += y * y;
    }
    atomicAdd(sums, difference);
    atomicAdd(sums + 1, norm);
}

/* A hash of rows < used, and how many values between columns were written. */
static __global__ void hash_values(tm_tensor t, int64_t rows, unsigned long long *out)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < rows * t.ld; i += gridDim.x * (int64_t)blockDim.x) {
        uint32_t bits = t.dtype == TM_F32 ? ((const uint32_t *)t.data)[i] : ((const uint16_t *)t.data)[i];
        if (i % t.ld < t.cols)
            atomicAdd(out, (unsigned long long)hashed(bits, (uint64_t)i));
        else if (element(t, i) == element(t, i))
            atomicAdd(out + 1, 1ull);
    }
}

struct operand {
    tm_tensor t, shadow;
    int64_t used; /* rows that hold data */
    float scale, shift;
    bool out;
    uint64_t seed;
};

struct trial {
    std::vector<operand> list;
    std::string note;
    double *sums;

    trial() { cudaMalloc(&sums, 64); }
    ~trial()
    {
        for (operand &o : list) {
            cudaFree(o.t.data);
            cudaFree(o.shadow.data);
        }
        cudaFree(sums);
    }

    tm_tensor add(tm_dtype type, int64_t rows, int64_t cols, bool out = false, float scale = 1, float shift = 0, int64_t used = -1, int64_t pad = 0)
    {
        operand o = {tm_tensor_make(nullptr, type, rows, cols), {}, used < 0 ? rows : used, scale, shift, out, dice()};
        o.t.ld = rows > 1 ? cols + pad : cols;
        cudaError_t e = cudaMalloc(&o.t.data, (size_t)tm_dtype_bytes(type, rows * o.t.ld) + 256);
        if (e != cudaSuccess)
            printf("FAILED: %s\n", cudaGetErrorString(e)), exit(1);
        o.shadow = o.t;
        o.shadow.data = nullptr;
        list.push_back(o);
        return o.t;
    }

    void reset()
    {
        for (operand &o : list)
            tm_cuda_launch(tm_cuda_of(device), "fill", fill_values, GRID, 256, 0, o.t, o.used, o.seed, o.scale, o.shift);
    }

    uint64_t hash()
    {
        unsigned long long h[2] = {0, 0};
        cudaMemset(sums, 0, 16);
        cudaDeviceSynchronize();
        for (operand &o : list)
            if (o.out)
                tm_cuda_launch(tm_cuda_of(device), "hash", hash_values, GRID, 256, 0, o.t, o.used, (unsigned long long *)sums);
        must();
        cudaMemcpy(h, sums, 16, cudaMemcpyDeviceToHost);
        if (h[1])
            printf("FAILED %s: wrote between columns\n", note.c_str()), failures++;
        return h[0];
    }

    /* run(fast): whether it was served. bound 0: the same bits. */
    void check(const char *op, double bound, const std::function<bool(bool)> &run)
    {
        checks++;
        now = text("plain %s %s", op, note.c_str());
        reset();
        run(false);
        must();
        now = text("fast %s %s", op, note.c_str());
        for (operand &o : list)
            if (o.out) {
                size_t bytes = (size_t)tm_dtype_bytes(o.t.dtype, o.t.rows * o.t.ld);
                cudaFree(o.shadow.data);
                cudaMalloc(&o.shadow.data, bytes);
                cudaMemcpy(o.shadow.data, o.t.data, bytes, cudaMemcpyDeviceToDevice);
            }
        cudaDeviceSynchronize();
        reset();
        if (!run(true)) {
            printf("FAILED %s %s: not served\n", op, note.c_str());
            failures++;
            return;
        }
        uint64_t first = hash();
        for (size_t i = 0; i < list.size(); i++) {
            operand &o = list[i];
            if (!o.out)
                continue;
            double s[2];
            cudaMemset(sums, 0, 16);
            cudaDeviceSynchronize();
            tm_cuda_launch(tm_cuda_of(device), "compare", compare_values, GRID, 256, 0, o.t, o.shadow, o.used, sums);
            must();
            cudaMemcpy(s, sums, 16, cudaMemcpyDeviceToHost);
            double off = s[0] == 0 ? 0 : sqrt(s[0] / (s[1] + 1e-300));
            if (!(off <= bound)) {
                printf("FAILED %s %s: operand %zu (%s %lld x %lld) is off by %.3g\n", op, note.c_str(), i, type_name(o.t.dtype), (long long)o.t.rows, (long long)o.t.cols, off);
                failures++;
            }
        }
        reset();
        run(true);
        if (hash() != first) {
            printf("FAILED %s %s: other bits in a second run\n", op, note.c_str());
            failures++;
        }
    }

    void rate(const char *op, double bytes, const std::function<bool(bool)> &run)
    {
        cudaStream_t s = tm_cuda_of(device)->stream;
        cudaEvent_t a, b;
        cudaEventCreate(&a);
        cudaEventCreate(&b);
        reset();
        bool served = true;
        for (int i = 0; i < 3; i++)
            served = run(true) && served;
        must();
        enum { TIMES = 10 };
        cudaEventRecord(a, s);
        for (int i = 0; i < TIMES; i++)
            run(true);
        cudaEventRecord(b, s);
        must();
        float ms;
        cudaEventElapsedTime(&ms, a, b);
        ms /= TIMES;
        printf("%-20s %-34s %8.1f us %7.0f GB/s%s\n", op, note.c_str(), ms * 1e3, bytes / ms * 1e-6, served ? "" : "  NOT SERVED");
        cudaEventDestroy(a);
        cudaEventDestroy(b);
    }
};

/* --- Layouts --- */

template <class T> static T *upload(const std::vector<T> &v)
{
    void *p;
    cudaMalloc(&p, (v.size() + 64) * sizeof(T));
    cudaMemset(p, 0, (v.size() + 64) * sizeof(T));
    cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice);
    return (T *)p;
}

struct layout {
    tm_rows rows;
    int64_t used;

    /* Examples of up to `longest` rows until there are `data`; `spare` rows beyond, and a spare, empty chunk for some. */
    layout(int64_t data, int64_t longest, int64_t spare, int32_t replicas)
    {
        std::vector<int32_t> position, chunk, group, group_chunk;
        std::vector<uint32_t> example;
        used = data;
        for (int32_t r = 0; r < replicas; r++) {
            int64_t end = data * (r + 1) / replicas;
            group.push_back((int32_t)position.size());
            group_chunk.push_back((int32_t)chunk.size());
            for (uint32_t e = 0; (int64_t)position.size() < end; e++) {
                int64_t length = between(1, longest), left = end - (int64_t)position.size();
                if (longest >= 2048)
                    length = longest;
                for (int64_t i = 0; i < length && i < left; i++) {
                    if (i % TM_CHUNK_TOKENS == 0)
                        chunk.push_back((int32_t)position.size());
                    position.push_back((int32_t)i);
                    example.push_back(e);
                }
            }
        }
        for (int64_t i = 0; i < spare / 16 + 1; i++)
            chunk.push_back((int32_t)data);
        group.push_back((int32_t)data);
        group_chunk.push_back((int32_t)chunk.size() - 1);
        for (int64_t i = 0; i < spare; i++) {
            position.push_back(0);
            example.push_back(0);
        }
        rows = {data + spare, replicas, (int64_t)chunk.size() - 1, upload(position), upload(example), upload(chunk), upload(group), upload(group_chunk)};
    }
    ~layout()
    {
        cudaFree((void *)rows.position);
        cudaFree((void *)rows.example);
        cudaFree((void *)rows.chunk);
        cudaFree((void *)rows.group);
        cudaFree((void *)rows.group_chunk);
    }
};

#define OP(name, ...) (fast ? tm_half_##name(device, __VA_ARGS__) : (tm_cuda_##name(device, __VA_ARGS__), true))

/* --- The ops: each checked at random shapes, or timed at one --- */

struct shape {
    tm_dtype type, weight;
    int64_t T, C, F, heads, kv, D, V;
    bool timed;
};

static double bound_of(tm_dtype t) { return t == TM_F16 ? 3e-4 : 1e-3; }

static void rmsnorm(const shape &s, bool backward, bool trained, bool delta)
{
    layout l(s.T, s.timed ? 2048 : 700, s.timed ? 0 : 37, 1);
    trial k;
    int64_t n = l.rows.n, pad = s.timed ? 0 : 8;
    tm_tensor x = k.add(s.type, n, s.C, true, 1, 0, l.used, pad), d = k.add(s.type, n, s.C, false, 1, 0, l.used, pad), w = k.add(s.weight, 1, s.C), sum = delta ? x : k.add(s.type, n, s.C, !backward, 1, 0, l.used, pad), y = k.add(s.type, n, s.C, !backward, 1, 0, l.used, pad), r = k.add(TM_F32, 1, n, !backward, 0.1f, 1, 1), dw = k.add(TM_F32, 1, s.C, true);
    k.note = text("%s T %lld C %lld%s%s", type_name(s.type), (long long)s.T, (long long)s.C, trained ? ", weights" : "", delta ? ", delta" : "");
    auto run = [&](bool fast) {
        return backward ? OP(rmsnorm_backward, &l.rows, y, d, w, 1, r, x, trained ? dw : tm_tensor_none()) : OP(rmsnorm_forward, &l.rows, x, delta ? d : tm_tensor_none(), w, 0, 1e-5f, sum, r, y);
    };
    double unit = 2.0 * (double)(s.T * s.C);
    if (s.timed)
        k.rate(backward ? "rmsnorm_backward" : "rmsnorm_forward", unit * (backward ? trained ? 6 : 4 : delta ? 4 : 3), run);
    else {
        if (!backward && l.rows.n != l.used) /* rstd beyond the data */
            for (operand &o : k.list)
                if (o.t.data == r.data)
                    o.out = false;
        k.check(backward ? "rmsnorm_backward" : "rmsnorm_forward", bound_of(s.type), run);
    }
}

static void layernorm(const shape &s, bool backward)
{
    layout l(s.T, s.timed ? 2048 : 300, 0, 1);
    trial k;
    int64_t n = l.rows.n;
    tm_tensor x = k.add(s.type, n, s.C, true, 1, 1), d = k.add(s.type, n, s.C), w = k.add(s.weight, 1, s.C), b = k.add(s.weight, 1, s.C), y = k.add(s.type, n, s.C, !backward), r = k.add(TM_F32, 1, n, !backward, 0.1f, 1), m = k.add(TM_F32, 1, n, !backward), dw = k.add(TM_F32, 1, s.C, true), db = k.add(TM_F32, 1, s.C, true);
    k.note = text("%s T %lld C %lld", type_name(s.type), (long long)s.T, (long long)s.C);
    auto run = [&](bool fast) {
        return backward ? OP(layernorm_backward, &l.rows, y, d, w, m, r, x, dw, db) : OP(layernorm_forward, &l.rows, x, d, w, b, 1e-5f, x, m, r, y);
    };
    double unit = 2.0 * (double)(s.T * s.C);
    if (s.timed)
        k.rate(backward ? "layernorm_backward" : "layernorm_forward", unit * (backward ? 7 : 4), run);
    else
        k.check(backward ? "layernorm_backward" : "layernorm_forward", bound_of(s.type), run);
}

static void rope(const shape &s, int64_t heads, bool backward, bool norm, int64_t half)
{
    layout l(s.T, s.timed ? 2048 : 300, s.timed ? 0 : 11, 1);
    trial k;
    int64_t n = l.rows.n, W = heads * s.D, pad = s.timed ? 0 : 16;
    bool in_place = s.timed || dice() % 2;
    tm_tensor x = k.add(s.type, n, W, !norm || backward, 1, 0, l.used, pad), cos = k.add(TM_F32, 2048, half), sin = k.add(TM_F32, 2048, half), w = norm ? k.add(s.weight, 1, s.D) : tm_tensor_none();
    tm_tensor r = norm ? k.add(TM_F32, n, heads, !backward, 0.1f, 1, l.used) : tm_tensor_none(), y = in_place && (!norm || backward) ? x : k.add(s.type, n, W, true, 1, 0, l.used, pad);
    tm_tensor raw = norm && backward ? k.add(s.type, n, W, false, 1, 0, l.used, pad) : tm_tensor_none(), dw = norm && backward && !s.timed ? k.add(TM_F32, 1, s.D, true) : tm_tensor_none();
    k.note = text("%s T %lld heads %lld x %lld/%lld%s%s", type_name(s.type), (long long)s.T, (long long)heads, (long long)s.D, (long long)half, norm ? ", norm" : "", in_place ? ", in place" : "");
    auto run = [&](bool fast) {
        return backward ? OP(rope_backward, &l.rows, x, heads, cos, sin, w, 1, r, raw, y, dw) : OP(rope_forward, &l.rows, x, heads, cos, sin, w, 1, 1e-5f, r, y);
    };
    if (s.timed)
        k.rate(backward ? "rope_backward" : "rope_forward", 2.0 * (double)(s.T * W) * (norm && backward ? 3 : 2), run);
    else
        k.check(backward ? "rope_backward" : "rope_forward", bound_of(s.type), run);
}

static void glu(const shape &s, tm_activation act, bool gated, bool backward, bool again_too)
{
    layout l(s.T, 2048, 0, 1);
    trial k;
    int64_t W = gated ? 2 * s.F : s.F, pad = s.timed ? 0 : 8;
    tm_tensor in = k.add(s.type, s.T, W, backward, 3, 0, -1, pad), h = k.add(s.type, s.T, s.F, !backward, 1, 0, -1, pad), again = again_too ? k.add(s.type, s.T, s.F, true, 1, 0, -1, pad) : tm_tensor_none();
    k.note = text("%s T %lld F %lld act %d%s", type_name(s.type), (long long)s.T, (long long)s.F, (int)act, again_too ? ", h again" : "");
    auto run = [&](bool fast) { return backward ? OP(glu_backward, &l.rows, act, in, h, in, again) : OP(glu_forward, &l.rows, act, in, h); };
    if (s.timed)
        k.rate(backward ? "glu_backward" : "glu_forward", 2.0 * (double)(s.T * s.F) * (backward ? 5 + again_too : 3), run);
    else
        k.check(backward ? "glu_backward" : "glu_forward", bound_of(s.type), run);
}

static void xent(const shape &s, bool grad, bool teacher, float cap)
{
    trial k;
    std::vector<int32_t> target;
    for (int64_t i = 0; i < s.T; i++)
        target.push_back((int32_t)between(0, s.V - 1));
    int32_t *ids = upload(target), *hit = upload(target);
    tm_tensor z = k.add(s.type, s.T, s.V, grad, 4), t = teacher ? k.add(s.type, s.T, s.V, false, 4) : tm_tensor_none(), w = k.add(TM_F32, 1, s.T), tw = k.add(TM_F32, 1, s.T), loss = k.add(TM_F32, 1, s.T, true), kl = k.add(TM_F32, 1, s.T, teacher);
    k.note = text("%s %lld x %lld%s%s%s", type_name(s.type), (long long)s.T, (long long)s.V, grad ? ", grad" : "", teacher ? ", teacher" : "", cap > 0 ? ", cap" : "");
    std::vector<int32_t> hits[2] = {std::vector<int32_t>(s.T), std::vector<int32_t>(s.T)};
    auto run = [&](bool fast) {
        if (!s.timed) /* a target that is the largest in every other row */
            for (int64_t i = 0; i < s.T; i += 2) {
                tm_tensor one = tm_tensor_cols(tm_tensor_rows(z, i, 1), target[i], 1);
                tm_cuda_fill(device, one, 30);
                if (i % 4 == 0 && target[i] > 0) /* and one before it that is as large */
                    tm_cuda_fill(device, tm_tensor_cols(tm_tensor_rows(z, i, 1), target[i] / 2, 1), 30);
            }
        bool served = OP(xent, s.T, z, cap, ids, w, t, teacher ? tw : tm_tensor_none(), tm_tensor_none(), grad, loss, kl, hit);
        if (!s.timed) {
            must();
            cudaMemcpy(hits[fast].data(), hit, (size_t)s.T * 4, cudaMemcpyDeviceToHost);
        }
        return served;
    };
    if (s.timed)
        k.rate("xent", 2.0 * (double)(s.T * s.V) * ((grad ? 2 : 1) + (teacher ? 1 : 0)), run);
    else {
        k.check("xent", bound_of(s.type), run);
        if (hits[0] != hits[1])
            printf("FAILED xent %s: other hits\n", k.note.c_str()), failures++;
    }
    cudaFree(ids);
    cudaFree(hit);
}

static void embed(const shape &s, bool backward, int64_t ids_below)
{
    layout l(s.T, 2048, 0, 1);
    trial k;
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < s.T; i++) {
        int64_t a = between(0, ids_below - 1), b = between(0, ids_below - 1);
        ids.push_back(!s.timed && dice() % 9 == 0 ? -1 : (int32_t)(a * b / ids_below)); /* few frequent ones, many rare */
    }
    int32_t *p = upload(ids);
    tm_tensor table = backward ? tm_tensor_none() : k.add(s.weight, s.V, s.C), grad = backward ? k.add(TM_F32, s.V, s.C, true) : tm_tensor_none(), y = k.add(s.type, s.T, s.C, !backward);
    k.note = text("%s T %lld C %lld V %lld ids %lld", type_name(s.type), (long long)s.T, (long long)s.C, (long long)s.V, (long long)ids_below);
    auto run = [&](bool fast) { return backward ? OP(embed_backward, &l.rows, p, y, 1.5f, grad) : OP(embed_forward, &l.rows, p, table, 1.5f, y); };
    if (s.timed)
        k.rate(backward ? "embed_backward" : "embed_forward", (double)(s.T * s.C) * (backward ? 10 : 4), run);
    else
        k.check(backward ? "embed_backward" : "embed_forward", 0, run);
    cudaFree(p);
}

static void move(const shape &s)
{
    layout l(s.T, 2048, 0, 1);
    std::vector<int32_t> index;
    for (int64_t i = 0; i < s.T / 2; i++)
        index.push_back(!s.timed && dice() % 7 == 0 ? -1 : (int32_t)(2 * i + (int64_t)(dice() % 2)));
    int32_t *p = upload(index);
    int64_t n = s.T / 2, pad = s.timed || dice() % 2 ? 0 : 8;
    tm_step_params host = {};
    host.dropout_key = 99;
    tm_step_params *step = upload(std::vector<tm_step_params>(1, host));
    static const char *const names[] = {"gather_rows", "scatter_rows", "cast", "axpy", "fill", "dropout", "dropout +=", "softcap"};
    static const double traffic[] = {2, 3, 4, 6, 2, 4, 6, 4}; /* bytes an element of y */
    for (int op = 0; op < 8; op++) {
        if (!strstr(names[op], only))
            continue;
        trial k;
        tm_dtype other = op < 5 && s.weight != s.type ? s.weight : s.type;
        tm_tensor big = k.add(s.type, s.T, s.C, true, 1, 0, -1, pad), twin = k.add(other, s.T, s.C, false, 1, 0, -1, pad), small = k.add(s.type, n, s.C, op == 0, 1, 0, -1, pad);
        k.note = text("%s T %lld C %lld%s", type_name(s.type), (long long)s.T, (long long)s.C, other != s.type ? ", two types" : "");
        auto run = [&](bool fast) {
            switch (op) {
            case 0: return OP(gather_rows, n, p, twin, small);
            case 1: return OP(scatter_rows, n, p, small, s.T, big);
            case 2: return OP(cast, twin, big);
            case 3: return OP(axpy, -1.5, twin, big);
            case 4: return OP(fill, big, 0.3);
            case 5: return OP(dropout, &l.rows, step, 5, 0.1f, false, twin, big);
            case 6: return OP(dropout, &l.rows, step, 5, 0.1f, true, twin, big);
            default: return OP(softcap, s.T, 3, big);
            }
        };
        if (s.timed)
            k.rate(names[op], (double)(s.T * s.C) * traffic[op], run);
        else
            k.check(names[op], op == 7 ? bound_of(s.type) : 0, run);
    }
    cudaFree(p);
    cudaFree(step);
}

static void dora(const shape &s, int32_t replicas)
{
    layout l(s.T, s.timed ? 2048 : 300, s.timed ? 0 : 9, replicas);
    int64_t n = l.rows.n, r = 16;
    for (int op = 0; op < 3; op++) {
        static const char *const names[] = {"dora_norm", "dora_forward", "dora_backward"};
        if (!strstr(names[op], only))
            continue;
        trial k;
        tm_tensor u = k.add(s.type, n, s.C, op == 1, 1, 0, l.used), y = k.add(s.type, n, s.C, op > 0, 1, 0, l.used), mag = k.add(TM_F32, 1, replicas * s.C), norm = k.add(TM_F32, 1, replicas * s.C, op == 0, 0.1f, 2), bias = k.add(s.weight, 1, s.C), dmag = k.add(TM_F32, 1, replicas * s.C, op == 2);
        tm_tensor w = op == 0 ? k.add(s.type, s.C, s.F) : tm_tensor_none(), a = op == 0 ? k.add(TM_F32, replicas * r, s.F) : tm_tensor_none(), b = op == 0 ? k.add(TM_F32, replicas * s.C, r) : tm_tensor_none();
        tm_lowrank lr = {};
        lr.a = a, lr.b = b, lr.scale = 0.5f;
        k.note = text("%s T %lld C %lld F %lld R %d", type_name(s.type), (long long)s.T, (long long)s.C, (long long)s.F, replicas);
        auto run = [&](bool fast) {
            return op == 0 ? OP(dora_norm, replicas, &lr, w, norm) : op == 1 ? OP(dora_forward, &l.rows, u, mag, norm, bias, y) : OP(dora_backward, &l.rows, y, u, mag, norm, y, dmag);
        };
        if (s.timed)
            k.rate(names[op], op == 0 ? 2.0 * (double)(s.C * s.F) : 2.0 * (double)(s.T * s.C) * (op == 1 ? 2 : 4), run);
        else
            k.check(names[op], bound_of(s.type), run);
    }
}

/* sizes: elements of each tensor. */
static void optim(const std::vector<int64_t> &sizes, int32_t replicas, bool timed, const char *note)
{
    trial k;
    std::vector<tm_trained> list;
    int64_t blocks = 0;
    double all = 0;
    for (size_t i = 0; i < sizes.size(); i++) {
        tm_trained t = {};
        t.value = k.add(TM_F32, 1, sizes[i], true);
        t.grad = k.add(TM_F32, 1, sizes[i]);
        t.m = k.add(TM_F32, 1, sizes[i], true, 0.1f);
        t.v = k.add(TM_F32, 1, sizes[i], true, 0.01f, 0.1f);
        t.weight_decay = i % 3 ? 0.1f : 0;
        t.lr_ratio = i % 2 ? 16 : 1;
        t.replica = (int32_t)(i % (size_t)replicas);
        t.first_block = blocks;
        blocks += (sizes[i] + TM_TRAINED_BLOCK - 1) / TM_TRAINED_BLOCK;
        all += (double)sizes[i];
        list.push_back(t);
    }
    tm_trained *p = upload(list);
    std::vector<tm_step_params> steps((size_t)replicas);
    for (tm_step_params &s : steps)
        s.lr = 1e-3, s.bias1 = 0.1, s.bias2 = 0.001, s.clip = 0.7;
    tm_step_params *step = upload(steps);
    int64_t n = (int64_t)list.size();
    uint64_t *trail = upload(std::vector<uint64_t>(n));
    k.note = text("%s, %.0f million", note, all * 1e-6);
    static const char *const names[] = {"grad_norm", "adamw", "sgd", "trail"};
    static const double traffic[] = {4, 28, 20, 4};
    std::vector<uint64_t> sums[2] = {std::vector<uint64_t>(n), std::vector<uint64_t>(n)};
    std::vector<tm_step_params> got[2] = {steps, steps};
    for (int op = 0; op < 4; op++) {
        if (!strstr(names[op], only))
            continue;
        auto run = [&](bool fast) {
            bool served = op == 0 ? OP(grad_norm, n, p, replicas, 0.5, step) : op == 1 ? OP(adamw, n, p, 0.9, 0.999, 1e-8, step) : op == 2 ? OP(sgd, n, p, 0.9, false, step) : OP(trail, n, p, trail);
            if (op == 3 && !timed) {
                must();
                cudaMemcpy(sums[fast].data(), trail, (size_t)n * 8, cudaMemcpyDeviceToHost);
            }
            if (op == 0 && !timed) {
                must();
                cudaMemcpy(got[fast].data(), step, steps.size() * sizeof steps[0], cudaMemcpyDeviceToHost);
            }
            return served;
        };
        if (timed)
            k.rate(names[op], all * traffic[op], run);
        else
            k.check(names[op], 0, run);
    }
    if (!timed && sums[0] != sums[1])
        printf("FAILED trail %s\n", k.note.c_str()), failures++;
    if (!timed && memcmp(got[0].data(), got[1].data(), steps.size() * sizeof steps[0]))
        printf("FAILED grad_norm %s: %.17g, %.17g\n", k.note.c_str(), got[1][0].grad_norm, got[0][0].grad_norm), failures++;
    cudaFree(p);
    cudaFree(step);
    cudaFree(trail);
}

/* --- All of them --- */

static bool wanted(const char *name) { return strstr(name, only); }

static void check_all(tm_dtype type, tm_dtype weight)
{
    static const int64_t widths[] = {8, 64, 896, 1000, 2048, 3584, 4104, 12288, 16384}, heads_D[] = {16, 64, 80, 96, 128, 256}, vocab[] = {16, 1003, 5000, 32000, 50257, 151936, 262144};
    for (int i = 0; i < 9; i++) {
        shape s = {type, weight, between(1, sized(600, 40)), widths[i], 8 * between(1, sized(400, 40)), 0, 0, 0, 0, false};
        auto run = [](const char *op, int of) { return wanted(op) && chosen(of, dice()); };
        for (int k = 0; k < 4; k++)
            if (run("rmsnorm", 4))
                rmsnorm(s, k / 2, k % 2, k % 2);
        for (int k = 0; k < 2; k++)
            if (run("layernorm", 3))
                layernorm(s, k);
        for (int act = 0; act < 5; act++)
            if (run("glu", 4))
                glu(s, (tm_activation)act, dice() % 3, i % 2, i % 2 && dice() % 2);
        if (i < 6) {
            s.D = heads_D[i];
            for (int k = 0; k < 4; k++)
                if (run("rope", 3) && (k < 2 || ((s.D / 16 & (s.D / 16 - 1)) == 0)))
                    rope(s, between(1, sized(30, 6)), k % 2, k / 2, k < 2 && dice() % 2 && s.D >= 64 ? s.D / 4 / 8 * 8 : s.D / 2);
        }
        if (chosen(3, dice()))
            move(s);
        s.V = between(1, sized(3000, 100));
        for (int k = 0; k < 2; k++)
            if (run("embed", 4)) {
                s.T = between(1, sized(5000, 200));
                embed(s, k, i % 3 == 0 ? 1 : s.V);
            }
        s.T = between(40, sized(500, 100));
        if (i < 6 && chosen(3, dice()))
            dora(s, (int32_t)between(1, 3));
        if (i < 7 && wanted("xent"))
            for (int k = 0; k < 8; k++) {
                if (!chosen(5, dice()))
                    continue;
                s.V = vocab[i];
                s.T = s.V > 40000 ? sized(6, 4) : between(1, sized(90, 12));
                if (s.V < 40000 || k % 3 == 0 || k == 1)
                    xent(s, k & 1, k & 2, k & 4 ? 20 : 0);
            }
    }
}

static void rates(int64_t T, int64_t C, int64_t F, int64_t heads, int64_t kv, int64_t D)
{
    shape s = {TM_BF16, TM_BF16, T, C, F, heads, kv, D, 151936, true};
    if (wanted("rmsnorm")) {
        rmsnorm(s, false, false, true);
        rmsnorm(s, false, false, false);
        rmsnorm(s, true, false, false);
        rmsnorm(s, true, true, false);
    }
    if (wanted("layernorm")) {
        layernorm(s, false);
        layernorm(s, true);
    }
    if (wanted("rope"))
        for (int k = 0; k < 4; k++) {
            rope(s, heads, k % 2, k / 2, D / 2);
            if (k < 2)
                rope(s, kv, k % 2, k / 2, D / 2);
        }
    if (wanted("glu"))
        for (int act = 0; act < 3; act++)
            for (int k = 0; k < 2; k++)
                glu(s, (tm_activation)act, true, k, k && act == 0);
    if (wanted("embed")) {
        embed(s, false, 151936);
        embed(s, true, 151936);
        embed(s, true, 1);
    }
    move(s);
    dora(s, 1);
}

int main(int count, char **arg)
{
    bool rate = count > 1 && strcmp(arg[1], "rate") == 0;
    only = count > 2 ? arg[2] : "";
    tm_error err;
    uint64_t seed = dice_state = fresh_seed();
    if (tm_cuda_plugin_table.create(0, &device, &err) != TM_OK)
        return printf("FAILED: %s\n", err.message), 1;
    if (!rate) {
        check_all(TM_BF16, TM_BF16);
        check_all(TM_F16, TM_F32);
        for (int i = 0; i < 4; i++) {
            std::vector<int64_t> sizes;
            for (int64_t k = between(1, i == 3 ? sized(900, 60) : sized(20, 8)); k > 0; k--)
                sizes.push_back(dice() % 3 ? between(1, sized(9000, 3000)) : between(1, 4) * 4096 * (ON_GPU ? between(1, 6) : 1));
            if (!chosen(2, dice()))
                continue;
            optim(sizes, i == 1 ? 3 : 1, false, text("%zu tensors", sizes.size()).c_str());
        }
        printf("%d checks, %d failures, TEST_SEED=%llu\n", checks, failures, (unsigned long long)seed);
    }
    if (rate) {
        rates(8192, 3584, 18944, 28, 4, 128);
        rates(16384, 896, 4864, 14, 2, 64);
        shape s = {TM_BF16, TM_BF16, 2048, 0, 0, 0, 0, 0, 151936, true};
        for (int k = 0; k < 4 && wanted("xent"); k++)
            xent(s, k != 1, k == 2, k == 3 ? 30 : 0);
        s.V = 262144;
        if (wanted("xent"))
            xent(s, true, false, 0);
        s.V = 50257;
        if (wanted("xent"))
            xent(s, true, false, 0);
        std::vector<int64_t> large(28, 1500000000 / 28 / 2), small;
        large.push_back(151936 * 3584);
        for (int i = 0; i < 28 * 7 * 2; i++)
            small.push_back(i % 2 ? 16 * 3584 : 16 * 18944);
        optim(large, 1, true, "28 large and a table");
        optim(small, 1, true, "392 of LoRA");
    }
    device->calls->destroy(device);
    return failures > 0;
}
