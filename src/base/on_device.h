/* What a compiler for another processor puts before the functions that it needs there. */
#ifndef TM_BASE_ON_DEVICE_H
#define TM_BASE_ON_DEVICE_H

#ifdef __CUDACC__
#define TM_ON_DEVICE __host__ __device__
#else
#define TM_ON_DEVICE
#endif

#endif
