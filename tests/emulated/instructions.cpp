/* What the emulated GPU's instructions do: products of warps, copies in the background, barriers in memory.
 *
 * What a GPU does in the background happens here at once or only when it is waited for, as the dice have it: data that
 * are read too early are old ones, and data that are overwritten too early were not read yet. Tensor copies to
 * shared memory happen while threads wait, in any order. A warpgroup's product may begin for one of its warps (sixteen
 * rows of it) before the others have come; it is done when it is for all four.
 *
 * Sums of products: in f32, in the order of k. */
#include "engine.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

static float from_half(uint16_t h, bool is_bf16)
{
#ifdef __F16C__
    return is_bf16 ? tm_bf16_to_f32(h) : _cvtsh_ss(h);
#else
    return is_bf16 ? tm_bf16_to_f32(h) : tm_f16_to_f32(h);
#endif
}

static bool has_halves(uint32_t two, bool is_bf16, float *to)
{
    to[0] = from_half((uint16_t)two, is_bf16);
    to[1] = from_half((uint16_t)(two >> 16), is_bf16);
    return true;
}

/* c[rows of 16][n] += a[16][16] b[16][n] */
static void multiply(float *__restrict c, const float (*__restrict a)[16], const float *__restrict b, int n)
{
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++) {
            float x = a[r][k];
            for (int j = 0; j < n; j++)
                c[r * n + j] += x * b[k * n + j];
        }
}

/* Where elements 2 half and 2 half + 1 of lane l's fragment of sixteen rows lie: its row; the column is 2 (l % 4). */
static int row_of(int lane, int half) { return lane / 4 + 8 * half; }

/* A of sixteen by sixteen from the lanes' registers. */
static void spread_a(float (*a)[16], int lane, const uint32_t *r, bool is_bf16)
{
    for (int i = 0; i < 4; i++)
        has_halves(r[i], is_bf16, &a[row_of(lane, i % 2)][lane % 4 * 2 + i / 2 * 8]);
}

struct mma_operand {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
    bool is_bf16;
};

static void mma_now(emulated_warp &w)
{
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < 32; l++) {
        const mma_operand *o = (const mma_operand *)w.operand[l];
        if (!o)
            emulated_fail("a product without lane %d", l);
        spread_a(a, l, o->a, o->is_bf16);
        for (int i = 0; i < 2; i++) {
            float two[2];
            has_halves(o->b[i], o->is_bf16, two);
            b[l % 4 * 2 + i * 8][l / 4] = two[0];
            b[l % 4 * 2 + i * 8 + 1][l / 4] = two[1];
        }
        for (int i = 0; i < 4; i++)
            c[row_of(l, i / 2)][l % 4 * 2 + i % 2] = o->c[i];
    }
    multiply(c[0], a, b[0], 8);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            ((const mma_operand *)w.operand[l])->c[i] = c[row_of(l, i / 2)][l % 4 * 2 + i % 2];
}

void emulated_mma(bool is_bf16, float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    mma_operand o = {c, a, {b0, b1}, is_bf16};
    emulated_meeting(~0u, "a product", &o, mma_now, EMULATED_CALLER);
}

/* --- Matrices of eight by eight between shared memory and fragments --- */

struct matrices {
    uint32_t r[4];
    uint16_t *row; /* of matrix lane / 8, row lane % 8 */
};

static uint16_t *row_at(const void *p)
{
    uint32_t address = emulated_shared_address(p);
    if (address % 16)
        emulated_fail("rows of matrices begin at multiples of 16 bytes, this one at %u", address);
    return (uint16_t *)emulated_shared_at(address, 16);
}

static matrices *all_lanes(emulated_warp &w, int lane)
{
    if (!w.operand[lane])
        emulated_fail("matrices without lane %d", lane);
    return (matrices *)w.operand[lane];
}

void load_matrices(uint32_t (&r)[4], const void *p)
{
    matrices m = {{}, row_at(p)};
    emulated_meeting(~0u, "matrices", &m, [](emulated_warp &w) {
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++)
                memcpy(&all_lanes(w, l)->r[i], all_lanes(w, 8 * i + l / 4)->row + l % 4 * 2, 4);
    }, EMULATED_CALLER);
    memcpy(r, m.r, sizeof r);
}

void load_matrices_transposed(uint32_t (&r)[4], const void *p)
{
    matrices m = {{}, row_at(p)};
    emulated_meeting(~0u, "turned matrices", &m, [](emulated_warp &w) {
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++)
                all_lanes(w, l)->r[i] = all_lanes(w, 8 * i + l % 4 * 2)->row[l / 4] | (uint32_t)all_lanes(w, 8 * i + l % 4 * 2 + 1)->row[l / 4] << 16;
    }, EMULATED_CALLER);
    memcpy(r, m.r, sizeof r);
}

void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    matrices m = {{a, b, c, d}, row_at(to)};
    emulated_meeting(~0u, "matrices to store", &m, [](emulated_warp &w) {
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++)
                memcpy(all_lanes(w, 8 * i + l / 4)->row + l % 4 * 2, &all_lanes(w, l)->r[i], 4);
    }, EMULATED_CALLER);
}

/* --- cp.async --- */

static void copy_now(const emulated_copy &c)
{
    memcpy(c.to, c.from, (size_t)c.bytes);
    memset((char *)c.to + c.bytes, 0, (size_t)(16 - c.bytes));
}

void copy_async_bytes(void *shared, const void *global, int bytes)
{
    emulated_thread *t = emulated_self();
    uint32_t address = emulated_shared_address(shared);
    if (address % 16 || (uintptr_t)global % 16 || bytes < 0 || bytes > 16)
        emulated_fail("cp.async of %d bytes from %p to %u: both are multiples of 16", bytes, global, address);
    emulated_copy c = {emulated_shared_at(address, 16), global, bytes, t->copy_group};
    if (t->of->draw(2))
        copy_now(c);
    else
        t->copies.push_back(c);
}

void copy_commit() { emulated_self()->copy_group++; }

void emulated_copy_wait(int pending)
{
    emulated_thread *t = emulated_self();
    size_t kept = 0;
    for (const emulated_copy &c : t->copies)
        if (c.group < t->copy_group - pending)
            copy_now(c);
        else
            t->copies[kept++] = c;
    t->copies.resize(kept);
}

/* --- Barriers in memory --- */

struct barrier_word {
    uint64_t mark : 12, phase : 1, count : 12, left : 12;
    int64_t bytes : 27;
};
static_assert(sizeof(barrier_word) == 8, "a barrier is a word");
enum { BARRIER_MARK = 0x5a5 };

static barrier_word word_at(const uint64_t *bar)
{
    barrier_word w;
    memcpy(&w, emulated_shared_at(emulated_shared_address(bar), 8), 8);
    if (w.mark != BARRIER_MARK)
        emulated_fail("a barrier that was not initialised, or overwritten");
    return w;
}

static void set_word(uint64_t *bar, barrier_word w)
{
    bool done = w.left == 0 && w.bytes == 0;
    if (done) {
        w.phase ^= 1;
        w.left = w.count;
    }
    memcpy((void *)bar, &w, 8);
    if (done)
        emulated_barrier_moved(emulated_self()->of);
}

void barrier_init(uint64_t *bar, int count)
{
    barrier_word w = {BARRIER_MARK, 0, (unsigned)count, (unsigned)count, 0};
    emulated_shared_address(bar);
    memcpy((void *)bar, &w, 8);
}

static void arrive(uint64_t *bar, int bytes)
{
    barrier_word w = word_at(bar);
    if (w.left == 0)
        emulated_fail("more arrive at a barrier than its %u", (unsigned)w.count);
    w.left--;
    w.bytes += bytes;
    set_word(bar, w);
}
void barrier_expect(uint64_t *bar, int bytes) { arrive(bar, bytes); }
void barrier_arrive(uint64_t *bar) { arrive(bar, 0); }

bool emulated_barrier_passed(const uint64_t *bar, int parity) { return word_at(bar).phase != (unsigned)parity; }

void barrier_wait(uint64_t *bar, int parity)
{
    emulated_thread *t = emulated_self();
    if (emulated_barrier_passed(bar, parity))
        return;
    t->of->waiters.push_back({t, bar, parity});
    emulated_stop("a barrier in memory", EMULATED_CALLER);
}

void fence_shared() {}

/* --- Products of warpgroups --- */

/* Eight elements at an address of a descriptor's matrix, swizzled. */
static void eight_at(uint32_t address, bool is_bf16, float *to, int apart)
{
    uint16_t h[8];
    memcpy(h, emulated_shared_at(address ^ (address >> 7 & 7) << 4, 16), 16);
    for (int i = 0; i < 8; i++)
        to[i * apart] = from_half(h[i], is_bf16);
}

/* Elements (i, k) for i in [first, first + count), k in [0, 16) of the matrix that a descriptor names, to to[k][i - first] (k_first:
 * to[i - first][k]). */
static void matrix_at(uint64_t descriptor, bool turned, int first, int count, bool is_bf16, float *to, bool k_first)
{
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, leading = (uint32_t)(descriptor >> 16 & 0x3fff) << 4, stride = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7))
        emulated_fail("a descriptor of a layout that is not emulated: %#llx", (unsigned long long)descriptor);
    int of_i = k_first ? 16 : 1, of_k = k_first ? 1 : count;
    if (turned)
        for (int k = 0; k < 16; k++)
            for (int i = first; i < first + count; i += 8)
                eight_at(start + i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * 2, is_bf16, to + k * of_k + (i - first) * of_i, of_i);
    else
        for (int i = first; i < first + count; i++)
            for (int k = 0; k < 16; k += 8)
                eight_at(start + i / 8 * stride + i % 8 * 128 + k * 2, is_bf16, to + k * of_k + (i - first) * of_i, of_k);
}

static void product_now(const emulated_factors_of_warp &p)
{
    static const int MOST = 256;
    const emulated_factors &f = p.f;
    int n = f.n * 8;
    float a[16][16], b[16 * MOST], c[16 * MOST];
    if (f.registers)
        for (int l = 0; l < 32; l++)
            spread_a(a, l, p.registers[l], f.is_bf16);
    else
        matrix_at(f.a, f.a_turned, p.first, 16, f.is_bf16, a[0], true);
    matrix_at(f.b, f.b_turned, 0, n, f.is_bf16, b, false);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < f.n * 4; i++)
            c[row_of(l, i / 2 % 2) * n + i / 4 * 8 + l % 4 * 2 + i % 2] = f.add ? p.c[l][i] : 0;
    multiply(c, a, b, n);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < f.n * 4; i++)
            p.c[l][i] = c[row_of(l, i / 2 % 2) * n + i / 4 * 8 + l % 4 * 2 + i % 2];
}

static void products_now(emulated_warp &w, int before)
{
    while (!w.products.empty() && w.products.front().group < before) {
        product_now(w.products.front());
        w.products.pop_front();
    }
}

struct product_operand {
    float *c;
    const emulated_factors *f;
};

void emulated_product(float *c, const emulated_factors &f)
{
    product_operand o = {c, &f};
    if (emulated_self()->thread.x / 128 * 128 + 128 > emulated_self()->of->count)
        emulated_fail("a warpgroup's product by less than 128 threads");
    emulated_meeting(~0u, "a warpgroup's product", &o, [](emulated_warp &w) {
        emulated_factors_of_warp p = {};
        for (int l = 0; l < 32; l++) {
            const product_operand *x = (const product_operand *)w.operand[l];
            if (!x)
                emulated_fail("a warpgroup's product without lane %d", l);
            if (l == 0)
                p.f = *x->f;
            if (x->f->a != p.f.a || x->f->b != p.f.b || x->f->add != p.f.add)
                emulated_fail("lanes of a warp disagree about a product's factors");
            p.c[l] = x->c;
            p.registers[l] = x->f->registers;
        }
        if (!w.fenced)
            emulated_fail("a product after a wait without products_begin");
        p.first = (int)(w.lane[0]->thread.x % 128 / 32 * 16);
        p.group = w.product_group;
        w.products.push_back(p);
        if (w.lane[0]->of->draw(4) == 0)
            products_now(w, p.group + 1);
    }, EMULATED_CALLER);
}

void products_begin()
{
    char nothing;
    emulated_meeting(~0u, "products_begin", &nothing, [](emulated_warp &w) { w.fenced = true; }, EMULATED_CALLER);
}

void products_commit()
{
    char nothing;
    emulated_meeting(~0u, "products_commit", &nothing, [](emulated_warp &w) {
        emulated_block *b = w.lane[0]->of;
        w.product_group++;
        b->ready.insert(b->ready.end(), b->behind.begin(), b->behind.end());
        b->behind.clear();
    }, EMULATED_CALLER);
}

void emulated_products_wait(int pending)
{
    emulated_thread *t = emulated_self();
    emulated_warp *group = &t->of->warps[t->thread.x / 128 * 4];
    int before = t->warp->product_group - pending;
    emulated_meeting(~0u, "products_wait", &pending, [](emulated_warp &w) { w.fenced = false; }, EMULATED_CALLER);
    for (int i = 0; i < 4;) /* a product is done when it is for all four warps */
        if (group[i].product_group < before) {
            t->of->behind.push_back(t);
            emulated_stop("products of other warps", EMULATED_CALLER);
        } else
            products_now(group[i++], before);
}

/* --- Tensor copies --- */

CUresult emulated_encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data, const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps,
                         CUtensorMapInterleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
{
    *map = {(char *)data, type, (int)rank, type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2, swizzle == CU_TENSOR_MAP_SWIZZLE_128B, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};
    bool ok = rank >= 1 && rank <= 3 && (uintptr_t)data % 16 == 0;
    for (cuuint32_t i = 0; ok && i < rank; i++) {
        map->size[i] = sizes[i], map->box[i] = box[i], map->stride[i] = i ? strides[i - 1] : (cuuint64_t)map->element;
        ok = sizes[i] && sizes[i] <= (cuuint64_t)1 << 32 && box[i] && box[i] <= 256 && steps[i] == 1 && (i == 0 || (map->stride[i] % 16 == 0 && map->stride[i] < (cuuint64_t)1 << 40));
    }
    ok = ok && box[0] * map->element % 16 == 0 && (!map->swizzled || box[0] * map->element <= 128);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static int box_bytes(const CUtensorMap &m) { return (int)(m.box[0] * m.box[1] * m.box[2]) * m.element; }

/* f(place in the box, element in memory or NULL beyond the matrix) for every element of the box at a place. */
template <class F> static void each_element(const CUtensorMap &m, const int (&at)[3], F f)
{
    int place = 0;
    for (int z = 0; z < (int)m.box[2]; z++)
        for (int y = 0; y < (int)m.box[1]; y++)
            for (int x = 0; x < (int)m.box[0]; x++, place += m.element) {
                int64_t i = (int64_t)at[0] + x, j = (int64_t)at[1] + y, k = (int64_t)at[2] + z;
                bool in = i >= 0 && j >= 0 && k >= 0 && i < (int64_t)m.size[0] && j < (int64_t)m.size[1] && k < (int64_t)m.size[2];
                f(place, in ? m.data + i * m.element + j * (int64_t)m.stride[1] + k * (int64_t)m.stride[2] : nullptr);
            }
}

static char *box_at(const CUtensorMap &m, uint32_t box, int place)
{
    uint32_t address = box + (uint32_t)place;
    return emulated_shared_at(m.swizzled ? address ^ (address >> 7 & 7) << 4 : address, (size_t)m.element);
}

static uint32_t box_address(const void *p, const CUtensorMap *map)
{
    uint32_t address = emulated_shared_address(p);
    if (address % 128)
        emulated_fail("a box begins at a multiple of 128 bytes of shared memory, this one at %u", address);
    emulated_shared_at(address, (size_t)box_bytes(*map));
    return address;
}

void fetch_box(void *to, const CUtensorMap *map, int column, int row, int matrix, uint64_t *bar)
{
    word_at(bar);
    emulated_self()->of->fetches.push_back({*map, box_address(to, map), {column, row, matrix}, bar});
}

void emulated_fetch_now(emulated_block *, const emulated_fetch &f)
{
    each_element(f.map, f.at, [&](int place, const char *from) {
        char *to = box_at(f.map, f.to, place);
        if (from)
            memcpy(to, from, (size_t)f.map.element);
        else
            memset(to, 0, (size_t)f.map.element);
    });
    barrier_word w = word_at(f.bar);
    w.bytes -= box_bytes(f.map);
    set_word(f.bar, w);
}

static void read_box(emulated_store &s)
{
    if (s.read)
        return;
    s.read = true;
    s.held.resize((size_t)box_bytes(s.map));
    each_element(s.map, s.at, [&](int place, const char *) { memcpy(&s.held[(size_t)place], box_at(s.map, s.from, place), (size_t)s.map.element); });
}

static void write_box(const emulated_store &s)
{
    bool is_bf16 = s.map.type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    each_element(s.map, s.at, [&](int place, char *to) {
        const char *from = &s.held[(size_t)place];
        if (!to)
            return;
        if (s.add && s.map.element == 4) {
            float x, y;
            memcpy(&x, from, 4);
            memcpy(&y, to, 4);
            y += x;
            memcpy(to, &y, 4);
        } else if (s.add) {
            uint16_t x, y;
            memcpy(&x, from, 2);
            memcpy(&y, to, 2);
            float sum = from_half(x, is_bf16) + from_half(y, is_bf16);
            y = is_bf16 ? tm_f32_to_bf16(sum) : tm_f32_to_f16(sum);
            memcpy(to, &y, 2);
        } else
            memcpy(to, from, (size_t)s.map.element);
    });
}

void store_box(const CUtensorMap *map, const void *from, int column, int row, int matrix, bool add)
{
    emulated_thread *t = emulated_self();
    t->stores.push_back({*map, box_address(from, map), {column, row, matrix}, add, false, t->store_group, {}});
    if (t->of->draw(2))
        read_box(t->stores.back());
}

void store_commit() { emulated_self()->store_group++; }

void emulated_store_wait(int pending, bool written)
{
    emulated_thread *t = emulated_self();
    size_t kept = 0;
    for (size_t i = 0; i < t->stores.size(); i++) {
        emulated_store &s = t->stores[i];
        bool due = s.group < t->store_group - pending;
        if (due)
            read_box(s);
        if (due && (written || t->of->draw(2)))
            write_box(s);
        else if (kept++ != i)
            t->stores[kept - 1] = s;
    }
    t->stores.resize(kept);
}
