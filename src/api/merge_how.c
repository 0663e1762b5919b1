/* How changes join: see merge_how.h. */
#include "api/merge_how.h"

#include "base/philox.h"

#include <math.h>
#include <string.h>

/* The magnitude of a float as a number that orders like it. */
static uint32_t magnitude(const float *x)
{
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits & 0x7fffffffu;
}

/* Which of `count` digits, taken from the largest, is the k-th element's; *k becomes its place inside the digit. */
static uint32_t find_digit(const int64_t *histogram, uint32_t count, int64_t *k)
{
    uint32_t digit = count - 1;
    while (histogram[digit] < *k && digit > 0)
        *k -= histogram[digit--];
    return digit;
}

/* The k-th largest magnitude, k > 0, by two digits of 16 and 15 bits; *k becomes how many of its equals are among
 * the k largest. Nothing is copied or sorted: a tensor may be most of the memory. */
static uint32_t kth_largest(const float *x, int64_t n, int64_t *k)
{
    enum { HIGH = 1 << 16, LOW = 1 << 15 };
    static const int shift = 15;
    int64_t histogram[HIGH];
    memset(histogram, 0, sizeof histogram);
    for (int64_t i = 0; i < n; i++)
        histogram[magnitude(&x[i]) >> shift]++;
    uint32_t high = find_digit(histogram, HIGH, k);
    memset(histogram, 0, LOW * sizeof *histogram);
    for (int64_t i = 0; i < n; i++)
        if (magnitude(&x[i]) >> shift == high)
            histogram[magnitude(&x[i]) & (LOW - 1)]++;
    return high << shift | find_digit(histogram, LOW, k);
}

void tm_merge_trim(float *x, int64_t n, double density)
{
    int64_t keep = density >= 1 ? n : (int64_t)(density * (double)n);
    if (keep >= n)
        return;
    if (keep <= 0) {
        memset(x, 0, (size_t)n * sizeof *x);
        return;
    }
    uint32_t least = kth_largest(x, n, &keep);
    for (int64_t i = 0; i < n; i++) {
        uint32_t m = magnitude(&x[i]);
        if (m < least || (m == least && keep-- <= 0))
            x[i] = 0;
    }
}

void tm_merge_drop(float *x, int64_t n, double density, uint64_t key)
{
    if (density >= 1)
        return;
    double kept = density > 0 ? 1 / density : 0;
    for (int64_t i = 0; i < n; i += 4) {
        tm_philox random = tm_philox_at(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0);
        for (int64_t k = i; k < i + 4 && k < n; k++)
            x[k] = tm_philox_uniform(random.word[k - i]) < density ? (float)(x[k] * kept) : 0;
    }
}

double tm_merge_disjoint(const double *change, const double *weight, int64_t count, bool by_count)
{
    double vote = 0, sum = 0;
    int64_t agree = 0;
    for (int64_t i = 0; i < count; i++)
        vote += by_count ? (change[i] > 0) - (change[i] < 0) : change[i];
    for (int64_t i = 0; i < count; i++)
        if (vote >= 0 ? change[i] > 0 : change[i] < 0) {
            sum += weight[i] * change[i];
            agree++;
        }
    return agree ? sum / (double)agree : 0;
}
