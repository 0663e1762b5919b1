/* Layouts and advice: see fit.h. */
#include "plan/fit.h"

#include <stdio.h>
#include <string.h>

/* --- Choosing --- */

enum { CPU_TOKENS = 2048, FEW_TOKENS = 2048, GPU_TOKENS = 16384, GPU_TOKENS_LARGE = 8192 };
static const int64_t large_model = 3000000000;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* A choice under way. */
typedef struct choosing {
    tm_run *run;
    tm_recipe *recipe;
    const tm_layout *asked;
    const tm_target *target;
    tm_memory_plan *plan; /* of the last try */
} choosing;

static bool fits(const choosing *c) { return tm_target_fits(c->target, c->plan->peak); }

/* Plans the run with micro-batches of so many tokens, and with so many blocks computed again. */
static tm_status try_layout(choosing *c, int64_t tokens, int recompute, int64_t layers, tm_error *err)
{
    const tm_layout *asked = c->asked;
    c->recipe->micro_tokens = most_of(tokens, asked->longest);
    c->recipe->recompute = recompute;
    c->recipe->recompute_layers = layers;
    c->run->max_tokens = c->recipe->micro_tokens;
    c->run->max_examples = c->run->max_tokens / (asked->shortest > 1 ? asked->shortest : 2) + 1;
    c->run->cache_slots = least(asked->texts, c->run->max_examples);
    for (;; c->run->cache_slots /= 2) {
        TM_TRY(tm_plan_memory(c->run, c->target->traits, c->target->own, c->plan, err));
        if (fits(c) || c->run->cache_slots < 2)
            return TM_OK;
    }
}

/* The largest micro-batch that fits, from *tokens down by powers of two to `fewest`; *tokens: the one that was tried last. */
static tm_status largest(choosing *c, int64_t *tokens, int64_t fewest, int recompute, int64_t layers, tm_error *err)
{
    for (;;) {
        TM_TRY(try_layout(c, *tokens, recompute, layers, err));
        if (fits(c) || *tokens <= fewest || *tokens <= c->asked->longest)
            return TM_OK;
        int64_t next = 1;
        while (2 * next < *tokens)
            next *= 2;
        *tokens = next;
    }
}

/* The fewest blocks that have to be computed again, where all do; one alone would save nothing. */
static tm_status fewest_layers(choosing *c, int64_t tokens, int64_t layers, tm_error *err)
{
    int64_t low = 2, high = layers;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        TM_TRY(try_layout(c, tokens, TM_RECOMPUTE_PARTIAL, middle, err));
        if (fits(c))
            high = middle;
        else
            low = middle + 1;
    }
    return high < layers ? try_layout(c, tokens, TM_RECOMPUTE_PARTIAL, high, err) : try_layout(c, tokens, TM_RECOMPUTE_FULL, 0, err);
}

tm_status tm_layout_choose(tm_run *run, tm_recipe *recipe, const tm_layout *asked, const tm_target *target, tm_memory_plan *plan, tm_error *err)
{
    choosing c = {run, recipe, asked, target, plan};
    bool choose = asked->micro_tokens == TM_AUTO_INT, shrink = choose && target->cuda, recompute = asked->recompute == TM_RECOMPUTE_AUTO;
    int64_t tokens = choose ? least(CPU_TOKENS, asked->most) : asked->micro_tokens;
    int precision = recipe->master == TM_MASTER_BF16 ? TM_PRECISION_BF16 : target->precision;
    recipe->precision = asked->precision == TM_PRECISION_AUTO ? precision : asked->precision;
    recipe->offload = asked->offload;
    if (shrink) {
        TM_TRY(try_layout(&c, asked->longest, TM_RECOMPUTE_NONE, 0, err)); /* counts parameters */
        tokens = least(plan->parameters > large_model ? GPU_TOKENS_LARGE : GPU_TOKENS, asked->most);
    }
    if (!recompute)
        return largest(&c, &tokens, shrink ? 1 : tokens, asked->recompute, asked->recompute_layers, err);
    TM_TRY(largest(&c, &tokens, shrink ? FEW_TOKENS : tokens, TM_RECOMPUTE_NONE, 0, err));
    if (fits(&c))
        return TM_OK;
    TM_TRY(largest(&c, &tokens, shrink ? 1 : tokens, TM_RECOMPUTE_FULL, 0, err));
    if (fits(&c))
        return fewest_layers(&c, tokens, plan->layers, err);
    if (asked->offload != TM_OFFLOAD_AUTO || !target->cuda)
        return TM_OK;
    recipe->offload = TM_OFFLOAD_ACTIVATIONS;
    TM_TRY(try_layout(&c, tokens, TM_RECOMPUTE_FULL, 0, err));
    return fits(&c) ? fewest_layers(&c, tokens, plan->layers, err) : TM_OK;
}

/* --- Advice --- */

typedef struct advising {
    tm_run *run;
    tm_recipe *recipe;
    const tm_layout *asked;
    const tm_target *target;
    tm_advice *out;
    int *count;
} advising;

static void set(tm_advice *a, const char *key, const char *value)
{
    a->set[a->count].key = key;
    snprintf(a->set[a->count++].value, sizeof a->set[0].value, "%s", value);
}

static void set_number(tm_advice *a, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    set(a, key, text);
}

/* Plans with a layout; *fits: it is kept as advice, with the settings in which it differs from what was asked. */
static tm_status advise(advising *s, const tm_layout *layout, const tm_advice *beside, bool *fits, tm_error *err)
{
    tm_advice a = *beside;
    *fits = false;
    if (*s->count == TM_ADVICE_MAX)
        return TM_OK;
    TM_TRY(tm_layout_choose(s->run, s->recipe, layout, s->target, &a.plan, err));
    if (!tm_target_fits(s->target, a.plan.peak))
        return TM_OK;
    *fits = true;
    if (s->asked->micro_tokens != TM_AUTO_INT && s->recipe->micro_tokens != s->asked->micro_tokens)
        set_number(&a, "train.micro_tokens", s->recipe->micro_tokens);
    if (s->asked->recompute != TM_RECOMPUTE_AUTO && s->recipe->recompute != s->asked->recompute)
        set(&a, "train.recompute", "auto");
    s->out[(*s->count)++] = a;
    return TM_OK;
}

/* With smaller micro-batches than the recipe asks for, until they fit. */
static tm_status advise_smaller(advising *s, int recompute, bool *fits, tm_error *err)
{
    tm_layout layout = *s->asked;
    layout.recompute = recompute;
    for (int64_t tokens = layout.micro_tokens; tokens > layout.longest && !*fits;) {
        tokens = most_of(tokens / 2, layout.longest);
        layout.micro_tokens = tokens;
        TM_TRY(advise(s, &layout, &(tm_advice){0}, fits, err));
    }
    return TM_OK;
}

/* What changes no result: smaller micro-batches, recomputation, both. What the recipe left to choose was tried already. */
static tm_status advise_layout(advising *s, bool *fits, tm_error *err)
{
    const tm_layout *asked = s->asked;
    bool tokens = asked->micro_tokens != TM_AUTO_INT, blocks = asked->recompute == TM_RECOMPUTE_NONE || asked->recompute == TM_RECOMPUTE_PARTIAL;
    bool smaller = false, again = false;
    tm_layout layout = *asked;
    layout.recompute = TM_RECOMPUTE_AUTO;
    if (tokens)
        TM_TRY(advise_smaller(s, asked->recompute, &smaller, err));
    if (blocks)
        TM_TRY(advise(s, &layout, &(tm_advice){0}, &again, err));
    if (tokens && blocks && !smaller && !again)
        TM_TRY(advise_smaller(s, TM_RECOMPUTE_AUTO, &again, err));
    *fits = smaller || again;
    return TM_OK;
}

/* With another value of one choice of the recipe, and the layout that fits best. */
static tm_status advise_choice(advising *s, int *choice, int value, const char *key, const char *text, bool *fits, tm_error *err)
{
    tm_advice a = {0};
    tm_layout layout = *s->asked;
    int saved = *choice;
    layout.micro_tokens = TM_AUTO_INT;
    layout.recompute = TM_RECOMPUTE_AUTO;
    if (choice == &s->recipe->precision)
        layout.precision = value;
    if (choice == &s->recipe->offload)
        layout.offload = value;
    set(&a, key, text);
    *choice = value;
    tm_status st = advise(s, &layout, &a, fits, err);
    *choice = saved;
    return st;
}

/* The fewest frozen layers that fit: half, three quarters, ... all but one. */
static tm_status advise_freeze(advising *s, bool *fits, tm_error *err)
{
    tm_recipe *r = s->recipe;
    int method = r->method;
    int64_t layers, frozen = r->freeze_layers;
    bool embeddings = r->freeze_embeddings;
    tm_model_config config;
    tm_layout layout = *s->asked;
    layout.micro_tokens = TM_AUTO_INT;
    layout.recompute = TM_RECOMPUTE_AUTO;
    TM_TRY(tm_model_config_read(s->run->model_dir, &config, err));
    layers = config.layers;
    tm_model_config_deinit(&config);
    tm_status st = TM_OK;
    r->method = TM_METHOD_FREEZE;
    r->freeze_embeddings = true;
    for (int64_t left = layers / 2; left && !*fits && st == TM_OK; left /= 2) {
        tm_advice a = {0};
        r->freeze_layers = layers - left;
        set(&a, "method", "freeze");
        set_number(&a, "freeze.layers", r->freeze_layers);
        st = advise(s, &layout, &a, fits, err);
    }
    r->method = method;
    r->freeze_layers = frozen;
    r->freeze_embeddings = embeddings;
    return st;
}

/* The longest examples that fit, halving. */
static tm_status advise_length(advising *s, bool *fits, tm_error *err)
{
    tm_layout layout = *s->asked;
    int64_t seq = s->recipe->seq;
    tm_status st = TM_OK;
    layout.micro_tokens = TM_AUTO_INT;
    layout.recompute = TM_RECOMPUTE_AUTO;
    for (int64_t n = least(seq, s->asked->longest) / 2; n >= 64 && !*fits && st == TM_OK; n /= 2) {
        tm_advice a = {0};
        layout.longest = n;
        layout.shortest = least(s->asked->shortest, n);
        set_number(&a, "train.seq", n);
        s->recipe->seq = n;
        st = advise(s, &layout, &a, fits, err);
    }
    s->recipe->seq = seq;
    return st;
}

static tm_status advise_all(advising *s, tm_error *err)
{
    tm_recipe *r = s->recipe;
    bool fits = false, other = false, frozen = false;
    int method = r->method;
    TM_TRY(advise_layout(s, &fits, err));
    if (s->target->traits.apart && s->asked->offload == TM_OFFLOAD_NONE && !fits)
        TM_TRY(advise_choice(s, &r->offload, TM_OFFLOAD_ACTIVATIONS, "train.offload", "activations", &fits, err));
    if (s->asked->precision == TM_PRECISION_F32 && !fits)
        TM_TRY(advise_choice(s, &r->precision, TM_PRECISION_BF16, "precision", "bf16", &fits, err));
    bool all = method == TM_METHOD_FULL || method == TM_METHOD_FREEZE;
    if (all && r->master == TM_MASTER_F32 && r->optimizer == TM_OPTIM_ADAMW && s->target->precision == TM_PRECISION_BF16 && s->asked->precision != TM_PRECISION_F32)
        TM_TRY(advise_choice(s, &r->master, TM_MASTER_BF16, "train.master", "bf16", &other, err));
    if (all)
        TM_TRY(advise_choice(s, &r->method, TM_METHOD_LORA, "method", "lora", &other, err));
    if (method == TM_METHOD_FULL && !fits)
        TM_TRY(advise_freeze(s, &frozen, err));
    return fits || other || frozen ? TM_OK : advise_length(s, &fits, err);
}

tm_status tm_advise(tm_run *run, tm_recipe *recipe, const tm_layout *asked, const tm_target *target, tm_advice out[TM_ADVICE_MAX], int *count, tm_error *err)
{
    advising s = {run, recipe, asked, target, out, count};
    tm_run run_before = *run;
    int precision = recipe->precision, recompute = recipe->recompute, offload = recipe->offload;
    int64_t micro_tokens = recipe->micro_tokens, recompute_layers = recipe->recompute_layers;
    *count = 0;
    tm_status st = advise_all(&s, err);
    *run = run_before;
    recipe->precision = precision;
    recipe->recompute = recompute;
    recipe->offload = offload;
    recipe->recompute_layers = recompute_layers;
    recipe->micro_tokens = micro_tokens;
    return st;
}

void tm_advice_put(const tm_advice *a, tm_buf *out)
{
    for (int i = 0; i < a->count; i++)
        tm_buf_printf(out, "%s%s: %s", i ? ", " : "", a->set[i].key, a->set[i].value);
}
