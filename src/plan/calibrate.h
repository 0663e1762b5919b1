/* What a device can do, measured: the limit that rates are shown against. */
#ifndef TM_PLAN_CALIBRATE_H
#define TM_PLAN_CALIBRATE_H

#include "device/device.h"

/* Floating-point operations a second of the device's own matrix product, the best seen in about 20 ms:
 * what a training step could reach if it were nothing but large products. NaN when memory for it is not
 * there. It leaves no mark in the device's byte counts; it never enters a result. */
double tm_device_peak_flops(tm_device *d);

#endif
