/* Methods with a teacher: see keep.h. They have no hook: what they add is a term of the loss at each target
 * (src/train/teacher.h has the weights, op xent the term), reported as `penalty`. docs/math/kl.md. */
#include "keep/keep.h"

static const char *const origins[TM_ORIGINS] = {[TM_FROM_TASK] = "task", [TM_FROM_REHEARSAL] = "replay"};

/* Whose targets keep.kl.on names. */
static tm_status read_on(const tm_recipe *recipe, bool on[TM_ORIGINS], tm_error *err)
{
    for (int64_t i = 0; i < recipe->kl_on.count; i++) {
        int k = 0;
        while (k < TM_ORIGINS && strcmp(recipe->kl_on.item[i], origins[k]) != 0)
            k++;
        if (k == TM_ORIGINS)
            return tm_fail(err, TM_RECIPE, "keep.kl.on: %s is not known; expected task, replay, or both", recipe->kl_on.item[i]);
        on[k] = true;
    }
    return recipe->kl_on.count ? TM_OK : tm_fail(err, TM_RECIPE, "keep.kl.on: nothing is named; expected task, replay, or both (keep.kl.beta: 0 switches the method off)");
}

/* Without data (a plan from sizes alone) nobody knows. */
static bool no_rehearsal(const tm_trainer *t) { return t->run->data && t->run->rehearsal_from >= tm_dataset_sources(t->run->data); }

static tm_status add_kl(const tm_trainer *t, tm_teaching of[TM_ORIGINS], tm_error *err)
{
    const tm_recipe *recipe = t->recipe;
    bool on[TM_ORIGINS] = {false};
    if (recipe->kl_beta <= 0)
        return TM_OK;
    TM_TRY(read_on(recipe, on, err));
    if (!on[TM_FROM_TASK] && no_rehearsal(t))
        return tm_fail(err, TM_RECIPE, "keep.kl.on: [replay], but nothing is replayed: give keep.replay.path or keep.generate.samples, or name task too");
    for (int k = 0; k < TM_ORIGINS; k++)
        of[k].kl = on[k] ? recipe->kl_beta : 0;
    return TM_OK;
}

/* At rehearsal's targets the mean square takes the place of KL. */
static tm_status add_der(const tm_trainer *t, tm_teaching of[TM_ORIGINS], tm_error *err)
{
    const tm_recipe *recipe = t->recipe;
    if (recipe->der_alpha <= 0)
        return TM_OK;
    if (no_rehearsal(t))
        return tm_fail(err, TM_RECIPE, "keep.der.alpha: %g, but nothing is replayed: give keep.replay.path or keep.generate.samples", recipe->der_alpha);
    of[TM_FROM_REHEARSAL] = (tm_teaching){.loss = recipe->der_beta, .square = recipe->der_alpha};
    return TM_OK;
}

tm_status tm_teacher_add(tm_trainer *t, tm_error *err)
{
    tm_teaching of[TM_ORIGINS] = {{.loss = 1}, {.loss = 1}};
    TM_TRY(add_kl(t, of, err));
    TM_TRY(add_der(t, of, err));
    return tm_teacher_use(t, of, err);
}
