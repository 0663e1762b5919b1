/* Reading SEQUENCE.yaml: see sequence_file.h. A table of keys a level; what a key's value must be stands beside it. */
#include "lab/sequence_file.h"

#include "base/philox.h"
#include "base/utf8.h"
#include "text/dataset.h"
#include "train/score.h"

#include <stdlib.h>
#include <string.h>

typedef struct reader {
    tm_sequence_file *f;
    char *const *overrides;
    size_t override_count;
    tm_error *err;
} reader;

/* A key of a level; `take` stores its value. */
typedef struct key {
    const char *name;
    tm_status (*take)(reader *r, void *to, int line, const tm_node *value);
} key;

static tm_status refuse(const reader *r, int line, const char *fmt, ...) TM_PRINTF(3, 4);
static tm_status refuse(const reader *r, int line, const char *fmt, ...)
{
    char what[640];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return tm_fail(r->err, TM_RECIPE, "%s:%d: %s", r->f->path, line, what);
}

static tm_status wrong(const reader *r, int line, const char *name, const char *expected, const tm_node *found)
{
    char text[96];
    return refuse(r, line, "%s: expected %s, found %s", name, expected, tm_node_describe(found, text));
}

/* A mapping held against a table; where: what the mapping is of ("" the file itself). */
static tm_status walk(reader *r, const char *where, const key *keys, size_t count, void *to, const tm_node *map)
{
    const char *names[32];
    if (map->kind != TM_NODE_MAP)
        return wrong(r, map->line, *where ? where : "the file", "a mapping of keys", map);
    for (size_t i = 0; i < map->count; i++) {
        const tm_item *item = &map->item[i];
        size_t k = 0;
        for (; k < count && strcmp(keys[k].name, item->key) != 0; k++)
            names[k] = keys[k].name;
        if (k < count) {
            TM_TRY(keys[k].take(r, to, item->line, item->value));
            continue;
        }
        const char *near = tm_nearest(item->key, names, count), *dot = *where ? "." : "";
        return near ? refuse(r, item->line, "unknown key %s%s%.80s; did you mean %s?", where, dot, item->key, near)
                    : refuse(r, item->line, "unknown key %s%s%.80s; %s", where, dot, item->key,
                             *where ? "docs/formats/sequence.md lists all keys" : "keys of a recipe stand under recipe; docs/formats/sequence.md lists the others");
    }
    return TM_OK;
}

/* --- Values --- */

static bool is_null(const tm_node *n) { return n->kind == TM_NODE_SCALAR && tm_node_scalar(n) == TM_SCALAR_NULL; }

static tm_status take_text(reader *r, char **to, int line, const char *name, const tm_node *value)
{
    if (value->kind != TM_NODE_SCALAR || is_null(value))
        return wrong(r, line, name, "a text", value);
    free(*to);
    *to = tm_strdup(value->text, r->err);
    return *to ? TM_OK : TM_NO_MEMORY;
}

static tm_status take_name(reader *r, char **to, int line, const char *name, const tm_node *value)
{
    TM_TRY(take_text(r, to, line, name, value));
    return tm_lab_name_ok(*to) ? TM_OK : refuse(r, line, "%s: a name is 1 to 64 letters, digits, _ - or +, found \"%.80s\"", name, *to);
}

static tm_status take_flag(reader *r, bool *to, int line, const char *name, const tm_node *value)
{
    if (value->kind != TM_NODE_SCALAR || tm_node_scalar(value) != TM_SCALAR_BOOL)
        return wrong(r, line, name, "true or false", value);
    *to = tm_node_true(value);
    return TM_OK;
}

static tm_status take_choice(reader *r, int *to, int line, const char *name, const char *const *choices, int count, const tm_node *value)
{
    tm_buf text = {0};
    for (*to = 0; value->kind == TM_NODE_SCALAR && *to < count; ++*to)
        if (strcmp(value->text, choices[*to]) == 0)
            return TM_OK;
    for (int i = 0; i < count; i++)
        tm_buf_printf(&text, "%s%s", i ? ", " : "", choices[i]);
    tm_status st = wrong(r, line, name, tm_buf_str(&text), value);
    tm_buf_deinit(&text);
    return st;
}

/* N: first + 1 ... first + N; or a list. */
static tm_status take_seeds(reader *r, uint64_t **to, size_t *count, uint64_t first, int line, const char *name, const tm_node *value)
{
    int64_t n;
    bool list = value->kind == TM_NODE_LIST;
    if (!list && (!tm_node_int(value, &n) || n < 1 || n > TM_LAB_MOST_SEEDS))
        return wrong(r, line, name, "a number of seeds from 1 to 10000, or a list of seeds", value);
    *count = list ? value->count : (size_t)n;
    if (!*count || *count > TM_LAB_MOST_SEEDS)
        return refuse(r, line, "%s: expected 1 to %d seeds, found %zu", name, TM_LAB_MOST_SEEDS, *count);
    free(*to);
    *to = NULL;
    TM_TRY(TM_NEW(to, *count, r->err));
    for (size_t i = 0; i < *count; i++) {
        if (list && (!tm_node_int(value->item[i].value, &n) || n < 0))
            return wrong(r, value->item[i].value->line, name, "whole numbers of at least 0", value->item[i].value);
        (*to)[i] = list ? (uint64_t)n : first + i + 1;
        for (size_t k = 0; k < i; k++)
            if ((*to)[k] == (*to)[i])
                return refuse(r, line, "%s: %llu is there twice", name, (unsigned long long)(*to)[i]);
    }
    return TM_OK;
}

/* --- Tasks --- */

static tm_status task_name(reader *r, void *to, int line, const tm_node *value) { return take_name(r, &((tm_lab_task *)to)->name, line, "tasks.name", value); }

#define TASK_NODE(member)                                                                       \
    static tm_status task_##member(reader *r, void *to, int line, const tm_node *value)         \
    {                                                                                           \
        if (is_null(value))                                                                     \
            return wrong(r, line, "tasks." #member, "a file name or a mapping with path", value); \
        ((tm_lab_task *)to)->member = value;                                                    \
        return TM_OK;                                                                           \
    }
TASK_NODE(train)
TASK_NODE(test)
TASK_NODE(valid)

static const key task_keys[] = {{"name", task_name}, {"train", task_train}, {"test", task_test}, {"valid", task_valid}};

static tm_status one_entry(reader *r, const char *name, const tm_node *value)
{
    return value->kind == TM_NODE_LIST ? wrong(r, value->line, name, "one evaluation: a file name or a mapping with path", value) : TM_OK;
}

static tm_status take_tasks(reader *r, void *to, int line, const tm_node *value)
{
    tm_sequence_file *f = to;
    if (value->kind != TM_NODE_LIST || !value->count || value->count > TM_LAB_MOST_TASKS)
        return wrong(r, line, "tasks", "a list of 1 to 64 tasks {name, train, test}", value);
    for (size_t i = 0; i < value->count; i++) {
        const tm_node *node = value->item[i].value;
        TM_TRY(TM_GROW(&f->task, &f->task_capacity, f->tasks + 1, r->err));
        tm_lab_task *t = &f->task[f->tasks++];
        *t = (tm_lab_task){.line = node->line};
        TM_TRY(walk(r, "tasks", task_keys, sizeof task_keys / sizeof *task_keys, t, node));
        if (!t->name || !t->train || !t->test)
            return refuse(r, node->line, "a task needs %s", !t->name ? "name" : !t->train ? "train: what it learns from" : "test: what its score is taken on");
        TM_TRY(one_entry(r, "tasks.test", t->test));
        if (t->valid)
            TM_TRY(one_entry(r, "tasks.valid", t->valid));
        for (size_t k = 0; k + 1 < f->tasks; k++)
            if (strcmp(f->task[k].name, t->name) == 0)
                return refuse(r, node->line, "two tasks are named %s (the first in line %d)", t->name, f->task[k].line);
    }
    return TM_OK;
}

/* --- Arms --- */

static const char *const betweens[] = {"merge", "continue", "separate"};

static tm_status arm_name(reader *r, void *to, int line, const tm_node *value) { return take_name(r, &((tm_lab_arm *)to)->name, line, "arms.name", value); }

static tm_status arm_set(reader *r, void *to, int line, const tm_node *value)
{
    if (value->kind != TM_NODE_MAP)
        return wrong(r, line, "arms.set", "a mapping of recipe keys", value);
    ((tm_lab_arm *)to)->set = value;
    return TM_OK;
}

static tm_status arm_grid(reader *r, void *to, int line, const tm_node *value)
{
    tm_lab_grid *grid = &((tm_lab_arm *)to)->grid;
    grid->line = line;
    if (value->kind != TM_NODE_MAP)
        return wrong(r, line, "arms.grid", "a mapping of recipe keys to lists of values", value);
    for (size_t i = 0; i < value->count; i++) {
        const tm_node *list = value->item[i].value;
        if (list->kind != TM_NODE_LIST || !list->count)
            return wrong(r, value->item[i].line, value->item[i].key, "a list of values", list);
        for (size_t k = 0; k < list->count; k++) {
            const tm_node *v = list->item[k].value;
            if (v->kind != TM_NODE_SCALAR || strlen(v->text) > 200)
                return wrong(r, v->line, value->item[i].key, "a number or a word a value", v);
            tm_status st = tm_grid_add(grid, value->item[i].key, v->text, r->err);
            if (st != TM_OK)
                return st == TM_RECIPE ? tm_fail_prefix(r->err, st, "%s:%d", r->f->path, v->line) : st;
        }
    }
    return tm_grid_count(grid) <= TM_LAB_MOST_CONFIGS ? TM_OK : refuse(r, line, "arms.grid: more than %d configurations", TM_LAB_MOST_CONFIGS);
}

static tm_status arm_end(reader *r, void *to, int line, const char *name, tm_arm_kind kind, const tm_node *value)
{
    tm_lab_arm *arm = to;
    bool on = false;
    TM_TRY(take_flag(r, &on, line, name, value));
    if (on && arm->kind != TM_ARM_SEQUENCE)
        return refuse(r, line, "an arm is joint or frozen, not both");
    arm->kind = on ? kind : arm->kind;
    return TM_OK;
}

static tm_status arm_joint(reader *r, void *to, int line, const tm_node *value) { return arm_end(r, to, line, "arms.joint", TM_ARM_JOINT, value); }
static tm_status arm_frozen(reader *r, void *to, int line, const tm_node *value) { return arm_end(r, to, line, "arms.frozen", TM_ARM_FROZEN, value); }

static tm_status arm_between(reader *r, void *to, int line, const tm_node *value)
{
    int at;
    TM_TRY(take_choice(r, &at, line, "arms.between", betweens, 3, value));
    ((tm_lab_arm *)to)->between = (tm_between)at;
    return TM_OK;
}

#define ARM_PREVIOUS(member)                                                                                      \
    static tm_status arm_##member(reader *r, void *to, int line, const tm_node *value)                            \
    {                                                                                                             \
        static const char *const choices[] = {"none", "previous"};                                                \
        int at;                                                                                                   \
        TM_TRY(take_choice(r, &at, line, "arms." #member, choices, 2, value));                                    \
        ((tm_lab_arm *)to)->member = at == 1;                                                                     \
        return TM_OK;                                                                                             \
    }
ARM_PREVIOUS(replay)
ARM_PREVIOUS(ewc)
ARM_PREVIOUS(orthogonal)

static const key arm_keys[] = {{"name", arm_name}, {"set", arm_set}, {"grid", arm_grid}, {"joint", arm_joint}, {"frozen", arm_frozen},
                               {"between", arm_between}, {"replay", arm_replay}, {"ewc", arm_ewc}, {"orthogonal", arm_orthogonal}};

static tm_status take_arms(reader *r, void *to, int line, const tm_node *value)
{
    tm_sequence_file *f = to;
    if (value->kind != TM_NODE_LIST || !value->count || value->count > TM_LAB_MOST_ARMS)
        return wrong(r, line, "arms", "a list of 1 to 64 arms {name, set}", value);
    for (size_t i = 0; i < value->count; i++) {
        const tm_node *node = value->item[i].value;
        TM_TRY(TM_GROW(&f->arm, &f->arm_capacity, f->arms + 1, r->err));
        tm_lab_arm *arm = &f->arm[f->arms++];
        *arm = (tm_lab_arm){.line = node->line, .between = (tm_between)-1};
        TM_TRY(walk(r, "arms", arm_keys, sizeof arm_keys / sizeof *arm_keys, arm, node));
        if (!arm->name)
            return refuse(r, node->line, "an arm needs name");
        for (size_t k = 0; k + 1 < f->arms; k++)
            if (strcmp(f->arm[k].name, arm->name) == 0)
                return refuse(r, node->line, "two arms are named %s (the first in line %d)", arm->name, f->arm[k].line);
        if (arm->kind == TM_ARM_FROZEN && (arm->set || arm->grid.count))
            return refuse(r, node->line, "arm %s: nothing is trained in a frozen arm: set and grid have no place in it", arm->name);
        if (arm->kind != TM_ARM_SEQUENCE && (arm->replay || arm->ewc || arm->orthogonal))
            return refuse(r, node->line, "arm %s: there are no earlier tasks in a joint or frozen arm", arm->name);
    }
    return TM_OK;
}

/* --- The file --- */

/* What is read once everything else is known. */
typedef struct late {
    tm_sequence_file *f;
    const tm_node *orders, *baseline;
    int orders_line, baseline_line;
    int between;
} late;

static tm_status file_recipe(reader *r, void *to, int line, const tm_node *value)
{
    tm_sequence_file *f = ((late *)to)->f;
    if (value->kind == TM_NODE_MAP) {
        f->recipe = value;
        return TM_OK;
    }
    return take_text(r, &f->recipe_path, line, "recipe", value);
}

static tm_status file_tasks(reader *r, void *to, int line, const tm_node *value) { return take_tasks(r, ((late *)to)->f, line, value); }
static tm_status file_arms(reader *r, void *to, int line, const tm_node *value) { return take_arms(r, ((late *)to)->f, line, value); }
static tm_status file_out(reader *r, void *to, int line, const tm_node *value) { return take_text(r, &((late *)to)->f->out, line, "out", value); }

static tm_status file_runs(reader *r, void *to, int line, const tm_node *value)
{
    static const char *const choices[] = {"keep", "last", "drop"};
    int at;
    TM_TRY(take_choice(r, &at, line, "runs", choices, 3, value));
    ((late *)to)->f->runs = (tm_lab_runs)at;
    return TM_OK;
}

static tm_status file_between(reader *r, void *to, int line, const tm_node *value)
{
    return take_choice(r, &((late *)to)->between, line, "between", betweens, 3, value);
}

static tm_status file_orders(reader *r, void *to, int line, const tm_node *value)
{
    (void)r;
    ((late *)to)->orders = value;
    ((late *)to)->orders_line = line;
    return TM_OK;
}

static tm_status file_baseline(reader *r, void *to, int line, const tm_node *value)
{
    if (value->kind != TM_NODE_SCALAR)
        return wrong(r, line, "baseline", "the name of an arm", value);
    ((late *)to)->baseline = value;
    ((late *)to)->baseline_line = line;
    return TM_OK;
}

static tm_status file_seeds(reader *r, void *to, int line, const tm_node *value)
{
    tm_sequence_file *f = ((late *)to)->f;
    return take_seeds(r, &f->seed, &f->seeds, 0, line, "seeds", value);
}

static tm_status file_select_seeds(reader *r, void *to, int line, const tm_node *value)
{
    tm_sequence_file *f = ((late *)to)->f;
    return take_seeds(r, &f->select_seed, &f->select_seeds, 1000000, line, "select_seeds", value);
}

static tm_status file_probes(reader *r, void *to, int line, const tm_node *value)
{
    if (value->kind != TM_NODE_LIST || !value->count || value->count > TM_LAB_MOST_TASKS)
        return wrong(r, line, "probes", "a list of 1 to 64 evaluations", value);
    ((late *)to)->f->probes = value;
    return TM_OK;
}

static const key file_keys[] = {{"recipe", file_recipe}, {"tasks", file_tasks}, {"orders", file_orders}, {"seeds", file_seeds}, {"select_seeds", file_select_seeds},
                                {"arms", file_arms}, {"between", file_between}, {"baseline", file_baseline}, {"probes", file_probes}, {"runs", file_runs}, {"out", file_out}};

static tm_status find_task(const reader *r, const tm_node *value, int32_t *out)
{
    const tm_sequence_file *f = r->f;
    const char *names[TM_LAB_MOST_TASKS];
    if (value->kind != TM_NODE_SCALAR)
        return wrong(r, value->line, "orders", "names of tasks", value);
    for (size_t i = 0; i < f->tasks; i++) {
        names[i] = f->task[i].name;
        *out = (int32_t)i;
        if (strcmp(names[i], value->text) == 0)
            return TM_OK;
    }
    const char *near = tm_nearest(value->text, names, f->tasks);
    return near ? refuse(r, value->line, "orders: there is no task %.80s; did you mean %s?", value->text, near)
                : refuse(r, value->line, "orders: there is no task %.80s", value->text);
}

static tm_status listed_orders(reader *r, int line, const tm_node *value)
{
    tm_sequence_file *f = r->f;
    if (!value->count || value->count > TM_LAB_MOST_ORDERS)
        return refuse(r, line, "orders: expected 1 to %d orders, found %zu", TM_LAB_MOST_ORDERS, value->count);
    f->orders = value->count;
    TM_TRY(TM_NEW(&f->order, f->orders * f->tasks, r->err));
    for (size_t i = 0; i < f->orders; i++) {
        const tm_node *order = value->item[i].value;
        bool seen[TM_LAB_MOST_TASKS] = {0};
        if (order->kind != TM_NODE_LIST || order->count != f->tasks)
            return wrong(r, order->line, "orders", "lists that name every task once", order);
        for (size_t k = 0; k < f->tasks; k++) {
            int32_t *task = &f->order[i * f->tasks + k];
            TM_TRY(find_task(r, order->item[k].value, task));
            if (seen[*task])
                return refuse(r, order->line, "orders: %s is there twice", f->task[*task].name);
            seen[*task] = true;
        }
    }
    return TM_OK;
}

/* The file's own order, then permutations by Philox that were not there before. */
static tm_status drawn_orders(reader *r, int line, int64_t count)
{
    tm_sequence_file *f = r->f;
    int64_t all = 1, permutation[TM_LAB_MOST_TASKS];
    for (size_t i = 2; i <= f->tasks && all < count; i++)
        all *= (int64_t)i;
    if (count > all)
        return refuse(r, line, "orders: %zu tasks have %lld orders, %lld were asked for", f->tasks, (long long)all, (long long)count);
    TM_TRY(TM_NEW(&f->order, (size_t)count * f->tasks, r->err));
    for (uint32_t draw = 0; f->orders < (size_t)count; draw++) {
        int32_t *order = f->order + f->orders * f->tasks;
        tm_permutation(tm_philox_key(0, TM_PURPOSE_ORDER, draw, 0x5e9u), (int64_t)f->tasks, permutation);
        for (size_t k = 0; k < f->tasks; k++)
            order[k] = (int32_t)(draw ? permutation[k] : (int64_t)k);
        bool fresh = true;
        for (size_t i = 0; i < f->orders; i++)
            fresh &= memcmp(f->order + i * f->tasks, order, f->tasks * sizeof *order) != 0;
        f->orders += fresh;
    }
    return TM_OK;
}

static tm_status take_orders(reader *r, const late *l)
{
    int64_t n = 1;
    if (l->orders && l->orders->kind == TM_NODE_LIST)
        return listed_orders(r, l->orders_line, l->orders);
    if (l->orders && (!tm_node_int(l->orders, &n) || n < 1 || n > TM_LAB_MOST_ORDERS))
        return wrong(r, l->orders_line, "orders", "a number of orders, or a list of lists of task names", l->orders);
    return drawn_orders(r, l->orders_line, n);
}

/* `baseline`, else the arm naive, else the first that is trained task by task. */
static tm_status find_baseline(reader *r, const late *l)
{
    tm_sequence_file *f = r->f;
    const char *wanted = l->baseline ? l->baseline->text : "naive";
    for (f->baseline = 0; f->baseline < f->arms; f->baseline++)
        if (strcmp(f->arm[f->baseline].name, wanted) == 0)
            return TM_OK;
    if (l->baseline)
        return refuse(r, l->baseline_line, "baseline: there is no arm %.80s", wanted);
    for (f->baseline = 0; f->baseline + 1 < f->arms && f->arm[f->baseline].kind != TM_ARM_SEQUENCE;)
        f->baseline++;
    return TM_OK;
}

/* --- Recipes --- */

/* A mapping made here: {key: [nodes]}. */
typedef struct made {
    tm_node map, list;
    tm_item item, *items;
} made;

static tm_status make_list(made *m, const char *name, const tm_node *const *nodes, size_t count, tm_error *err)
{
    TM_TRY(TM_NEW(&m->items, count, err));
    for (size_t i = 0; i < count; i++)
        m->items[i] = (tm_item){.value = nodes[i], .line = nodes[i]->line};
    m->list = (tm_node){.kind = TM_NODE_LIST, .line = count ? nodes[0]->line : 0, .item = m->items, .count = count};
    m->item = (tm_item){.key = (char *)(uintptr_t)name, .line = m->list.line, .value = &m->list};
    m->map = (tm_node){.kind = TM_NODE_MAP, .line = m->list.line, .item = &m->item, .count = 1};
    return TM_OK;
}

static tm_status load(const tm_sequence_file *f, const tm_node *set, const tm_node *sets, char *const *overrides, size_t override_count,
                      const tm_names *own, const tm_names *extra, tm_recipe **out, tm_error *err)
{
    const tm_node *layers[3];
    size_t count = 0;
    tm_names all = {0};
    tm_status st = TM_OK;
    if (f->recipe)
        layers[count++] = f->recipe;
    if (set)
        layers[count++] = set;
    layers[count++] = sets;
    for (size_t i = 0; i < override_count; i++)
        TM_GO(tm_names_add(&all, overrides[i], err));
    for (int64_t i = 0; own && i < own->count; i++)
        TM_GO(tm_names_add(&all, own->item[i], err));
    for (int64_t i = 0; extra && i < extra->count; i++)
        TM_GO(tm_names_add(&all, extra->item[i], err));
    st = tm_recipe_load_layers(f->recipe_path, &(tm_recipe_layers){f->path, layers, count}, all.item, (size_t)all.count, out, err);
out:
    tm_names_deinit(&all);
    return st;
}

/* {data: [what the tasks learn from]}. */
static tm_status make_data(const tm_sequence_file *f, const int32_t *tasks, size_t count, made *m, tm_error *err)
{
    tm_status st = TM_OK;
    const tm_node **nodes = NULL;
    size_t n = 0, room = 0;
    for (size_t i = 0; i < count; i++) {
        const tm_node *train = f->task[tasks[i]].train;
        size_t entries = tm_sequence_entries(f, (size_t)tasks[i]);
        TM_GO(TM_GROW(&nodes, &room, n + entries, err));
        for (size_t k = 0; k < entries; k++)
            nodes[n++] = train->kind == TM_NODE_LIST ? train->item[k].value : train;
    }
    st = make_list(m, "data", nodes, n, err);
out:
    free(nodes);
    return st;
}

size_t tm_sequence_entries(const tm_sequence_file *f, size_t task)
{
    const tm_node *train = f->task[task].train;
    return train->kind == TM_NODE_LIST ? train->count : 1;
}

static tm_status eval_recipe(const tm_sequence_file *f, tm_lab_sets sets, const tm_node *data, char *const *overrides, size_t override_count, const tm_names *extra,
                             tm_recipe **out, tm_error *err)
{
    static const char *const nothing[] = {"keep=null", "lora=null", "bitfit=null", "adapter=null", "prompt=null", "train.early_stop=null", "method=none", "data=null"};
    const tm_node *nodes[TM_LAB_MOST_TASKS];
    char name[128];
    made m = {0};
    tm_names own = {0};
    size_t count = sets == TM_SETS_PROBES ? (f->probes ? f->probes->count : 0) : f->tasks;
    tm_status st = TM_OK;
    *out = NULL;
    for (size_t i = 0; i < sizeof nothing / sizeof *nothing - (data != NULL); i++)
        TM_GO(tm_names_add(&own, nothing[i], err));
    for (size_t i = 0; i < count; i++) {
        nodes[i] = sets == TM_SETS_PROBES ? f->probes->item[i].value : sets == TM_SETS_VALID ? f->task[i].valid : f->task[i].test;
        if (sets == TM_SETS_PROBES)
            continue;
        snprintf(name, sizeof name, "eval.%zu.name=%s", i, f->task[i].name);
        TM_GO(tm_names_add(&own, name, err));
    }
    TM_GO(make_list(&m, "eval", nodes, count, err));
    st = load(f, data, &m.map, overrides, override_count, &own, extra, out, err);
out:
    free(m.items);
    tm_names_deinit(&own);
    return st;
}

tm_status tm_sequence_eval_recipe(const tm_sequence_file *f, tm_lab_sets sets, char *const *overrides, size_t override_count, const tm_names *extra,
                                  tm_recipe **out, tm_error *err)
{
    return eval_recipe(f, sets, NULL, overrides, override_count, extra, out, err);
}

tm_status tm_sequence_route_recipe(const tm_sequence_file *f, char *const *overrides, size_t override_count, tm_recipe **out, tm_error *err)
{
    made m = {0};
    int32_t all[TM_LAB_MOST_TASKS];
    for (size_t i = 0; i < f->tasks; i++)
        all[i] = (int32_t)i;
    tm_status st = make_data(f, all, f->tasks, &m, err);
    if (st == TM_OK)
        st = eval_recipe(f, TM_SETS_TEST, &m.map, overrides, override_count, NULL, out, err);
    free(m.items);
    return st;
}

tm_status tm_sequence_train_recipe(const tm_sequence_file *f, const tm_lab_arm *arm, const int32_t *tasks, size_t count, char *const *overrides,
                                   size_t override_count, const tm_names *extra, tm_recipe **out, tm_error *err)
{
    made m = {0};
    *out = NULL;
    tm_status st = make_data(f, tasks, count, &m, err);
    if (st == TM_OK)
        st = load(f, arm->set, &m.map, overrides, override_count, NULL, extra, out, err);
    free(m.items);
    return st;
}

/* --- Checks --- */

/* What holds of an arm's recipe, whatever the task; `whole`: with its configuration. */
static tm_status check_recipe(reader *r, tm_lab_arm *arm, const tm_recipe *recipe, bool whole)
{
    tm_sequence_file *f = r->f;
    if (recipe->init == TM_INIT_RANDOM)
        return refuse(r, arm->line, "arm %s: a sequence starts from a model with weights, not from init: random; train one first", arm->name);
    if (!recipe->model)
        return refuse(r, arm->line, "the recipe has no model");
    if (!f->model && !(f->model = tm_strdup(recipe->model, r->err)))
        return TM_NO_MEMORY;
    if (strcmp(f->model, recipe->model) != 0)
        return refuse(r, arm->line, "arm %s: all arms start from one model, %s, this one from %s", arm->name, f->model, recipe->model);
    if (recipe->lora_init || recipe->bitfit_init || recipe->adapter_init || recipe->prompt_init)
        return refuse(r, arm->line, "arm %s: a sequence starts from a model without an adapter: merge it first (temper merge)", arm->name);
    if (whole && arm->ewc && recipe->ewc_lambda == 0)
        return refuse(r, arm->line, "arm %s: ewc: previous needs a strength: set keep.ewc.lambda", arm->name);
    arm->method = recipe->method;
    arm->old_data = arm->kind == TM_ARM_JOINT || arm->replay || recipe->replay.path || recipe->ewc.path;
    arm->old_importances = recipe->ewc.path || recipe->ewc_importances;
    if (recipe->ewc_importances && !arm->importances && !(arm->importances = tm_strdup(recipe->ewc_importances, r->err)))
        return TM_NO_MEMORY;
    return TM_OK;
}

/* With configuration c of the grid, 0: without it, its own keys are then to blame. */
static tm_status check_configuration(reader *r, tm_lab_arm *arm, size_t c, int32_t task)
{
    tm_names settings = {0};
    tm_recipe *recipe = NULL;
    tm_status st = c ? tm_grid_settings(&arm->grid, c - 1, &settings, r->err) : TM_OK;
    if (st == TM_OK)
        st = tm_sequence_train_recipe(r->f, arm, &task, 1, r->overrides, r->override_count, &settings, &recipe, r->err);
    if (st == TM_RECIPE && c)
        st = tm_fail_prefix(r->err, st, "%s:%d: grid", r->f->path, arm->grid.line);
    if (st == TM_OK)
        st = check_recipe(r, arm, recipe, c > 0);
    tm_recipe_destroy(recipe);
    tm_names_deinit(&settings);
    return st;
}

/* Every recipe of an arm, loaded once. */
static tm_status check_arm(reader *r, tm_lab_arm *arm)
{
    for (size_t t = 0; t < r->f->tasks; t++)
        TM_TRY(check_configuration(r, arm, 0, (int32_t)t));
    for (size_t c = 1; c <= tm_grid_count(&arm->grid); c++)
        TM_TRY(check_configuration(r, arm, c, 0));
    return TM_OK;
}

/* How an arm goes from one task to the next, and whether it can. */
static tm_status settle_between(reader *r, tm_lab_arm *arm, int between)
{
    bool whole = arm->method == TM_METHOD_FULL || arm->method == TM_METHOD_FREEZE, said = (int)arm->between >= 0;
    if (!said)
        arm->between = between >= 0 ? (tm_between)between : whole || arm->method == TM_METHOD_LORA ? TM_BETWEEN_MERGE : TM_BETWEEN_CONTINUE;
    if (arm->kind != TM_ARM_SEQUENCE)
        return TM_OK;
    if (arm->method == TM_METHOD_NONE)
        return refuse(r, arm->line, "arm %s: method none trains nothing; say frozen: true", arm->name);
    if (whole && arm->between == TM_BETWEEN_SEPARATE)
        return refuse(r, arm->line, "arm %s: between: separate is for adapters; with method full or freeze there is one model", arm->name);
    if (!whole && arm->method != TM_METHOD_LORA && arm->between == TM_BETWEEN_MERGE)
        return refuse(r, arm->line, "arm %s: only LoRA adapters can be merged; say between: continue or separate", arm->name);
    if (arm->orthogonal && (arm->method != TM_METHOD_LORA || arm->between != TM_BETWEEN_MERGE))
        return refuse(r, arm->line, "arm %s: orthogonal: previous is for method lora with between: merge", arm->name);
    if (arm->between == TM_BETWEEN_SEPARATE && (arm->replay || arm->ewc))
        return refuse(r, arm->line, "arm %s: separate modules forget nothing: replay and ewc have no place there", arm->name);
    return TM_OK;
}

static tm_status check_sets(reader *r)
{
    tm_sequence_file *f = r->f;
    tm_recipe *recipe;
    bool grids = false, valid = true;
    for (size_t i = 0; i < f->tasks; i++)
        valid &= f->task[i].valid != NULL;
    for (size_t i = 0; i < f->arms; i++) {
        grids |= f->arm[i].grid.count > 0;
        if (f->arm[i].grid.count && !valid)
            return refuse(r, f->arm[i].grid.line, "arm %s: configurations of a grid are chosen on validation sets: every task needs valid", f->arm[i].name);
    }
    TM_TRY(tm_sequence_eval_recipe(f, TM_SETS_TEST, r->overrides, r->override_count, NULL, &recipe, r->err));
    for (size_t i = 0; i < f->tasks; i++)
        f->task[i].metric = recipe->eval[i].metric;
    tm_recipe_destroy(recipe);
    if (grids) {
        TM_TRY(tm_sequence_eval_recipe(f, TM_SETS_VALID, r->overrides, r->override_count, NULL, &recipe, r->err));
        for (size_t i = 0; i < f->tasks; i++)
            f->task[i].valid_metric = recipe->eval[i].metric;
        tm_recipe_destroy(recipe);
    }
    for (size_t i = 0; i < f->tasks; i++)
        if (f->task[i].metric == TM_METRIC_KL || (grids && f->task[i].valid_metric == TM_METRIC_KL))
            return refuse(r, f->task[i].line, "task %s: metric kl says how far a model moved, not how well it does a task; give it to probes", f->task[i].name);
    if (!f->probes)
        return TM_OK;
    tm_status st = tm_sequence_eval_recipe(f, TM_SETS_PROBES, r->overrides, r->override_count, NULL, &recipe, r->err);
    if (st == TM_OK)
        st = TM_NEW(&f->probe_metric, recipe->eval_count, r->err);
    for (int64_t i = 0; st == TM_OK && i < recipe->eval_count; i++) {
        f->probe_metric[i] = recipe->eval[i].metric;
        st = tm_names_add(&f->probe_name, recipe->eval[i].name, r->err);
    }
    tm_recipe_destroy(recipe);
    return st;
}

/* Every arm tries as many configurations, and none of them with a seed of the test. */
static tm_status check_fairness(reader *r)
{
    tm_sequence_file *f = r->f;
    size_t most = 1;
    char text[400];
    for (size_t i = 0; i < f->arms; i++) {
        size_t n = tm_grid_count(&f->arm[i].grid);
        most = n > most ? n : most;
    }
    for (size_t i = 0; most > 1 && i < f->arms; i++) {
        size_t n = tm_grid_count(&f->arm[i].grid);
        if (n == most || f->arm[i].kind == TM_ARM_FROZEN)
            continue;
        snprintf(text, sizeof text, "arm %s tries %zu configuration%s, another one %zu: who tries more wins more often by luck; give every arm a grid of the same size",
                 f->arm[i].name, n, n == 1 ? "" : "s", most);
        TM_TRY(tm_names_add(&f->warnings, text, r->err));
    }
    for (size_t i = 0; most > 1 && i < f->select_seeds; i++)
        for (size_t k = 0; k < f->seeds; k++)
            if (f->select_seed[i] == f->seed[k])
                return tm_fail(r->err, TM_RECIPE, "%s: seed %llu is in seeds and in select_seeds: what is chosen must not be chosen with a seed of the test", f->path,
                               (unsigned long long)f->seed[k]);
    return TM_OK;
}

static tm_status read_file(reader *r, const char *path)
{
    tm_sequence_file *f = r->f;
    late l = {.f = f, .between = -1};
    static const tm_node one = {.kind = TM_NODE_SCALAR, .plain = true, .text = "1"};
    if (!(f->path = tm_strdup(path, r->err)))
        return TM_NO_MEMORY;
    TM_TRY(tm_tree_read(path, &f->tree, r->err));
    if (!f->tree.root)
        return refuse(r, 1, "the file is empty: expected recipe, tasks and arms");
    TM_TRY(walk(r, "", file_keys, sizeof file_keys / sizeof *file_keys, &l, f->tree.root));
    if (!f->tasks || !f->arms || (!f->recipe && !f->recipe_path))
        return refuse(r, 1, "%s is missing", !f->tasks ? "tasks" : !f->arms ? "arms" : "recipe");
    if (!f->seeds)
        TM_TRY(take_seeds(r, &f->seed, &f->seeds, 0, 1, "seeds", &one));
    if (!f->select_seeds)
        TM_TRY(take_seeds(r, &f->select_seed, &f->select_seeds, 1000000, 1, "select_seeds", &one));
    TM_TRY(take_orders(r, &l));
    if (f->arms * f->orders * f->seeds > TM_LAB_MOST_CHAINS)
        return refuse(r, 1, "%zu arms in %zu orders with %zu seeds are %zu chains; expected at most %d", f->arms, f->orders, f->seeds, f->arms * f->orders * f->seeds, TM_LAB_MOST_CHAINS);
    TM_TRY(find_baseline(r, &l));
    TM_TRY(check_sets(r));
    for (size_t i = 0; i < f->arms; i++) {
        TM_TRY(check_arm(r, &f->arm[i]));
        TM_TRY(settle_between(r, &f->arm[i], l.between));
    }
    return check_fairness(r);
}

tm_status tm_sequence_file_open(const char *path, char *const *overrides, size_t override_count, tm_sequence_file *out, tm_error *err)
{
    tm_error own;
    *out = (tm_sequence_file){0};
    reader r = {out, overrides, override_count, err ? err : &own};
    tm_status st = read_file(&r, path);
    if (st != TM_OK)
        tm_sequence_file_close(out);
    return st;
}

void tm_sequence_file_close(tm_sequence_file *f)
{
    for (size_t i = 0; i < f->tasks; i++)
        free(f->task[i].name);
    for (size_t i = 0; i < f->arms; i++) {
        free(f->arm[i].name);
        free(f->arm[i].importances);
        tm_grid_deinit(&f->arm[i].grid);
    }
    free(f->task);
    free(f->arm);
    free(f->order);
    free(f->seed);
    free(f->select_seed);
    free(f->probe_metric);
    free(f->path);
    free(f->recipe_path);
    free(f->model);
    free(f->out);
    tm_names_deinit(&f->probe_name);
    tm_names_deinit(&f->warnings);
    tm_tree_deinit(&f->tree);
    *f = (tm_sequence_file){0};
}
