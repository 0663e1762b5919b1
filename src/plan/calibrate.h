/* What a device can do, measured: the rates that plans are made of and that training is shown against. */
#ifndef TM_PLAN_CALIBRATE_H
#define TM_PLAN_CALIBRATE_H

#include "device/device.h"

/* Floating-point operations a second of the device's own matrix product, the best seen in about 20 ms:
 * what a training step could reach if it were nothing but large products. NaN when memory for it is not
 * there. It leaves no mark in the device's byte counts; it never enters a result. */
double tm_device_peak_flops(tm_device *d);

/* --- Work: what a device has to do, in the classes that its rates are measured in --- */

/* Products of matrices by what they are for, by elements of the result (2^16, 2^18, ... 2^26: what there is to share among a device's
 * units) and by the dimension that is summed over (64, 128, ... 8192). A size between counts in parts as both its neighbours, so
 * that times are interpolated. */
typedef enum tm_product { TM_PRODUCT_FORWARD, TM_PRODUCT_INPUT, TM_PRODUCT_WEIGHT, TM_PRODUCTS } tm_product;
enum { TM_OUTS = 6, TM_OUT_FIRST = 16, TM_OUT_STEP = 2, TM_INNERS = 8, TM_INNER_FIRST = 6, TM_RANKS = 3, TM_HEADS = 3 };
int tm_rank_class(int64_t rank); /* up to 16, up to 64, above */
int tm_head_class(int64_t head); /* head size: up to 64, up to 128, above */

/* An amount of each, or a rate of each a second. Nothing but doubles: tm_work_terms. [0] forward, [1] backward. */
typedef struct tm_work {
    double product[TM_PRODUCTS][TM_OUTS][TM_INNERS]; /* operations */
    double lowrank[2][2][TM_RANKS]; /* operations of low-rank deltas, beside their group's product: [0] plain, [1] with dropout, which takes passes of its own */
    double lowrank_ops[2];          /* ops with such deltas: what each takes beside its product and those operations, however few rows it has */
    double attention[2][TM_HEADS]; /* operations of causal attention: 4 a key, query and channel forward, 10 backward */
    double bytes;                  /* read and written by all that is no product */
    double calls;                  /* ops queued */
} tm_work;

enum { TM_WORK_TERMS = sizeof(tm_work) / sizeof(double) };
/* A product: y[rows, out] of x[rows, inner], dx of dy, or dw[out, in] of dy and x, whose inner is the rows. */
void tm_work_add_product(tm_work *work, tm_product kind, int64_t rows, int64_t out, int64_t inner);

/* --- Calibration: a device's rates, measured once and kept in a file (docs/formats/calibration.md) --- */

typedef struct tm_calibration {
    double peak_flops; /* as tm_device_peak_flops */
    tm_work rate;      /* amounts a second */
    int64_t reserve;   /* bytes of device memory that the driver keeps for a program; -1: not measured, or no such thing */
} tm_calibration;

/* Some seconds. Activations are of the type that precision `auto` stands for on the device. */
tm_status tm_calibrate(tm_device *device, tm_calibration *out, tm_error *err) TM_MUST_CHECK;
double tm_seconds_of(const tm_calibration *calibration, const tm_work *work);
/* The rates of another device of the same kind: products and attention times `flops`, bytes times `bandwidth`. */
void tm_calibration_scale(tm_calibration *calibration, double flops, double bandwidth);

/* What calibration files hold: the user's ($TEMPER_CALIBRATION, else temper/calibration.json in $XDG_CACHE_HOME or
 * ~/.cache), then the one that comes with temper (data/calibration.json), whose entries count where the user's has none. */
typedef struct tm_calibrated {
    char *name, *detail; /* of the device */
    tm_calibration rates;
} tm_calibrated;
typedef struct tm_calibrations {
    tm_calibrated *item;
    size_t count, capacity;
} tm_calibrations;

tm_status tm_calibration_path(char **path, tm_error *err) TM_MUST_CHECK;
/* Adds the entries of a file; none where there is no file, or one of another format. A damaged file is TM_INPUT. */
tm_status tm_calibrations_read(tm_calibrations *all, const char *path, tm_error *err) TM_MUST_CHECK;
/* Both files. */
tm_status tm_calibrations_load(tm_calibrations *all, tm_error *err) TM_MUST_CHECK;
void tm_calibrations_deinit(tm_calibrations *all);
/* The first entry of a device; NULL: none. */
const tm_calibrated *tm_calibrations_find(const tm_calibrations *all, const char *name, const char *detail);
/* Sets the entry of a device; entries of others stay. */
tm_status tm_calibration_write(const char *path, const tm_device *device, const tm_calibration *calibration, tm_error *err) TM_MUST_CHECK;

#endif
