/* Layout of micro-batches: what ops are told about rows, chunks, groups, spans and slices of targets,
 * for lists of items at random, against the definitions in device/tensor.h and model/batch.h. */
#include "../support/run.h"

#include "model/batch.h"

static uint64_t seed;

enum { MAX_TOKENS = 2000, MAX_ITEMS = 30, MAX_REPLICAS = 4 };

typedef struct list {
    tm_batch_item item[MAX_ITEMS];
    int32_t *ids[MAX_ITEMS];
    float *weight[MAX_ITEMS];
    int64_t count, tokens; /* rows, of prompts too */
    int32_t prefix;        /* rows of a prompt before every item */
} list;

/* Lengths around the chunk, sparse and dense targets, weights other than 1. */
static void draw(list *l, dice *d, int32_t replicas, int32_t prefix)
{
    *l = (list){.prefix = prefix};
    int64_t most = dice_in(d, 1, MAX_ITEMS);
    for (int32_t replica = 0; l->count < most;) {
        int64_t n = dice_in(d, 0, 2) ? dice_in(d, 1, 60) : dice_in(d, 250, 530);
        if (l->tokens + prefix + n > MAX_TOKENS)
            break;
        while (replica + 1 < replicas && dice_in(d, 0, 3) == 0)
            replica++;
        int32_t *ids = malloc((size_t)n * 4);
        float *weight = dice_in(d, 0, 1) ? malloc((size_t)n * 4) : NULL;
        double share = dice_unit(d);
        for (int64_t t = 0; t < n; t++) {
            ids[t] = (int32_t)dice_in(d, 0, 9999);
            if (weight)
                weight[t] = t && dice_unit(d) < share ? (float)dice_in(d, 1, 4) / 2 : 0;
        }
        l->item[l->count] = (tm_batch_item){.ids = ids, .weight = weight, .n = (int32_t)n, .replica = replica, .index = dice_word(d), .scale = dice_unit(d) + 0.01,
                                            .kl = dice_in(d, 0, 2) ? 0 : dice_unit(d), .teacher_row = dice_in(d, 0, 1000)};
        l->ids[l->count] = ids;
        l->weight[l->count++] = weight;
        l->tokens += prefix + n;
    }
}

static void drop(list *l)
{
    for (int64_t i = 0; i < l->count; i++) {
        free(l->ids[i]);
        free(l->weight[i]);
    }
}

static float weight_of(const tm_batch_item *item, int32_t t) { return item->weight ? item->weight[t] : 1; }

static void check_rows(const tm_batch *b, const list *l, int32_t replicas)
{
    const tm_rows *rows = &b->rows;
    int64_t row = 0, chunk = 0;
    if (!b->fixed) {
        assert_int_equal(rows->n, l->tokens);
        assert_int_equal(b->spans.n, l->count);
    }
    assert_int_equal(rows->replicas, replicas);
    for (int64_t e = 0; e < l->count; e++) {
        const tm_batch_item *item = &l->item[e];
        int32_t n = l->prefix + item->n;
        assert_int_equal(b->spans.query[e], row);
        assert_int_equal(b->spans.key[e], row);
        assert_int_equal(b->spans.keys[e], n);
        assert_in_range(row, rows->group[item->replica], rows->group[item->replica + 1] - 1);
        assert_in_range(row + n - 1, rows->group[item->replica], rows->group[item->replica + 1] - 1);
        for (int32_t t = 0; t < n; t++, row++) {
            int32_t id = t < l->prefix ? -1 : item->ids[t - l->prefix];
            assert_int_equal(b->ids[row], id);
            if (b->table_rows)
                assert_int_equal(b->table_row[row], id < 0 ? -1 : id + item->replica * b->table_rows);
            if (b->prefix)
                assert_int_equal(b->prompt_row[row], id < 0 ? t + item->replica * l->prefix : -1);
            if (b->replicas_wanted)
                assert_int_equal(b->replica_row[row], item->replica);
            assert_int_equal(rows->position[row], t);
            assert_int_equal(rows->example[row], item->index);
            if (t % TM_CHUNK_TOKENS == 0)
                assert_int_equal(rows->chunk[chunk++], row);
        }
        assert_true(rows->group_chunk[item->replica] < chunk && chunk <= rows->group_chunk[item->replica + 1]);
    }
    if (!b->fixed)
        assert_int_equal(chunk, rows->chunks);
    assert_int_equal(rows->chunk[chunk], row);
    assert_int_equal(b->spans.query[l->count], row);
    assert_int_equal(rows->group[0], 0);
    assert_int_equal(rows->group_chunk[0], 0);
    assert_int_equal(rows->group[replicas], row);
    assert_int_equal(rows->group_chunk[replicas], chunk);
    for (int32_t r = 0; r < replicas; r++)
        assert_int_equal(rows->chunk[rows->group_chunk[r]], rows->group[r]); /* groups start with a chunk */
}

/* What a fixed batch has beyond its data: rows of nobody, empty chunks and examples. */
static void check_padding(const tm_batch *b, const list *l)
{
    assert_int_equal(b->rows.n, MAX_TOKENS);
    assert_int_equal(b->spans.n, b->max_examples);
    for (int64_t row = l->tokens; row < MAX_TOKENS; row++) {
        assert_true(b->ids[row] == 0 && b->rows.position[row] == 0 && b->rows.example[row] == 0);
        if (b->table_rows)
            assert_int_equal(b->table_row[row], -1);
        if (b->prefix)
            assert_int_equal(b->prompt_row[row], -1);
        if (b->replicas_wanted)
            assert_int_equal(b->replica_row[row], -1);
    }
    assert_int_equal(b->rows.group[b->replicas], l->tokens); /* no replica has them */
    for (int64_t c = b->rows.group_chunk[b->replicas]; c <= b->rows.chunks; c++)
        assert_int_equal(b->rows.chunk[c], l->tokens);
    for (int64_t e = l->count; e < b->max_examples; e++)
        assert_true(b->spans.query[e + 1] == l->tokens && b->spans.key[e] == l->tokens && b->spans.keys[e] == 0);
    assert_int_equal(b->head_rows, MAX_TOKENS);
    for (int64_t i = b->targets; i < MAX_TOKENS; i++)
        assert_true(b->target_row[i] == -1 && b->target[i] == 0 && b->teacher_row[i] == -1 && ((const float *)b->weight.data)[i] == 0);
    int64_t next = 0;
    for (int64_t s = 0; s < b->slices; s++) {
        assert_int_equal(b->slice[s].first, next);
        next += b->slice[s].rows.n;
    }
    assert_int_equal(next, MAX_TOKENS);
}

static void check_targets(const tm_batch *b, const list *l)
{
    int64_t target = 0, row = 0, seen = 0;
    bool teacher = false;
    for (int64_t e = 0; e < l->count; row += l->prefix + l->item[e++].n, seen = 0)
        for (int32_t t = 1; t < l->item[e].n; t++) {
            const tm_batch_item *item = &l->item[e];
            if (weight_of(item, t) == 0)
                continue;
            assert_int_equal(b->target_row[target], row + l->prefix + t - 1);
            assert_int_equal(b->target[target], item->ids[t]);
            assert_int_equal(b->target_item[target], e);
            assert_int_equal(b->target_token[target], t);
            assert_true(((const float *)b->weight.data)[target] == (float)(weight_of(item, t) * item->scale));
            assert_int_equal(b->teacher_row[target], item->kl > 0 ? item->teacher_row + seen : -1);
            teacher |= item->kl > 0;
            seen++;
            target++;
        }
    assert_int_equal(b->targets, target);
    assert_int_equal(b->any_teacher, teacher);
    for (int64_t i = 0; teacher && i < target; i++) {
        const tm_batch_item *item = &l->item[b->target_item[i]];
        assert_true(((const float *)b->teacher_weight.data)[i] == (float)item->kl);
    }
}

/* Which chunk of which item a target's predicting row is in. */
static int64_t chunk_of(const tm_batch *b, int64_t target)
{
    return (int64_t)b->target_item[target] * 1000 + (b->prefix + b->target_token[target] - 1) / TM_CHUNK_TOKENS;
}

static void check_slices(const tm_batch *b, const list *l, int32_t replicas)
{
    int64_t next = 0;
    for (int64_t s = 0; s < b->slices; s++) {
        const tm_rows *rows = &b->slice[s].rows;
        assert_int_equal(b->slice[s].first, next);
        assert_true(rows->n > 0 && rows->n <= TM_CHUNK_TOKENS);
        assert_int_equal(rows->replicas, replicas);
        int64_t chunk = 0;
        for (int64_t i = 0; i < rows->n; i++) {
            const tm_batch_item *item = &l->item[b->target_item[next + i]];
            assert_int_equal(rows->position[i], l->prefix + b->target_token[next + i] - 1);
            assert_int_equal(rows->example[i], item->index);
            assert_in_range(i, rows->group[item->replica], rows->group[item->replica + 1] - 1);
            if (i == 0 || chunk_of(b, next + i) != chunk_of(b, next + i - 1))
                assert_int_equal(rows->chunk[chunk++], i);
            assert_in_range(chunk - 1, rows->group_chunk[item->replica], rows->group_chunk[item->replica + 1] - 1);
        }
        assert_int_equal(rows->chunks, chunk);
        assert_int_equal(rows->chunk[chunk], rows->n);
        assert_int_equal(rows->group[0], 0);
        assert_int_equal(rows->group[replicas], rows->n);
        assert_int_equal(rows->group_chunk[replicas], chunk);
        next += rows->n;
        if (s + 1 < b->slices) /* a chunk is never cut: its sum is one link of the chain */
            assert_int_not_equal(chunk_of(b, next), chunk_of(b, next - 1));
    }
    assert_int_equal(next, b->targets);
}

/* An arena sized by the counting device, as in a run. */
static void batch_open(tm_batch *b, tm_memory *memory, tm_device **device, int64_t items, int32_t replicas)
{
    int64_t limits[TM_MEM_KINDS];
    OK(tm_counting_device_create(tm_cpu_traits(), device, err));
    OK(tm_memory_init(memory, *device, NULL, err));
    OK(tm_batch_create(b, memory, *device, MAX_TOKENS, items, replicas, err));
    tm_memory_peaks(memory, limits);
    tm_batch_destroy(b);
    tm_memory_deinit(memory);
    tm_device_destroy(*device);
    OK(tm_cpu_device_create(1, TM_ISA_AUTO, device, err));
    OK(tm_memory_init(memory, *device, limits, err));
    OK(tm_batch_create(b, memory, *device, MAX_TOKENS, items, replicas, err));
}

static void random_lists(void **state)
{
    (void)state;
    dice d = {.key = seed};
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int32_t replicas = 1; replicas <= MAX_REPLICAS; replicas++) {
        tm_batch b;
        tm_memory memory;
        tm_device *device;
        batch_open(&b, &memory, &device, MAX_ITEMS, replicas);
        for (int i = 0; i < 150; i++) {
            list l;
            b.prefix = dice_in(&d, 0, 1) ? (int32_t)dice_in(&d, 1, 40) : 0;
            b.table_rows = dice_in(&d, 0, 1) ? 10000 : 0;
            b.replicas_wanted = dice_in(&d, 0, 1);
            b.fixed = dice_in(&d, 0, 2) == 0;
            draw(&l, &d, replicas, b.prefix);
            tm_batch_fill(&b, l.item, l.count);
            check_rows(&b, &l, replicas);
            check_targets(&b, &l);
            if (b.fixed)
                check_padding(&b, &l);
            else
                check_slices(&b, &l, replicas);
            drop(&l);
        }
        tm_batch_destroy(&b);
        tm_memory_deinit(&memory);
        tm_device_destroy(device);
    }
}

/* The capacity may be used up: as many items as there is room for, of one token; and one item of all. */
static void full_capacity(void **state)
{
    (void)state;
    tm_batch b;
    tm_memory memory;
    tm_device *device;
    static int32_t ids[MAX_TOKENS];
    list l = {.count = MAX_ITEMS, .tokens = MAX_TOKENS};
    batch_open(&b, &memory, &device, MAX_ITEMS, 2);
    for (int i = 0; i < MAX_ITEMS; i++)
        l.item[i] = (tm_batch_item){.ids = ids, .n = 1 + (i % 7 == 0 ? 257 : 0), .scale = 1, .index = (uint32_t)i, .replica = i > 20};
    l.tokens = 0;
    for (int i = 0; i < MAX_ITEMS; i++)
        l.tokens += l.item[i].n;
    tm_batch_fill(&b, l.item, l.count);
    check_rows(&b, &l, 2);
    check_targets(&b, &l);
    check_slices(&b, &l, 2);
    l = (list){.count = 1, .tokens = MAX_TOKENS, .item = {{.ids = ids, .n = MAX_TOKENS, .scale = 1, .replica = 1}}};
    tm_batch_fill(&b, l.item, 1);
    check_rows(&b, &l, 2);
    check_targets(&b, &l);
    check_slices(&b, &l, 2);
    tm_batch_destroy(&b);
    tm_memory_deinit(&memory);
    tm_device_destroy(device);
}

static int begin(void **state)
{
    (void)state;
    seed = fresh_seed();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_lists), cmocka_unit_test(full_capacity)};
    return cmocka_run_group_tests_name("batch", tests, begin, NULL);
}
