/* Where a GPU's time goes: every op between two events, added up by op and by the bytes of its operands (so the same op
 * of other layers' shapes is told apart). TEMPER_CUDA_PROFILE=FILE names the file that the table is written to when the device
 * is destroyed. A table is of one device: where FILE is there already, by an earlier device of this process (texts of the base,
 * jobs side by side) or of another, it goes to FILE.2, FILE.3, ... Graphs are not recorded meanwhile. */
#ifndef TM_DEVICE_CUDA_PROFILE_H
#define TM_DEVICE_CUDA_PROFILE_H

#include "device/cuda/cuda.cuh"

void tm_cuda_profile_create(tm_cuda *c);
void tm_cuda_profile_destroy(tm_cuda *c); /* writes the file */
/* Around an op; begin returns what end needs. */
int tm_cuda_profile_begin(tm_cuda *c, const char *op, int64_t bytes);
void tm_cuda_profile_end(tm_cuda *c, int at);

#endif
