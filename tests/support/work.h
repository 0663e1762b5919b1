/* All operations of an amount of work: what a trace is held against when they were counted otherwise. */
#ifndef TM_TESTS_WORK_H
#define TM_TESTS_WORK_H

#include "plan/calibrate.h"

#include <string.h>

static inline double work_flops(const tm_work *work)
{
    tm_work flops = *work;
    double term[TM_WORK_TERMS], sum = 0;
    flops.bytes = flops.calls = flops.lowrank_ops[0] = flops.lowrank_ops[1] = 0;
    memcpy(term, &flops, sizeof term);
    for (int i = 0; i < TM_WORK_TERMS; i++)
        sum += term[i];
    return sum;
}

#endif
