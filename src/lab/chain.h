/* Chains of a sequence: what one piece of its work is, and the file that stands for one that is done. */
#ifndef TM_LAB_CHAIN_H
#define TM_LAB_CHAIN_H

#include "lab/stage.h"

/* The trainings of an arm with one configuration and one seed: a chain in one order; of separate modules, which know no
 * order, the chains of all orders. */
typedef struct tm_lab_task_chain {
    tm_lab_runner *r;
    const tm_lab_arm *arm;
    size_t config;         /* of the arm's grid */
    bool select;           /* on validation sets, to choose */
    size_t order, orders;  /* the first, and how many; more than one only of separate modules */
    uint64_t seed;
    tm_lab_chain *out;     /* of the first order; that of the i-th is out[i * stride] */
    size_t stride;
} tm_lab_task_chain;

bool tm_lab_is_separate(const tm_lab_arm *arm);
size_t tm_lab_chain_trainings(const tm_sequence_file *file, const tm_lab_arm *arm);
/* OUT/ARM[/select-N][/order-N]/seed-N[/last], to be freed. */
tm_status tm_lab_chain_folder(const tm_lab_task_chain *chain, bool ordered, const char *last, char **out);
/* Folder of the k-th task of the order. */
tm_status tm_lab_stage_folder(const tm_lab_task_chain *chain, size_t k, char **out);
/* What every training of the chain is told: the configuration, seed, folder (NULL: none) and model. */
tm_status tm_lab_chain_settings(const tm_lab_task_chain *chain, const char *model, const char *folder, tm_names *out);
/* The recipe that it trains `count` tasks (indices of the file) with. */
tm_status tm_lab_chain_recipe(const tm_lab_task_chain *chain, const int32_t *tasks, size_t count, tm_names *settings, tm_recipe **out);

/* Fills the chains: from the file of a chain that is done, else by training and scoring. */
tm_status tm_lab_chain_run(const tm_lab_task_chain *chain) TM_MUST_CHECK;
void tm_lab_chain_deinit(tm_lab_chain *chain);

/* chain_file.c. A hash of all that the figures depend on: recipes, the contents of all files they name, the start model, device, order. */
tm_status tm_lab_chain_key(const tm_lab_task_chain *chain, tm_sha256 *out) TM_MUST_CHECK;
/* *there: chain.json of this key was read into the chains, whose arrays R and P are there; what is not whole counts as not there. Where run folders are dropped,
 * one of another key is refused: what it stands for could not be had again. */
tm_status tm_lab_chain_read(const tm_lab_task_chain *chain, const tm_sha256 *key, bool *there) TM_MUST_CHECK;
/* ", \"diverged\": {...}": the trainings of the chain that did, by task, with their steps; nothing where none did. */
void tm_lab_put_diverged(tm_buf *out, const tm_sequence_file *file, const tm_lab_chain *chain);
tm_status tm_lab_chain_write(const tm_lab_task_chain *chain, const tm_sha256 *key) TM_MUST_CHECK;
/* Removes the run folders that the file's `runs` lets go. Nothing but files of the names that a run writes: what else lies there stays, and its folder. */
tm_status tm_lab_chain_release(const tm_lab_task_chain *chain) TM_MUST_CHECK;

#endif
