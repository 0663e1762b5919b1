/* What this library gives the laboratory (lab/sequence.h): training, evaluation and the rest of it, side by side. */
#ifndef TM_API_LABORATORY_H
#define TM_API_LABORATORY_H

#include "api/workshop.h"
#include "lab/sequence.h"

#include <pthread.h>
#include <stdatomic.h>

/* One sequence or sweep. The mutex guards what stands below it, and the caller's callbacks, which are called from one thread at a time. */
typedef struct tm_laboratory {
    const tm_callbacks *callbacks;
    int asked;            /* jobs; 0: to be decided */
    int64_t threads;      /* of a job */
    bool sweep;           /* its pieces are runs, not chains */
    tm_workshop shop;
    atomic_bool stop;
    pthread_mutex_t mutex;
    size_t done, total;   /* trainings */
    size_t here;          /* of them those that were trained since it began */
    double under_way;     /* trainings: the sum of shares that are done of those under way */
    double tokens_per_s;  /* sum over them */
    double started;       /* when the first of them began; 0: none has */
} tm_laboratory;

void tm_laboratory_open(tm_laboratory *lab, const tm_callbacks *callbacks, int jobs, bool sweep);
void tm_laboratory_close(tm_laboratory *lab);

/* The calls' parts about many at a time; context: a tm_laboratory. */
tm_status tm_laboratory_spread(void *context, tm_recipe **recipe, size_t count, size_t pieces, tm_lab_spread *out, tm_error *err);
void tm_laboratory_progress(void *context, size_t done, size_t total);
bool tm_laboratory_stopped(void *context);
void tm_laboratory_stop(void *context);
void tm_laboratory_note(void *context, const char *text);
/* A job's share of the processors, where the recipe leaves the number of threads open. */
void tm_laboratory_threads(const tm_laboratory *lab, tm_recipe *recipe);

/* How one training or measurement of the laboratory is watched: callbacks.context is it. */
typedef struct tm_laboratory_watch {
    tm_laboratory *lab;
    tm_callbacks callbacks;
    bool began;
    double share, tokens_per_s;
} tm_laboratory_watch;
void tm_laboratory_watch_begin(tm_laboratory_watch *watch, tm_laboratory *lab, bool trains);
void tm_laboratory_watch_end(tm_laboratory_watch *watch);

#endif
