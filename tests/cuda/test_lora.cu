/* LoRA's kernels for 16-bit activations on a GPU, against sums in double, and to the bit against themselves: run twice,
 * replicas packed and alone, micro-batches, a fixed batch with rows of nobody.
 *
 *   test_lora                checks, and a few times
 *   test_lora check [SEED]   test_lora time
 *
 * Exit 0: all hold. */
#include "device/cuda/half/skinny.cuh"
#include "sizes.h"

#include <atomic>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern "C" __attribute__((visibility("default"))) const tm_cuda_plugin tm_cuda_plugin_table;

static int failures;
static tm_device *device;
static tm_error err;

static void need(bool ok, const char *what)
{
    if (!ok) {
        printf("FAILED: %s: %s\n", what, err.message);
        exit(1);
    }
}

static void sync() { need(device->calls->sync(device, &err) == TM_OK, "sync"); }

/* Device memory that lives as long as the scope it was taken in. */
struct memory {
    std::vector<void *> taken;
    ~memory()
    {
        for (void *p : taken)
            device->calls->release(device, p);
    }
    void *take(int64_t bytes)
    {
        void *p;
        need(device->calls->alloc(device, bytes + 256, &p, &err) == TM_OK, "memory");
        taken.push_back(p);
        return p;
    }
    template <class T> T *put(const std::vector<T> &v)
    {
        T *p = (T *)take(v.size() * sizeof(T));
        device->calls->upload(device, p, v.data(), v.size() * sizeof(T));
        return p;
    }
};

typedef std::vector<float> floats;
typedef std::vector<uint16_t> halves;

static std::mt19937_64 random_bits;
static float normal() { return std::normal_distribution<float>()(random_bits); }
static uint16_t to_half(tm_dtype type, float v) { return type == TM_BF16 ? tm_f32_to_bf16(v) : tm_f32_to_f16(v); }
static float from_half(tm_dtype type, uint16_t h) { return type == TM_BF16 ? tm_bf16_to_f32(h) : tm_f16_to_f32(h); }
static halves random_halves(tm_dtype type, int64_t n, float scale)
{
    halves v(n);
    for (auto &e : v)
        e = to_half(type, scale * normal());
    return v;
}
static floats random_floats(int64_t n, float scale)
{
    floats v(n);
    for (auto &e : v)
        e = scale * normal();
    return v;
}

/* --- A case --- */

struct module_of {
    int64_t first, out, r;
};
struct example_of {
    int32_t replica;
    uint32_t index;
    int64_t length, first; /* rows of the case's x and dy */
};
struct test_case {
    tm_dtype type, weight;
    int64_t in, out;
    std::vector<module_of> modules;
    int32_t replicas;
    float dropout;
    bool lone, real_x, real_y; /* lowrank alone; with one side in f32 */
    bool bias, accumulate;
    std::vector<example_of> examples;
    int64_t rows;
    halves x, dy, y0, dx0;
    floats w, bias_values;
    std::vector<floats> a, b, da0, db0; /* a module, all replicas */
    std::vector<uint64_t> keys;
};

static test_case make_case(tm_dtype type, tm_dtype weight, int64_t in, int64_t out, std::vector<module_of> modules, int32_t replicas, float dropout, bool lone, std::vector<int> lengths, bool real_x = false, bool real_y = false)
{
    test_case c = {type, weight, in, out, modules, replicas, dropout, lone, real_x, real_y, (bool)(random_bits() & 1), (bool)(random_bits() & 1)};
    uint32_t index = 0;
    for (size_t i = 0; i < lengths.size(); i++) {
        int32_t replica = (int32_t)(i * replicas / lengths.size());
        index = i && c.examples.back().replica == replica ? index + 1 : 0;
        c.examples.push_back({replica, index, lengths[i], c.rows});
        c.rows += lengths[i];
    }
    c.x = random_halves(type, c.rows * in, 1);
    c.dy = random_halves(type, c.rows * out, 1);
    c.y0 = random_halves(type, c.rows * out, 1);
    c.dx0 = random_halves(type, c.rows * in, 1);
    c.w = random_floats(out * in, 0.03f);
    for (auto &v : c.w)
        v = from_half(type, to_half(type, v));
    c.bias_values = random_floats(out, 1);
    for (auto &m : modules) {
        c.a.push_back(random_floats(replicas * m.r * in, 0.1f));
        c.b.push_back(random_floats(replicas * m.out * m.r, 0.1f));
        c.da0.push_back(random_floats(replicas * m.r * in, 1));
        c.db0.push_back(random_floats(replicas * m.out * m.r, 1));
    }
    for (int r = 0; r < replicas; r++)
        c.keys.push_back(random_bits());
    return c;
}

struct results {
    halves y, dx; /* at the case's rows */
    std::vector<floats> xa, dxa, da, db;
};

static results nothing(const test_case &c)
{
    results r;
    r.y.resize(c.rows * c.out);
    r.dx.resize(c.rows * c.in);
    r.da = c.da0;
    r.db = c.db0;
    for (auto &m : c.modules) {
        r.xa.push_back(floats(c.rows * m.r));
        r.dxa.push_back(floats(c.rows * m.r));
    }
    return r;
}

/* Room for the shares of dxa, without which it is summed in another order. */
static int64_t shares_bytes(const test_case &c, int64_t n)
{
    int64_t at = 0, widest = 0, shares = 0;
    for (auto &m : c.modules) {
        int64_t width = (at % 16 + m.r + 15) / 16;
        at += m.r;
        shares += (m.out + 255) / 256;
        widest = width > widest ? width : widest;
    }
    return shares * n * 16 * widest * 4;
}

/* Runs the examples, which belong to replicas [first, first + replicas) of the case, with `spare` rows of nobody behind
 * them. What r has in da and db is added to. */
static void run(const test_case &c, const std::vector<example_of> &examples, int32_t first, int32_t replicas, int64_t spare, results *r, int64_t room = 1 << 22)
{
    memory m;
    std::vector<int32_t> position, chunk, group(1, 0), group_chunk(1, 0);
    std::vector<uint32_t> example;
    std::vector<int64_t> source;
    for (int32_t replica = first; replica < first + replicas; replica++) {
        for (auto &e : examples)
            for (int64_t i = 0; e.replica == replica && i < e.length; i++) {
                if (i % TM_CHUNK_TOKENS == 0)
                    chunk.push_back((int32_t)position.size());
                position.push_back((int32_t)i);
                example.push_back(e.index);
                source.push_back(e.first + i);
            }
        group.push_back((int32_t)position.size());
        group_chunk.push_back((int32_t)chunk.size());
    }
    int64_t used = (int64_t)position.size(), n = used + spare;
    position.resize(n);
    example.resize(n);
    for (int i = 0; i < 3; i++)
        chunk.push_back((int32_t)used);
    tm_rows rows = {n, replicas, (int64_t)chunk.size() - 1, m.put(position), m.put(example), m.put(chunk), m.put(group), m.put(group_chunk)};

    auto gather = [&](const halves &from, int64_t cols) {
        halves to(n * cols, 0x7fff); /* not a number */
        for (int64_t t = 0; t < used; t++)
            std::copy_n(&from[source[t] * cols], cols, &to[t * cols]);
        return tm_tensor_make(m.put(to), c.type, n, cols);
    };
    auto gather_real = [&](const halves &from, int64_t cols) {
        floats to(n * cols, NAN);
        for (int64_t t = 0; t < used; t++)
            for (int64_t k = 0; k < cols; k++)
                to[t * cols + k] = from_half(c.type, from[source[t] * cols + k]);
        return tm_tensor_make(m.put(to), TM_F32, n, cols);
    };
    auto weights = [&](const floats &all, int64_t rows_each, int64_t cols) {
        floats some(all.begin() + first * rows_each * cols, all.begin() + (first + replicas) * rows_each * cols);
        return tm_tensor_make(m.put(some), TM_F32, replicas * rows_each, cols);
    };
    tm_tensor x = gather(c.x, c.in), dy = gather(c.dy, c.out), y = gather(c.y0, c.out), dx = gather(c.dx0, c.in), w;
    if (c.real_x)
        x = gather_real(c.x, c.in);
    if (c.real_y)
        y = gather_real(c.y0, c.out), dy = gather_real(c.dy, c.out);
    if (c.weight == TM_F32)
        w = tm_tensor_make(m.put(c.w), TM_F32, c.out, c.in);
    else {
        halves v;
        for (float e : c.w)
            v.push_back(to_half(c.weight, e));
        w = tm_tensor_make(m.put(v), c.weight, c.out, c.in);
    }
    tm_tensor bias = c.bias ? tm_tensor_make(m.put(c.bias_values), TM_F32, 1, c.out) : tm_tensor_none();
    std::vector<tm_step_params> step(replicas);
    for (int i = 0; i < replicas; i++)
        step[i].dropout_key = c.keys[first + i];
    tm_step_params *steps = m.put(step);
    std::vector<tm_lora_part> parts;
    int64_t ranks = 0;
    for (size_t i = 0; i < c.modules.size(); i++) {
        auto &mod = c.modules[i];
        tm_lora_part p = {{weights(c.a[i], mod.r, c.in), weights(c.b[i], mod.out, mod.r), 0.5f + i, c.dropout, (uint32_t)(7 + i), steps}, mod.first};
        p.xa = tm_tensor_make(m.take(n * mod.r * 4), TM_F32, n, mod.r);
        p.dxa = tm_tensor_make(m.take(n * mod.r * 4), TM_F32, n, mod.r);
        p.da = weights(r->da[i], mod.r, c.in);
        p.db = weights(r->db[i], mod.out, mod.r);
        parts.push_back(p);
        ranks += mod.r;
    }
    ranks = (ranks + 15) / 16 * 16;
    int64_t bytes = 8 * 256 + 2 * (c.in * c.out + replicas * (c.in + c.out) * ranks + 2 * n * ranks) + (int64_t)parts.size() * n * low_mask_pitch(c.in) + shares_bytes(c, n) + room;
    device->calls->lend(device, m.take(bytes), bytes);
    bool served;
    if (c.lone) {
        tm_lora_part &p = parts[0];
        served = tm_half_lowrank_forward(device, &rows, &p.lr, x, p.xa, y);
        served &= tm_half_lowrank_backward(device, &rows, &p.lr, dy, x, p.xa, p.dxa, c.real_x ? tm_tensor_none() : p.da, c.real_y ? tm_tensor_none() : p.db, c.real_x ? tm_tensor_none() : dx);
    } else {
        served = tm_half_lora_forward(device, &rows, x, w, bias, (int)parts.size(), parts.data(), y, TM_ACT_NONE, tm_tensor_none());
        served &= tm_half_lora_backward(device, &rows, dy, x, w, c.accumulate, (int)parts.size(), parts.data(), dx);
    }
    need(served, "not served");
    sync();
    auto scatter = [&](auto *to, const tm_tensor &t) {
        auto all = *to;
        all.resize(n * t.cols);
        device->calls->download(device, all.data(), t.data, all.size() * sizeof all[0]);
        for (int64_t i = 0; i < used; i++)
            std::copy_n(&all[i * t.cols], t.cols, &(*to)[source[i] * t.cols]);
    };
    if (c.real_y) {
        floats all(r->y.size());
        scatter(&all, y);
        for (int64_t i = 0; i < used * c.out; i++)
            r->y[source[i / c.out] * c.out + i % c.out] = to_half(c.type, all[source[i / c.out] * c.out + i % c.out]);
    } else
        scatter(&r->y, y);
    scatter(&r->dx, dx);
    for (size_t i = 0; i < parts.size(); i++) {
        scatter(&r->xa[i], parts[i].xa);
        scatter(&r->dxa[i], parts[i].dxa);
        int64_t na = parts[i].da.rows / replicas * c.in, nb = parts[i].db.rows / replicas * parts[i].db.cols;
        device->calls->download(device, &r->da[i][first * na], parts[i].da.data, replicas * na * 4);
        device->calls->download(device, &r->db[i][first * nb], parts[i].db.data, replicas * nb * 4);
    }
    device->calls->lend(device, nullptr, 0);
}

/* --- Reference --- */

/* f(i) for i < n, on all processors. */
static void parallel(int64_t n, const std::function<void(int64_t)> &f)
{
    std::vector<std::thread> threads;
    std::atomic<int64_t> next{0};
    for (unsigned k = 0; k < std::thread::hardware_concurrency(); k++)
        threads.emplace_back([&] {
            for (int64_t i; (i = next++) < n;)
                f(i);
        });
    for (auto &t : threads)
        t.join();
}

typedef std::vector<double> doubles;

static double mask(const test_case &c, const example_of &e, int64_t position, size_t module, int64_t channel)
{
    if (c.dropout == 0)
        return 1;
    tm_philox p = tm_philox_at(c.keys[e.replica], (uint32_t)channel / 4, (uint32_t)position, e.index, (uint32_t)(7 + module));
    return p.word[channel % 4] / 256 < ceil((double)c.dropout * 16777216) ? 0 : 1 / (1 - (double)c.dropout);
}

struct reference_of {
    doubles y, dx;
    std::vector<doubles> xa, dxa, da, db;
};

static reference_of reference(const test_case &c)
{
    reference_of f;
    f.y.resize(c.rows * c.out);
    f.dx.resize(c.rows * c.in);
    auto as = [&](const halves &v) {
        doubles o(v.size());
        for (size_t i = 0; i < v.size(); i++)
            o[i] = from_half(c.type, v[i]);
        return o;
    };
    doubles x = as(c.x), dy = as(c.dy), y0 = as(c.y0), dx0 = as(c.dx0);
    for (size_t i = 0; i < c.modules.size(); i++) {
        f.xa.push_back(doubles(c.rows * c.modules[i].r));
        f.dxa.push_back(f.xa[i]);
        f.da.push_back(doubles(c.da0[i].begin(), c.da0[i].end()));
        f.db.push_back(doubles(c.db0[i].begin(), c.db0[i].end()));
    }
    parallel(c.rows, [&](int64_t t) {
        for (int64_t n = 0; n < c.out; n++) {
            double s = c.lone ? y0[t * c.out + n] : c.bias ? c.bias_values[n] : 0;
            for (int64_t k = 0; !c.lone && k < c.in; k++)
                s += x[t * c.in + k] * c.w[n * c.in + k];
            f.y[t * c.out + n] = s;
        }
        for (int64_t k = 0; k < c.in; k++)
            f.dx[t * c.in + k] = c.lone || c.accumulate ? dx0[t * c.in + k] : 0;
        for (int64_t n = 0; !c.lone && n < c.out; n++)
            for (int64_t k = 0; k < c.in; k++)
                f.dx[t * c.in + k] += dy[t * c.out + n] * c.w[n * c.in + k];
    });
    for (size_t i = 0; i < c.modules.size(); i++) {
        auto &m = c.modules[i];
        double scale = 0.5 + i;
        for (auto &e : c.examples) {
            const float *a = &c.a[i][e.replica * m.r * c.in], *b = &c.b[i][e.replica * m.out * m.r];
            double *da = &f.da[i][e.replica * m.r * c.in], *db = &f.db[i][e.replica * m.out * m.r];
            doubles dropped(e.length * c.in);
            parallel(e.length, [&](int64_t q) {
                int64_t t = e.first + q;
                doubles factor(c.in);
                for (int64_t k = 0; k < c.in; k++)
                    dropped[q * c.in + k] = x[t * c.in + k] * (factor[k] = mask(c, e, q, i, k));
                for (int64_t j = 0; j < m.r; j++) {
                    double xa = 0, dxa = 0;
                    for (int64_t k = 0; k < c.in; k++)
                        xa += dropped[q * c.in + k] * a[j * c.in + k];
                    for (int64_t n = 0; n < m.out; n++)
                        dxa += scale * dy[t * c.out + m.first + n] * b[n * m.r + j];
                    f.xa[i][t * m.r + j] = xa;
                    f.dxa[i][t * m.r + j] = dxa;
                    for (int64_t k = 0; k < c.in; k++)
                        f.dx[t * c.in + k] += factor[k] * dxa * a[j * c.in + k];
                    for (int64_t n = 0; n < m.out; n++)
                        f.y[t * c.out + m.first + n] += scale * xa * b[n * m.r + j];
                }
            });
            parallel(m.r, [&](int64_t j) {
                for (int64_t q = 0; q < e.length; q++) {
                    int64_t t = e.first + q;
                    for (int64_t k = 0; k < c.in; k++)
                        da[j * c.in + k] += f.dxa[i][t * m.r + j] * dropped[q * c.in + k];
                    for (int64_t n = 0; n < m.out; n++)
                        db[n * m.r + j] += scale * f.xa[i][t * m.r + j] * dy[t * c.out + m.first + n];
                }
            });
        }
    }
    return f;
}

static double worst[6];
static const char *names[6] = {"y", "dx", "xa", "dxa", "da", "db"};

static void compare(const std::string &name, int what, double bound, int64_t n, const std::function<double(int64_t)> &got, const doubles &want)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = got(i) - want[i];
        d += e * e;
        s += want[i] * want[i];
    }
    double relative = sqrt(d / s);
    if (!(relative <= worst[what]))
        worst[what] = relative;
    if (!(relative <= bound)) {
        failures++;
        printf("%s: %s is off by %.2e, bound %.1e\n", name.c_str(), names[what], relative, bound);
    }
}

template <class T> static int64_t differences(const std::vector<T> &a, const std::vector<T> &b)
{
    int64_t n = 0;
    for (size_t i = 0; i < a.size(); i++)
        n += memcmp(&a[i], &b[i], sizeof a[i]) != 0;
    return n;
}

static void same(const std::string &name, const char *what, const results &a, const results &b)
{
    int64_t n[6] = {differences(a.y, b.y), differences(a.dx, b.dx)};
    for (size_t i = 0; i < a.xa.size(); i++) {
        n[2] += differences(a.xa[i], b.xa[i]);
        n[3] += differences(a.dxa[i], b.dxa[i]);
        n[4] += differences(a.da[i], b.da[i]);
        n[5] += differences(a.db[i], b.db[i]);
    }
    for (int i = 0; i < 6; i++)
        if (n[i]) {
            failures++;
            printf("%s: %s: %lld elements of %s differ\n", name.c_str(), what, (long long)n[i], names[i]);
        }
}

static void check(const std::string &name, const test_case &c)
{
    reference_of f = reference(c);
    results r = nothing(c), again = nothing(c), alone = nothing(c), micro = nothing(c), fixed = nothing(c), tight = nothing(c), rounds = nothing(c);
    run(c, c.examples, 0, c.replicas, 0, &r);
    /* Few rows do not average: there a bound is what so many roundings (2^-9 in bf16) may do at most, not what they mostly do. */
    double one = (c.type == TM_BF16 ? 1 : 0.125) * (ON_GPU ? 1 : 2);
    auto half = [&](const halves &v) { return [&](int64_t i) { return (double)from_half(c.type, v[i]); }; };
    auto real = [&](const floats &v) { return [&](int64_t i) { return (double)v[i]; }; };
    /* An output is rounded once: 1.7e-3; what the deltas' factors lose, up to four roundings, shows where deltas rule. */
    compare(name, 0, 4e-3 * one, c.rows * c.out, half(r.y), f.y);
    if (!c.real_x)
        compare(name, 1, 4e-3 * one, c.rows * c.in, half(r.dx), f.dx);
    for (size_t i = 0; i < c.modules.size(); i++) {
        compare(name, 2, 3e-3 * one, c.rows * c.modules[i].r, real(r.xa[i]), f.xa[i]);
        compare(name, 3, 3e-3 * one, c.rows * c.modules[i].r, real(r.dxa[i]), f.dxa[i]);
        if (!c.real_x)
            compare(name, 4, 4e-3 * one, r.da[i].size(), real(r.da[i]), f.da[i]);
        if (!c.real_y)
            compare(name, 5, 4e-3 * one, r.db[i].size(), real(r.db[i]), f.db[i]);
    }
    run(c, c.examples, 0, c.replicas, 0, &again);
    same(name, "twice", r, again);
    for (int32_t k = 0; k < c.replicas; k++)
        run(c, c.examples, k, 1, 0, &alone);
    same(name, "alone", r, alone);
    std::vector<example_of> half_of[2];
    for (auto &e : c.examples)
        half_of[e.index >= 2].push_back(e);
    run(c, half_of[0], 0, c.replicas, 0, &micro);
    run(c, half_of[1], 0, c.replicas, 0, &micro);
    same(name, "micro-batches", r, micro);
    run(c, c.examples, 0, c.replicas, 77, &fixed);
    same(name, "fixed batch", r, fixed);
    run(c, c.examples, 0, c.replicas, 0, &tight, 0);
    same(name, "no room", r, tight);
    run(c, c.examples, 0, c.replicas, 0, &rounds, 3 << 19);
    same(name, "some room", r, rounds);
}

#define check_some(...)               \
    do {                              \
        if (chosen(16, random_bits())) \
            check(__VA_ARGS__);       \
    } while (0)

static void check_all(uint64_t seed)
{
    random_bits.seed(seed);
    for (float dropout : {0.0f, 0.1f})
        for (int32_t replicas : {1, 3})
            for (tm_dtype type : {TM_BF16, TM_F16}) {
                if (type == TM_F16 && replicas == 1)
                    continue;
                std::vector<int> lengths = {300, 17, 256, 1, 700, 64, 33, 512, 5};
                if (!ON_GPU)
                    lengths = {70, 1, 257, 5};
                std::string name = std::string(tm_dtype_name(type)) + " R " + std::to_string(replicas) + " dropout " + std::to_string(dropout) + " ";
                tm_dtype w = random_bits() & 1 ? TM_F32 : type;
                check_some(name + "r 16", make_case(type, type, 320, 512, {{0, 512, 16}}, replicas, dropout, false, lengths));
                check_some(name + "qkv 16", make_case(type, w, 264, 408, {{0, 264, 16}, {264, 72, 16}, {336, 72, 16}}, replicas, dropout, false, lengths));
                check_some(name + "q v 8", make_case(type, w, 96, 408, {{0, 264, 8}, {336, 72, 8}}, replicas, dropout, false, lengths));
                check_some(name + "1 4 5", make_case(type, w, 200, 160, {{0, 40, 1}, {40, 40, 4}, {80, 80, 5}}, replicas, dropout, false, lengths));
                check_some(name + "64 x 3", make_case(type, type, 136, 264, {{0, 88, 64}, {88, 88, 64}, {176, 88, 64}}, replicas, dropout, false, lengths));
                check_some(name + "lone 16", make_case(type, type, 328, 136, {{0, 136, 16}}, replicas, dropout, true, lengths));
                check_some(name + "lone 7, y f32", make_case(type, type, 264, 7, {{0, 7, 7}}, replicas, dropout, true, lengths, false, true));
                if (dropout == 0)
                    check_some(name + "lone 9, x f32", make_case(type, type, 9, 264, {{0, 264, 9}}, replicas, dropout, true, lengths, true, false));
                check_some(name + "lone 4", make_case(type, type, 64, 1000, {{0, 1000, 4}}, replicas, dropout, true, lengths));
                check_some(name + "lone 256", make_case(type, type, 72, 80, {{0, 80, 256}}, replicas, dropout, true, lengths));
                check_some(name + "lone 100", make_case(type, type, 72, 80, {{0, 80, 100}}, replicas, dropout, true, lengths));
            }
    printf("worst relative differences:");
    for (int i = 0; i < 6; i++)
        printf(" %s %.2e", names[i], worst[i]);
    printf("\n");
}

/* --- Times --- */

/* Of one call, in a graph of eight. */
static double milliseconds(const std::function<void()> &f)
{
    cudaEvent_t start, stop;
    cudaEventCreate(&start);
    cudaEventCreate(&stop);
    cudaStream_t stream = tm_cuda_of(device)->stream;
    tm_graph *graph;
    f();
    need(device->calls->graph_begin(device, &err) == TM_OK, "graph");
    for (int k = 0; k < 8; k++)
        f();
    need(device->calls->graph_end(device, &graph, &err) == TM_OK, "graph");
    float best = 1e30f;
    for (int i = 0; i < 3; i++) {
        cudaEventRecord(start, stream);
        device->calls->graph_run(device, graph);
        cudaEventRecord(stop, stream);
        cudaEventSynchronize(stop);
        float t;
        cudaEventElapsedTime(&t, start, stop);
        best = t / 8 < best ? t / 8 : best;
    }
    device->calls->graph_destroy(device, graph);
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return best;
}

static void times(const char *name, int64_t T, int64_t in, std::vector<int64_t> outs, float dropout, int64_t length)
{
    memory m;
    int64_t out = 0, r = 16, ranks = r * (int64_t)outs.size();
    for (int64_t n : outs)
        out += n;
    std::vector<int32_t> position, chunk, group = {0, (int32_t)T}, group_chunk = {0};
    std::vector<uint32_t> example;
    for (int64_t t = 0; t < T; t++) {
        if (t % length % TM_CHUNK_TOKENS == 0)
            chunk.push_back((int32_t)t);
        position.push_back((int32_t)(t % length));
        example.push_back((uint32_t)(t / length));
    }
    group_chunk.push_back((int32_t)chunk.size());
    chunk.push_back((int32_t)T);
    tm_rows rows = {T, 1, (int64_t)chunk.size() - 1, m.put(position), m.put(example), m.put(chunk), m.put(group), m.put(group_chunk)};
    auto zeros = [&](tm_dtype type, int64_t n, int64_t cols) {
        tm_tensor t = tm_tensor_make(m.take(tm_dtype_bytes(type, n * cols)), type, n, cols);
        device->calls->zero(device, t.data, tm_dtype_bytes(type, n * cols));
        return t;
    };
    tm_tensor x = zeros(TM_BF16, T, in), y = zeros(TM_BF16, T, out), none = tm_tensor_none();
    tm_step_params *step = m.put(std::vector<tm_step_params>(1));
    std::vector<tm_lora_part> parts;
    int64_t first = 0;
    for (int64_t n : outs) {
        parts.push_back({{zeros(TM_F32, r, in), zeros(TM_F32, n, r), 2, dropout, 7, step}, first, zeros(TM_F32, T, r), zeros(TM_F32, T, r), zeros(TM_F32, r, in), zeros(TM_F32, n, r)});
        first += n;
    }
    int64_t bytes = 8 * 256 + 2 * ((in + out) * ranks + 2 * T * ranks) + (int64_t)parts.size() * T * low_mask_pitch(in) + (400 << 20);
    device->calls->lend(device, m.take(bytes), bytes);
    void *side = m.take(T * ranks * 2), *side_xa = m.take(T * ranks * 2), *pa = m.take(in * ranks * 2), *pb = m.take(out * ranks * 2), *bits = dropout > 0 ? m.take((int64_t)outs.size() * T * low_mask_pitch(in)) : nullptr;
    int64_t room_bytes = 400 << 20;
    void *room = m.take(room_bytes);
    device->calls->zero(device, side, T * ranks * 2);
    device->calls->zero(device, side_xa, T * ranks * 2);
    low_group g = {rows, step, in, out, (int)parts.size(), (int)ranks, (int)ranks, dropout > 0};
    first = 0;
    for (size_t i = 0; i < parts.size(); i++, first += r)
        g.part[i] = {parts[i].lr.a, parts[i].lr.b, parts[i].xa, parts[i].dxa, parts[i].da, parts[i].db, parts[i].first, outs[i], (int)r, (int)first, 2, tm_cuda_drop_of(7, dropout)};
    double pack = milliseconds([&] { low_pack(device, "time", g, TM_BF16, pa, pb, side_xa); });
    double forward = milliseconds([&] { low_forward(device, "time", g, x, pa, side); });
    double backward = milliseconds([&] { low_backward(device, "time", g, y, pb, side); });
    low_group ga = g, gb = g;
    for (auto &p : ga.part)
        p.db = none;
    for (auto &p : gb.part)
        p.da = none;
    double da = milliseconds([&] { low_gradients(device, "time", ga, x, y, side, side_xa, bits, room, room_bytes); });
    double db = milliseconds([&] { low_gradients(device, "time", gb, x, y, side, side_xa, bits, room, room_bytes); });
    double once = milliseconds([&] { low_backward_once(device, "time", g, y, pb, side, side_xa, room, room_bytes); });
    double add = milliseconds([&] { low_add_backward(device, "time", g, side, pa, x, bits); });
    double bx = 2e-6 * T * in, by = 2e-6 * T * out;
    printf("%-13s x %3.0f dy %3.0f MB|pack %3.1f us|xa %5.1f us %4.0f GB/s|dxa %5.1f %4.0f|db %5.1f %4.0f|both at once %5.1f %4.0f|da %5.1f %4.0f|dx + %5.1f %4.0f",
           name, bx, by, 1e3 * pack, 1e3 * forward, bx / forward, 1e3 * backward, by / backward, 1e3 * db, by / db, 1e3 * once, by / once, 1e3 * da, bx / da, 1e3 * add, 2 * bx / add);
    tm_tensor w = zeros(TM_BF16, out, in);
    int n = (int)parts.size();
    double lf = milliseconds([&] { TM_RUN(device, lora_forward, &rows, x, w, none, n, parts.data(), y, TM_ACT_NONE, tm_tensor_none()); });
    double f = milliseconds([&] { TM_RUN(device, linear_forward, &rows, x, w, none, y); });
    double lb = milliseconds([&] { TM_RUN(device, lora_backward, &rows, y, x, w, false, n, parts.data(), x); });
    double b = milliseconds([&] { TM_RUN(device, linear_backward_input, &rows, y, w, false, x); });
    printf("|forward %.3f ms, without %.3f; backward %.3f, without %.3f", lf, f, lb, b);
    printf("\n");
    sync();
    device->calls->lend(device, nullptr, 0);
}

/* A few in the default run: what is slow shows. */
static void all_times(bool brief)
{
    for (float dropout : {0.0f, 0.05f}) {
        if (brief && dropout > 0)
            break;
        printf("dropout %g\n", dropout);
        times("7B qkv", 8192, 3584, {3584, 512, 512}, dropout, 2048);
        times("7B gate_up", 8192, 3584, {18944, 18944}, dropout, 2048);
        times("7B down", 8192, 18944, {3584}, dropout, 2048);
        times("0.5B qkv", 16384, 896, {896, 128, 128}, dropout, 512);
        times("0.5B gate_up", 16384, 896, {4864, 4864}, dropout, 512);
        if (brief)
            continue;
        times("7B o", 8192, 3584, {3584}, dropout, 2048);
        times("1.5B qkv", 16384, 1536, {1536, 256, 256}, dropout, 2048);
        times("1.5B gate_up", 16384, 1536, {8960, 8960}, dropout, 2048);
        times("1.5B down", 16384, 8960, {1536}, dropout, 2048);
        times("0.5B o", 16384, 896, {896}, dropout, 512);
        times("0.5B down", 16384, 4864, {896}, dropout, 512);
        times("7B qkv 1024", 1024, 3584, {3584, 512, 512}, dropout, 1024);
        times("0.5B qkv 100", 16384, 896, {896, 128, 128}, dropout, 100);
    }
}

int main(int argc, char **argv)
{
    std::string what = argc > 1 ? argv[1] : "";
    need(tm_cuda_plugin_table.create(0, &device, &err) == TM_OK, "device");
    uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 0) : fresh_seed();
    if (what != "time")
        check_all(seed);
    if (ON_GPU && what != "check")
        all_times(what != "time");
    printf("%s, TEST_SEED=%llu\n", failures ? "FAILED" : "ok", (unsigned long long)seed);
    device->calls->destroy(device);
    return failures != 0;
}
