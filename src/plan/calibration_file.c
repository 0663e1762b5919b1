/* The calibration file: see calibrate.h and docs/formats/calibration.md. A device is known by its name and
 * detail ("cpu", "avx512, 8 threads"), so a file serves several settings of one machine. */
#include "plan/calibrate.h"

#include "base/env.h"
#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

enum { FORMAT = 1 };

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

static bool is_of(const json_t *entry, const tm_device *device)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *detail = json_string_value(json_object_get(entry, "detail"));
    return name && detail && strcmp(name, device->name) == 0 && strcmp(detail, device->detail) == 0;
}

/* The list of devices of a file; *list NULL when there is no file, or it is of another format. */
static tm_status read_list(const char *path, json_t **root, json_t **list, tm_error *err)
{
    *root = *list = NULL;
    if (!tm_path_exists(path))
        return TM_OK;
    tm_status st = tm_json_read(path, root, err);
    if (st != TM_OK)
        return st == TM_INPUT ? tm_fail_prefix(err, "damaged calibration, temper bench --calibrate makes a new one "
                                                    "once it is removed") : st;
    if (json_integer_value(json_object_get(*root, "temper_calibration")) == FORMAT)
        *list = json_object_get(*root, "devices");
    return TM_OK;
}

static tm_status read_entry(const char *path, const json_t *entry, tm_calibration *out, tm_error *err)
{
    const json_t *products = json_object_get(entry, "product_flops");
    bool whole = json_array_size(products) == TM_SIDES;
    TM_TRY(tm_json_get_number(entry, path, "peak_flops", 0, &out->peak_flops, err));
    TM_TRY(tm_json_get_number(entry, path, "memory_bytes", 0, &out->bytes, err));
    for (int i = 0; i < TM_SIDES && whole; i++) {
        out->flops[i] = json_number_value(json_array_get(products, (size_t)i));
        whole = out->flops[i] > 0;
    }
    if (!whole || !(out->peak_flops > 0) || !(out->bytes > 0))
        return tm_fail(err, TM_INPUT, "%s: rates above 0 expected, %d of products; temper bench --calibrate makes new ones",
                       path, TM_SIDES);
    return TM_OK;
}

tm_status tm_calibration_read(const char *path, const tm_device *device, tm_calibration *out, bool *found, tm_error *err)
{
    json_t *root, *list, *entry;
    size_t i;
    *found = false;
    TM_TRY(read_list(path, &root, &list, err));
    tm_status st = TM_OK;
    json_array_foreach(list, i, entry) {
        if (*found || !is_of(entry, device))
            continue;
        st = read_entry(path, entry, out, err);
        if (st != TM_OK)
            break;
        *found = true;
    }
    json_decref(root);
    return st;
}

static json_t *pack(const tm_device *device, const tm_calibration *c)
{
    json_t *products = json_array();
    int failed = 0;
    for (int i = 0; i < TM_SIDES; i++)
        failed |= json_array_append_new(products, json_real(c->flops[i]));
    json_t *entry = json_pack("{s:s, s:s, s:f, s:o, s:f}", "name", device->name, "detail", device->detail, "peak_flops",
                              c->peak_flops, "product_flops", products, "memory_bytes", c->bytes);
    if (!failed)
        return entry;
    json_decref(entry);
    return NULL;
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
