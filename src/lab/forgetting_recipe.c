/* The sequence that `temper bench forgetting` runs, as YAML (docs/formats/sequence.md). A method is one line of the
 * table below: what it adds to the recipe, and the four configurations that are tried on validation rows, as many for
 * every method. What it adds without a grid is what the short forms run. */
#include "lab/forgetting.h"

#include "base/json.h"

#include <string.h>

/* In every text below: @ stands for the folder of the data. */
#define REPLAY(fraction) "replay: {path: \"@old/replay.jsonl\", format: completion, fraction: " fraction "}"
#define EWC(lambda) "ewc: {lambda: " lambda ", path: \"@old/replay.jsonl\", samples: 256}"
#define KL(beta) "kl: {beta: " beta "}"
#define LORA "method: lora, lora: {r: 16, alpha: 32, dropout: 0}, train: {lr: 5e-3}"
#define LORA_RATES "train.lr: [1e-2, 5e-3, 2e-3, 5e-4]"
#define RATES "train.lr: [2e-3, 1e-3, 5e-4, 1e-4]"
#define TWO_RATES "train.lr: [1e-3, 3e-4], "
#define TWO_LORA_RATES "train.lr: [5e-3, 1e-3], "

static const struct arm {
    const char *name;
    bool quick;        /* in the short form too */
    const char *more;  /* keys of the arm beside set and grid */
    const char *set;   /* of the recipe */
    const char *grid;
} arms[] = {
    {"frozen", true, "frozen: true", NULL, NULL},
    {"naive", true, NULL, NULL, RATES},
    {"naive-lora", false, NULL, LORA, LORA_RATES},
    {"joint", true, "joint: true", "keep: {" REPLAY("0.25") "}", RATES},
    /* Without old data. */
    {"rate-tenth", false, NULL, "train: {lr: 1e-4}", "train.lr: [2e-4, 1e-4, 7e-5, 5e-5]"},
    {"rate-hundredth", false, NULL, "train: {lr: 1e-5}", "train.lr: [2e-5, 1e-5, 7e-6, 5e-6]"},
    {"freeze", false, NULL, "method: freeze, freeze: {layers: 2}", TWO_RATES "freeze.layers: [1, 3]"},
    {"l2sp", false, NULL, "keep: {l2sp: {lambda: 0.3}}", TWO_RATES "keep.l2sp.lambda: [0.1, 1]"},
    {"kl", false, NULL, "keep: {" KL("0.3") "}", TWO_RATES "keep.kl.beta: [0.1, 1]"},
    {"stm", false, NULL, "keep: {stm: {threshold: 100}}", TWO_RATES "keep.stm.threshold: [100, 1000]"},
    {"ema", false, NULL, "keep: {average: {kind: ema}}", TWO_RATES "keep.average.decay: [0.8, 0.95]"},
    {"swa", false, NULL, "keep: {average: {kind: swa}}", TWO_RATES "keep.average.start: [0.25, 0.75]"},
    {"lookahead", false, NULL, "keep: {average: {kind: lookahead}}", TWO_RATES "keep.average.alpha: [0.3, 0.7]"},
    {"wise", false, NULL, "keep: {wise: {scale: 0.5}}", TWO_RATES "keep.wise.scale: [0.3, 0.7]"},
    {"osf", false, NULL, "keep: {osf: {share: 0.5}}", TWO_RATES "keep.osf.share: [0.3, 0.7]"},
    {"olora", false, "orthogonal: previous", LORA, TWO_LORA_RATES "keep.orthogonal.lambda: [0.1, 1]"},
    {"separate", false, "between: separate", LORA, LORA_RATES},
    {"generate", false, NULL, "keep: {generate: {samples: 128, max_tokens: 60, fraction: 0.25}}", TWO_RATES "keep.generate.fraction: [0.05, 0.25]"},
    /* With old data. */
    {"replay-1", false, "replay: previous", "keep: {" REPLAY("0.01") "}", RATES},
    {"replay-5", false, "replay: previous", "keep: {" REPLAY("0.05") "}", RATES},
    {"replay", true, "replay: previous", "keep: {" REPLAY("0.25") "}", RATES},
    {"replay-lora", false, "replay: previous", LORA ", keep: {" REPLAY("0.25") "}", LORA_RATES},
    {"der", false, "replay: previous", "keep: {" REPLAY("0.25") ", der: {alpha: 0.1}}", TWO_RATES "keep.der.alpha: [0.03, 0.3]"},
    {"ewc", false, NULL, "keep: {" EWC("0.3") "}", TWO_RATES "keep.ewc.lambda: [0.1, 1]"},
    {"ewc-lora", false, NULL, LORA ", keep: {" EWC("0.1") "}", TWO_LORA_RATES "keep.ewc.lambda: [0.01, 0.1]"},
    {"path", false, NULL, "keep: {ewc: {lambda: 0.3, importance: path, path: \"@old/replay.jsonl\", samples: 256}}", TWO_RATES "keep.ewc.lambda: [0.1, 1]"},
    /* Together. */
    {"replay+ewc", false, "replay: previous", "keep: {" REPLAY("0.05") ", " EWC("0.3") "}", TWO_RATES "keep.ewc.lambda: [0.1, 1]"},
    {"replay+kl", false, "replay: previous", "keep: {" REPLAY("0.05") ", " KL("0.3") "}", TWO_RATES "keep.kl.beta: [0.1, 1]"},
    {"replay+slow", false, "replay: previous", "train: {lr: 1e-4}, keep: {" REPLAY("0.05") "}", "train.lr: [3e-4, 2e-4, 1e-4, 5e-5]"},
};

static const struct task {
    const char *name, *metric;
} tasks[TM_FORGETTING_TASKS] = {{"people", "exact"}, {"russian", "accuracy"}, {"arithmetic", "exact"}, {"conflict", "exact"}, {"style", "accuracy"}};

tm_forgetting_form tm_forgetting_form_of(bool quick, const char *data, const char *model)
{
    tm_forgetting_form form = {.data = data, .model = model, .quick = quick, .grid = !quick, .tasks = quick ? 2 : TM_FORGETTING_TASKS, .seeds = quick ? 2 : 20,
                               .orders = quick ? 1 : 3, .steps = quick ? 40 : 120, .batch_tokens = quick ? 512 : 1024};
    return form;
}

static void add_data(tm_buf *out, const char *text, const char *data)
{
    for (; *text; text++)
        if (*text == '@')
            tm_buf_printf(out, "%s/", data);
        else
            tm_buf_char(out, *text);
}

static void add_set(tm_buf *out, const char *key, const char *data, const char *file, const char *metric, int limit)
{
    tm_buf_printf(out, "    %s: {path: \"%s/%s.jsonl\", format: completion", key, data, file);
    if (metric)
        tm_buf_printf(out, ", metric: %s", metric);
    if (limit)
        tm_buf_printf(out, ", limit: %d", limit);
    tm_buf_text(out, "}\n");
}

static void add_tasks(tm_buf *out, const tm_forgetting_form *form)
{
    char file[64];
    tm_buf_text(out, "tasks:\n");
    for (int i = 0; i < form->tasks; i++) {
        const struct task *t = &tasks[i];
        bool facts = strcmp(t->metric, "exact") == 0;
        tm_buf_printf(out, "  - name: %s\n", t->name);
        snprintf(file, sizeof file, "%s/train", t->name);
        add_set(out, "train", form->data, file, NULL, 0);
        snprintf(file, sizeof file, "%s/test", t->name);
        add_set(out, "test", form->data, file, t->metric, !form->quick ? 0 : facts ? 100 : 20);
        snprintf(file, sizeof file, "%s/select", t->name);
        if (form->grid)
            add_set(out, "valid", form->data, file, t->metric, 0);
    }
    tm_buf_printf(out, "probes:\n  - {name: old-people, path: \"%s/old/people-test.jsonl\", format: completion, metric: exact%s}\n", form->data,
                  form->quick ? ", limit: 160" : "");
    tm_buf_printf(out, "  - {name: old-prose, path: \"%s/old/prose-test.jsonl\", format: completion, metric: accuracy%s}\n", form->data,
                  form->quick ? ", limit: 20" : "");
}

static void add_arms(tm_buf *out, const tm_forgetting_form *form)
{
    tm_buf_text(out, "baseline: naive\narms:\n");
    for (size_t i = 0; i < sizeof arms / sizeof *arms; i++) {
        const struct arm *a = &arms[i];
        if (form->quick && !a->quick)
            continue;
        tm_buf_printf(out, "  - {name: %s", a->name);
        if (a->more)
            tm_buf_printf(out, ", %s", a->more);
        if (a->set) {
            tm_buf_text(out, ", set: {");
            add_data(out, a->set, form->data);
            tm_buf_char(out, '}');
        }
        if (a->grid && form->grid)
            tm_buf_printf(out, ", grid: {%s}", a->grid);
        tm_buf_text(out, "}\n");
    }
}

tm_status tm_forgetting_recipe(const tm_forgetting_form *form, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "# What `temper bench forgetting` runs: a small model that knows plays and a town by heart learns new people, Russian,\n"
                     "# sums, news of old people, and plays again, by every method. docs/forgetting.md says what came of it.\n");
    tm_buf_printf(out, "#   temper bench forgetting --data %s; temper sequence FILE --out runs/forgetting\n", form->data);
    tm_buf_text(out, "recipe:\n  model: ");
    tm_json_put_string(out, form->model);
    tm_buf_printf(out, "\n  method: full\n  train: {steps: %d, batch_tokens: %d, seq: 160, lr: 1e-3, betas: [0.9, 0.98], schedule: cosine, warmup_steps: %d, "
                       "eval_every: 1000000, checkpoint_every: 0, log_every: 10, save_dtype: f32}\n",
                  form->steps, form->batch_tokens, form->steps / 10);
    tm_buf_printf(out, "seeds: %d\norders: %d\nruns: drop\n", form->seeds, form->orders);
    if (form->grid)
        tm_buf_printf(out, "select_seeds: 2\n");
    add_tasks(out, form);
    add_arms(out, form);
    return tm_buf_check(out, err);
}
