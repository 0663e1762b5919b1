/* A group's product with the low-rank deltas of its modules, as other ops. */
#include "device/cpu/cpu.h"

#include "device/compose.h"

void TM_KERNEL(lora_forward)(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts,
                             const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    tm_compose_lora_forward(d, rows, x, w, bias, parts, part, y, act, h);
}

void TM_KERNEL(lora_backward)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor w,
                              bool accumulate, int32_t parts, const tm_lora_part *part, tm_tensor dx)
{
    tm_compose_lora_backward(d, rows, dy, x, w, accumulate, parts, part, dx);
}
