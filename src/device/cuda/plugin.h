/* Where the program and libtemper-cuda.so meet: one symbol, TM_CUDA_PLUGIN_SYMBOL, of this type. The library is loaded when a
 * run asks for a GPU, so the program itself needs no CUDA. Both are built from one tree; `abi` catches a
 * library of another. */
#ifndef TM_DEVICE_CUDA_PLUGIN_H
#define TM_DEVICE_CUDA_PLUGIN_H

#include "device/device.h"

#define TM_CUDA_PLUGIN_SYMBOL "tm_cuda_plugin_table"

/* Changes whenever an op is added or a structure of the device line changes its size. */
#define TM_CUDA_ABI (sizeof(tm_ops) + (sizeof(tm_device_calls) << 10) + (sizeof(tm_rows) << 20) + (sizeof(tm_trained) << 30) + (sizeof(tm_step_params) << 40))

typedef struct tm_cuda_plugin {
    uint64_t abi;
    tm_status (*create)(int index, tm_device **out, tm_error *err);
} tm_cuda_plugin;

#endif
