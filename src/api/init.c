/* temper init: a first recipe. What it chooses is what differs between models and machines: the length of
 * examples (the model's, memory), the batch (enough steps); the rest are the defaults. */
#include "api/job.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

enum { ENOUGH_STEPS = 50 };

typedef struct choice {
    int64_t seq, batch;
    int64_t peak, steps; /* of the plan; -1: unknown */
} choice;

static tm_status make_recipe(const char *model, const char *data, const choice *c, tm_recipe **out, tm_error *err)
{
    tm_names list = {0};
    tm_buf line = {0};
    tm_status st = TM_OK;
    const char *const names[] = {"model", "data.0.path"}, *const paths[] = {model, data};
    for (int i = 0; i < 2; i++) {
        if (!paths[i])
            continue;
        tm_buf_clear(&line);
        tm_buf_printf(&line, "%s=", names[i]);
        tm_json_put_string(&line, paths[i]);
        TM_GO(tm_buf_check(&line, err));
        TM_GO(tm_names_add(&list, line.data, err));
    }
    tm_buf_clear(&line);
    tm_buf_printf(&line, "train.seq=%lld", (long long)c->seq);
    TM_GO(tm_buf_check(&line, err));
    TM_GO(tm_names_add(&list, line.data, err));
    tm_buf_clear(&line);
    tm_buf_printf(&line, "train.batch=%lld", (long long)c->batch);
    TM_GO(tm_buf_check(&line, err));
    TM_GO(tm_names_add(&list, line.data, err));
    TM_GO(tm_names_add(&list, "out=runs/first", err));
    st = tm_recipe_load(NULL, list.item, (size_t)list.count, out, err);
out:
    tm_buf_deinit(&line);
    tm_names_deinit(&list);
    return st;
}

static tm_status plan(const char *model, const char *data, choice *c, bool *fits, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    tm_error ignored;
    TM_TRY(make_recipe(model, data, c, &recipe, err));
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    c->peak = job.plan.peak;
    c->steps = data ? job.run.steps : -1;
    *fits = tm_job_fits(&job, NULL, NULL, &ignored) == TM_OK;
    tm_job_close(&job);
    return TM_OK;
}

/* The longest examples that fit (recomputation and micro-batches are the planner's); then a batch that gives enough steps. */
static tm_status choose(const char *model, const char *data, choice *c, tm_error *err)
{
    tm_model_config config;
    TM_TRY(tm_model_config_read(model, &config, err));
    if (config.max_positions < c->seq)
        c->seq = config.max_positions;
    tm_model_config_deinit(&config);
    bool fits = false;
    for (;;) {
        TM_TRY(plan(model, data, c, &fits, err));
        if (fits || c->seq <= 128)
            break;
        c->seq /= 2;
    }
    if (c->steps >= 0 && c->steps < ENOUGH_STEPS && c->batch > 1) {
        c->batch = c->batch * c->steps / ENOUGH_STEPS > 1 ? c->batch * c->steps / ENOUGH_STEPS : 1;
        TM_TRY(plan(model, data, c, &fits, err));
    }
    if (fits)
        return TM_OK;
    return tm_fail(err, TM_NO_FIT, "%s: LoRA on %lld tokens with recomputation needs %.2f GiB: more than there is", model,
                   (long long)c->seq, (double)c->peak / (1 << 30));
}

tm_status tm_init(const char *model, const char *data, char **yaml, tm_error *err)
{
    choice c = {.seq = 1024, .batch = 16, .peak = -1, .steps = -1};
    tm_recipe *recipe = NULL;
    tm_buf out = {0};
    tm_status st = TM_OK;
    *yaml = NULL;
    if (model)
        TM_GO(choose(model, data, &c, err));
    TM_GO(make_recipe(model, data, &c, &recipe, err));
    tm_buf_text(&out, "# A recipe by temper " TM_VERSION
                      ". Every key is here with its value; what you delete keeps its default.\n");
    if (c.peak >= 0)
        tm_buf_printf(&out, "# This run needs %.1f MiB of memory, and fits here.\n", (double)c.peak / (1 << 20));
    if (c.steps >= 0)
        tm_buf_printf(&out, "# It has %lld optimiser steps.\n", (long long)c.steps);
    if (!model || !data)
        tm_buf_printf(&out, "# Still to be filled in: %s%s%s.\n", model ? "" : "model", model || data ? "" : ", ",
                      data ? "" : "data");
    tm_buf_text(&out, "# Then: temper plan FILE, temper train FILE.\n\n");
    TM_GO(tm_recipe_to_yaml(recipe, true, &out, err));
    TM_GO(tm_buf_check(&out, err));
    *yaml = out.data;
    out = (tm_buf){0};
out:
    tm_recipe_destroy(recipe);
    tm_buf_deinit(&out);
    return st;
}
