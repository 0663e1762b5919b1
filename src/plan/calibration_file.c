/* Calibration files: see calibrate.h and docs/formats/calibration.md. A device is known by its name and
 * detail ("cpu", "avx512, 8 threads"; "cuda", "NVIDIA H200"), so a file serves several settings and machines. */
#include "plan/calibrate.h"

#include "base/env.h"
#include "base/file.h"
#include "base/json.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT = 3 };

/* Where the rates stand in an entry: lists of numbers by key. */
static const struct {
    const char *key;
    size_t offset;
    size_t count;
    const char *instead; /* where an older file has no such list: the one that its rates are taken from, or "" where it counted no time for it;
                          * NULL: every file has the list */
} lists[] = {
    {"product_forward", offsetof(tm_work, product[TM_PRODUCT_FORWARD]), TM_OUTS * TM_INNERS, NULL},
    {"product_input", offsetof(tm_work, product[TM_PRODUCT_INPUT]), TM_OUTS * TM_INNERS, NULL},
    {"product_weight", offsetof(tm_work, product[TM_PRODUCT_WEIGHT]), TM_OUTS * TM_INNERS, NULL},
    {"lowrank_forward", offsetof(tm_work, lowrank[1][0]), TM_RANKS, NULL}, {"lowrank_backward", offsetof(tm_work, lowrank[1][1]), TM_RANKS, NULL},
    {"lowrank_plain_forward", offsetof(tm_work, lowrank[0][0]), TM_RANKS, "lowrank_forward"}, {"lowrank_plain_backward", offsetof(tm_work, lowrank[0][1]), TM_RANKS, "lowrank_backward"},
    {"lowrank_ops", offsetof(tm_work, lowrank_ops), 2, ""},
    {"attention_forward", offsetof(tm_work, attention[0]), TM_HEADS, NULL}, {"attention_backward", offsetof(tm_work, attention[1]), TM_HEADS, NULL},
    {"memory_bytes", offsetof(tm_work, bytes), 1, NULL}, {"calls", offsetof(tm_work, calls), 1, NULL},
};
enum { LISTS = sizeof lists / sizeof *lists };

tm_status tm_calibration_path(char **path, tm_error *err)
{
    const char *given = tm_env("TEMPER_CALIBRATION"), *cache = tm_env("XDG_CACHE_HOME"), *home = tm_env("HOME");
    tm_buf text = {0};
    if (given && *given)
        tm_buf_text(&text, given);
    else if (cache && *cache)
        tm_buf_printf(&text, "%s/temper/calibration.json", cache);
    else
        tm_buf_printf(&text, "%s/.cache/temper/calibration.json", home && *home ? home : ".");
    tm_status st = tm_buf_check(&text, err);
    if (st != TM_OK)
        tm_buf_deinit(&text);
    *path = text.data;
    return st;
}

/* --- Reading --- */

/* The list of devices of a file; *list NULL when there is no file, or it is of another format. */
static tm_status read_list(const char *path, json_t **root, json_t **list, tm_error *err)
{
    *root = *list = NULL;
    if (!tm_path_exists(path))
        return TM_OK;
    tm_status st = tm_json_read(path, root, err);
    if (st != TM_OK)
        return st == TM_INPUT ? tm_fail_prefix(err, st, "damaged calibration, temper bench --calibrate makes a new one "
                                                    "once it is removed") : st;
    if (json_integer_value(json_object_get(*root, "temper_calibration")) == FORMAT)
        *list = json_object_get(*root, "devices");
    return TM_OK;
}

static tm_status read_rates(const char *path, const json_t *entry, tm_calibration *out, tm_error *err)
{
    bool whole = true;
    TM_TRY(tm_json_get_number(entry, path, "peak_flops", 0, &out->peak_flops, err));
    TM_TRY(tm_json_get_int(entry, path, "reserve_bytes", -1, &out->reserve, err));
    for (size_t i = 0; i < LISTS; i++) {
        const json_t *list = json_object_get(entry, lists[i].key);
        const char *instead = list ? NULL : lists[i].instead;
        if (instead)
            list = json_object_get(entry, instead);
        bool free_of_time = instead && !*instead;
        whole &= free_of_time || json_array_size(list) == lists[i].count;
        for (size_t k = 0; k < lists[i].count && whole; k++) {
            double value = free_of_time ? INFINITY : json_number_value(json_array_get(list, k));
            memcpy((char *)&out->rate + lists[i].offset + k * sizeof value, &value, sizeof value);
            whole = value > 0;
        }
        if (!whole)
            return tm_fail(err, TM_INPUT, "%s: %s: %zu rates above 0 expected; temper bench --calibrate makes new ones", path, lists[i].key, lists[i].count);
    }
    if (!(out->peak_flops > 0))
        return tm_fail(err, TM_INPUT, "%s: peak_flops: a rate above 0 expected; temper bench --calibrate makes new ones", path);
    return TM_OK;
}

tm_status tm_calibrations_read(tm_calibrations *all, const char *path, tm_error *err)
{
    json_t *root, *list, *entry;
    size_t i;
    tm_status st;
    TM_GO(read_list(path, &root, &list, err));
    json_array_foreach(list, i, entry) {
        const char *name, *detail;
        TM_GO(tm_json_get_string(entry, path, "name", "", &name, err));
        TM_GO(tm_json_get_string(entry, path, "detail", "", &detail, err));
        TM_GO(TM_GROW(&all->item, &all->capacity, (int64_t)all->count + 1, err));
        tm_calibrated *item = &all->item[all->count++];
        *item = (tm_calibrated){.name = tm_strdup(name, err), .detail = tm_strdup(detail, err)};
        if (!item->name || !item->detail)
            TM_GO(TM_NO_MEMORY);
        TM_GO(read_rates(path, entry, &item->rates, err));
    }
out:
    json_decref(root);
    return st;
}

tm_status tm_calibrations_load(tm_calibrations *all, tm_error *err)
{
    char *mine, shipped[4096];
    *all = (tm_calibrations){0};
    TM_TRY(tm_calibration_path(&mine, err));
    tm_status st = tm_calibrations_read(all, mine, err);
    free(mine);
    if (st == TM_OK && tm_shared_path("data/calibration.json", shipped, sizeof shipped))
        st = tm_calibrations_read(all, shipped, err);
    if (st != TM_OK)
        tm_calibrations_deinit(all);
    return st;
}

void tm_calibrations_deinit(tm_calibrations *all)
{
    for (size_t i = 0; i < all->count; i++) {
        free(all->item[i].name);
        free(all->item[i].detail);
    }
    free(all->item);
    *all = (tm_calibrations){0};
}

const tm_calibrated *tm_calibrations_find(const tm_calibrations *all, const char *name, const char *detail)
{
    for (size_t i = 0; i < all->count; i++)
        if (strcmp(all->item[i].name, name) == 0 && strcmp(all->item[i].detail, detail) == 0)
            return &all->item[i];
    return NULL;
}

/* --- Writing --- */

static json_t *pack(const tm_device *device, const tm_calibration *c)
{
    json_t *entry = json_pack("{s:s, s:s, s:f, s:I}", "name", device->name, "detail", device->detail, "peak_flops", c->peak_flops, "reserve_bytes", (json_int_t)c->reserve);
    int failed = !entry;
    for (size_t i = 0; i < LISTS && !failed; i++) {
        json_t *list = json_array();
        for (size_t k = 0; k < lists[i].count; k++) {
            double value;
            memcpy(&value, (const char *)&c->rate + lists[i].offset + k * sizeof value, sizeof value);
            failed |= json_array_append_new(list, json_real(value));
        }
        failed |= json_object_set_new(entry, lists[i].key, list);
    }
    if (!failed)
        return entry;
    json_decref(entry);
    return NULL;
}

static bool is_of(const json_t *entry, const tm_device *device)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *detail = json_string_value(json_object_get(entry, "detail"));
    return name && detail && strcmp(name, device->name) == 0 && strcmp(detail, device->detail) == 0;
}

tm_status tm_calibration_write(const char *path, const tm_device *device, const tm_calibration *c, tm_error *err)
{
    json_t *root, *list, *mine = pack(device, c), *all = json_array(), *entry, *out = NULL;
    char *dir = NULL;
    size_t i;
    int failed = !mine;
    tm_status st;
    TM_GO(read_list(path, &root, &list, err));
    json_array_foreach(list, i, entry)
        if (!is_of(entry, device))
            failed |= json_array_append(all, entry);
    failed |= json_array_append(all, mine);
    out = json_pack("{s:i, s:O}", "temper_calibration", FORMAT, "devices", all);
    dir = tm_strdup(path, err);
    if (!dir)
        TM_GO(TM_NO_MEMORY);
    char *slash = strrchr(dir, '/');
    if (slash && slash != dir) {
        *slash = 0;
        TM_GO(tm_dir_create(dir, err));
    }
    st = tm_json_write(path, failed ? NULL : out, JSON_INDENT(1) | JSON_REAL_PRECISION(6), err);
out:
    json_decref(root);
    json_decref(mine);
    json_decref(all);
    json_decref(out);
    free(dir);
    return st;
}
