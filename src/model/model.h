/* A decoder with weights: declared from a config, changed by a tuning method, allocated, loaded, run.
 *
 *   tm_model_create      parameters by name, nothing allocated
 *   (tuning method)      marks what is trained, adds parameters
 *   tm_model_allocate    every tensor from the arenas, in an order fixed by the config alone
 *   tm_model_load / _init_random
 *   tm_model_forward, _loss, _backward over micro-batches
 *
 * The same calls on the counting device give the memory of the run. */
#ifndef TM_MODEL_MODEL_H
#define TM_MODEL_MODEL_H

#include "io/safetensors.h"
#include "model/batch.h"
#include "model/bottleneck.h"
#include "model/config.h"
#include "model/linear.h"

typedef struct tm_norm {
    tm_param *weight, *bias; /* weight NULL: the family has no such norm; bias NULL: none */
} tm_norm;

static inline bool tm_norm_trained(const tm_norm *n)
{
    return (n->weight && n->weight->trained) || (n->bias && n->bias->trained);
}

/* A transformer block. Slots that the family leaves empty have no weight. */
typedef struct tm_block {
    tm_norm norm[TM_NORMS];
    tm_linear slot[TM_SLOTS];
    tm_linear_group qkv, o, gate_up, down;
    tm_bottleneck *attn_adapter, *ffn_adapter; /* behind attention and feed-forward; owned; NULL: none */
} tm_block;

/* What a norm keeps of its rows, [1, T]; mean of layer norms only. */
typedef struct tm_norm_saved {
    tm_tensor mean, rstd;
} tm_norm_saved;

/* What a block keeps for its backward. Blocks that are computed again share all but x_in; those that no gradient reaches, and all
 * in evaluation, share everything. */
typedef struct tm_block_saved {
    tm_tensor x_in, x_mid;           /* [T, C] residual stream before attention and before the MLP */
    tm_norm_saved n_in, n_mid;
    tm_tensor attn_out, ffn_out;     /* [T, C] with norms behind attention and MLP: before those */
    tm_norm_saved n_attn_out, n_ffn_out;
    tm_tensor qkv;                   /* [T, (H + 2K) D], rotated */
    tm_tensor qk_raw, rstd_q, rstd_k; /* with q and k norms: before them; [T, H], [T, K] */
    tm_tensor attn, lse;             /* [T, H D], [T, H] */
    tm_tensor gate_up;               /* [T, 2F]; without a gate [T, F] */
    tm_linear_saved s_qkv, s_o, s_gate_up, s_down;
    tm_bottleneck_saved s_attn_adapter, s_ffn_adapter;
    int64_t bytes;                   /* of all this that no other block shares */
} tm_block_saved;

typedef struct tm_model_settings {
    tm_dtype act;          /* activations: F32, BF16; F64 on the checking device */
    bool half_master;      /* trained matrices of the base in act's type (bf16), not in the device's own */
    int64_t max_tokens;    /* rows of a micro-batch */
    bool train;            /* keep what backward needs, allocate gradients */
    int64_t recompute_layers; /* of the first so many blocks keep only the residual stream */
    bool offload;          /* of those blocks the residual stream goes to host memory (devices with memory of their own) */
    bool teacher;          /* room for a teacher's logits */
    bool logits;           /* room for all logits: tests and generation, never training */
    int64_t cache_tokens;  /* > 0: key/value cache for generation, of so many tokens a text */
    int64_t cache_slots;   /* texts that it holds at a time; 0: one */
} tm_model_settings;

typedef struct tm_model {
    tm_model_config config;
    tm_device *device;
    tm_memory *memory;
    int32_t replicas;
    tm_params params;
    tm_param *embed, *positions; /* positions NULL: rotary */
    tm_norm final_norm;
    tm_param *prompt;         /* [tokens, C] a replica: trained rows before every example; NULL: none */
    tm_lora *embed_lora;      /* on the embedding table; owned; NULL: none. A is [V, r] a replica: `turned` */
    tm_block *block;          /* [layers] */
    tm_linear head;
    tm_linear_group head_group;
    tm_model_settings settings;
    int64_t first_trained;    /* lowest layer with something trained in or (-1) below it */
    tm_linear_context linear;
    tm_bottleneck_context bottleneck;
    int32_t gates, gate_width; /* registers of a bank, and the rank of each; 0: none */
    /* buffers, allocated once */
    tm_tensor rope_cos[TM_ROPES], rope_sin[TM_ROPES]; /* [P, R / 2] by position */
    /* Where angles depend on the length of an example, those of a batch with a long one: [max_tokens, R / 2] by row,
     * for keys and for queries. */
    tm_tensor row_cos[2], row_sin[2];
    const int32_t *row_index;                         /* device: 0, 1, 2, ... */
    void *rope_staging;                               /* host */
    tm_tensor x0;             /* embeddings: x_in of block 0 */
    int64_t stash_first, stash_end; /* blocks whose x_in goes to host memory between forward and backward */
    int64_t stash_bytes;      /* of host memory, for that */
    tm_tensor embed_identity, embed_column, embed_xa; /* of embed_lora: [R r, r], [T, r], [T, r] */
    tm_block_saved *saved;    /* [layers] */
    tm_tensor x_final, hidden; /* hidden: after the final norm */
    tm_norm_saved n_final;
    tm_tensor y, delta, h, dh;             /* scratch [T, C], [T, C], [T, F], [T, F] */
    tm_tensor dx, dy, dattn, dqkv, attn_delta, dtarget;
    tm_tensor head_x, logits;              /* [HEAD_ROWS, C], [HEAD_ROWS, V] */
    tm_tensor teacher_x, teacher_logits;   /* the same of a teacher */
    tm_linear_saved s_head;
    tm_tensor *cache_k, *cache_v;          /* [layers] [cache_slots * cache_tokens, K D] */
} tm_model;

/* file: where the weights will come from, to know their types; NULL: dtype for all matrices. */
tm_status tm_model_create(tm_model *model, const char *dir, const tm_safetensors *file, tm_dtype dtype, tm_device *device, tm_memory *memory, int32_t replicas, tm_error *err) TM_MUST_CHECK;
void tm_model_destroy(tm_model *model);

tm_status tm_model_allocate(tm_model *model, const tm_model_settings *settings, tm_error *err) TM_MUST_CHECK;

/* Room for a teacher's logits, once: where settings.teacher did not ask for it. */
void tm_model_take_teacher(tm_model *model);

/* Copies (and converts) every parameter that is not `added` from the file; a missing tensor, one of
 * another shape or an unexpected one is an error naming it. */
tm_status tm_model_load(tm_model *model, const tm_safetensors *file, const char *path, tm_error *err) TM_MUST_CHECK;
/* transformers' initialisation: matrices and embeddings normal(0, initializer_range), GPT-2's projections onto
 * the residual stream divided by sqrt(2 layers), norms 1 (0 where 1 + weight is the factor), biases 0. */
tm_status tm_model_init_random(tm_model *model, uint64_t seed, tm_error *err) TM_MUST_CHECK;

/* The linear modules in a fixed order: blocks, slots, then the head; i counts empty slots too, so that a module's
 * number is the same in all families. An empty slot has no weight; NULL behind the last. */
tm_linear *tm_model_linear(tm_model *model, int64_t i);

/* The tensor of the file that is the parameter `name`, which files may call otherwise; NULL: none. */
const tm_st_tensor *tm_model_stored(const tm_model *model, const tm_safetensors *file, const char *name);

/* Sets a parameter without replicas from what a file stores; NULL or another shape: an error that names it and the path. */
tm_status tm_param_load(tm_model *model, tm_param *p, const tm_st_tensor *stored, const char *path, tm_error *err) TM_MUST_CHECK;

/* Sets a parameter (of one replica) from host values of any float type; fetches it as dtype. */
tm_status tm_param_write(tm_model *model, tm_param *p, int32_t replica, const void *data, tm_dtype dtype, tm_error *err) TM_MUST_CHECK;
tm_status tm_param_read(tm_model *model, const tm_param *p, tm_tensor t, int32_t replica, void *data, tm_dtype dtype, tm_error *err) TM_MUST_CHECK;

/* The values as a file has them, of a parameter without replicas. */
tm_status tm_param_export(tm_model *model, const tm_param *p, void *data, tm_dtype dtype, tm_error *err) TM_MUST_CHECK;

/* What depends on the weights of this step alone. step: device; NULL for evaluation (no dropout). */
void tm_model_begin_step(tm_model *model, const tm_step_params *step);

/* After tm_batch_create: what the model's batches must lay out beside ids. */
tm_status tm_model_fit_batch(const tm_model *model, tm_batch *batch, tm_error *err) TM_MUST_CHECK;

/* embed.c: the decoder's first rows, into model->x0; gradients from model->dx. */
tm_status tm_embed_allocate(tm_model *model, tm_error *err) TM_MUST_CHECK;
void tm_embed_forward(tm_model *model, const tm_batch *batch);
void tm_embed_backward(tm_model *model, const tm_batch *batch);
bool tm_embed_trained(const tm_model *model);

/* Runs the batch up to model->hidden. */
void tm_model_forward(tm_model *model, const tm_batch *batch);
/* Whether forward uploads, for an example whose angles its length decides about; otherwise what it queues follows from the
 * batch's shape alone and may be recorded. */
bool tm_model_uploads(const tm_model *model, const tm_batch *batch);
/* Loss of every target into batch->loss (and kl, hit). With grad: the gradient of the weighted sum
 * with respect to hidden, and the head's own. teacher: hidden states [n, C] of a teacher, those of a
 * target in row batch->teacher_row; its head is teacher_head (absent: the model's own head without adapter). */
void tm_model_loss(tm_model *model, const tm_batch *batch, tm_tensor teacher, tm_tensor teacher_head, bool grad);
void tm_model_backward(tm_model *model, const tm_batch *batch);
/* Joins second gradients once all micro-batches of a step are done. */
void tm_model_finish_gradients(tm_model *model);

/* Hidden states of the rows that predict targets, [targets, C]: a teacher for later. */
void tm_model_gather_hidden(tm_model *model, const tm_batch *batch, tm_tensor out);

/* wide.c: room for forwards with low-rank matrices of `factor` times their ranks, beside that of a run's own. */
typedef struct tm_wide {
    tm_tensor xa[TM_GROUP_MAX], column, identity;
    void *workspace;
    int64_t workspace_bytes;
} tm_wide;
tm_status tm_wide_take(const tm_model *model, int64_t factor, tm_arena *arena, tm_wide *out, tm_error *err) TM_MUST_CHECK;
/* From now on the model computes in it; no backward may follow. */
void tm_wide_use(const tm_wide *wide, tm_model *model);
/* Of what a device wants to borrow, with ranks times factor; 0: nothing. */
int64_t tm_model_workspace(const tm_model *model, int64_t factor);

/* Logits [T, V] of every row of the batch into model->logits: one row in generation; all rows, with
 * settings.logits, in tests and comparisons. */
void tm_model_logits(tm_model *model, const tm_batch *batch);
/* The likeliest token behind every row, from the logits, into batch->hit. */
void tm_model_likeliest(tm_model *model, const tm_batch *batch);

#endif
