/* Checkpoints of a trainer: everything needed to go on with the same bits.
 *
 * state.json holds the counters and the lengths of the run folder's growing files; train.safetensors
 * the trained tensors and the optimiser's state; hooks add files of their own. */
#include "train/trainer.h"

#include "base/json.h"
#include "io/checkpoint.h"

#include <math.h>
#include <stdlib.h>

/* --- Tensors --- */

static const char *const part_prefix[] = {"", "m.", "v."};

static tm_tensor part_of(const tm_param *p, int part) { return part == 0 ? p->value : part == 1 ? p->m : p->v; }

typedef struct origin { /* of a tensor that is written */
    tm_trainer *trainer;
    const tm_param *param;
    tm_tensor tensor;
    int32_t replica;
    char name[512];
} origin;

static tm_status give_part(const tm_st_tensor *t, void *to, tm_error *err)
{
    const origin *o = t->source;
    return tm_param_read(&o->trainer->model, o->param, o->tensor, o->replica, to, t->dtype, err);
}

tm_status tm_trained_write(tm_trainer *t, int32_t replica, bool optimizer, const char *path, tm_error *err)
{
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    origin *origins = NULL;
    int64_t count = 0, most = t->trained_count * 3;
    TM_GO(TM_NEW(&tensors, most, err));
    TM_GO(TM_NEW(&origins, most, err));
    for (int part = 0; part < (optimizer ? 3 : 1); part++)
        for (int64_t i = 0; i < t->trained_count; i++) {
            const tm_param *p = t->trained_param[i];
            tm_tensor tensor = part_of(p, part);
            if (!tensor.data)
                continue;
            origin *o = &origins[count];
            *o = (origin){.trainer = t, .param = p, .tensor = tensor, .replica = replica};
            snprintf(o->name, sizeof o->name, "%s%s", part_prefix[part], p->name);
            tensors[count++] = (tm_st_tensor){.name = o->name, .dtype = tensor.dtype, .ndim = 2,
                                              .shape = {p->rows, p->cols}, .give = give_part, .source = o};
        }
    TM_GO(tm_safetensors_write(path, tensors, count, NULL, err));
out:
    free(tensors);
    free(origins);
    return st;
}

tm_status tm_trained_read(tm_trainer *t, int32_t replica, bool optimizer, const char *path, tm_error *err)
{
    tm_safetensors *file;
    TM_TRY(tm_safetensors_open(path, &file, err));
    tm_status st = TM_OK;
    for (int part = 0; part < (optimizer ? 3 : 1); part++)
        for (int64_t i = 0; i < t->trained_count; i++) {
            const tm_param *p = t->trained_param[i];
            tm_tensor tensor = part_of(p, part);
            char name[512];
            snprintf(name, sizeof name, "%s%s", part_prefix[part], p->name);
            const tm_st_tensor *stored = tensor.data ? tm_safetensors_find(file, name) : NULL;
            if (!tensor.data)
                continue;
            if (!stored || stored->count != tm_param_count(p) || stored->dtype != tensor.dtype)
                TM_GO(tm_fail(err, TM_INPUT, "%s: tensor %s is missing or of another shape; the checkpoint belongs to another recipe", path, name));
            t->device->calls->upload(t->device, tm_param_part(p, tensor, replica).data, stored->data, stored->bytes);
        }
out:
    tm_safetensors_close(file);
    return st;
}

/* --- Counters --- */

/* NULL when memory runs out, here and in what is made of it: a state without a part must not be written. */
static json_t *pack_scores(const tm_scores *s)
{
    json_t *list = json_array();
    double value[] = {s->loss, s->accuracy, s->exact, s->kl, s->bits_per_byte, (double)s->targets, s->score[0], s->score[1], s->way_loss[0], s->way_loss[1]};
    int failed = 0;
    for (int i = 0; i < 10; i++)
        failed |= json_array_append_new(list, isnan(value[i]) ? json_null() : json_real(value[i]));
    if (!failed)
        return list;
    json_decref(list);
    return NULL;
}

static void unpack_scores(const json_t *list, tm_scores *s)
{
    double value[10];
    for (size_t i = 0; i < 10; i++) {
        const json_t *item = json_array_get(list, i);
        value[i] = json_is_number(item) ? json_number_value(item) : NAN;
    }
    *s = (tm_scores){value[0], value[1], value[2], value[3], value[4], {value[6], value[7]}, {value[8], value[9]}, isnan(value[5]) ? 0 : (int64_t)value[5]};
}

/* Infinity (nothing measured yet) is written as null. */
static json_t *pack_best(double value) { return isinf(value) ? json_null() : json_real(value); }
static double unpack_best(const json_t *value) { return json_is_number(value) ? json_number_value(value) : INFINITY; }

static tm_status write_state(tm_trainer *t, int32_t r, const char *path, tm_error *err)
{
    tm_run_position at;
    TM_TRY(tm_run_folder_position(t->run->folder[r], &at, err));
    json_t *evals = json_array();
    int failed = 0;
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        const tm_eval_set *set = &t->run->evals[i];
        failed |= json_array_append_new(evals, json_pack("{s:s, s:o, s:o, s:o}", "name", set->entry->name, "first", pack_scores(&set->first[r]),
                                               "last", pack_scores(&set->last[r]), "best", pack_scores(&set->best[r])));
    }
    json_t *json = json_pack("{s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:o, s:I, s:I, s:o, s:o}", "step", (json_int_t)t->step, "tokens", (json_int_t)t->tokens,
                             "targets", (json_int_t)t->targets, "seconds", t->seconds, "metrics_bytes", (json_int_t)at.metrics,
                             "timing_bytes", (json_int_t)at.timing, "trail_bytes", (json_int_t)at.trail, "best_metric", pack_best(t->best_metric),
                             "best_step", (json_int_t)t->best_step, "bad_evals", (json_int_t)t->bad_evals,
                             "best_checkpoint_metric", pack_best(t->best_checkpoint_metric), "evals", evals);
    if (t->loss_scale[r].scale > 0)
        failed |= json_object_set_new(json, "loss_scale", json_pack("{s:f, s:I, s:I}", "scale", t->loss_scale[r].scale, "good", (json_int_t)t->loss_scale[r].good,
                                                                    "skipped", (json_int_t)t->loss_scale[r].skipped));
    json_t *warnings = json_array();
    for (int64_t i = 0; i < t->warnings.count; i++)
        failed |= json_array_append_new(warnings, json_string(t->warnings.item[i]));
    failed |= json_object_set_new(json, "warnings", warnings);
    failed |= json_object_set_new(json, "best_checkpoint", json_integer(t->best_checkpoint));
    tm_status st = tm_json_write(path, failed ? NULL : json, JSON_INDENT(1) | JSON_SORT_KEYS, err);
    json_decref(json);
    return st;
}

static tm_status read_state(tm_trainer *t, int32_t r, const char *path, tm_run_position *at, tm_error *err)
{
    json_t *json;
    TM_TRY(tm_json_read(path, &json, err));
    tm_status st = TM_OK;
    struct {
        const char *key;
        int64_t *value;
    } integers[] = {{"step", &t->step}, {"tokens", &t->tokens}, {"targets", &t->targets}, {"metrics_bytes", &at->metrics}, {"timing_bytes", &at->timing},
                    {"trail_bytes", &at->trail}, {"best_step", &t->best_step}, {"bad_evals", &t->bad_evals}, {"best_checkpoint", &t->best_checkpoint}};
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++)
        TM_GO(tm_json_get_int(json, path, integers[i].key, -1, integers[i].value, err));
    TM_GO(tm_json_get_number(json, path, "seconds", 0, &t->seconds, err));
    if (t->loss_scale[r].scale > 0) {
        const json_t *scale = json_object_get(json, "loss_scale");
        double first = t->loss_scale[r].scale;
        TM_GO(tm_json_get_number(scale, path, "scale", first, &t->loss_scale[r].scale, err));
        TM_GO(tm_json_get_int(scale, path, "good", 0, &t->loss_scale[r].good, err));
        TM_GO(tm_json_get_int(scale, path, "skipped", 0, &t->loss_scale[r].skipped, err));
        int power;
        if (!isfinite(t->loss_scale[r].scale) || t->loss_scale[r].scale < 1 || frexp(t->loss_scale[r].scale, &power) != 0.5)
            TM_GO(tm_fail(err, TM_INPUT, "%s: loss_scale.scale is %g; expected a power of two from 1 on", path, t->loss_scale[r].scale));
    }
    t->best_metric = unpack_best(json_object_get(json, "best_metric"));
    t->best_checkpoint_metric = unpack_best(json_object_get(json, "best_checkpoint_metric"));
    const json_t *evals = json_object_get(json, "evals"), *warnings = json_object_get(json, "warnings");
    for (size_t i = 0; r == 0 && i < json_array_size(warnings); i++) {
        const char *text = json_string_value(json_array_get(warnings, i));
        TM_GO(tm_trainer_warn(t, err, "%s", text ? text : ""));
    }
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        tm_eval_set *set = &t->run->evals[i];
        const json_t *entry = json_array_get(evals, (size_t)i);
        unpack_scores(json_object_get(entry, "first"), &set->first[r]);
        unpack_scores(json_object_get(entry, "last"), &set->last[r]);
        unpack_scores(json_object_get(entry, "best"), &set->best[r]);
    }
out:
    json_decref(json);
    return st;
}

/* --- Folders --- */

static tm_status fill_folder(tm_trainer *t, int32_t r, const char *folder, tm_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/train.safetensors", folder);
    TM_TRY(tm_trained_write(t, r, true, path, err));
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].save)
            TM_TRY(t->hooks[i].save(t->hooks[i].state, t, r, folder, err));
    if (!t->tuning.registers.count) /* a bank is a folder of folders, and a checkpoint holds plain files */
        TM_TRY(tm_trainer_save_to(t, r, folder, err));
    snprintf(path, sizeof path, "%s/state.json", folder);
    return write_state(t, r, path, err);
}

tm_status tm_trainer_checkpoint(tm_trainer *t, tm_error *err)
{
    for (int32_t r = 0; r < t->run->replicas; r++) {
        char *folder;
        const char *dir = t->run->folder[r]->dir;
        TM_TRY(tm_checkpoint_begin(dir, t->step, &folder, err));
        tm_status st = fill_folder(t, r, folder, err);
        if (st != TM_OK) {
            tm_status tried = tm_dir_remove(folder, NULL); /* a full disk needs the room */
            (void)tried;
        }
        free(folder);
        TM_TRY(st);
        TM_TRY(tm_checkpoint_commit(dir, t->step, err));
    }
    /* Not before the last replica has this step: they go on from one that all have. */
    for (int32_t r = 0; r < t->run->replicas; r++)
        TM_TRY(tm_checkpoint_prune(t->run->folder[r]->dir, t->recipe->keep_checkpoints, t->best_checkpoint, err));
    return TM_OK;
}

/* The newest step that every replica has a checkpoint of; -1: none. */
static tm_status common_step(tm_trainer *t, int64_t *step, tm_error *err)
{
    tm_names passed = {0};
    tm_status st = TM_OK;
    *step = -1;
    for (int32_t r = 0, same = 0; same < t->run->replicas; r = (r + 1) % t->run->replicas) {
        char *folder;
        int64_t found;
        TM_GO(tm_checkpoint_latest(t->run->folder[r]->dir, *step, &found, &folder, &passed, err));
        free(folder);
        same = found == *step ? same + 1 : 1;
        *step = found;
        if (found < 0)
            break;
    }
    for (int64_t i = 0; i < passed.count; i++)
        TM_GO(tm_trainer_warn(t, err, "%s", passed.item[i]));
out:
    tm_names_deinit(&passed);
    return st;
}

tm_status tm_trainer_resume(tm_trainer *t, bool *resumed, tm_error *err)
{
    int64_t step;
    *resumed = false;
    TM_TRY(common_step(t, &step, err));
    if (step < 0)
        return TM_OK;
    for (int32_t r = 0; r < t->run->replicas; r++) {
        char path[4096], *folder;
        int64_t found;
        tm_run_position at;
        TM_TRY(tm_checkpoint_latest(t->run->folder[r]->dir, step, &found, &folder, NULL, err));
        snprintf(path, sizeof path, "%s/train.safetensors", folder);
        tm_status st = tm_trained_read(t, r, true, path, err);
        snprintf(path, sizeof path, "%s/state.json", folder);
        if (st == TM_OK)
            st = read_state(t, r, path, &at, err);
        for (int64_t i = 0; i < t->hook_count && st == TM_OK; i++)
            if (t->hooks[i].load)
                st = t->hooks[i].load(t->hooks[i].state, t, r, folder, err);
        free(folder);
        if (st == TM_OK)
            st = tm_run_folder_start(t->run->folder[r], &at, err);
        if (st != TM_OK)
            return st;
    }
    *resumed = true;
    return TM_OK;
}
