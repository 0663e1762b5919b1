/* Elementary functions in double made of +, -, *, / and sqrt alone, so that rates, rope tables and
 * random normals are the same bits with every C library. Errors are a few units in the last place
 * (tests/unit/test_exact.c); arguments outside the stated ranges are not supported. */
#ifndef TM_BASE_EXACT_H
#define TM_BASE_EXACT_H

#include <stdint.h>

double tm_exp(double x);                /* |x| < 700; below: 0, above: infinity */
void tm_exp_all(double *x, int64_t n);  /* the same of n numbers, where they stand: many times as fast */
double tm_log(double x);                /* x > 0, normal */
double tm_pow(double x, double y);      /* x > 0 */
void tm_sincos(double x, double *sin, double *cos); /* |x| < 2^27 */

/* Two independent standard normals from four random words (Box-Muller). */
void tm_normals(const uint32_t word[4], double out[2]);

#endif
