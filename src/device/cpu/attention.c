/* Causal attention inside spans, forward and backward. docs/math/attention.md.
 *
 * The rows of a tile are TILE (query, head of a kv group) pairs of one span and one kv head: row r is
 * query r / G, head r % G. They lie along the lanes; keys pass by in blocks of BLOCK. Inside, matrices
 * are transposed: [key][row] and [column][row].
 *
 * Invariants:
 *  1. Every lane does the chain its row would do alone: nothing depends on the tile a query is in, on
 *     the number of queries, or on what stands beyond the last key it sees (see the document).
 *  2. Blocks start at multiples of BLOCK keys of the span.
 *  3. The T x T matrix exists in pieces of BLOCK x TILE in the thread's scratch memory.
 *  4. Tiles may be visited by one task or by many: chains over rows (dk, dv) and over keys (dq) are
 *     continued in memory, so both ways give the same bits. */
#include "device/cpu/math.h"
#include "device/cpu/pack.h"
#include "device/cpu/row.h"

#include <assert.h>

enum { TILE = 64, BLOCK = 64 };
#define NEVER ((real)-1e30) /* below every score, and finite: differences stay defined */

typedef struct work {
    const tm_spans *spans;
    const tm_attention *a;
    tm_tensor q, k, v, out, lse; /* forward and backward */
    tm_tensor dout, delta, dq, dk, dv;
    int64_t D, Dr; /* head size; rounded up to whole vectors */
    int64_t G;
    bool whole;    /* backward: one task does all tiles and blocks of a (span, kv head) */
    bool want_dq, want_dkv;
} work;

/* One thread's view of the (span, kv head, tile) it works on. All arrays in its scratch memory. */
typedef struct tile {
    const work *w;
    int64_t span, kv_head, first; /* first row of the tile inside the span */
    int64_t rows, wide;           /* rows in use; rounded up to whole vectors: what is computed */
    int64_t low, high;            /* position of the first and the last query */
    real *position;               /* [TILE] */
    real *qt, *ot;                /* [Dr][TILE]: queries; output (backward: dq) */
    real *k, *v;                  /* [BLOCK][Dr] */
    real *p, *ds;                 /* [BLOCK][TILE] */
    real *max, *sum, *factor;     /* [TILE] */
    real *qr, *gr, *gt;           /* backward: queries and dout [TILE][Dr]; dout [Dr][TILE] */
    real *lse, *delta;            /* backward [TILE] */
    real *slope;                  /* backward [BLOCK][TILE]: of the soft cap */
    real *dk, *dv;                /* backward [keys of the task][Dr]: what is left of the scratch memory */
} tile;

/* --- Small matrix products --- */

/* c[i][lanes] (+)= sum over x < length, ascending, of a[i * ai + x * ax] * b[x][lanes], for NB rows i
 * and NV vectors of lanes. */
V16_FN void product_tile(int nb, int nv, int64_t length, const real *a, int64_t ai, int64_t ax, const real *b, int64_t bx,
                         bool add, real *c, int64_t ci)
{
    v16 sum[4][4];
    for (int i = 0; i < nb; i++)
        for (int j = 0; j < nv; j++)
            sum[i][j] = add ? v16_get(c + i * ci + j * V16) : v16_zero();
    for (int64_t x = 0; x < length; x++) {
        v16 row[4];
        for (int j = 0; j < nv; j++)
            row[j] = v16_get(b + x * bx + j * V16);
        for (int i = 0; i < nb; i++) {
            v16 value = v16_set1(a[i * ai + x * ax]);
            for (int j = 0; j < nv; j++)
                sum[i][j] = v16_fma(value, row[j], sum[i][j]);
        }
    }
    for (int i = 0; i < nb; i++)
        for (int j = 0; j < nv; j++)
            v16_put(c + i * ci + j * V16, sum[i][j]);
}

/* The widest tile whose sums fit in registers. */
#if defined(TM_SIMD_AVX512)
enum { WIDE = 4 };
#else
enum { WIDE = 1 };
#endif

/* The same for n rows (a multiple of 4: arrays are padded) and `vectors` vectors of lanes. */
static void product(int64_t n, int64_t vectors, int64_t length, const real *a, int64_t ai, int64_t ax, const real *b,
                    int64_t bx, bool add, real *c, int64_t ci)
{
    for (int64_t j = 0; j < vectors;) {
        if (WIDE == 4 && vectors - j >= 4) {
            for (int64_t i = 0; i < n; i += 4)
                product_tile(4, 4, length, a + i * ai, ai, ax, b + j * V16, bx, add, c + i * ci + j * V16, ci);
            j += 4;
        } else {
            for (int64_t i = 0; i < n; i += 4)
                product_tile(4, 1, length, a + i * ai, ai, ax, b + j * V16, bx, add, c + i * ci + j * V16, ci);
            j += 1;
        }
    }
}

/* --- Loading --- */

/* Where a tile's rows stand in a [T, H*D] tensor. */
typedef struct cursor {
    int64_t token, head, first_head, end_head;
} cursor;

static cursor rows_begin(const tile *t)
{
    int64_t G = t->w->G, base = t->kv_head * G;
    return (cursor){t->w->spans->query[t->span] + t->first / G, base + t->first % G, base, base + G};
}

V16_FN void rows_next(cursor *c)
{
    if (++c->head == c->end_head) {
        c->head = c->first_head;
        c->token++;
    }
}

/* D elements at index `at` of t to out[Dr], padded with zeros. */
V16_FN void load_typed(const void *p, tm_dtype dtype, int64_t at, int64_t D, real *out)
{
    int64_t i = 0;
    for (; i + V16 <= D; i += V16)
        v16_put(out + i, v16_load(p, dtype, at + i));
    if (i < D)
        v16_put(out + i, v16_load_n(p, dtype, at + i, (int)(D - i)));
}

V16_FN void load_head(tm_tensor t, int64_t row, int64_t column, int64_t D, real *out)
{
    if (t.dtype == TM_REAL)
        load_typed(t.data, TM_REAL, row * t.ld + column, D, out);
    else
        load_typed(t.data, t.dtype, row * t.ld + column, D, out);
}

/* The tile's rows of a [T, H*D] tensor: [wide][Dr], rows beyond the last one zero. */
static void load_rows(const tile *t, tm_tensor from, real *out)
{
    int64_t D = t->w->D, Dr = t->w->Dr;
    cursor c = rows_begin(t);
    for (int64_t r = 0; r < t->rows; r++, rows_next(&c))
        load_head(from, c.token, c.head * D, D, out + r * Dr);
    memset(out + t->rows * Dr, 0, sizeof(real) * (size_t)((t->wide - t->rows) * Dr));
}

/* The first `rows` of [][ld_from] to [cols][ld_to]; rows and cols are multiples of V16. */
static void transpose(const real *from, int64_t rows, int64_t cols, int64_t ld_from, real *to, int64_t ld_to)
{
    for (int64_t r = 0; r < rows; r += V16)
        for (int64_t c = 0; c < cols; c += V16) {
            v16 block[V16];
#pragma GCC unroll 16
            for (int i = 0; i < V16; i++)
                block[i] = v16_get(from + (r + i) * ld_from + c);
            v16_transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < V16; i++)
                v16_put(to + (c + i) * ld_to + r, block[i]);
        }
}

/* Keys first .. first + count of the span as [count][Dr]; rows up to a multiple of 4 are zero. */
static void load_keys(const tile *t, tm_tensor from, int64_t first, int64_t count, real *out)
{
    const work *w = t->w;
    for (int64_t j = 0; j < count; j++)
        load_head(from, w->spans->key[t->span] + first + j, t->kv_head * w->D, w->D, out + j * w->Dr);
    memset(out + count * w->Dr, 0, sizeof(real) * (size_t)((-count & 3) * w->Dr));
}

static real *take(real **memory, int64_t elements)
{
    real *p = *memory;
    *memory += elements;
    return p;
}

/* What tile_init takes of the scratch memory; every part is a multiple of a cache line. */
static int64_t tile_elements(const work *w) { return 6 * TILE + 7 * TILE * w->Dr + 3 * BLOCK * TILE; }

static tile tile_init(const work *w, void *scratch, int64_t span, int64_t kv_head)
{
    tile t = {.w = w, .span = span, .kv_head = kv_head};
    real *memory = scratch;
    real **vectors[] = {&t.position, &t.max, &t.sum, &t.factor, &t.lse, &t.delta};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = take(&memory, TILE);
    real **heads[] = {&t.qt, &t.ot, &t.k, &t.v, &t.qr, &t.gr, &t.gt};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        *heads[i] = take(&memory, TILE * w->Dr);
    real **blocks[] = {&t.p, &t.ds, &t.slope};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        *blocks[i] = take(&memory, BLOCK * TILE);
    t.dk = memory;
    assert(memory - (real *)scratch == tile_elements(w));
    assert((char *)(memory + 2 * BLOCK * w->Dr) <= (char *)scratch + TM_CPU_SCRATCH_BYTES); /* head sizes below 1500 */
    return t;
}

static void tile_rows(tile *t, int64_t first)
{
    const tm_spans *s = t->w->spans;
    int64_t queries = s->query[t->span + 1] - s->query[t->span], all = queries * t->w->G;
    int64_t before = s->keys[t->span] - queries;
    t->first = first;
    t->rows = all - first < TILE ? all - first : TILE;
    t->wide = (t->rows + V16 - 1) / V16 * V16;
    t->low = before + first / t->w->G;
    t->high = before + (first + t->rows - 1) / t->w->G;
    int64_t at = t->low, head = first % t->w->G;
    for (int64_t r = 0; r < TILE; r++) {
        t->position[r] = (real)(r < t->rows ? at : t->high);
        if (++head == t->w->G) {
            head = 0;
            at++;
        }
    }
}

/* First key that some row of the tile sees, down to a whole block. */
static int64_t first_block(const tile *t)
{
    int64_t key = t->w->a->window > 0 ? t->low - t->w->a->window + 1 : 0;
    return key > 0 ? key / BLOCK * BLOCK : 0;
}

/* --- Scores --- */

/* p = scores of `count` keys from `first` on, scaled and capped; slope|0 = the cap's derivative. Unseen keys
 * get -infinity. */
static void scores(const tile *t, int64_t first, int64_t count, real *slope)
{
    const tm_attention *a = t->w->a;
    product((count + 3) & ~3, t->wide / V16, t->w->D, t->k, t->w->Dr, 1, t->qt, TILE, false, t->p, TILE);
    bool masks = first + count - 1 > t->low || (a->window > 0 && first <= t->high - a->window);
    v16 scale = v16_set1((real)a->scale), cap = v16_set1((real)a->softcap), one = v16_set1(1);
    v16 hidden = v16_set1(-INFINITY);
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < t->wide; i += V16) {
            v16 s = v16_mul(v16_get(t->p + j * TILE + i), scale);
            if (a->softcap > 0) {
                v16 th = v16_tanh(v16_div(s, cap));
                s = v16_mul(cap, th);
                if (slope)
                    v16_put(slope + j * TILE + i, v16_fnma(th, th, one));
            }
            if (masks) {
                v16 at = v16_get(t->position + i), key = v16_set1((real)(first + j));
                s = v16_select(v16_le(key, at), s, hidden);
                if (a->window > 0)
                    s = v16_select(v16_lt(v16_sub(at, v16_set1((real)a->window)), key), s, hidden);
            }
            v16_put(t->p + j * TILE + i, s);
        }
}

/* --- Forward --- */

/* One block of the online softmax: p becomes exp(score - max), the running sums follow. */
static void softmax_block(const tile *t, int64_t count)
{
    for (int64_t i = 0; i < t->wide; i += V16) {
        v16 before = v16_get(t->max + i), max = before;
        for (int64_t j = 0; j < count; j++)
            max = v16_max(v16_get(t->p + j * TILE + i), max);
        v16 factor = v16_exp(v16_sub(before, max)), sum = v16_mul(v16_get(t->sum + i), factor);
        for (int64_t j = 0; j < count; j++) {
            v16 e = v16_exp(v16_sub(v16_get(t->p + j * TILE + i), max));
            v16_put(t->p + j * TILE + i, e);
            sum = v16_add(sum, e);
        }
        v16_put(t->max + i, max);
        v16_put(t->sum + i, sum);
        for (int64_t c = 0; c < t->w->D; c++)
            v16_put(t->ot + c * TILE + i, v16_mul(v16_get(t->ot + c * TILE + i), factor));
    }
}

/* The tile's rows of a [T, H*D] tensor out of ot; qr is overwritten. */
static void store_rows(const tile *t, tm_tensor to)
{
    const work *w = t->w;
    transpose(t->ot, w->Dr, t->wide, TILE, t->qr, w->Dr);
    cursor at = rows_begin(t);
    for (int64_t r = 0; r < t->rows; r++, rows_next(&at))
        for (int64_t i = 0; i < w->D; i += V16)
            lanes_store(to, at.token, at.head * w->D + i, lanes_at(w->D, i), v16_get(t->qr + r * w->Dr + i));
}

static void store_output(const tile *t)
{
    const work *w = t->w;
    for (int64_t i = 0; i < t->wide; i += V16) {
        v16 sum = v16_get(t->sum + i);
        for (int64_t c = 0; c < w->D; c++) {
            v16 o = v16_div(v16_get(t->ot + c * TILE + i), sum);
            v16_put(t->ot + c * TILE + i, v16_add(o, v16_zero())); /* one sign of zero */
        }
        v16_put(t->lse + i, v16_add(v16_get(t->max + i), v16_log(sum)));
    }
    store_rows(t, w->out);
    cursor at = rows_begin(t);
    for (int64_t r = 0; r < t->rows && w->lse.data; r++, rows_next(&at))
        real_store(w->lse.data, w->lse.dtype, at.token * w->lse.ld + at.head, t->lse[r]);
}

static void forward_tile(const work *w, void *scratch, int64_t span, int64_t kv_head, int64_t first)
{
    tile t = tile_init(w, scratch, span, kv_head);
    tile_rows(&t, first);
    load_rows(&t, w->q, t.qr);
    transpose(t.qr, t.wide, w->Dr, w->Dr, t.qt, TILE);
    memset(t.ot, 0, sizeof(real) * (size_t)(w->Dr * TILE));
    for (int64_t r = 0; r < TILE; r++) {
        t.max[r] = NEVER;
        t.sum[r] = 0;
    }
    for (int64_t key = first_block(&t); key <= t.high; key += BLOCK) {
        int64_t count = t.high + 1 - key < BLOCK ? t.high + 1 - key : BLOCK;
        load_keys(&t, w->k, key, count, t.k);
        load_keys(&t, w->v, key, count, t.v);
        scores(&t, key, count, NULL);
        softmax_block(&t, count);
        product((w->D + 3) & ~3, t.wide / V16, count, t.v, 1, w->Dr, t.p, TILE, true, t.ot, TILE);
    }
    store_output(&t);
}

static int64_t span_tiles(const work *w, int64_t span)
{
    return task_count((w->spans->query[span + 1] - w->spans->query[span]) * w->G, TILE);
}

/* Task numbers run over spans, then kv heads, then units (tiles or key blocks) of the span. */
typedef struct place {
    int64_t span, kv_head, unit;
} place;

static place find_place(const work *w, int64_t task, int64_t (*units)(const work *, int64_t))
{
    for (int64_t span = 0;; span++) {
        int64_t count = units(w, span), all = count * w->a->kv_heads;
        if (task < all)
            return (place){span, task / count, task % count};
        task -= all;
    }
}

static int64_t count_tasks(const work *w, int64_t (*units)(const work *, int64_t))
{
    int64_t tasks = 0;
    for (int64_t span = 0; span < w->spans->n; span++)
        tasks += units(w, span) * w->a->kv_heads;
    return tasks;
}

static void forward_task(void *context, int64_t task, int thread)
{
    const work *w = ((void **)context)[0];
    place at = find_place(w, task, span_tiles);
    forward_tile(w, tm_cpu_scratch(((void **)context)[1], thread), at.span, at.kv_head, at.unit * TILE);
}

void TM_KERNEL(attention_forward)(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k,
                                  tm_tensor v, tm_tensor out, tm_tensor lse)
{
    work w = {.spans = spans, .a = a, .q = q, .k = k, .v = v, .out = out, .lse = lse, .D = a->head_size,
              .Dr = (a->head_size + V16 - 1) / V16 * V16, .G = a->heads / a->kv_heads};
    tm_cpu *cpu = tm_cpu_of(d);
    tm_pool_run(cpu->pool, forward_task, (void *[]){&w, cpu}, count_tasks(&w, span_tiles));
}

/* --- Backward --- */

/* One tile against the keys first .. first + count: p and ds, then what is wanted of dq, dk and dv. */
static void backward_block(const tile *t, int64_t first, int64_t count, real *dk, real *dv)
{
    const work *w = t->w;
    int64_t padded = (count + 3) & ~3, columns = w->Dr / V16;
    bool capped = w->a->softcap > 0;
    load_keys(t, w->k, first, count, t->k);
    load_keys(t, w->v, first, count, t->v);
    scores(t, first, count, capped ? t->slope : NULL);
    product(padded, t->wide / V16, w->D, t->v, w->Dr, 1, t->gt, TILE, false, t->ds, TILE);
    v16 scale = v16_set1((real)w->a->scale);
    for (int64_t j = 0; j < padded; j++)
        for (int64_t i = 0; i < t->wide; i += V16) {
            real *p = t->p + j * TILE + i, *ds = t->ds + j * TILE + i;
            if (j >= count) {
                v16_put(p, v16_zero());
                v16_put(ds, v16_zero());
                continue;
            }
            v16 e = v16_exp(v16_sub(v16_get(p), v16_get(t->lse + i)));
            v16 s = v16_mul(v16_mul(e, v16_sub(v16_get(ds), v16_get(t->delta + i))), scale);
            if (capped)
                s = v16_mul(s, v16_get(t->slope + j * TILE + i));
            v16_put(p, e);
            v16_put(ds, s);
        }
    if (w->want_dq)
        product((w->D + 3) & ~3, t->wide / V16, count, t->k, 1, w->Dr, t->ds, TILE, true, t->ot, TILE);
    if (w->want_dkv) {
        product(padded, columns, t->rows, t->p, TILE, 1, t->gr, w->Dr, true, dv, w->Dr);
        product(padded, columns, t->rows, t->ds, TILE, 1, t->qr, w->Dr, true, dk, w->Dr);
    }
}

static void load_gradients(tile *t, int64_t first)
{
    const work *w = t->w;
    tile_rows(t, first);
    load_rows(t, w->q, t->qr);
    load_rows(t, w->dout, t->gr);
    transpose(t->qr, t->wide, w->Dr, w->Dr, t->qt, TILE);
    transpose(t->gr, t->wide, w->Dr, w->Dr, t->gt, TILE);
    memset(t->ot, 0, sizeof(real) * (size_t)(w->Dr * TILE));
    memset(t->lse, 0, sizeof(real) * TILE);
    memset(t->delta, 0, sizeof(real) * TILE);
    cursor at = rows_begin(t);
    for (int64_t r = 0; r < t->rows; r++, rows_next(&at)) {
        t->lse[r] = real_load(w->lse.data, w->lse.dtype, at.token * w->lse.ld + at.head);
        t->delta[r] = real_load(w->delta.data, w->delta.dtype, at.token * w->delta.ld + at.head);
    }
}

static void store_keys(const tile *t, tm_tensor to, int64_t first, int64_t count, const real *from)
{
    const work *w = t->w;
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < w->D; i += V16)
            lanes_store(to, w->spans->key[t->span] + first + j, t->kv_head * w->D + i, lanes_at(w->D, i),
                        v16_get(from + j * w->Dr + i));
}

/* Tiles against keys of one (span, kv head), in the fixed order: tiles ascending, blocks ascending.
 * Tiles first_tile .. last_tile - 1; keys first_key .. last_key - 1 (whole blocks, or to the end). */
static void backward_part(const work *w, tile *t, int64_t first_tile, int64_t last_tile, int64_t first_key,
                          int64_t last_key)
{
    int64_t keys = last_key - first_key, padded = (keys + 3) & ~3;
    t->dv = t->dk; /* unused without want_dkv: a span's keys need not fit then */
    if (w->want_dkv) {
        t->dv = t->dk + padded * w->Dr;
        memset(t->dk, 0, sizeof(real) * (size_t)(2 * padded * w->Dr));
    }
    for (int64_t i = first_tile; i < last_tile; i++) {
        tile_rows(t, i * TILE);
        if (t->high < first_key || first_block(t) >= last_key)
            continue;
        load_gradients(t, i * TILE);
        int64_t key = first_block(t) > first_key ? first_block(t) : first_key;
        for (; key <= t->high && key < last_key; key += BLOCK) {
            int64_t end = t->high + 1 < last_key ? t->high + 1 : last_key, count = end - key < BLOCK ? end - key : BLOCK;
            int64_t at = w->want_dkv ? (key - first_key) * w->Dr : 0;
            backward_block(t, key, count, t->dk + at, t->dv + at);
        }
        if (w->want_dq)
            store_rows(t, w->dq);
    }
    if (w->want_dkv) {
        store_keys(t, w->dk, first_key, keys, t->dk);
        store_keys(t, w->dv, first_key, keys, t->dv);
    }
}

static int64_t span_once(const work *w, int64_t span) { return w->spans->query[span + 1] > w->spans->query[span]; }
static int64_t span_blocks(const work *w, int64_t span) { return task_count(w->spans->keys[span], BLOCK); }

static void backward_task(void *context, int64_t task, int thread)
{
    const work *w = ((void **)context)[0];
    place at = find_place(w, task, w->whole ? span_once : w->want_dq ? span_tiles : span_blocks);
    tile t = tile_init(w, tm_cpu_scratch(((void **)context)[1], thread), at.span, at.kv_head);
    int64_t tiles = span_tiles(w, at.span), keys = w->spans->keys[at.span];
    if (w->whole)
        backward_part(w, &t, 0, tiles, 0, keys);
    else if (w->want_dq)
        backward_part(w, &t, at.unit, at.unit + 1, 0, keys);
    else
        backward_part(w, &t, 0, tiles, at.unit * BLOCK, (at.unit + 1) * BLOCK < keys ? (at.unit + 1) * BLOCK : keys);
}

/* delta = dout . out of every row and head */
static void delta_rows(void *context, int64_t task, int thread)
{
    const work *w = ((void **)context)[0];
    (void)thread;
    int64_t size = task_rows(w->q.cols), n = w->spans->query[w->spans->n];
    for (int64_t t = task * size; t < task_end(task, size, n); t++)
        for (int64_t h = 0; h < w->a->heads; h++) {
            v16 sum = v16_zero();
            for (int64_t i = 0; i < w->D; i += V16) {
                int lanes = lanes_at(w->D, i);
                sum = v16_fma(lanes_load(w->dout, t, h * w->D + i, lanes), lanes_load(w->out, t, h * w->D + i, lanes), sum);
            }
            real_store(w->delta.data, w->delta.dtype, t * w->delta.ld + h, v16_reduce_add(sum));
        }
}

/* Whether one task can hold dk and dv of the longest span. */
static bool fits_whole(const work *w)
{
    int64_t room = TM_CPU_SCRATCH_BYTES / (int64_t)sizeof(real) - tile_elements(w);
    for (int64_t span = 0; span < w->spans->n; span++)
        if (2 * (w->spans->keys[span] + 3) * w->Dr > room)
            return false;
    return true;
}

void TM_KERNEL(attention_backward)(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor dout, tm_tensor q,
                                   tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse, tm_tensor delta, tm_tensor dq,
                                   tm_tensor dk, tm_tensor dv)
{
    work w = {.spans = spans, .a = a, .q = q, .k = k, .v = v, .out = out, .lse = lse, .dout = dout, .delta = delta,
              .dq = dq, .dk = dk, .dv = dv, .D = a->head_size, .Dr = (a->head_size + V16 - 1) / V16 * V16,
              .G = a->heads / a->kv_heads};
    tm_cpu *cpu = tm_cpu_of(d);
    void *context[] = {&w, cpu};
    tm_pool_run(cpu->pool, delta_rows, context, task_count(spans->query[spans->n], task_rows(q.cols)));
    /* One pass computes the scores once, but has only as many tasks as spans x kv heads; the bits are
     * the same either way, so the choice may look at the threads. */
    w.want_dq = w.want_dkv = w.whole = true;
    if (fits_whole(&w) && count_tasks(&w, span_once) >= 2 * tm_pool_threads(cpu->pool)) {
        tm_pool_run(cpu->pool, backward_task, context, count_tasks(&w, span_once));
        return;
    }
    w.whole = w.want_dkv = false;
    tm_pool_run(cpu->pool, backward_task, context, count_tasks(&w, span_tiles));
    w.want_dq = false;
    w.want_dkv = true;
    tm_pool_run(cpu->pool, backward_task, context, count_tasks(&w, span_blocks));
}
