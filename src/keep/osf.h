/* What OSF computes before a run: for plans. The method: osf.c, keep.h. */
#ifndef TM_KEEP_OSF_H
#define TM_KEEP_OSF_H

#include "train/trainer.h"

typedef struct tm_osf_size {
    int64_t matrices; /* whose singular directions are computed; 0: none, or no OSF */
    double work;      /* sum of their tm_svd_work */
} tm_osf_size;
tm_osf_size tm_osf_size_of(const tm_trainer *trainer);

#endif
