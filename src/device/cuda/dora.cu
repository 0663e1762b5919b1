/* DoRA's norm and scaling: not here yet; a run that needs them ends with this error at its next sync. */
#include "device/cuda/cuda.cuh"

static void missing(tm_device *d, const char *op) { tm_cuda_note(tm_cuda_of(d), TM_UNSUPPORTED, op, "not implemented on CUDA yet"); }

void tm_cuda_dora_norm(tm_device *d, int32_t, const tm_lowrank *, tm_tensor, tm_tensor) { missing(d, "dora_norm"); }
void tm_cuda_dora_forward(tm_device *d, const tm_rows *, tm_tensor, tm_tensor, tm_tensor, tm_tensor, tm_tensor) { missing(d, "dora_forward"); }
void tm_cuda_dora_backward(tm_device *d, const tm_rows *, tm_tensor, tm_tensor, tm_tensor, tm_tensor, tm_tensor, tm_tensor) { missing(d, "dora_backward"); }
