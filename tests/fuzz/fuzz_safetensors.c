/* Any bytes as a safetensors file: an error or a table whose tensors can all be read. */
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tm_safetensors *st;
    tm_error err = {0};
    if (tm_safetensors_view(data, size, "input", &st, &err) != TM_OK) {
        if (st || err.status == TM_OK || !err.message[0])
            abort();
        return 0;
    }
    volatile unsigned sum = 0;
    int64_t covered = 0;
    for (int64_t i = 0; i < tm_safetensors_count(st); i++) {
        const tm_st_tensor *t = tm_safetensors_at(st, i);
        for (int64_t b = 0; b < t->bytes; b++)
            sum += ((const uint8_t *)t->data)[b];
        covered += t->bytes;
        if (tm_safetensors_find(st, t->name) != t || (i && strcmp(tm_safetensors_at(st, i - 1)->name, t->name) >= 0))
            abort();
    }
    if ((uint64_t)covered >= size)
        abort();
    (void)sum;
    (void)tm_safetensors_metadata(st, "format");
    tm_safetensors_close(st);
    return 0;
}
