/* The table of one instruction set's kernels: this file is compiled once for each. */
#include "device/cpu/cpu.h"

const tm_ops TM_KERNEL(table) = {
#define TM_OP(name, params) .name = TM_KERNEL(name),
#include "device/ops.def"
#undef TM_OP
};
