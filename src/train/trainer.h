/* The trainer: R replicas of one recipe, step by step.
 *
 * Invariants:
 *  1. What a step computes depends on its list of examples, the seeds and the step's number, never on
 *     how the list is cut into micro-batches, on other replicas or on where a run was resumed.
 *  2. Built on the counting device, a trainer's arenas give the memory of the run to the byte; the
 *     real one gets exactly that and asserts it. */
#ifndef TM_TRAIN_TRAINER_H
#define TM_TRAIN_TRAINER_H

#include "device/replay.h"
#include "model/flops.h"
#include "text/dataset.h"
#include "train/hooks.h"
#include "train/loss_scale.h"
#include "train/run_folder.h"
#include "train/teacher.h"
#include "tune/tune.h"

typedef struct tm_seeds {
    uint64_t init, order, dropout, subset;
} tm_seeds;
/* train.seed and train.seeds of a recipe; what is auto is a hash of train.seed. */
tm_seeds tm_seeds_of(const tm_recipe *recipe);

typedef struct tm_scores {
    double loss, accuracy, exact, kl, bits_per_byte; /* NaN: not measured, as below */
    double score[2];    /* of the entry's metric: tm_metrics[].key */
    double way_loss[2]; /* round trip: to the text, to the scene */
    int64_t targets;
} tm_scores;

/* An evaluation set or a probe, its data and what was measured. */
typedef struct tm_eval_set {
    const tm_eval_entry *entry; /* borrowed */
    bool probe;
    tm_dataset *data;           /* owned */
    int64_t examples;           /* evaluated: all, or the entry's limit */
    struct tm_answers *answers; /* what rows say beside their tokens; owned; NULL: nothing is needed */
    struct tm_bridge *bridge;   /* metric round_trip; owned */
    tm_scores *first, *last, *best; /* [R], owned; best by the entry's metric */
    tm_tensor teacher;          /* metric kl: hidden states of the base at every target */
} tm_eval_set;

/* Everything a run is made of, gathered and checked before anything is computed. Borrowed by trainers. */
typedef struct tm_run {
    const tm_recipe *recipe;    /* no `auto` left in what the trainer reads */
    const tm_method *method;    /* NULL: the recipe's */
    const char *model_dir;
    tm_safetensors *file;       /* weights; NULL with init: random, or to plan from config.json alone */
    tm_dtype dtype;             /* of matrices when file is NULL */
    tm_dataset *data;           /* NULL: plan from sizes alone */
    int64_t rehearsal_from;     /* its first source of old examples (replay, texts of the base); its number of sources: none */
    tm_eval_set *evals;
    int64_t eval_count;
    bool evaluate;              /* only evaluate: no gradients, no optimiser */
    int32_t replicas;
    const tm_seeds *seeds;      /* [R] */
    const int32_t *prompt_ids;  /* tokens that a trained prompt starts from; NULL: at random */
    int64_t prompt_id_count;
    const tm_tokenizer *tok;    /* for metrics of generated text; NULL: none */
    int32_t stop[8];            /* ids that end it */
    size_t stops;
    int64_t cache_tokens;       /* for it, of a text; 0: nothing is generated */
    int64_t cache_slots;        /* texts at once */
    tm_run_folder **folder;     /* [R]; NULL: counting */
    tm_order **order;           /* [R] */
    int64_t steps;
    const char *importances;    /* file that keep.ewc reads when the run begins; NULL: counting, or none */
    int64_t max_tokens, max_examples; /* capacity of a micro-batch */
    tm_status (*add_hooks)(struct tm_trainer *t, tm_error *err); /* called when the trainer is built; NULL: none */
    bool (*interrupted)(void *context); /* asked between steps; NULL: never */
    void (*progress)(void *context, const struct tm_trainer *t);
    void *context;
} tm_run;

/* A target of a step: what its loss and what its teacher gives count, and for whom. */
typedef struct tm_step_target {
    double weight, taught;
    int32_t replica;
} tm_step_target;

typedef struct tm_step_result { /* of one replica */
    double loss, penalty, grad_norm, lr;
    int64_t tokens, targets;
    bool skipped; /* the gradients were not finite in f16: nothing was changed */
} tm_step_result;

typedef struct tm_trainer {
    const tm_run *run;
    const tm_recipe *recipe;
    tm_device *device;
    tm_memory memory;
    tm_model model;
    tm_tuning tuning;
    tm_batch batch;
    tm_trained *trained;       /* [R * trained_count]: tensors of replica 0, then of replica 1, ... */
    tm_trained *device_trained; /* the same list on the device, for ops */
    const tm_param **trained_param;
    int64_t trained_count;
    double *penalty, *host_penalty; /* [R] of this step: device, host */
    tm_step_params *params;    /* [R] host */
    tm_step_params *device_params;
    tm_loss_scale *loss_scale; /* [R] */
    tm_teacher teacher;
    struct tm_gate_set *gates; /* registers: of the data, then of every evaluation set; NULL: none */
    tm_hook *hooks;
    int64_t hook_count;
    /* state of the run: all that a checkpoint holds beside tensors */
    int64_t step;              /* optimiser steps done */
    int64_t tokens, targets;   /* of replica 0, so far */
    double best_metric;        /* early stopping */
    int64_t best_step, bad_evals, best_checkpoint;
    double best_checkpoint_metric;
    tm_verdict verdict;
    const char *verdict_why;   /* the warning that ended the run, borrowed from warnings; NULL: none did */
    bool stopped_early;
    bool result_changed;       /* by hooks' end: the result is not the last step's weights */
    tm_names warnings;         /* said once, kept for run.json and the report */
    tm_step_result *result;    /* [R] of the last step */
    double step_seconds, seconds;
    tm_flops flops;
    double step_flops;         /* of use: of the last step's examples of all replicas */
    double peak_flops;         /* a second, the most this device was seen to do: at first what its own product did (the run's owner sets
                                  it), then what steps did that were faster; 0 or NaN: unknown, nothing is held against it */
    tm_batch_item *items;      /* scratch */
    size_t items_capacity;
    uint64_t *trail, *device_trail; /* of this step: host, device */
    tm_step_target *target;    /* of this step, over its micro-batches */
    void *losses;              /* [2, target_room] real, as the device gave them: cross-entropy, then the teacher's term */
    int64_t target_count, target_room;
    size_t target_capacity, loss_capacity;
    tm_replay replay;          /* a micro-batch of the run's capacity: micro.c */
} tm_trainer;

/* Builds the run's memory on a device; limits from a counting trainer, NULL on the counting device. */
tm_status tm_trainer_create(const tm_run *run, tm_device *device, const int64_t limits[TM_MEM_KINDS], tm_trainer **out, tm_error *err) TM_MUST_CHECK;
void tm_trainer_destroy(tm_trainer *trainer);

/* Adds a hook (in tm_run.add_hooks, or before tm_trainer_start); the trainer owns its state. */
tm_status tm_trainer_add_hook(tm_trainer *trainer, const tm_hook *hook, tm_error *err) TM_MUST_CHECK;

/* Adds a warning, unless it was said before. */
tm_status tm_trainer_warn(tm_trainer *trainer, tm_error *err, const char *fmt, ...) TM_PRINTF(3, 4) TM_MUST_CHECK;

/* Loads or initialises weights; hooks' base; optimiser state 0, teachers and first values: what tm_trainer_start does before it looks
 * into the folders. */
tm_status tm_trainer_load(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
/* Loads or initialises weights, teachers and first values, then the newest checkpoint of the folders
 * if there is one. */
tm_status tm_trainer_start(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
/* Runs to the end (or to an interruption: TM_FAILED, or to a step that is not finite: TM_DIVERGED). */
tm_status tm_trainer_run(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
/* What the last step did of peak_flops, in [0, 1]; NaN: unknown. */
double tm_trainer_share(const tm_trainer *trainer);
/* The result of one replica into a folder; a whole model gets its tokenizer too. */
tm_status tm_trainer_save_to(tm_trainer *trainer, int32_t replica, const char *dir, tm_error *err) TM_MUST_CHECK;
/* Writes the result of every replica into its folder. */
tm_status tm_trainer_save(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

/* One optimiser step on the run's next examples, without evaluation or rows. */
tm_status tm_trainer_step(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
void tm_trainer_zero_gradients(tm_trainer *trainer);
/* The part of a step that hooks add between accumulation and the norm; apart, so that its time can be planned. */
tm_status tm_trainer_penalties(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
/* Scores of a data set for one replica, no gradients. items (may be NULL) gets a JSON line an item. */
tm_status tm_trainer_evaluate(tm_trainer *trainer, tm_eval_set *set, int32_t replica, tm_scores *out, tm_buf *items, tm_error *err) TM_MUST_CHECK;
/* Losses under the base (no adapter, no trained prompt, no dropout; to be called before anything was trained) of every
 * target of the examples [first, end) of a data set, in order: out[their targets]. Waits for the device. */
tm_status tm_trainer_base_losses(tm_trainer *trainer, const tm_dataset *data, int64_t first, int64_t end, float *out, tm_error *err) TM_MUST_CHECK;
bool tm_eval_due(const tm_trainer *trainer, int64_t step);

/* resume.c */
tm_status tm_trainer_checkpoint(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
tm_status tm_trainer_resume(tm_trainer *trainer, bool *resumed, tm_error *err) TM_MUST_CHECK;
/* Writes or reads tensors (values, and optimiser state) of one replica as one safetensors file. */
tm_status tm_trained_write(tm_trainer *trainer, int32_t replica, bool optimizer, const char *path, tm_error *err) TM_MUST_CHECK;
tm_status tm_trained_read(tm_trainer *trainer, int32_t replica, bool optimizer, const char *path, tm_error *err) TM_MUST_CHECK;

/* gates.c: what the recipe and the rows say of registers. set -1: the data. NULL without registers. */
tm_status tm_gates_set(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
void tm_gates_drop(tm_trainer *trainer);
/* Learns the router of the bank and writes it into dir. */
tm_status tm_gates_route(tm_trainer *trainer, const char *dir, tm_error *err) TM_MUST_CHECK;
/* Mean of the last hidden states over an example's prompt [width]: the tokens before its first target, or all of a text. raw, rows: scratch of
 * batch.max_tokens * width elements of 8 and 4 bytes. */
tm_status tm_prompt_state(tm_trainer *trainer, const tm_example *example, void *raw, float *rows, float *out, tm_error *err) TM_MUST_CHECK;
void tm_gates_give(const tm_trainer *trainer, int64_t set, int64_t example, tm_batch_item *item);

/* trail.c: the header of trail.bin for this run. */
tm_status tm_trail_header(const tm_trainer *trainer, tm_buf *out, tm_error *err) TM_MUST_CHECK;

#endif
