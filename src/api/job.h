/* A job: everything a command needs of a recipe, opened and checked before anything is computed. */
#ifndef TM_API_JOB_H
#define TM_API_JOB_H

#include "api/rehearse.h"
#include "api/workshop.h"
#include "plan/fit.h"

typedef struct tm_job {
    tm_recipe *recipe;
    tm_tokenizer *tokenizer;   /* NULL: the data need none */
    tm_safetensors *file;      /* NULL: init random, or weights are not there (plan) */
    char *cache;               /* folder of the token cache; NULL: none */
    tm_data_entry *entries;    /* of data: the recipe's, then those of rehearsal, whose paths are borrowed; owned */
    tm_rehearsal rehearsal;
    tm_dataset *data;
    tm_eval_set *evals;
    int64_t eval_count;
    tm_names warnings;         /* about the data */
    tm_eval_entry held_out;    /* the evaluation `val` of val_split */
    tm_seeds seeds;
    tm_ids prompt_ids;         /* of prompt.text */
    tm_order *order;
    tm_run_folder folder, *folder_list;
    tm_run run;
    char *importances;         /* file that keep.ewc reads; NULL: none */
    tm_sha256 model_sample;    /* of the weights as they are now (tm_hf_sample) */
    tm_sha256 importances_hash;
    tm_names previous_hashes;  /* of the adapters in keep.orthogonal.previous */
    tm_workshop *shop;         /* NULL: none; where the device is given back */
    tm_device *device;
    int64_t own;               /* bytes that the device took for itself */
    char no_gpu[512];          /* device: auto took the CPU although there is an NVIDIA driver: why; "" otherwise */
    tm_layout asked;           /* what the recipe said of precision, recomputation and micro-batches */
    tm_target target;          /* what it is planned for: the device */
    tm_memory_plan plan;
} tm_job;

typedef enum tm_job_depth {
    TM_JOB_PLAN,  /* data may be missing; no folder, no weights needed */
    TM_JOB_MEASURE, /* weights, no folder; data may be missing where keep.ewc.path gives others */
    TM_JOB_EVAL,  /* only evaluation sets and weights; no folder */
    TM_JOB_TRAIN, /* everything there, the folder locked */
} tm_job_depth;

/* Opens what the recipe names and settles every `auto` in it. The job owns the recipe from here on,
 * also on failure. shop|0 */
tm_status tm_job_open_in(tm_workshop *shop, tm_recipe *recipe, tm_job_depth depth, tm_job *job, tm_error *err) TM_MUST_CHECK;
tm_status tm_job_open(tm_recipe *recipe, tm_job_depth depth, tm_job *job, tm_error *err) TM_MUST_CHECK; /* in none */
void tm_job_close(tm_job *job);

/* tm_train with a recipe that is loaded already; it is the call's from here on. shop|0, here and below */
tm_status tm_train_recipe(tm_workshop *shop, tm_recipe *recipe, const tm_callbacks *callbacks, char **out, tm_error *err) TM_MUST_CHECK;
/* tm_fisher likewise: into the file path, added to those of `add` (NULL: none). */
tm_status tm_fisher_recipe(tm_workshop *shop, tm_recipe *recipe, const char *path, const char *add, const tm_callbacks *callbacks, char **text, tm_error *err) TM_MUST_CHECK;
/* Scores [recipe->eval_count] of every evaluation of a recipe, nothing trained; items (may be NULL) [eval_count] get a JSON line an item.
 * The recipe is the call's from here on. */
tm_status tm_evaluate_recipe(tm_workshop *shop, tm_recipe *recipe, tm_scores *scores, tm_buf *items, tm_error *err) TM_MUST_CHECK;

/* How a recipe's data are read with its model's tokenizer. cache: folder, or NULL. */
tm_data_settings tm_job_data_settings(const tm_recipe *recipe, const tm_tokenizer *tok, int64_t vocab, const char *cache);
/* Ids that a recipe's model knows, and train.seq as far as it has positions: longer rows are cut, which is counted and said. */
tm_status tm_job_longest(const tm_recipe *recipe, int64_t *vocab, int64_t *seq, tm_error *err) TM_MUST_CHECK;
/* The folder of a recipe's token cache, to be freed; *out NULL where it asks for none. */
tm_status tm_job_cache(const tm_recipe *recipe, char **out, tm_error *err) TM_MUST_CHECK;

/* Ids that end a generated text. */
size_t tm_stop_ids(const char *model, const tm_tokenizer *tok, int32_t ids[8]);

/* The device that a recipe's `device` names: cpu, cuda, cuda:N, or auto: the first GPU, else the CPU. threads (0: all) and
 * TEMPER_ISA are the CPU's; TEMPER_DEVICE is what auto stands for, TEMPER_CUDA_LIBRARY which libtemper-cuda.so. no_gpu|0 [512]: see tm_job. */
tm_status tm_device_open(const char *name, int64_t threads, tm_device **out, char *no_gpu, tm_error *err) TM_MUST_CHECK;

/* Settles precision, recomputation and micro-batches again, and plans the run, for another device. */
tm_status tm_job_plan_for(tm_job *job, const tm_target *target, tm_error *err) TM_MUST_CHECK;
/* TM_NO_FIT, with what would fit, when the plan exceeds what its target has. advice|0 [TM_ADVICE_MAX], *count: the same to look at. */
tm_status tm_job_fits(tm_job *job, tm_advice *advice, int *count, tm_error *err) TM_MUST_CHECK;

/* fisher.c: the importances that the recipe's keep.ewc needs: its own file, or measured into the run folder unless a killed run did
 * that before. Before the trainer is created, since the memory is needed twice otherwise. */
tm_status tm_job_importances(tm_job *job, const tm_callbacks *callbacks, tm_error *err) TM_MUST_CHECK;

/* The same in a plan: whether a recipe has importances measured before its run; that measurement, its data loaded, and planned for the job's
 * target of the moment: memory, a step, and the tokens of its examples. TM_NO_FIT with the plan there when it exceeds what the target has. */
bool tm_job_measures(const tm_recipe *recipe);
typedef struct tm_measuring tm_measuring;
tm_status tm_measuring_open(tm_job *job, tm_measuring **out, tm_error *err) TM_MUST_CHECK;
void tm_measuring_close(tm_measuring *measuring);
tm_status tm_measuring_plan(tm_measuring *measuring, tm_memory_plan *plan, int64_t *tokens, tm_error *err) TM_MUST_CHECK;

/* run.json of a job. result: sha256 of what was trained; "" while running. */
tm_status tm_job_describe(const tm_job *job, const tm_trainer *trainer, const char *status, const char *model_hash, const char *result_hash, tm_buf *out, tm_error *err) TM_MUST_CHECK;

#endif
