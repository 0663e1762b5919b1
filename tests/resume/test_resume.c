/* A run that is killed, at any moment and any number of times, and started again by the same command
 * ends with the bytes of one that was never killed. And what the program answers when it is
 * interrupted, started twice, or started with another recipe in the same folder. */
#include "../support/run.h"


#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

static uint64_t seed;
static dice moments;
static char program[512];

enum { KILLS = 100, STEPS = 24 };

static const char *const model = "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 40, "
                                 "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

typedef struct scenario {
    const char *name, *result, *arg[10];
    tm_status end;
} scenario;

static const scenario scenarios[] = {
    {"lora", "adapter_model.safetensors", {"lora.r=4", "lora.dropout=0.2", "train.lr=0.002", "keep.monitor.probes.0.max=1000", "train.early_stop.patience=1000"}, TM_OK},
    {"full, stopped early", "model.safetensors", {"method=full", "train.lr=0.05", "keep.monitor.probes.0.max=1000", "train.early_stop.patience=3", "train.early_stop.min_delta=0.2"}, TM_OK},
    {"lora, rolled back", "adapter_model.safetensors", {"lora.r=4", "lora.dropout=0.2", "train.lr=0.02", "keep.monitor.probes.0.max=0.15", "train.early_stop.patience=1000"}, TM_RETENTION},
    {"lora, averaged", "adapter_model.safetensors", {"lora.r=4", "lora.dropout=0.2", "train.lr=0.002", "keep.monitor.probes.0.max=1000", "train.early_stop.patience=1000", "keep.average.kind=ema", "keep.average.every=3", "keep.osf.share=0.3", "keep.wise.scale=0.8"}, TM_OK},
    {"full, averaged", "model.safetensors", {"method=full", "train.lr=0.005", "keep.monitor.probes.0.max=1000", "train.early_stop.patience=1000", "keep.average.kind=swa", "keep.average.every=2", "keep.osf.share=0.5"}, TM_OK},
    {"full, lookahead", "model.safetensors", {"method=full", "train.lr=0.005", "keep.monitor.probes.0.max=1000", "train.early_stop.patience=1000", "keep.average.kind=lookahead", "keep.average.every=5"}, TM_OK},
};

static void recipe(args *a, const scenario *s, const char *out)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=3");
    arg(a, "train.steps=%d", STEPS);
    arg(a, "train.warmup_steps=2");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "train.checkpoint_every=2");
    arg(a, "train.eval_every=2");
    arg(a, "train.early_stop.metric=eval.held.loss");
    arg(a, "eval.0.name=held");
    arg(a, "eval.0.path=%s", scratch("held.jsonl"));
    arg(a, "eval.0.format=tokens");
    arg(a, "keep.monitor.on_breach=rollback");
    arg(a, "keep.monitor.probes.0.name=old");
    arg(a, "keep.monitor.probes.0.metric=kl");
    arg(a, "keep.monitor.probes.0.path=%s", scratch("old.jsonl"));
    arg(a, "keep.monitor.probes.0.format=tokens");
    for (int i = 0; i < 10 && s->arg[i]; i++)
        arg(a, "%s", s->arg[i]);
}

static void must_agree(const scenario *s, const char *a, const char *b)
{
    char *x = run_json_text(scratch(a), "sha256", "result"), *y = run_json_text(scratch(b), "sha256", "result");
    char *p = run_json_text(scratch(a), "status", NULL), *q = run_json_text(scratch(b), "status", NULL);
    if (!runs_agree(scratch(a), scratch(b), s->result) || strcmp(x, y) != 0 || strlen(x) != 64 || strcmp(p, q) != 0)
        fail_msg("%s: %s ends otherwise than %s (%s and %s); seed %llu", s->name, b, a, q, p, (unsigned long long)seed);
    free(x);
    free(y);
    free(p);
    free(q);
}

/* Layout and instruction set may be others at each start. */
static args changed_layout(const args *from)
{
    static const char *const choice[][3] = {{"threads=1", "threads=2", "threads=3"}, {"train.packing=true", "train.packing=false", "train.packing=true"},
                                            {"train.recompute=none", "train.recompute=full", "train.recompute=auto"}, {"train.recompute_layers=0", "train.recompute_layers=1", "train.recompute_layers=2"},
                                            {"train.micro_tokens=auto", "train.micro_tokens=1", "train.micro_tokens=33"}};
    args a = args_copy(from);
    for (size_t i = 0; i < sizeof choice / sizeof *choice; i++)
        arg(&a, "%s", choice[i][dice_in(&moments, 0, 2)]);
    if (dice_in(&moments, 0, 2) == 0)
        setenv("TEMPER_ISA", "scalar", 1);
    else
        unsetenv("TEMPER_ISA");
    return a;
}

/* Trains in a child that is killed after so many microseconds; true: it came to its end before. */
static bool survived(const scenario *s, const args *plain, int64_t delay)
{
    args layout = changed_layout(plain), *a = &layout;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        tm_error err = {0};
        tm_status st = try_train(a, &err);
        if (st != s->end)
            fprintf(stderr, "child: %s\n", err.message);
        _exit(st == s->end ? 0 : 1);
    }
    usleep((useconds_t)delay);
    kill(child, SIGKILL);
    args_free(a);
    unsetenv("TEMPER_ISA");
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
        fail_msg("%s: a run that was killed before does not go on; seed %llu", s->name, (unsigned long long)seed);
    return WIFEXITED(status);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void killed_runs_end_alike(void **state)
{
    (void)state;
    enum { COUNT = sizeof scenarios / sizeof *scenarios };
    double whole[COUNT];
    char name[32];
    int kills = 0;
    for (int k = 0; k < COUNT; k++) {
        args a = {0};
        snprintf(name, sizeof name, "whole-%d", k);
        recipe(&a, &scenarios[k], name);
        double started = now();
        train_to(&a, scenarios[k].end);
        whole[k] = now() - started;
        args_free(&a);
    }
    for (int round = 0; kills < KILLS; round++) {
        const scenario *s = &scenarios[round % COUNT];
        args a = {0};
        recipe(&a, s, "killed");
        double longest = 1e6 * whole[round % COUNT] / 4;
        for (; !survived(s, &a, dice_in(&moments, 0, (int64_t)longest)); kills++)
            longest *= 1.1; /* a machine that has become slow must come to the next checkpoint too */
        snprintf(name, sizeof name, "whole-%d", round % COUNT);
        must_agree(s, name, "killed");
        train_to(&a, s->end); /* finished: nothing changes */
        must_agree(s, name, "killed");
        OK(tm_dir_remove(scratch("killed"), err));
        args_free(&a);
    }
    print_message("%d kills\n", kills);
}

/* Killed after the last step, before anything of the result is written: the decision to end must be
 * made again, also where a checkpoint falls on that step. */
static void killed_before_saving(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof scenarios / sizeof *scenarios; k++) {
        const scenario *s = &scenarios[k];
        args a = {0};
        tm_job job;
        tm_trainer *trainer;
        char name[32];
        recipe(&a, s, "unsaved");
        open_job(&a, TM_JOB_TRAIN, &job);
        OK(tm_trainer_create(&job.run, job.device, job.plan.part, &trainer, err));
        OK(tm_trainer_start(trainer, err));
        OK(tm_trainer_run(trainer, err));
        tm_trainer_destroy(trainer);
        tm_job_close(&job);
        train_to(&a, s->end);
        snprintf(name, sizeof name, "whole-%zu", k);
        must_agree(s, name, "unsaved");
        OK(tm_dir_remove(scratch("unsaved"), err));
        args_free(&a);
    }
}

/* A damaged checkpoint is not loaded; the one before it is. */
static void torn_checkpoint(void **state)
{
    (void)state;
    args a = {0};
    recipe(&a, &scenarios[0], "torn");
    int64_t delay = 1000, later = 5000; /* microseconds */
    char newest[600] = "";
    for (int step = STEPS - 2; !newest[0]; step = step > 2 ? step - 2 : STEPS - 2) {
        snprintf(newest, sizeof newest, "%s/checkpoint-%d/train.safetensors", scratch("torn"), step);
        if (tm_path_exists(newest))
            break;
        newest[0] = 0;
        if (step == 2) {
            delay += later;
            if (survived(&scenarios[0], &a, delay)) { /* a fast machine: nearer, from the beginning */
                OK(tm_dir_remove(scratch("torn"), err));
                delay = 0;
                later = later * 2 / 3;
                assert_true(later > 10);
            }
        }
    }
    assert_int_equal(truncate(newest, 1000), 0);
    train(&a);
    must_agree(&scenarios[0], "whole-0", "torn");
    args_free(&a);
}

/* --- The program --- */

/* Starts the program; its messages go into a file. */
static pid_t start(const args *a, const char *log)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char *argv[MAX_ARGS + 3] = {program, "train"};
        memcpy(argv + 2, a->item, a->count * sizeof *argv);
        int fd = open(log, O_CREAT | O_WRONLY | O_TRUNC, 0666);
        dup2(fd, 2);
        dup2(fd, 1);
        execv(program, argv);
        _exit(99);
    }
    return child;
}

static int exit_code(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect_exit(const args *a, int code, const char *text)
{
    const char *log = scratch("log");
    int got = exit_code(start(a, log));
    char *said = slurp(log, NULL);
    if (got != code || !strstr(said, text))
        fail_msg("exit %d, expected %d with '%s': %s", got, code, text, said);
    free(said);
}

/* Waits until the run has a few rows. */
static void wait_for_rows(pid_t child, const char *out)
{
    char path[600];
    snprintf(path, sizeof path, "%s/metrics.jsonl", out);
    for (int i = 0; i < 20000; i++) {
        size_t size = 0;
        if (tm_path_exists(path))
            free(slurp(path, &size));
        if (size > 1000)
            return;
        usleep(1000);
    }
    kill(child, SIGKILL);
    fail_msg("no rows in %s", path);
}

static void answers_of_the_program(void **state)
{
    (void)state;
    if (access(program, X_OK) != 0) {
        print_message("skip: %s is not built\n", program);
        skip();
    }
    const scenario *s = &scenarios[0];
    args a = {0}, changed;
    recipe(&a, s, "asked");
    changed = args_copy(&a);
    arg(&changed, "train.lr=0.003");
    pid_t first = start(&a, scratch("first"));
    wait_for_rows(first, scratch("asked"));
    kill(first, SIGSTOP);
    expect_exit(&a, 2, "asked");
    kill(first, SIGINT);
    kill(first, SIGCONT);
    int code = exit_code(first);
    char *said = slurp(scratch("first"), NULL);
    if (code != 1 || !strstr(said, "interrupted"))
        fail_msg("exit %d after SIGINT: %s", code, said);
    free(said);
    expect_exit(&changed, 2, "train.lr");
    expect_exit(&a, 0, "asked");
    must_agree(s, "whole-0", "asked");
    expect_exit(&a, 0, "finished");
    expect_exit(&changed, 2, "train.lr");
    arg(&a, "threads=2"); /* layout may change */
    expect_exit(&a, 0, "finished");
    must_agree(s, "whole-0", "asked");
    args_free(&a);
    args_free(&changed);
    recipe(&a, &scenarios[2], "whole-2");
    expect_exit(&a, 5, "retention");
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    moments = (dice){.key = seed + 9};
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), model, TM_F32, 4); /* fixed: scenarios depend on how training goes */
    write_rows(scratch("rows.jsonl"), 20, 4, 20, 61, 0.3, 1);
    write_rows(scratch("held.jsonl"), 6, 4, 20, 61, 0, 2);
    write_rows(scratch("old.jsonl"), 6, 4, 20, 61, 0, 3);
    return 0;
}

int main(int argc, char **argv)
{
    const char *given = getenv("TEMPER_BIN"), *slash = argc ? strrchr(argv[0], '/') : NULL;
    snprintf(program, sizeof program, "%s", given ? given : "build/cpu/temper");
    if (!given && slash)
        snprintf(program, sizeof program, "%.*s/../../temper", (int)(slash - argv[0]), argv[0]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_runs_end_alike), cmocka_unit_test(killed_before_saving), cmocka_unit_test(torn_checkpoint), cmocka_unit_test(answers_of_the_program),
    };
    return cmocka_run_group_tests_name("resume", tests, begin, scratch_end);
}
