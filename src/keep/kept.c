/* Tensors of methods in checkpoints: see kept.h. */
#include "keep/kept.h"

#include "base/file.h"

#include <stdlib.h>

typedef struct origin { /* of a tensor that is written */
    tm_device *device;
    tm_tensor part;
} origin;

static tm_tensor part_of(const tm_trainer *t, tm_tensor all, int32_t replica)
{
    int64_t rows = all.rows / t->run->replicas;
    return tm_tensor_rows(all, replica * rows, rows);
}

static tm_status give_part(const tm_st_tensor *tensor, void *to, tm_error *err)
{
    const origin *o = tensor->source;
    o->device->calls->download(o->device, to, o->part.data, tm_dtype_bytes(o->part.dtype, o->part.rows * o->part.cols));
    return o->device->calls->sync(o->device, err);
}

tm_status tm_kept_write(tm_trainer *t, const tm_kept *kept, int64_t count, int32_t replica, const char *folder, const char *file, tm_error *err)
{
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    origin *origins = NULL;
    char *path = tm_path_join(folder, file, err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(TM_NEW(&tensors, count, err));
    TM_GO(TM_NEW(&origins, count, err));
    for (int64_t i = 0; i < count; i++) {
        tm_tensor part = part_of(t, kept[i].value, replica);
        origins[i] = (origin){t->device, part};
        tensors[i] = (tm_st_tensor){.name = kept[i].name, .dtype = part.dtype, .ndim = 2, .shape = {part.rows, part.cols}, .give = give_part, .source = &origins[i]};
    }
    TM_GO(tm_safetensors_write(path, tensors, count, NULL, err));
out:
    free(tensors);
    free(origins);
    free(path);
    return st;
}

tm_status tm_kept_read(tm_trainer *t, const tm_kept *kept, int64_t count, int32_t replica, const char *folder, const char *file, tm_error *err)
{
    tm_safetensors *stored = NULL;
    char *path = tm_path_join(folder, file, err);
    tm_status st = path ? tm_safetensors_open(path, &stored, err) : TM_NO_MEMORY;
    for (int64_t i = 0; i < count && st == TM_OK; i++) {
        tm_tensor part = part_of(t, kept[i].value, replica);
        const tm_st_tensor *found = tm_safetensors_find(stored, kept[i].name);
        if (!found || found->ndim != 2 || found->shape[0] != part.rows || found->shape[1] != part.cols || found->dtype != part.dtype)
            st = tm_fail(err, TM_INPUT, "%s: tensor %s is missing or of another shape, expected [%lld, %lld] of %s; the checkpoint belongs to another recipe", path,
                         kept[i].name, (long long)part.rows, (long long)part.cols, tm_dtype_name(part.dtype));
        else
            t->device->calls->upload(t->device, part.data, found->data, found->bytes);
    }
    tm_safetensors_close(stored);
    free(path);
    return st;
}
