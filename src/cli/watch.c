/* Watching a run: the progress line, notes, and Ctrl-C. */
#include "cli/cli.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t stop_asked;

static void on_signal(int number)
{
    (void)number;
    stop_asked = 1;
}

static bool interrupted(void *context)
{
    (void)context;
    return stop_asked;
}

static void note(void *context, const char *text) { tm_progress_say(context, text); }

static void progress(void *context, const tm_train_progress *p)
{
    enum { MOST = 16 };
    tm_progress_probe probes[MOST];
    int64_t n = p->probe_count < MOST ? p->probe_count : MOST;
    for (int64_t i = 0; i < n; i++)
        probes[i] = (tm_progress_probe){p->probes[i].name, p->probes[i].worse, p->probes[i].budget, p->probes[i].nats};
    tm_progress_update(context, &(tm_progress_values){.phase = p->trainings ? "trainings" : p->measuring ? "measuring" : "training", .per_minute = p->per_minute, .step = p->step, .steps = p->steps, .loss = p->loss, .tokens_per_s = p->tokens_per_s,
                                                       .share = p->share, .seconds_left = p->seconds_left, .probes = probes, .probe_count = n});
}

tm_callbacks cli_watch_begin(tm_progress *line)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    tm_progress_begin(line, tm_term_of(STDERR_FILENO));
    return (tm_callbacks){.progress = progress, .note = note, .interrupted = interrupted, .context = line};
}

int cli_train(const tm_recipe_source *source, char **out)
{
    tm_error err = {0};
    tm_progress line;
    tm_callbacks callbacks = cli_watch_begin(&line);
    tm_status st = tm_train(source, &callbacks, out, &err);
    tm_progress_end(&line, NULL);
    return st == TM_OK ? 0 : cli_failed(&err);
}
