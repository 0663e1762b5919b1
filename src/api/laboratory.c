/* Many trainings at a time: see laboratory.h. */
#include "api/laboratory.h"

#include "api/job.h"

#include "base/clock.h"

void tm_laboratory_open(tm_laboratory *lab, const tm_callbacks *callbacks, int jobs, bool sweep)
{
    static const tm_callbacks silent = {0};
    *lab = (tm_laboratory){.callbacks = callbacks ? callbacks : &silent, .asked = jobs, .threads = 1, .sweep = sweep};
    tm_workshop_open(&lab->shop);
    pthread_mutex_init(&lab->mutex, NULL);
}

void tm_laboratory_close(tm_laboratory *lab)
{
    tm_workshop_close(&lab->shop);
    pthread_mutex_destroy(&lab->mutex);
}

void tm_laboratory_threads(const tm_laboratory *lab, tm_recipe *recipe)
{
    if (!recipe->threads)
        recipe->threads = lab->threads;
}

/* --- How many --- */

/* The most bytes that one of the recipes takes; of the device, how many jobs it has processors for, what is free, and its name. */
static tm_status look(tm_workshop *shop, tm_recipe **recipe, size_t count, bool plan, int64_t *peak, int64_t *memory, bool *gpu, char *device, size_t size, tm_error *err)
{
    tm_status st = TM_OK;
    *peak = 0;
    for (size_t i = 0; i < count; i++) {
        tm_recipe *mine = recipe[i];
        tm_job job;
        recipe[i] = NULL;
        if (st == TM_OK && (plan || i == 0)) {
            mine->threads = 1;
            st = tm_job_open_in(shop, mine, TM_JOB_PLAN, &job, err);
            if (st != TM_OK)
                continue;
            *gpu = job.device->traits.apart;
            snprintf(device, size, "%s %s", job.device->name, *gpu ? job.device->detail : "");
            *peak = job.plan.peak > *peak ? job.plan.peak : *peak;
            *memory = job.target.memory < 0 ? -1 : job.target.memory - job.target.reserve;
            tm_job_close(&job);
        } else
            tm_recipe_destroy(mine);
    }
    return st;
}

tm_status tm_laboratory_spread(void *context, tm_recipe **recipe, size_t count, size_t pieces, tm_lab_spread *out, tm_error *err)
{
    tm_laboratory *lab = context;
    int cores = tm_pool_processors(), jobs = lab->asked;
    int64_t peak = 0, memory = -1;
    bool gpu = false;
    char text[256];
    *out = (tm_lab_spread){.jobs = 1};
    if (!count)
        return TM_OK;
    TM_TRY(look(&lab->shop, recipe, count, !jobs, &peak, &memory, &gpu, out->device, sizeof out->device, err));
    if (!jobs)
        jobs = gpu ? 1 : cores;
    if (!lab->asked && memory >= 0 && peak > 0 && memory / peak < jobs)
        jobs = memory / peak > 0 ? (int)(memory / peak) : 1;
    jobs = (size_t)jobs < pieces ? jobs : (int)pieces;
    lab->threads = cores / jobs > 0 ? cores / jobs : 1;
    size_t at = (size_t)snprintf(text, sizeof text, "%zu %s%s, %d at a time with %lld thread%s each", pieces, lab->sweep ? "run" : "chain", pieces == 1 ? "" : "s", jobs,
                                 (long long)lab->threads, lab->threads == 1 ? "" : "s");
    if (!lab->asked)
        snprintf(text + at, sizeof text - at, ": %.2f GiB of memory a training, %d processor%s", (double)peak / (1 << 30), cores, cores == 1 ? "" : "s");
    tm_laboratory_note(lab, text);
    out->jobs = jobs;
    return TM_OK;
}

/* --- Watching --- */

void tm_laboratory_note(void *context, const char *text)
{
    tm_laboratory *lab = context;
    if (!lab->callbacks->note)
        return;
    pthread_mutex_lock(&lab->mutex);
    lab->callbacks->note(lab->callbacks->context, text);
    pthread_mutex_unlock(&lab->mutex);
}

/* The lock is held. */
static void say_progress(const tm_laboratory *lab)
{
    double seconds = lab->started > 0 ? tm_clock_seconds() - lab->started : 0, rate = seconds > 0 ? ((double)lab->here + lab->under_way) / seconds : 0;
    tm_train_progress p = {.step = (int64_t)lab->done, .steps = (int64_t)lab->total, .trainings = true, .loss = NAN, .tokens_per_s = lab->tokens_per_s > 0.5 ? lab->tokens_per_s : NAN, .share = NAN, .per_minute = 60 * rate,
                           .seconds_left = rate > 0 ? ((double)(lab->total - lab->done) - lab->under_way) / rate : NAN};
    if (lab->callbacks->progress && lab->total)
        lab->callbacks->progress(lab->callbacks->context, &p);
}

void tm_laboratory_progress(void *context, size_t done, size_t total)
{
    tm_laboratory *lab = context;
    pthread_mutex_lock(&lab->mutex);
    lab->done = done;
    lab->total = total;
    say_progress(lab);
    pthread_mutex_unlock(&lab->mutex);
}

bool tm_laboratory_stopped(void *context)
{
    tm_laboratory *lab = context;
    return atomic_load(&lab->stop) || (lab->callbacks->interrupted && lab->callbacks->interrupted(lab->callbacks->context));
}

void tm_laboratory_stop(void *context)
{
    tm_laboratory *lab = context;
    atomic_store(&lab->stop, true);
}

static void on_progress(void *context, const tm_train_progress *p)
{
    tm_laboratory_watch *w = context;
    tm_laboratory *lab = w->lab;
    double share = p->steps > 0 ? (double)p->step / (double)p->steps : 0, rate = p->tokens_per_s > 0 ? p->tokens_per_s : 0;
    pthread_mutex_lock(&lab->mutex);
    if (!w->began && lab->started == 0)
        lab->started = tm_clock_seconds();
    w->began = true;
    lab->under_way += share - w->share;
    lab->tokens_per_s += rate - w->tokens_per_s;
    w->share = share;
    w->tokens_per_s = rate;
    say_progress(lab);
    pthread_mutex_unlock(&lab->mutex);
}

static bool on_interrupted(void *context)
{
    const tm_laboratory_watch *w = context;
    return tm_laboratory_stopped(w->lab);
}

void tm_laboratory_watch_begin(tm_laboratory_watch *w, tm_laboratory *lab, bool trains)
{
    *w = (tm_laboratory_watch){.lab = lab, .callbacks = {.progress = trains ? on_progress : NULL, .interrupted = on_interrupted, .context = w}};
}

void tm_laboratory_watch_end(tm_laboratory_watch *w)
{
    tm_laboratory *lab = w->lab;
    pthread_mutex_lock(&lab->mutex);
    lab->under_way -= w->share;
    lab->tokens_per_s -= w->tokens_per_s;
    lab->here += w->began;
    pthread_mutex_unlock(&lab->mutex);
}
