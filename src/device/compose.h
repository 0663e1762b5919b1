/* Ops made of other ops: what a device does that has nothing better for them. */
#ifndef TM_DEVICE_COMPOSE_H
#define TM_DEVICE_COMPOSE_H

#include "device/device.h"

void tm_compose_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h);
void tm_compose_lora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor w, bool accumulate, int32_t parts, const tm_lora_part *part, tm_tensor dx);

#endif
