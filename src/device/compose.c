/* Ops made of other ops: see compose.h. */
#include "device/compose.h"

/* The columns of y that part i's module has. */
static tm_tensor columns(const tm_rows *rows, const tm_lora_part *part, tm_tensor y)
{
    return tm_tensor_cols(y, part->first, part->lr.b.rows / rows->replicas);
}

void tm_compose_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    TM_RUN(d, linear_forward, rows, x, w, bias, y);
    for (int32_t i = 0; i < parts; i++)
        TM_RUN(d, lowrank_forward, rows, &part[i].lr, x, part[i].xa, columns(rows, &part[i], y));
    if (h.data)
        TM_RUN(d, glu_forward, rows, act, y, h);
}

void tm_compose_lora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor w, bool accumulate, int32_t parts, const tm_lora_part *part, tm_tensor dx)
{
    if (dx.data)
        TM_RUN(d, linear_backward_input, rows, dy, w, accumulate, dx);
    for (int32_t i = 0; i < parts; i++)
        TM_RUN(d, lowrank_backward, rows, &part[i].lr, columns(rows, &part[i], dy), x, part[i].xa, part[i].dxa, part[i].da, part[i].db, dx);
}
