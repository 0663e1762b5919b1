/* Elementary functions in double: see exact.h. */
#include "base/exact.h"

#include <math.h>
#include <string.h>

/* ln 2 as a sum: the first part has 33 significant bits, so k * LN2_HI is exact for |k| < 2^20. */
#define LN2_HI 0x1.62e42feep-1
#define LN2_LO 0x1.a39ef35793c76p-33

static double scale_by_power_of_two(double x, int k)
{
    uint64_t bits = (uint64_t)(1023 + k) << 52;
    double power;
    memcpy(&power, &bits, 8);
    return x * power;
}

/* Of at most AT_ONCE numbers: one waits for 16 divisions in turn, several wait together. */
enum { AT_ONCE = 16 };
static inline void exp_some(double *x, int n)
{
    double k[AT_ONCE], r[AT_ONCE], sum[AT_ONCE];
    for (int i = 0; i < n; i++) {
        double near = x[i] < -700 ? -700 : x[i] > 700 ? 700 : x[i];
        k[i] = floor(near / (LN2_HI + LN2_LO) + 0.5);
        r[i] = (near - k[i] * LN2_HI) - k[i] * LN2_LO; /* |r| <= 0.35 */
        sum[i] = 1;
    }
    for (int term = 16; term >= 1; term--) /* Taylor: the term after the last is below 2^-70 */
        for (int i = 0; i < n; i++)
            sum[i] = 1 + sum[i] * r[i] / term;
    for (int i = 0; i < n; i++)
        x[i] = x[i] < -700 ? 0 : x[i] > 700 ? INFINITY : scale_by_power_of_two(sum[i], (int)k[i]);
}

double tm_exp(double x)
{
    exp_some(&x, 1);
    return x;
}

void tm_exp_all(double *x, int64_t n)
{
    for (; n >= AT_ONCE; n -= AT_ONCE, x += AT_ONCE)
        exp_some(x, AT_ONCE);
    exp_some(x, (int)n);
}

double tm_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int k = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, 8);
    if (m > M_SQRT2) {
        m /= 2;
        k++;
    }
    /* log m = 2 atanh(f), f = (m - 1) / (m + 1), |f| <= 0.172 */
    double f = (m - 1) / (m + 1), f2 = f * f, sum = 0;
    for (int n = 23; n >= 3; n -= 2)
        sum = (sum + 1.0 / n) * f2;
    return k * LN2_HI + (2 * f + (2 * f * sum + k * LN2_LO));
}

double tm_pow(double x, double y) { return tm_exp(y * tm_log(x)); }

void tm_sincos(double x, double *sin_out, double *cos_out)
{
    /* pi / 2 in three parts of 27 bits or less: k times the first two is exact for |k| < 2^26. */
    const double p1 = 0x1.921fb5p+0, p2 = 0x1.110b46p-26, p3 = 0x1.1a62633145c07p-54;
    double k = floor(x / (p1 + p2) + 0.5);
    double r = ((x - k * p1) - k * p2) - k * p3, r2 = r * r; /* |r| <= 0.786 */
    double s = 0, c = 0;
    for (int n = 19; n >= 3; n -= 2)
        s = (1 + s) * -r2 / (n * (n - 1));
    for (int n = 20; n >= 2; n -= 2)
        c = (1 + c) * -r2 / (n * (n - 1));
    s = r + r * s;
    c = 1 + c;
    switch ((int64_t)k & 3) {
    case 0: *sin_out = s, *cos_out = c; break;
    case 1: *sin_out = c, *cos_out = -s; break;
    case 2: *sin_out = -s, *cos_out = -c; break;
    default: *sin_out = -c, *cos_out = s; break;
    }
}

void tm_normals(const uint32_t word[4], double out[2])
{
    /* (0, 1]: the logarithm never sees zero. */
    double u = ((double)((uint64_t)word[0] << 21 | word[1] >> 11) + 1) * 0x1p-53;
    double angle = 2 * M_PI * ((double)((uint64_t)word[2] << 21 | word[3] >> 11) * 0x1p-53);
    double radius = sqrt(-2 * tm_log(u)), s, c;
    tm_sincos(angle, &s, &c);
    out[0] = radius * c;
    out[1] = radius * s;
}
