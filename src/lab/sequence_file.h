/* SEQUENCE.yaml as read: tasks, orders, seeds and arms (docs/formats/sequence.md).
 *
 * Everything that can be wrong about it is said before the first run: every recipe that an arm will be
 * trained with is loaded once, so that an unknown key of an arm is named with the file's line. */
#ifndef TM_LAB_SEQUENCE_FILE_H
#define TM_LAB_SEQUENCE_FILE_H

#include "base/options.h"

enum { TM_LAB_MOST_TASKS = 64, TM_LAB_MOST_ARMS = 64, TM_LAB_MOST_ORDERS = 1000, TM_LAB_MOST_SEEDS = 10000, TM_LAB_MOST_CONFIGS = 10000, TM_LAB_MOST_CHAINS = 1000000 };

typedef enum tm_between { TM_BETWEEN_MERGE, TM_BETWEEN_CONTINUE, TM_BETWEEN_SEPARATE } tm_between;
typedef enum tm_lab_runs { TM_RUNS_KEEP, TM_RUNS_LAST, TM_RUNS_DROP } tm_lab_runs;
typedef enum tm_arm_kind { TM_ARM_SEQUENCE, TM_ARM_JOINT, TM_ARM_FROZEN } tm_arm_kind;

typedef struct tm_lab_task {
    char *name;
    int line;
    const tm_node *train, *test, *valid; /* of the tree; valid NULL: none */
    int metric, valid_metric;            /* TM_METRIC_... */
} tm_lab_task;

typedef struct tm_lab_grid_key { /* one key of a grid */
    char *key;
    tm_names values; /* as arguments have them: key=value */
} tm_lab_grid_key;

typedef struct tm_lab_grid { /* every combination is a configuration; no key: one configuration */
    tm_lab_grid_key *keys;
    size_t count, capacity;
    int line;
} tm_lab_grid;

typedef struct tm_lab_arm {
    char *name;
    int line;
    tm_arm_kind kind;
    tm_between between;
    const tm_node *set; /* recipe keys; NULL: none */
    tm_lab_grid grid;
    bool replay, ewc, orthogonal; /* "previous": made of the tasks before */
    bool old_importances;         /* its recipe has importances before the first task, of keep.ewc.path or ... */
    char *importances;            /* ... of this file; NULL: none */
    bool old_data;                /* needs data from before a task: trains on them, or measures importances on them */
    int method;                   /* TM_METHOD_... of its recipe */
} tm_lab_arm;

typedef struct tm_sequence_file {
    char *path;
    tm_tree tree;
    char *recipe_path;        /* NULL: ... */
    const tm_node *recipe;    /* ... a mapping in the file */
    char *model;              /* the start model of every arm */
    tm_lab_task *task;
    size_t tasks, task_capacity;
    tm_lab_arm *arm;
    size_t arms, arm_capacity;
    int32_t *order;           /* [orders, tasks] */
    size_t orders;
    uint64_t *seed, *select_seed;
    size_t seeds, select_seeds;
    size_t baseline;          /* the arm that others are held against */
    const tm_node *probes;    /* evaluations that belong to no task; NULL: none */
    tm_names probe_name;
    int *probe_metric;        /* [probe_name.count] */
    tm_lab_runs runs;         /* what stays of the run folders of a chain that is done */
    char *out;                /* NULL: not said */
    tm_names warnings;        /* about the comparison's fairness */
} tm_sequence_file;

/* overrides: "key=value" of the recipe for every arm. A zeroed tm_sequence_file may be closed. */
tm_status tm_sequence_file_open(const char *path, char *const *overrides, size_t override_count, tm_sequence_file *out, tm_error *err) TM_MUST_CHECK;
void tm_sequence_file_close(tm_sequence_file *file);

/* What is evaluated. */
typedef enum tm_lab_sets { TM_SETS_TEST, TM_SETS_VALID, TM_SETS_PROBES } tm_lab_sets;

/* The recipe of an evaluation: the base's, its `eval` the named sets in the file's order, nothing to train and to keep;
 * extra: "key=value" (model, method, METHOD.init). */
tm_status tm_sequence_eval_recipe(const tm_sequence_file *file, tm_lab_sets sets, char *const *overrides, size_t override_count, const tm_names *extra,
                                  tm_recipe **out, tm_error *err) TM_MUST_CHECK;
/* That of the tests, and with the training data of all tasks: what a router learns from. */
tm_status tm_sequence_route_recipe(const tm_sequence_file *file, char *const *overrides, size_t override_count, tm_recipe **out, tm_error *err) TM_MUST_CHECK;
size_t tm_sequence_entries(const tm_sequence_file *file, size_t task); /* entries of data that a task has */
/* The recipe that an arm is trained with on tasks[count] (indices). */
tm_status tm_sequence_train_recipe(const tm_sequence_file *file, const tm_lab_arm *arm, const int32_t *tasks, size_t count, char *const *overrides,
                                   size_t override_count, const tm_names *extra, tm_recipe **out, tm_error *err) TM_MUST_CHECK;

/* Grids: configuration i of tm_grid_count, as "key=value" appended to out. */
size_t tm_grid_count(const tm_lab_grid *grid);
tm_status tm_grid_settings(const tm_lab_grid *grid, size_t i, tm_names *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_grid_add(tm_lab_grid *grid, const char *key, const char *value, tm_error *err) TM_MUST_CHECK; /* a key is made when it is new */
void tm_grid_deinit(tm_lab_grid *grid);

/* A word that is a folder's name and an evaluation's: letters, digits, _ - and +. */
bool tm_lab_name_ok(const char *name);

#endif
