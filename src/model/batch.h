/* A micro-batch: examples laid out as rows, with everything that ops need to know about the rows.
 * Layout only: which examples share a micro-batch never changes a result. */
#ifndef TM_MODEL_BATCH_H
#define TM_MODEL_BATCH_H

#include "model/memory.h"

typedef struct tm_batch_item {
    const int32_t *ids;   /* [n] */
    const float *weight;  /* [n] of each token as a target; NULL: 1 */
    int32_t n;
    int32_t replica;      /* items of a batch ascend by replica */
    uint32_t index;       /* of the example in its replica's step */
    double scale;         /* on every weight: 1 / targets of the step */
    double grad_scale;    /* on what the gradient starts from, beside (train/loss_scale.h); 0: 1 */
    const float *gates;   /* registers: [gates] of the item or, by_token, [n, gates]; NULL: all off */
    bool gates_by_token;
    double kl, square;    /* weight of KL(teacher || model) at every target, or of the mean square between their logits; 0: none; of
                             one item only one. Not times scale */
    int64_t teacher_row;  /* of the hidden states that tm_model_loss is given: that of the first target */
    int32_t past;         /* rows of it, a prompt's included, that are in the key/value cache already (generation) */
    int32_t slot;         /* of the key/value cache, that it has */
    int32_t length;       /* rows of it as a whole, where angles of positions depend on that; 0: those past and here */
} tm_batch_item;

/* A part of the targets, as rows of the loss head: whole chunks, at most device->traits.head_rows rows. */
typedef struct tm_head_slice {
    int64_t first; /* index of its first target */
    tm_rows rows;
} tm_head_slice;

typedef struct tm_batch {
    /* capacities, fixed at creation */
    int64_t max_tokens, max_examples;
    int32_t replicas;
    /* the micro-batch in use */
    tm_rows rows;
    tm_spans spans;
    const int32_t *ids;      /* [rows.n] device */
    int64_t table_rows;      /* set before filling: rows that a replica has in a table of all replicas'; 0: no such table */
    const int32_t *table_row; /* [rows.n] device: ids counted on by table_rows a replica */
    int32_t gates, gate_width; /* set by tm_model_fit_batch: registers, and columns that each takes */
    tm_tensor gate;          /* [max_tokens, gates * gate_width] device, real: every row's gates, each gate_width times */
    void *host_gate;
    bool replicas_wanted;    /* set before filling: replica_row is laid out */
    const int32_t *replica_row; /* [rows.n] device: the row's replica */
    int32_t prefix;          /* set before filling: rows of a trained prompt before every item */
    const int32_t *prompt_row; /* [rows.n] device: row of the prompts of all replicas; -1: a token. Rows of a prompt have id -1 */
    int64_t targets;
    const int32_t *target_row; /* [head_rows] device: the row whose output predicts it, ascending */
    const int32_t *target;     /* [head_rows] device: token id */
    const int32_t *teacher_row; /* [head_rows] device: row of its teacher's hidden states; -1: it has none */
    tm_tensor weight, teacher_weight, square_weight; /* [1, head_rows] device, real */
    tm_head_slice *slice;    /* [slices] host */
    int64_t slices;
    bool any_teacher, any_square;
    bool draws;              /* the loss's targets are drawn from the model's own distribution (Fisher information), whatever
                                the rows say: by draw_key and the row. One item a batch */
    uint64_t draw_key;
    bool fixed;              /* set before filling: every micro-batch has the shape of the capacities, so that a graph
                                recorded of one serves all. Rows beyond the last example compute what nobody reads;
                                target rows beyond the last target have index -1 and weight 0. Not with a trained
                                output matrix, whose chunks would be cut elsewhere. */
    int64_t head_rows;       /* rows of the loss head: targets, or the capacity when fixed */
    int64_t longest;         /* tokens of the longest example, those in the cache included */
    int64_t items;
    int32_t *item_past, *item_n, *item_length; /* [items] host: rows in the cache, rows in the batch, rows as a whole */
    int64_t cache_tokens;    /* set by tm_model_fit_batch: rows of a slot of the key/value cache */
    bool cached;             /* keys and values are those of the cache, every item's of its slot: no targets, no backward */
    bool single;             /* with cached: one token of every item (tm_rows.single) */
    const int32_t *cache_row; /* [rows.n] device, when cached: the row's place in the cache */
    /* host: which item and token each target is */
    int32_t *target_item, *target_token;
    /* results of the loss head: device, then host after tm_batch_read_results */
    tm_tensor loss, kl;      /* [1, max targets] device, real */
    int32_t *hit;            /* device; in generation the likeliest token behind every row */
    double *host_loss, *host_kl;
    int32_t *host_hit;
    /* private */
    tm_device *device;
    int32_t *staging, *resident; /* one block of integers, host and device */
    int64_t staging_count;
    void *staging_real;      /* host: weights in device->real */
} tm_batch;

tm_status tm_batch_create(tm_batch *batch, tm_memory *memory, tm_device *device, int64_t max_tokens, int64_t max_examples, int32_t replicas, tm_error *err) TM_MUST_CHECK;
void tm_batch_destroy(tm_batch *batch);

/* Rows that an item takes: its tokens, and a trained prompt unless that is in the cache. */
static inline int32_t tm_batch_item_rows(const tm_batch *batch, const tm_batch_item *item)
{
    return item->n + (item->past ? 0 : batch->prefix);
}

/* Whether the item's loss has a teacher. */
static inline bool tm_batch_item_asks(const tm_batch_item *item) { return item->kl > 0 || item->square > 0; }

/* Lays the items out and uploads the layout. The items must fit (asserted). */
void tm_batch_fill(tm_batch *batch, const tm_batch_item *items, int64_t count);

/* Fetches loss, kl and hit of every target. */
void tm_batch_read_results(tm_batch *batch);

#endif
