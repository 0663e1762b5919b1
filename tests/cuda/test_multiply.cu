/* The matrix product of 16-bit factors and the linear ops on it, on a GPU: against sums in double, and that a row's bits
 * depend on nothing but the row. Prints what fails, with an argument every check.
 *
 *   make test-cuda
 */
#include "device/cuda/half/half.h"
#include "device/cuda/half/mma.cuh"
#include "sizes.h"

#include <algorithm>
#include <string>
#include <vector>

extern "C" __attribute__((visibility("default"))) const tm_cuda_plugin tm_cuda_plugin_table;

#define CHECK(call)                                                                    \
    do {                                                                               \
        cudaError_t e_ = (call);                                                       \
        if (e_ != cudaSuccess) {                                                       \
            printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_)); \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

static int failures, checks;
static bool verbose;
static tm_device *device;
static cudaStream_t stream;
static tm_error err;

static void verdict(bool ok, const std::string &what)
{
    if (!ok || verbose)
        printf("%s %s\n", ok ? "ok    " : "FAILED", what.c_str());
    checks++;
    failures += !ok;
}

/* --- Memory --- */

static std::vector<void *> taken;
static char *take(int64_t bytes)
{
    void *p;
    CHECK(cudaMalloc(&p, bytes + 256));
    CHECK(cudaMemsetAsync(p, 0xff, bytes + 256, stream));
    taken.push_back(p);
    return (char *)p;
}
static void release()
{
    CHECK(cudaDeviceSynchronize());
    for (void *p : taken)
        CHECK(cudaFree(p));
    taken.clear();
}

static uint64_t seed;
static uint64_t draw()
{
    uint64_t z = seed += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}
static int64_t draw(int64_t from, int64_t to) { return from + (int64_t)(draw() % (uint64_t)(to - from + 1)); }

TM_LANE double value_at(const tm_tensor &x, int64_t i)
{
    return x.dtype == TM_F32 ? ((float *)x.data)[i] : x.dtype == TM_BF16 ? __bfloat162float(((bf16 *)x.data)[i]) : __half2float(((f16 *)x.data)[i]);
}

/* A matrix in memory of not-a-numbers, with `extra` columns beyond its own and 3 rows; the first element `shift`
 * elements from an aligned address. */
static tm_tensor empty(tm_dtype type, int64_t rows, int64_t cols, int64_t extra, int64_t shift = 0)
{
    tm_tensor x = {nullptr, type, rows, cols, cols + extra};
    x.data = take(tm_dtype_bytes(type, (rows + 3) * x.ld + shift)) + tm_dtype_bytes(type, shift);
    return x;
}
static void fill(tm_tensor x)
{
    uint64_t key = draw();
    tm_cuda_each(device, "fill", x.rows * x.cols, [=] __device__(int64_t i) {
        uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + key;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        float v = sqrtf(-2 * logf(((uint32_t)z + 1.0f) / 4294967808.0f)) * cospif(2 * ((uint32_t)(z >> 32) / 4294967296.0f));
        int64_t to = i / x.cols * x.ld + i % x.cols;
        if (x.dtype == TM_F32)
            ((float *)x.data)[to] = v;
        else if (x.dtype == TM_BF16)
            ((bf16 *)x.data)[to] = __float2bfloat16(v);
        else
            ((f16 *)x.data)[to] = __float2half(v);
    });
}
static tm_tensor random_matrix(tm_dtype type, int64_t rows, int64_t cols, int64_t extra, int64_t shift = 0)
{
    tm_tensor x = empty(type, rows, cols, extra, shift);
    fill(x);
    return x;
}
static tm_tensor copy_of(tm_tensor x)
{
    tm_tensor y = x;
    int64_t bytes = tm_dtype_bytes(x.dtype, (x.rows + 3) * x.ld);
    y.data = take(bytes);
    CHECK(cudaMemcpyAsync(y.data, x.data, bytes, cudaMemcpyDeviceToDevice, stream));
    return y;
}

/* Elements whose bits differ, of the first `rows` rows. */
static int64_t differences(tm_tensor x, tm_tensor y, int64_t rows, int64_t cols)
{
    unsigned long long *count = (unsigned long long *)take(8), host;
    int size = x.dtype == TM_F32 ? 4 : 2;
    CHECK(cudaMemsetAsync(count, 0, 8, stream));
    tm_cuda_each(device, "compare", rows * cols, [=] __device__(int64_t i) {
        int64_t row = i / cols, col = i % cols;
        const char *a = (char *)x.data + (row * x.ld + col) * size, *b = (char *)y.data + (row * y.ld + col) * size;
        bool same = true;
        for (int j = 0; j < size; j++)
            same = same && a[j] == b[j];
        if (!same)
            atomicAdd(count, 1ull);
    });
    CHECK(cudaMemcpyAsync(&host, count, 8, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return (int64_t)host;
}

/* Bytes of x beyond its rows and columns that are no longer 0xff. */
static int64_t overwritten(tm_tensor x)
{
    unsigned long long *count = (unsigned long long *)take(8), host;
    int64_t size = x.dtype == TM_F32 ? 4 : 2, ld = x.ld * size, used = x.cols * size;
    CHECK(cudaMemsetAsync(count, 0, 8, stream));
    tm_cuda_each(device, "compare", (x.rows + 3) * ld, [=] __device__(int64_t i) {
        if ((i / ld >= x.rows || i % ld >= used) && ((unsigned char *)x.data)[i] != 0xff)
            atomicAdd(count, 1ull);
    });
    CHECK(cudaMemcpyAsync(&host, count, 8, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return (int64_t)host;
}

/* --- Against sums in double --- */

/* The largest error among sampled rows, as a share of what rounding may do. */
static double error_of(const tm_half_product &p, tm_tensor old)
{
    unsigned long long *worst = (unsigned long long *)take(8);
    double host;
    int64_t step = p.m > 48 ? p.m / 41 : 1, rows = (p.m + step - 1) / step;
    CHECK(cudaMemsetAsync(worst, 0, 8, stream));
    tm_cuda_each(device, "reference", rows * p.n, [=] __device__(int64_t i) {
        int64_t row = i / p.n * step, col = i % p.n;
        double sum = 0, size = 0;
        for (int64_t j = 0; j < p.k; j++) {
            double v = value_at(p.a, p.a_turned ? j * p.a.ld + row : row * p.a.ld + j) * value_at(p.b, p.b_turned ? j * p.b.ld + col : col * p.b.ld + j);
            sum += v, size += fabs(v);
        }
        if (p.low_a.data) {
            int64_t r = 0, low = p.low_a.cols;
            while (p.replicas > 1 && row >= p.group[r + 1])
                r++;
            for (int64_t j = 0; j < low; j++) {
                double v = value_at(p.low_a, row * p.low_a.ld + j) * value_at(p.low_b, p.b_turned ? (r * low + j) * p.low_b.ld + col : (r * p.n + col) * p.low_b.ld + j);
                sum += v, size += fabs(v);
            }
        }
        if (p.bias.data)
            sum += value_at(p.bias, col);
        double before = sum, unit = p.out.dtype == TM_F32 ? 0x1p-23 : p.out.dtype == TM_BF16 ? 0x1p-8 : 0x1p-11;
        if (p.add)
            sum += value_at(old, row * old.ld + col);
        double bound = unit * (fabs(sum) + (p.add ? fabs(before) : 0)) + 0x1p-23 * (8 + p.k / 16.0) * size + 1e-7;
        double d = fabs(sum - value_at(p.out, row * p.out.ld + col)) / bound;
        atomicMax(worst, (unsigned long long)__double_as_longlong(d == d ? d : 1e30));
    });
    CHECK(cudaMemcpyAsync(&host, worst, 8, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return host;
}

struct shape {
    int64_t m, n, k, low;
    int replicas;
    bool odd; /* rows do not begin at multiples of 16 bytes */
};
enum { TURN_NONE, TURN_B, TURN_BOTH };

static std::string name_of(const tm_half_product &p, const shape &s)
{
    char text[200];
    snprintf(text, sizeof text, "sm_%d %s %5lld %6lld %5lld %s%s%s low %lld x %d%s%s", tm_cuda_of(device)->architecture, p.a.dtype == TM_BF16 ? "bf16" : "f16 ", (long long)s.m, (long long)s.n, (long long)s.k,
             p.a_turned ? "T" : "N", p.b_turned ? "N" : "T", p.out.dtype == TM_F32 ? " f32" : "", (long long)s.low, s.replicas, p.add ? " add" : "", p.bias.data ? " bias" : "");
    return text;
}

/* Boundaries of replicas: ascending, not at tiles, one of them perhaps without rows. */
static std::vector<int32_t> groups_of(int64_t m, int replicas)
{
    std::vector<int32_t> g(replicas + 1);
    for (int r = 1; r < replicas; r++)
        g[r] = (int32_t)std::min<int64_t>(m, g[r - 1] + draw(0, 2 * m / replicas));
    g[replicas] = (int32_t)m;
    return g;
}
static const int32_t *to_device(const std::vector<int32_t> &v)
{
    int32_t *p = (int32_t *)take(v.size() * 4);
    CHECK(cudaMemcpyAsync(p, v.data(), v.size() * 4, cudaMemcpyHostToDevice, stream));
    CHECK(cudaStreamSynchronize(stream));
    return p;
}

static tm_half_product product_of(const shape &s, tm_dtype type, int turn, tm_dtype out, bool bias, bool add, std::vector<int32_t> *groups)
{
    tm_half_product p = {};
    int64_t extra = s.odd ? 3 : 8 * draw(0, 2), shift = s.odd ? 1 : 0;
    p.m = s.m, p.n = s.n, p.k = s.k;
    p.a_turned = turn == TURN_BOTH, p.b_turned = turn != TURN_NONE, p.add = add;
    p.a = p.a_turned ? random_matrix(type, s.k, s.m, extra, shift) : random_matrix(type, s.m, s.k, extra, shift);
    p.b = p.b_turned ? random_matrix(type, s.k, s.n, extra, shift) : random_matrix(type, s.n, s.k, extra, shift);
    p.out = add ? random_matrix(out, s.m, s.n, extra) : empty(out, s.m, s.n, extra);
    if (bias)
        p.bias = random_matrix(draw() % 2 ? TM_F32 : type, 1, s.n, 0);
    p.replicas = s.replicas;
    if (s.low) {
        p.low_a = random_matrix(type, s.m, s.low, extra);
        p.low_b = p.b_turned ? random_matrix(type, s.replicas * s.low, s.n, extra) : random_matrix(type, s.replicas * s.n, s.low, extra);
        *groups = groups_of(s.m, s.replicas);
        p.group = to_device(*groups);
    }
    return p;
}

static tm_half_product check_one(const shape &s, tm_dtype type, int turn, tm_dtype out, bool bias, bool add)
{
    std::vector<int32_t> groups;
    tm_half_product p = product_of(s, type, turn, out, bias, add, &groups);
    tm_tensor old = copy_of(p.out);
    bool served = tm_half_multiply(device, "test", &p);
    double worst = served ? error_of(p, old) : 1e30;
    tm_tensor first = copy_of(p.out), again = old;
    tm_half_product q = p;
    q.out = again;
    int64_t spilt = overwritten(p.out);
    if (add)
        q.out = old;
    else
        q.out = empty(out, s.m, s.n, p.out.ld - s.n);
    tm_half_multiply(device, "test", &q);
    int64_t differ = differences(q.out, first, s.m, s.n);
    char text[100];
    snprintf(text, sizeof text, ": error %.2f of bound, %lld beyond, %lld differ again", worst, (long long)spilt, (long long)differ);
    verdict(served && worst <= 1 && spilt == 0 && differ == 0, name_of(p, s) + text);
    return p;
}

/* Rows of a longer product alone. */
static void check_rows(int64_t n, int64_t k, int64_t low, tm_dtype type, int turn)
{
    shape s = {sized(4096, 330), n, k, low, 1, false};
    std::vector<int32_t> groups;
    tm_half_product p = product_of(s, type, turn, type, true, false, &groups);
    tm_half_multiply(device, "test", &p);
    int64_t differ = 0;
    const int64_t from[] = {0, 1, 77, 128, sized(1000, 130), sized(3000, 200)}, count[] = {1, 17, 128, sized(1000, 129), sized(1096, 130)};
    for (int64_t f : from)
        for (int64_t m : count) {
            if (!chosen(6, draw()))
                continue;
            tm_half_product q = p;
            q.m = m;
            q.a = tm_tensor_rows(p.a, f, m);
            q.low_a = low ? tm_tensor_rows(p.low_a, f, m) : p.low_a;
            q.out = empty(type, m, n, 0);
            tm_half_multiply(device, "test", &q);
            differ += differences(q.out, tm_tensor_rows(p.out, f, m), m, n) + (overwritten(q.out) != 0);
        }
    verdict(differ == 0, "rows alone, " + name_of(p, s) + ": " + std::to_string(differ) + " differ");
    release();
}

/* Replicas alone and in a pack, one of them with not-a-numbers in its factors. */
static void check_pack(int64_t n, int64_t k, int64_t low, int replicas, tm_dtype type, int turn)
{
    shape s = {sized(3000, 300), n, k, low, replicas, false};
    std::vector<int32_t> groups;
    tm_half_product p = product_of(s, type, turn, type, false, turn != TURN_NONE, &groups);
    int64_t each = turn == TURN_NONE ? n : low, differ = 0;
    tm_tensor bad = tm_tensor_rows(p.low_b, each, each), old = copy_of(p.out);
    CHECK(cudaMemset2DAsync(bad.data, bad.ld * 2, 0xff, bad.cols * 2, bad.rows, stream));
    tm_half_multiply(device, "test", &p);
    for (int r = 0; r < replicas; r++) {
        int64_t from = groups[r], m = groups[r + 1] - from;
        tm_half_product q = p;
        q.m = m, q.replicas = 1, q.group = nullptr;
        q.a = tm_tensor_rows(p.a, from, m);
        q.low_a = tm_tensor_rows(p.low_a, from, m);
        q.low_b = tm_tensor_rows(p.low_b, r * each, each);
        q.out = tm_tensor_rows(old, from, m);
        tm_half_multiply(device, "test", &q);
        differ += differences(q.out, tm_tensor_rows(p.out, from, m), m, n);
    }
    verdict(differ == 0, "replicas alone, " + name_of(p, s) + ": " + std::to_string(differ) + " differ");
    release();
}

static void check_all()
{
    static const shape shapes[] = {
        {1, 8, 8, 0, 1, false},       {1, 1, 1, 0, 1, true},         {300, 520, 200, 0, 1, false},  {1000, 896, 896, 16, 1, false}, {517, 1152, 896, 48, 1, false},
        {2048, 4608, 3584, 48, 1, false}, {1000, 768, 512, 32, 3, false}, {700, 136, 264, 80, 5, false}, {129, 257, 65, 0, 1, true},     {333, 100, 77, 32, 4, true},
    };
    for (shape s : shapes)
        for (int turn = 0; turn < 3; turn++) {
            if (turn == TURN_BOTH && s.low)
                continue;
            s.m = std::min<int64_t>(s.m, sized(s.m, 270)), s.n = std::min<int64_t>(s.n, sized(s.n, 264)), s.k = std::min<int64_t>(s.k, sized(s.k, 200));
            for (int i = 0; i < 2; i++)
                if (chosen(3, draw()))
                    check_one(s, i ? TM_F16 : TM_BF16, turn, turn == TURN_BOTH ? TM_F32 : i ? TM_F16 : TM_BF16, (i + turn) % 2, turn == TURN_BOTH || (turn == TURN_B && i));
            release();
        }
    for (int i = 0; i < 24; i++) {
        bool odd = i % 4 == 3;
        int64_t most = sized(900, 300);
        if (!chosen(3, draw()))
            continue;
        shape s = {draw(1, most), odd ? draw(1, most) : 8 * draw(1, most / 8), odd ? draw(1, most) : 8 * draw(1, most / 8), i % 3 ? 16 * draw(1, 9) : 0, (int)draw(1, 4), odd};
        tm_dtype type = i % 5 == 4 ? TM_F16 : TM_BF16;
        check_one(s, type, s.low ? i % 2 : i % 3, draw() % 2 ? TM_F32 : type, draw() % 2, draw() % 2);
        release();
    }
}

/* --- The linear ops --- */

static void check_linear(tm_dtype type, tm_dtype weight, int64_t n, int64_t N, int64_t K)
{
    std::vector<int32_t> chunk;
    for (int64_t t = 0; t < n; t += draw(1, TM_CHUNK_TOKENS))
        chunk.push_back((int32_t)t);
    chunk.push_back((int32_t)n);
    tm_rows rows = {};
    rows.n = n, rows.replicas = 1, rows.chunks = (int64_t)chunk.size() - 1, rows.chunk = to_device(chunk);
    tm_tensor x = random_matrix(type, n + 2, K, 0), w = random_matrix(weight, N, K, 0), bias = random_matrix(weight, 1, N, 0), y = empty(type, n, N, 0);
    tm_half_product p = {};
    p.m = n, p.n = N, p.k = K, p.a = x, p.out = y, p.bias = bias;
    p.b = empty(type, N, K, 0);
    tm_tensor rounded = p.b;
    tm_cuda_each(device, "round", N * K, [=] __device__(int64_t i) {
        if (type == TM_BF16)
            ((bf16 *)rounded.data)[i] = __float2bfloat16((float)value_at(w, i));
        else
            ((f16 *)rounded.data)[i] = __float2half((float)value_at(w, i));
    });
    std::string name = std::string("linear, weights ") + (weight == TM_F32 ? "f32" : weight == TM_BF16 ? "bf16" : "f16") + " " + name_of(p, {n, N, K, 0, 1, false});
    bool served = tm_half_linear_forward(device, &rows, x, w, bias, y);
    double worst = n ? error_of(p, y) : 0;
    verdict(served && worst <= 1 && !overwritten(y), name + ": forward, error " + std::to_string(worst));

    tm_tensor dy = random_matrix(type, n + 2, N, 0), dx = random_matrix(type, n, K, 0), old = copy_of(dx);
    dy.rows = n;
    p.n = K, p.k = N, p.a = dy, p.out = dx, p.bias = tm_tensor_none(), p.b_turned = p.add = true;
    served = tm_half_linear_backward_input(device, &rows, dy, w, true, dx);
    worst = n ? error_of(p, old) : 0;
    verdict(served && worst <= 1 && !overwritten(dx), name + ": input, error " + std::to_string(worst));

    tm_tensor dw = random_matrix(TM_F32, N, K, 0), dbias = random_matrix(TM_F32, 1, N, 0);
    old = copy_of(dw);
    std::vector<float> before(N), after(N);
    CHECK(cudaMemcpyAsync(before.data(), dbias.data, N * 4, cudaMemcpyDeviceToHost, stream));
    served = tm_half_linear_backward_weight(device, &rows, dy, x, dw, dbias);
    tm_half_product g = {};
    g.m = N, g.n = K, g.k = n, g.a = dy, g.b = x, g.out = dw, g.a_turned = g.b_turned = g.add = true;
    worst = error_of(g, old);
    verdict(served && worst <= 1 && !overwritten(dw), name + ": weight, error " + std::to_string(worst));
    std::vector<uint16_t> bits((size_t)(n * N));
    if (n)
        CHECK(cudaMemcpyAsync(bits.data(), dy.data, bits.size() * 2, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaMemcpyAsync(after.data(), dbias.data, N * 4, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    int64_t differ = 0;
    for (int64_t j = 0; j < N; j++) {
        float total = before[j];
        for (size_t c = 0; c + 1 < chunk.size(); c++) {
            float sum = 0;
            for (int64_t t = chunk[c]; t < chunk[c + 1]; t++) {
                uint32_t up = (uint32_t)bits[t * N + j] << 16;
                float v;
                if (type == TM_BF16)
                    memcpy(&v, &up, 4);
                else
                    v = __half2float(__ushort_as_half(bits[t * N + j]));
                sum += v;
            }
            total += sum;
        }
        differ += memcmp(&total, &after[j], 4) != 0;
    }
    verdict(differ == 0, name + ": bias, " + std::to_string(differ) + " differ");
    release();
}

/* The activation that follows: out as without it, h as its own op makes it. */
static void check_glu(const shape &s, tm_dtype type, bool bias)
{
    std::vector<int32_t> groups;
    tm_half_product p = product_of(s, type, TURN_NONE, type, bias, false, &groups), q = p;
    tm_rows rows = {};
    rows.n = s.m;
    tm_tensor h = empty(type, s.m, s.n / 2, 8), again = empty(type, s.m, s.n / 2, 8);
    bool served = tm_half_multiply(device, "test", &q);
    TM_RUN(device, glu_forward, &rows, TM_ACT_SILU, q.out, h);
    p.out = empty(type, s.m, s.n, 0);
    p.h = again, p.activation = TM_ACT_SILU;
    served &= tm_half_multiply(device, "test", &p);
    int64_t differ = differences(p.out, q.out, s.m, s.n) + differences(h, again, s.m, s.n / 2), spilt = overwritten(again) + overwritten(p.out);
    verdict(served && !differ && !spilt, "activated, " + name_of(p, s) + ": " + std::to_string(differ) + " differ, " + std::to_string(spilt) + " beyond");
    release();
}

static void check_architecture()
{
    check_all();
    for (int i = 0; i < 2; i++) {
        tm_dtype type = i ? TM_F16 : TM_BF16;
        auto some = [] { return chosen(2, draw()); };
        for (int turn : {TURN_NONE, TURN_B}) {
            if (some())
                check_rows(sized(896, 136), sized(512, 72), 0, type, turn);
            if (some())
                check_rows(sized(1152, 392), sized(896, 136), 48, type, turn);
            if (some())
                check_pack(sized(1152, 264), sized(896, 64), 16, 5, type, turn);
            if (some())
                check_pack(sized(384, 72), sized(256, 128), 80, 3, type, turn);
        }
        if (some())
            check_glu({sized(1000, 200), sized(768, 512), sized(512, 128), 0, 1, false}, type, true);
        if (some())
            check_glu({sized(700, 300), sized(400, 272), 136, 32, 1, false}, type, false);
        if (some())
            check_glu({sized(1500, 333), sized(1040, 528), sized(264, 72), 16, 4, false}, type, true);
        if (some())
            check_linear(type, TM_F32, sized(1000, 300), sized(520, 136), 264);
        if (some())
            check_linear(type, i ? TM_BF16 : TM_F16, sized(700, 260), 100, 77);
        if (some())
            check_linear(type, type, sized(3000, 600), sized(896, 128), sized(384, 64));
        check_linear(type, type, 0, 64, 64);
        for (const shape &s : {shape{sized(896, 136), sized(896, 264), sized(4000, 700), 0, 1, false}, shape{sized(1536, 264), sized(1536, 264), sized(1000, 333), 0, 1, false},
                               shape{sized(2048, 128), sized(1536, 520), sized(8192, 520), 0, 1, false}})
            if (some())
                check_one(s, type, TURN_BOTH, TM_F32, false, true);
        release();
    }
}

int main(int argc, char **)
{
    verbose = argc > 1;
    setvbuf(stdout, nullptr, _IOLBF, 0);
    uint64_t first = seed = fresh_seed();
    if (tm_cuda_plugin_table.create(0, &device, &err) != TM_OK) {
        printf("FAILED %s\n", err.message);
        return 1;
    }
    stream = tm_cuda_of(device)->stream;
    int64_t lent = 64 << 20;
    void *workspace;
    CHECK(cudaMalloc(&workspace, lent));
    device->calls->lend(device, workspace, lent);
    printf("%s, TEST_SEED=%llu\n", device->detail, (unsigned long long)first);
    int found = tm_cuda_of(device)->architecture;
    check_architecture();
    if (ON_GPU && found != 80) { /* what other architectures run */
        tm_cuda_of(device)->architecture = 80;
        check_architecture();
    }
    bool queued = device->calls->sync(device, &err) == TM_OK;
    if (!queued)
        printf("FAILED %s\n", err.message);
    printf("test_multiply: %d checks, %d failed\n", checks, failures);
    return failures != 0 || !queued;
}
