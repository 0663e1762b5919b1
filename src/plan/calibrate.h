/* What a device can do, measured: the limit that rates are shown against. */
#ifndef TM_PLAN_CALIBRATE_H
#define TM_PLAN_CALIBRATE_H

#include "device/device.h"

/* Floating-point operations a second of the device's own matrix product, the best seen in about 20 ms:
 * what a training step could reach if it were nothing but large products. NaN when memory for it is not
 * there. It leaves no mark in the device's byte counts; it never enters a result. */
double tm_device_peak_flops(tm_device *d);

/* --- Calibration: a device's rates, measured once and kept in a file (docs/formats/calibration.md) ---
 *
 * A plan adds up what a token costs: operations of products, by the smaller side of their matrix, because
 * small ones run far from the limit, and bytes moved by everything that is no product. */

enum { TM_SIDES = 6, TM_SIDE_FIRST = 32 }; /* sides 32, 64, ..., 1024; larger ones count as the last */
int tm_side_class(int64_t side);

typedef struct tm_work { /* of one token of a training step */
    double flops[TM_SIDES];
    double bytes;
} tm_work;

typedef struct tm_calibration {
    double peak_flops;            /* as tm_device_peak_flops */
    double flops[TM_SIDES];       /* operations a second of products of that side */
    double bytes;                 /* a second, through memory */
} tm_calibration;

/* About two seconds. */
tm_status tm_calibrate(tm_device *device, tm_calibration *out, tm_error *err) TM_MUST_CHECK;
double tm_seconds_per_token(const tm_calibration *calibration, const tm_work *work);

/* Where it is kept: $TEMPER_CALIBRATION, else temper/calibration.json in $XDG_CACHE_HOME or ~/.cache. */
tm_status tm_calibration_path(char **path, tm_error *err) TM_MUST_CHECK;
/* The entry of a device; *found false: no file, none of this device, or a file of another format. A damaged
 * file is TM_INPUT. */
tm_status tm_calibration_read(const char *path, const tm_device *device, tm_calibration *out, bool *found,
                              tm_error *err) TM_MUST_CHECK;
/* Sets the entry of a device; entries of others stay. */
tm_status tm_calibration_write(const char *path, const tm_device *device, const tm_calibration *calibration,
                               tm_error *err) TM_MUST_CHECK;

#endif
