/* Nothing of it is needed on the processor: cuda.cuh converts with base/dtype. */
