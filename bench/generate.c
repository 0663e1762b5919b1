/* Tokens a second of generation, by how many texts are written at a time; the weights are what is read, so bytes of them
 * a second too: on a GPU to be held against what its memory gives, and the share of the time in which the host waits for it:
 * what is left is the host's own.
 * usage: generate MODEL [DEVICE [THREADS [PROMPT [NEW [GRAPHS]]]]]   a model folder; cpu, cuda; 0 = all; tokens of each
 *                                        text's prompt (32) and behind it (64); 0: every op queued by itself, no graphs
 * With one thread of the CPU in processor time, which neighbours do not lengthen; otherwise by the clock on the wall. */
#include "api/inference.h"
#include "model/generate.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 32 };

typedef struct bench {
    int64_t texts, next, prompt, new, begun; /* tokens chosen */
    double read, waited;                     /* when the first was; for the device since then */
    tm_device_calls calls;                   /* the device's, but that waiting is timed */
    const tm_device_calls *real;
    clockid_t clock;
    int32_t *ids;
    int64_t vocab;
} bench;

static bench *timed; /* whose waiting it is: calls know no context */

static double now(const bench *b)
{
    struct timespec t;
    clock_gettime(b->clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tm_status timed_sync(tm_device *d, tm_error *err)
{
    double start = now(timed);
    tm_status st = timed->real->sync(d, err);
    timed->waited += now(timed) - start;
    return st;
}

static void watch(bench *b, tm_device *d, bool graphs)
{
    timed = b;
    b->real = d->calls;
    b->calls = *d->calls;
    b->calls.sync = timed_sync;
    if (!graphs)
        b->calls.graph_begin = NULL;
    d->calls = &b->calls;
}

static tm_status next_text(void *context, tm_text *out, bool *there, tm_error *err)
{
    bench *b = context;
    (void)err;
    *there = b->next < b->texts;
    *out = (tm_text){.prompt = {.ids = b->ids, .n = (int32_t)b->prompt}, .max_tokens = b->new, .number = b->next++};
    return TM_OK;
}

static tm_status put_token(void *context, int64_t number, int32_t id, bool *more, tm_error *err)
{
    bench *b = context;
    (void)number;
    (void)id;
    (void)more;
    (void)err;
    if (!b->begun++) {
        b->read = now(b);
        b->waited = 0;
    }
    return TM_OK;
}

static tm_status measure(tm_inference *inf, bench *b, int64_t texts, double bytes, tm_error *err)
{
    double best = 0, prompts = 0, waits = 0;
    inf->model.settings.cache_slots = texts; /* fewer than there is room for */
    for (int pass = 0; pass < 4; pass++) {   /* the first warms up */
        double start = now(b);
        b->texts = texts;
        b->next = b->begun = 0;
        TM_TRY(tm_decode(&inf->model, &inf->batch, &(tm_texts){.next = next_text, .token = put_token, .context = b}, err));
        double seconds = now(b) - b->read, steps = (double)(b->new - 1) / seconds;
        if (pass && steps > best) {
            best = steps;
            waits = b->waited / seconds;
        }
        prompts = (double)(texts * b->prompt) / (b->read - start);
    }
    printf("%5lld texts: %9.1f tokens/s, %7.2f steps/s, %8.2f GB/s of weights; prompts %.0f tokens/s", (long long)texts, best * (double)texts, best, best * bytes * 1e-9, prompts);
    if (inf->device->traits.apart)
        printf("; the host waits %.0f %%", 100 * waits);
    printf("\n");
    return TM_OK;
}

static double weight_bytes(const tm_model *m)
{
    double bytes = 0;
    for (int64_t i = 0; i < m->params.count; i++) {
        const tm_param *p = m->params.item[i];
        if (p->ndim == 2 && (p != m->embed || m->config.tied))
            bytes += (double)tm_dtype_bytes(p->dtype, tm_param_count(p));
    }
    return bytes;
}

int main(int argc, char **argv)
{
    tm_error err = {0};
    tm_inference inf = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: generate MODEL [DEVICE [THREADS [PROMPT [NEW [GRAPHS]]]]]\n");
        return 2;
    }
    bench b = {.prompt = argc > 4 ? atoll(argv[4]) : 32, .new = argc > 5 ? atoll(argv[5]) : 64};
    tm_inference_settings settings = {.model = argv[1], .device = argc > 2 ? argv[2] : "cpu", .threads = argc > 3 ? atoi(argv[3]) : 0,
                                      .max_tokens = 512, .cache_tokens = b.prompt + b.new, .texts = MOST};
    tm_status st = tm_inference_open(&settings, &inf, &err);
    b.vocab = inf.model.config.vocab;
    if (st == TM_OK)
        watch(&b, inf.device, argc < 7 || atoi(argv[6]));
    b.clock = strcmp(settings.device, "cpu") == 0 && settings.threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    b.ids = calloc((size_t)b.prompt, sizeof *b.ids);
    if (st == TM_OK && b.ids) {
        double bytes = weight_bytes(&inf.model);
        setvbuf(stdout, NULL, _IOLBF, 0); /* a line is seen when it is there */
        for (int64_t i = 0; i < b.prompt; i++)
            b.ids[i] = (int32_t)((i * 7919 + 11) % b.vocab);
        printf("%s, %s (%s): weights %.3f GB a token, %lld tokens of prompt, %lld new\n", argv[1], inf.device->name, inf.device->detail, bytes * 1e-9, (long long)b.prompt, (long long)b.new);
        for (int64_t texts = 1; st == TM_OK && texts <= inf.model.settings.cache_slots && texts <= MOST; texts *= 2) {
            int64_t room = inf.model.settings.cache_slots;
            st = measure(&inf, &b, texts, bytes, &err);
            inf.model.settings.cache_slots = room;
        }
    }
    if (st != TM_OK)
        fprintf(stderr, "generate: %s\n", err.message);
    if (b.real)
        inf.device->calls = b.real;
    if (inf.recipe)
        tm_inference_close(&inf);
    free(b.ids);
    return st != TM_OK;
}
