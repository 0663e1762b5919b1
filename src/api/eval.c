/* temper eval: scores of a model on a data set, through the trainer's own evaluation. */
#include "api/job.h"

#include "base/json.h"
#include "base/exact.h"

#include <math.h>
#include <stdlib.h>

static void put_json(tm_buf *out, const tm_scores *s)
{
    struct {
        const char *key;
        double value;
    } row[] = {{"loss", s->loss}, {"ppl", tm_exp(s->loss)}, {"bits_per_byte", s->bits_per_byte}, {"accuracy", s->accuracy}, {"exact", s->exact}};
    tm_buf_char(out, '{');
    for (size_t i = 0; i < 5; i++) {
        tm_buf_printf(out, "\"%s\": ", row[i].key);
        tm_json_put_number(out, row[i].value);
        tm_buf_text(out, ", ");
    }
    tm_buf_printf(out, "\"targets\": %lld}\n", (long long)s->targets);
}

static void put_table(tm_buf *out, const tm_scores *s)
{
    tm_buf_printf(out, "loss            %.4f nats a token\nperplexity      %.3f\n", s->loss, tm_exp(s->loss));
    if (!isnan(s->bits_per_byte))
        tm_buf_printf(out, "bits a byte     %.4f\n", s->bits_per_byte);
    tm_buf_printf(out, "token accuracy  %.2f %%\nexact match     %.2f %%\ntargets         %lld\n", 100 * s->accuracy, 100 * s->exact, (long long)s->targets);
}

static tm_status evaluate(tm_job *job, tm_scores *scores, tm_error *err)
{
    tm_trainer *trainer = NULL;
    int64_t limits[TM_MEM_KINDS];
    TM_TRY(tm_job_fits(job, err));
    TM_TRY(tm_job_device(job->recipe, &job->device, err));
    memcpy(limits, job->plan.part, sizeof limits);
    limits[TM_MEM_WORKSPACE] = 0;
    TM_TRY(tm_trainer_create(&job->run, job->device, limits, &trainer, err));
    tm_status st = tm_model_load(&trainer->model, job->file, job->recipe->model, err);
    if (st == TM_OK && trainer->tuning.method->start)
        st = trainer->tuning.method->start(&trainer->tuning, 0, 0, err);
    if (st == TM_OK) {
        tm_model_begin_step(&trainer->model, NULL);
        st = tm_trainer_evaluate(trainer, &job->evals[0], 0, scores, err);
    }
    tm_trainer_destroy(trainer);
    return st;
}

tm_status tm_eval(const char *model, const char *adapter, const char *data, char *const *overrides, size_t override_count, bool json, char **text, tm_error *err)
{
    tm_status st = TM_OK;
    tm_recipe *recipe = NULL;
    tm_job job = {0};
    tm_buf out = {0};
    tm_scores scores;
    char **list = NULL;
    size_t count = 0;
    tm_buf line[4] = {{0}};
    *text = NULL;
    tm_buf_printf(&line[0], "model=%s", model);
    tm_buf_printf(&line[1], "method=%s", adapter ? "lora" : "none");
    tm_buf_printf(&line[2], "eval.0.path=%s", data);
    tm_buf_printf(&line[3], "lora.init=%s", adapter ? adapter : "null");
    TM_GO(TM_NEW(&list, override_count + 5, err));
    for (int i = 0; i < 4; i++)
        list[count++] = line[i].data;
    list[count++] = "eval.0.name=data";
    for (size_t i = 0; i < override_count; i++)
        list[count++] = overrides[i];
    TM_GO(tm_recipe_load(NULL, list, count, &recipe, err));
    TM_GO(tm_job_open(recipe, TM_JOB_EVAL, &job, err));
    TM_GO(evaluate(&job, &scores, err));
    (json ? put_json : put_table)(&out, &scores);
    TM_GO(tm_buf_check(&out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    tm_job_close(&job);
    tm_buf_deinit(&out);
    free(list);
    for (int i = 0; i < 4; i++)
        tm_buf_deinit(&line[i]);
    return st;
}
