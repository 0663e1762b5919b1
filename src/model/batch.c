/* Micro-batches: see batch.h. */
#include "model/batch.h"

#include "base/buf.h"

#include <assert.h>
#include <stdlib.h>

/* A chunk holds at least one row of an example: at most one a whole 256 tokens and one a rest. */
static int64_t max_chunks(int64_t tokens, int64_t examples) { return examples + tokens / TM_CHUNK_TOKENS; }

static int64_t staging_capacity(const tm_batch *b)
{
    int64_t tokens = b->max_tokens, chunks = max_chunks(b->max_tokens, b->max_examples), group = b->replicas + 1;
    return 6 * tokens + (chunks + 1) + 2 * group          /* ids, table, prompt and replica rows, position, example; chunk; groups */
           + 3 * b->max_examples + 1                      /* spans */
           + 5 * tokens                                   /* target row, target, position, example, teacher row */
           + 2 * chunks + 2 * chunks * group;             /* slices: chunk bounds, groups */
}

tm_status tm_batch_create(tm_batch *b, tm_memory *memory, tm_device *device, int64_t max_tokens, int64_t max_examples, int32_t replicas, tm_error *err)
{
    *b = (tm_batch){.max_tokens = max_tokens, .max_examples = max_examples, .replicas = replicas, .device = device};
    tm_arena *arena = &memory->arena[TM_MEM_BATCH];
    b->resident = tm_arena_take(arena, staging_capacity(b) * 4);
    b->weight = tm_arena_tensor(arena, device->real, 1, max_tokens);
    b->teacher_weight = tm_arena_tensor(arena, device->real, 1, max_tokens);
    b->square_weight = tm_arena_tensor(arena, device->real, 1, max_tokens);
    b->loss = tm_arena_tensor(arena, device->real, 1, max_tokens);
    b->kl = tm_arena_tensor(arena, device->real, 1, max_tokens);
    b->hit = tm_arena_take(arena, max_tokens * 4);
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&b->staging, staging_capacity(b), err));
    TM_GO(tm_alloc(&b->staging_real, (size_t)max_tokens, 8, err));
    TM_GO(TM_NEW(&b->slice, max_chunks(b->max_tokens, b->max_examples), err));
    TM_GO(TM_NEW(&b->item_past, max_examples, err));
    TM_GO(TM_NEW(&b->item_n, max_examples, err));
    TM_GO(TM_NEW(&b->item_length, max_examples, err));
    TM_GO(TM_NEW(&b->target_item, max_tokens, err));
    TM_GO(TM_NEW(&b->target_token, max_tokens, err));
    TM_GO(TM_NEW(&b->host_loss, max_tokens, err));
    TM_GO(TM_NEW(&b->host_kl, max_tokens, err));
    TM_GO(TM_NEW(&b->host_hit, max_tokens, err));
out:
    if (st != TM_OK)
        tm_batch_destroy(b);
    return st;
}

void tm_batch_destroy(tm_batch *b)
{
    free(b->staging);
    free(b->staging_real);
    free(b->slice);
    free(b->item_past);
    free(b->item_n);
    free(b->item_length);
    free(b->target_item);
    free(b->target_token);
    free(b->host_loss);
    free(b->host_kl);
    free(b->host_hit);
    free(b->host_gate);
    *b = (tm_batch){0};
}

/* n integers of the staging block: filled on the host here, read on the device there. */
static int32_t *stage(tm_batch *b, int64_t n, const int32_t **resident)
{
    int32_t *host = b->staging + b->staging_count;
    *resident = b->resident + b->staging_count;
    b->staging_count += n;
    assert(b->staging_count <= staging_capacity(b));
    return host;
}

/* Rows, chunks and examples up to the capacities: empty ones, so that sums and attention end where the data does. */
static void fill_shape(tm_batch *b, int64_t count, int32_t *const tables[3], int32_t *ids, int32_t *position, int32_t *index, int32_t *chunk, int32_t *query, int32_t *key, int32_t *keys)
{
    int32_t row = (int32_t)b->rows.n;
    for (int64_t t = row; t < b->max_tokens; t++)
        ids[t] = position[t] = index[t] = 0;
    for (int k = 0; k < 3; k++)
        for (int64_t t = row; tables[k] && t < b->max_tokens; t++)
            tables[k][t] = -1;
    for (int64_t c = b->rows.chunks; c <= max_chunks(b->max_tokens, b->max_examples); c++)
        chunk[c] = row;
    for (int64_t e = count; e < b->max_examples; e++) {
        query[e + 1] = key[e] = row;
        keys[e] = 0;
    }
    b->rows.n = b->max_tokens;
    b->rows.chunks = max_chunks(b->max_tokens, b->max_examples);
    b->spans.n = b->max_examples;
}

/* Room for `most` rows of `examples` examples. */
static void lay_rows(tm_batch *b, const tm_batch_item *items, int64_t count, int64_t most, int64_t examples)
{
    const int32_t *example;
    int32_t *ids = stage(b, most, &b->ids), *position = stage(b, most, &b->rows.position);
    int32_t *index = stage(b, most, &example);
    int32_t *table_row = b->table_rows ? stage(b, most, &b->table_row) : NULL;
    int32_t *prompt_row = b->prefix ? stage(b, most, &b->prompt_row) : NULL;
    int32_t *replica_row = b->replicas_wanted ? stage(b, most, &b->replica_row) : NULL;
    int32_t *chunk = stage(b, max_chunks(most, examples) + 1, &b->rows.chunk);
    int32_t *group = stage(b, b->replicas + 1, &b->rows.group);
    int32_t *group_chunk = stage(b, b->replicas + 1, &b->rows.group_chunk);
    int32_t *query = stage(b, examples + 1, &b->spans.query);
    int32_t *key = stage(b, examples, &b->spans.key), *keys = stage(b, examples, &b->spans.keys);
    b->rows.example = (const uint32_t *)example;
    int64_t row = 0, chunks = 0;
    int32_t replica = -1;
    for (int64_t e = 0; e < count; e++) {
        const tm_batch_item *item = &items[e];
        assert(item->replica >= replica && item->replica < b->replicas);
        for (; replica < item->replica; replica++) {
            group[replica + 1] = (int32_t)row;
            group_chunk[replica + 1] = (int32_t)chunks;
        }
        query[e] = (int32_t)row;
        key[e] = b->cached ? (int32_t)(item->slot * b->cache_tokens) : (int32_t)row;
        int32_t n = tm_batch_item_rows(b, item), prefix = n - item->n;
        keys[e] = item->past + n;
        for (int32_t t = 0; t < n; t++, row++) {
            if (t % TM_CHUNK_TOKENS == 0)
                chunk[chunks++] = (int32_t)row;
            int32_t id = t < prefix ? -1 : item->ids[t - prefix];
            ids[row] = id;
            if (table_row)
                table_row[row] = id < 0 ? id : (int32_t)(id + item->replica * b->table_rows);
            if (prompt_row)
                prompt_row[row] = id < 0 ? t + item->replica * prefix : -1;
            if (replica_row)
                replica_row[row] = item->replica;
            position[row] = item->past + t;
            index[row] = (int32_t)item->index;
        }
    }
    for (; replica < b->replicas; replica++) {
        group[replica + 1] = (int32_t)row;
        group_chunk[replica + 1] = (int32_t)chunks;
    }
    chunk[chunks] = query[count] = (int32_t)row;
    b->rows.n = row;
    b->rows.replicas = b->replicas;
    b->rows.chunks = chunks;
    b->spans.n = count;
    b->rows.single = b->cached && b->single;
    b->spans.single = b->rows.single ? b->cache_tokens : 0;
    if (b->fixed)
        fill_shape(b, count, (int32_t *const[]){table_row, prompt_row, replica_row}, ids, position, index, chunk, query, key, keys);
}

/* One slice of targets [first, end): chunk bounds and groups relative to its first row. The chunks
 * are those of the rows that predict, so that a slice's sums join the chain where it was left. */
static void lay_slice(tm_batch *b, const tm_batch_item *items, int64_t first, int64_t end, const int32_t *position, const int32_t *resident_position, const uint32_t *resident_example)
{
    tm_head_slice *slice = &b->slice[b->slices++];
    *slice = (tm_head_slice){.first = first, .rows = {.n = end - first, .replicas = b->replicas,
                             .position = resident_position + first, .example = resident_example + first}};
    int64_t chunks = 0;
    for (int64_t i = first; i < end; i++)
        chunks += i == first || b->target_item[i] != b->target_item[i - 1] ||
                  position[i] / TM_CHUNK_TOKENS != position[i - 1] / TM_CHUNK_TOKENS;
    int32_t *chunk = stage(b, chunks + 1, &slice->rows.chunk);
    int32_t *group = stage(b, b->replicas + 1, &slice->rows.group);
    int32_t *group_chunk = stage(b, b->replicas + 1, &slice->rows.group_chunk);
    slice->rows.chunks = chunks;
    int32_t replica = -1;
    int64_t c = 0;
    for (int64_t i = first; i < end; i++) {
        bool starts = i == first || b->target_item[i] != b->target_item[i - 1] ||
                      position[i] / TM_CHUNK_TOKENS != position[i - 1] / TM_CHUNK_TOKENS;
        for (; replica < items[b->target_item[i]].replica; replica++) {
            group[replica + 1] = (int32_t)(i - first);
            group_chunk[replica + 1] = (int32_t)c;
        }
        if (starts)
            chunk[c++] = (int32_t)(i - first);
    }
    chunk[chunks] = (int32_t)(end - first);
    for (; replica < b->replicas; replica++) {
        group[replica + 1] = (int32_t)(end - first);
        group_chunk[replica + 1] = (int32_t)chunks;
    }
}

static double grad_scale(const tm_batch_item *item) { return item->grad_scale > 0 ? item->grad_scale : 1; }

static void store_real(const tm_batch *b, void *array, int64_t i, double value)
{
    if (b->device->real == TM_F64)
        ((double *)array)[i] = value;
    else
        ((float *)array)[i] = (float)value;
}

/* Slices of a fixed batch: cut by rows alone. No chunks: there is no gradient of the output matrix to sum. */
static void lay_fixed_slices(tm_batch *b, int32_t *row_of, int32_t *target, int32_t *position, int32_t *index, int32_t *teacher_row, const int32_t *resident_position, const uint32_t *resident_example)
{
    for (int64_t i = b->targets; i < b->max_tokens; i++) {
        row_of[i] = teacher_row[i] = -1;
        target[i] = position[i] = index[i] = 0;
        store_real(b, b->staging_real, i, 0);
    }
    b->head_rows = b->max_tokens;
    int64_t rows = b->device->traits.head_rows;
    for (int64_t first = 0; first < b->max_tokens; first += rows) {
        int64_t n = b->max_tokens - first < rows ? b->max_tokens - first : rows;
        b->slice[b->slices++] = (tm_head_slice){.first = first, .rows = {.n = n, .replicas = b->replicas, .position = resident_position + first, .example = resident_example + first}};
    }
}

static void lay_targets(tm_batch *b, const tm_batch_item *items, int64_t count)
{
    const int32_t *resident_position, *resident_example;
    int32_t *row_of = stage(b, b->max_tokens, &b->target_row), *target = stage(b, b->max_tokens, &b->target);
    int32_t *position = stage(b, b->max_tokens, &resident_position), *index = stage(b, b->max_tokens, &resident_example);
    int32_t *teacher_row = stage(b, b->max_tokens, &b->teacher_row);
    int64_t n = 0, row = 0;
    b->any_teacher = b->any_square = false;
    for (int64_t e = 0; e < count; row += tm_batch_item_rows(b, &items[e]), e++) {
        int32_t prefix = tm_batch_item_rows(b, &items[e]) - items[e].n;
        bool asks = tm_batch_item_asks(&items[e]);
        int64_t taught = items[e].teacher_row;
        for (int32_t t = 1; t < items[e].n; t++) {
            float weight = items[e].weight ? items[e].weight[t] : 1;
            if (weight == 0)
                continue;
            row_of[n] = (int32_t)(row + prefix + t - 1);
            target[n] = items[e].ids[t];
            position[n] = prefix + t - 1;
            index[n] = (int32_t)items[e].index;
            b->target_item[n] = (int32_t)e;
            b->target_token[n] = t;
            store_real(b, b->staging_real, n, weight * items[e].scale * grad_scale(&items[e]));
            b->any_teacher |= asks;
            b->any_square |= items[e].square > 0;
            teacher_row[n] = asks ? (int32_t)taught++ : -1;
            n++;
        }
    }
    b->targets = b->head_rows = n;
    b->slices = 0;
    if (b->fixed) {
        lay_fixed_slices(b, row_of, target, position, index, teacher_row, resident_position, (const uint32_t *)resident_example);
        return;
    }
    for (int64_t first = 0; first < n;) {
        /* Grow by whole chunks; a chunk is never longer than a slice. */
        int64_t end = first, next = first;
        while (next < n) {
            do
                next++;
            while (next < n && b->target_item[next] == b->target_item[next - 1] &&
                   position[next] / TM_CHUNK_TOKENS == position[next - 1] / TM_CHUNK_TOKENS);
            if (next - first > b->device->traits.head_rows)
                break;
            end = next;
        }
        lay_slice(b, items, first, end, position, resident_position, (const uint32_t *)resident_example);
        first = end;
    }
}

/* In the cache, in place of targets: where keys and values go. */
static void lay_cache_rows(tm_batch *b, const tm_batch_item *items, int64_t count, int64_t rows)
{
    int32_t *cache_row = stage(b, rows, &b->cache_row);
    int64_t row = 0;
    for (int64_t e = 0; e < count; e++)
        for (int32_t t = 0; t < b->item_n[e]; t++)
            cache_row[row++] = (int32_t)(items[e].slot * b->cache_tokens + items[e].past + t);
    b->targets = b->head_rows = b->slices = 0;
    b->any_teacher = b->any_square = false;
}

/* Every row's gates, widened; a prompt's rows have none. */
static void lay_gates(tm_batch *b, const tm_batch_item *items, int64_t count)
{
    int64_t row = 0, width = b->gate.cols;
    memset(b->host_gate, 0, (size_t)tm_dtype_bytes(b->device->real, b->gate.rows * width));
    for (int64_t e = 0; e < count; e++) {
        const tm_batch_item *item = &items[e];
        row += tm_batch_item_rows(b, item) - item->n;
        for (int32_t t = 0; t < item->n; t++, row++)
            for (int64_t i = 0; item->gates && i < width; i++)
                store_real(b, b->host_gate, row * width + i, item->gates[(item->gates_by_token ? t * b->gates : 0) + i / b->gate_width]);
    }
    b->device->calls->upload(b->device, b->gate.data, b->host_gate, tm_dtype_bytes(b->device->real, (b->fixed ? b->gate.rows : row) * width));
}

void tm_batch_fill(tm_batch *b, const tm_batch_item *items, int64_t count)
{
    tm_device *d = b->device;
    int64_t tokens = 0;
    b->longest = 0;
    b->items = count;
    for (int64_t e = 0; e < count; e++) {
        int32_t rows = tm_batch_item_rows(b, &items[e]);
        tokens += rows;
        b->item_past[e] = items[e].past;
        b->item_n[e] = rows;
        b->item_length[e] = items[e].length > items[e].past + rows ? items[e].length : items[e].past + rows;
        if (b->item_length[e] > b->longest)
            b->longest = b->item_length[e];
    }
    assert(tokens <= b->max_tokens && count <= b->max_examples);
    b->staging_count = 0;
    if (b->cached) { /* what a few tokens need is uploaded for every one of them: no more than that */
        lay_rows(b, items, count, tokens, count);
        lay_cache_rows(b, items, count, tokens);
    } else {
        lay_rows(b, items, count, b->max_tokens, b->max_examples);
        lay_targets(b, items, count);
    }
    if (b->gates)
        lay_gates(b, items, count);
    d->calls->upload(d, b->resident, b->staging, b->staging_count * 4);
    if (b->cached)
        return;
    int64_t real_bytes = tm_dtype_bytes(d->real, b->head_rows);
    d->calls->upload(d, b->weight.data, b->staging_real, real_bytes);
    for (int64_t i = 0; i < b->targets && b->any_teacher; i++)
        store_real(b, b->staging_real, i, items[b->target_item[i]].kl * grad_scale(&items[b->target_item[i]]));
    if (b->any_teacher)
        d->calls->upload(d, b->teacher_weight.data, b->staging_real, real_bytes);
    for (int64_t i = 0; i < b->targets && b->any_square; i++)
        store_real(b, b->staging_real, i, items[b->target_item[i]].square * grad_scale(&items[b->target_item[i]]));
    if (b->any_square)
        d->calls->upload(d, b->square_weight.data, b->staging_real, real_bytes);
}

void tm_batch_read_results(tm_batch *b)
{
    tm_device *d = b->device;
    int64_t bytes = tm_dtype_bytes(d->real, b->targets);
    d->calls->download(d, b->staging_real, b->loss.data, bytes);
    tm_dtype_convert(b->host_loss, TM_F64, b->staging_real, d->real, b->targets);
    d->calls->download(d, b->staging_real, b->kl.data, bytes);
    tm_dtype_convert(b->host_kl, TM_F64, b->staging_real, d->real, b->targets);
    d->calls->download(d, b->host_hit, b->hit, b->targets * 4);
}
