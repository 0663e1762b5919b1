/* trail.bin: a line of JSON that names the tensors, padded with spaces to a multiple of 8 bytes, then
 * a record a step: the step and a 64-bit hash a tensor, little-endian. docs/formats/trail.md. */
#include "train/trainer.h"

#include "base/json.h"

tm_status tm_trail_header(const tm_trainer *t, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "{\"temper_trail\": 1, \"tensors\": [");
    for (int64_t i = 0; i < t->trained_count; i++) {
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_string(out, t->trained_param[i]->name);
    }
    tm_buf_text(out, "]}");
    while (out->size % 8 != 7)
        tm_buf_char(out, ' ');
    tm_buf_char(out, '\n');
    return tm_buf_check(out, err);
}
