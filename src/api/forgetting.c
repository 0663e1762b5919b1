/* temper bench forgetting: what methods keep and learn on a small world that a small model knows by heart. The data,
 * the sequence's recipe and all runs lie below one folder; what is there is not done again. */
#include "api/job.h"

#include "base/file.h"
#include "base/json.h"
#include "lab/forgetting.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 4096 };
static const char model_file[] = "models/town1M/model.safetensors";

static tm_status find_shared(const char *name, char out[PATH_SIZE], tm_error *err)
{
    return tm_shared_path(name, out, PATH_SIZE) ? TM_OK : tm_fail(err, TM_IO, "%s was not found beside the program, where it is installed, or here: run it in temper's folder", name);
}

/* The world that models/town1M was pretrained on. */
static tm_status write_world(const char *dir, tm_error *err)
{
    static const char *const names[3] = {"data/forgetting/shakespeare.txt.gz", "data/demo/pushkin-train.txt", "data/demo/pushkin-dev.txt"};
    char path[3][PATH_SIZE];
    for (int i = 0; i < 3; i++)
        TM_TRY(find_shared(names[i], path[i], err));
    return tm_world_write(&(tm_world){.seed = 1, .people = 80, .new_people = 40, .english = path[0], .russian_train = path[1], .russian_test = path[2]}, dir, err);
}

/* --- The short form's verdict --- */

/* What is left of the old at the end, by an arm: mean over seeds of the mean of all probes. NaN: no such arm. */
static double kept(const json_t *results, const char *arm)
{
    const json_t *arms = json_object_get(results, "arms");
    double sum = 0, count = 0;
    for (size_t i = 0; i < json_array_size(arms); i++) {
        const json_t *a = json_array_get(arms, i), *chains = json_object_get(a, "chains");
        const char *name = json_string_value(json_object_get(a, "name"));
        if (!name || strcmp(name, arm) != 0)
            continue;
        for (size_t c = 0; c < json_array_size(chains); c++) {
            const json_t *p = json_object_get(json_array_get(chains, c), "P"), *last = json_array_get(p, json_array_size(p) - 1);
            for (size_t k = 0; k < json_array_size(last); k++, count++)
                sum += json_is_number(json_array_get(last, k)) ? json_number_value(json_array_get(last, k)) : NAN;
        }
    }
    return count > 0 ? sum / count : NAN;
}

/* Over ten seeds the means were 0.33 to 0.39, 0.23 to 0.31 and 0.03 to 0.06 (docs/forgetting.md): margins well below the
 * least difference of a seed, 0.045 and 0.20, hold for any two of them. */
static const double joint_margin = 0.01, replay_margin = 0.1;

static tm_status judge(const char *out, tm_buf *text, tm_error *err)
{
    char path[PATH_SIZE];
    json_t *results = NULL;
    snprintf(path, sizeof path, "%s/results.json", out);
    TM_TRY(tm_json_read(path, &results, err));
    double frozen = kept(results, "frozen"), joint = kept(results, "joint"), replay = kept(results, "replay"), naive = kept(results, "naive");
    json_decref(results);
    bool holds = joint >= replay + joint_margin && replay >= naive + replay_margin;
    if (!holds)
        return tm_fail(err, TM_FAILED, "%s: of the old is left: joint %.3f, replay %.3f, naive %.3f; expected joint >= replay + %.2f >= naive + %.2f", path, joint,
                       replay, naive, joint_margin, joint_margin + replay_margin);
    tm_buf_printf(text, "\nleft of the old: frozen %.3f, joint %.3f, replay %.3f, naive %.3f: joint >= replay >= naive holds\n", frozen, joint, replay, naive);
    return tm_buf_check(text, err);
}

/* --- The run --- */

static tm_status make_recipe(const tm_forgetting_request *q, const char *out, const char *model, tm_buf *yaml, tm_error *err)
{
    char data[PATH_SIZE];
    if (strpbrk(out, "\"\\") || strpbrk(model, "\"\\") || strlen(out) > PATH_SIZE - 64)
        return tm_fail(err, TM_USAGE, "%s: expected a shorter name without quotes and backslashes", out);
    snprintf(data, sizeof data, "%s/data", out);
    tm_forgetting_form form = tm_forgetting_form_of(q->quick, data, model);
    form.grid &= !q->fixed;
    form.tasks = q->tasks ? q->tasks : form.tasks;
    form.seeds = q->seeds ? q->seeds : form.seeds;
    form.orders = q->orders ? q->orders : form.orders < form.tasks ? form.orders : form.tasks; /* two tasks have two, one has one */
    form.steps = q->steps ? q->steps : form.steps;
    return tm_forgetting_recipe(&form, yaml, err);
}

/* Data and sequence below out; recipe: the sequence's file. */
static tm_status prepare(const tm_forgetting_request *q, const char *out, char recipe[PATH_SIZE], tm_error *err)
{
    char model[PATH_SIZE];
    tm_buf yaml = {0};
    tm_status st;
    TM_GO(find_shared(model_file, model, err));
    *strrchr(model, '/') = 0;
    TM_GO(make_recipe(q, out, model, &yaml, err));
    snprintf(recipe, PATH_SIZE, "%s/data", out);
    TM_GO(write_world(recipe, err));
    snprintf(recipe, PATH_SIZE, "%s/forgetting.yaml", out);
    TM_GO(tm_file_write(recipe, yaml.data, yaml.size, err));
out:
    tm_buf_deinit(&yaml);
    return st;
}

static tm_status take_text(tm_buf *from, char **text, tm_error *err)
{
    *text = tm_strdup(tm_buf_str(from), err);
    tm_buf_deinit(from);
    return *text ? TM_OK : TM_NO_MEMORY;
}

tm_status tm_bench_forgetting(const tm_forgetting_request *q, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    const char *out = q->out ? q->out : q->quick ? "runs/forgetting-quick" : "runs/forgetting";
    char recipe[PATH_SIZE];
    tm_buf more = {0};
    *text = NULL;
    if (q->tasks < 0 || q->tasks > TM_FORGETTING_TASKS)
        return tm_fail(err, TM_USAGE, "%d tasks: expected 1 to %d", q->tasks, TM_FORGETTING_TASKS);
    if (q->recipe) {
        TM_TRY(make_recipe(q, out, "models/town1M", &more, err));
        return take_text(&more, text, err);
    }
    if (q->data) {
        TM_TRY(write_world(q->data, err));
        return take_text(&more, text, err);
    }
    TM_TRY(prepare(q, out, recipe, err));
    TM_TRY(tm_sequence(&(tm_sequence_request){.path = recipe, .out = out, .json = q->json, .jobs = q->jobs}, callbacks, text, err));
    if (!q->quick)
        return TM_OK;
    if (!q->json)
        tm_buf_text(&more, *text);
    tm_status st = judge(out, &more, err);
    if (st == TM_OK && !q->json) {
        free(*text);
        return take_text(&more, text, err);
    }
    tm_buf_deinit(&more);
    return st;
}
