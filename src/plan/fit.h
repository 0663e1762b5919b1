/* How a run is laid out on a device, and what would fit where it does not. */
#ifndef TM_PLAN_FIT_H
#define TM_PLAN_FIT_H

#include "plan/plan.h"
#include "plan/target.h"

/* What the recipe asks of the layout (TM_AUTO_INT, ..._AUTO: it leaves the choice), and the examples it is for. */
typedef struct tm_layout {
    int precision, recompute, offload;
    int64_t recompute_layers, micro_tokens;
    int64_t longest, shortest; /* tokens of an example; longest: with a trained prompt's rows */
    int64_t most;              /* tokens that a step or an evaluation has: larger micro-batches are never filled */
    int64_t texts;             /* generated at once, where there is room for as many; 0: none are */
} tm_layout;

/* Settles precision, train.recompute, train.recompute_layers and train.micro_tokens in the recipe, and run->max_tokens,
 * max_examples and cache_slots (halved until a layout fits; what is generated does not depend on it); plans the run with them. What is auto is settled so:
 *   micro-batches: on a CPU 2,048 tokens; on a GPU the largest power of two up to 16,384 (8,192 for models above 3 billion parameters) that
 *     fits without recomputation, but not below 2,048 for its sake;
 *   recomputation: of as few blocks as it takes for that micro-batch to fit; on a GPU, where all do not do, smaller micro-batches;
 *   train.offload: where the least of that does not fit either.
 * Never more tokens than a step has, nor fewer than the longest example. Where nothing fits, the least is planned. By sizes
 * alone, not by measured rates: the same recipe gets the same layout on every card of a kind. run->recipe is `recipe`. */
tm_status tm_layout_choose(tm_run *run, tm_recipe *recipe, const tm_layout *asked, const tm_target *target, tm_memory_plan *plan, tm_error *err) TM_MUST_CHECK;

enum { TM_ADVICE_KEYS = 4, TM_ADVICE_MAX = 8 };

/* A way to make it fit: keys of the recipe with other values. */
typedef struct tm_advice {
    struct {
        const char *key;
        char value[32];
    } set[TM_ADVICE_KEYS];
    int count;
    tm_memory_plan plan; /* with them */
} tm_advice;

/* What would fit, cheapest first: each was planned. First what changes no result (smaller micro-batches, recomputation, both, activations in host memory), then
 * bf16, also of what is trained, LoRA instead of all weights, fewer trained layers, shorter examples. run and recipe are left as they were. *count 0: nothing helps. */
tm_status tm_advise(tm_run *run, tm_recipe *recipe, const tm_layout *asked, const tm_target *target, tm_advice out[TM_ADVICE_MAX], int *count, tm_error *err) TM_MUST_CHECK;
/* "train.micro_tokens: 2048, train.recompute: full" */
void tm_advice_put(const tm_advice *advice, tm_buf *out);

#endif
