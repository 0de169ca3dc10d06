/* Probabilities from logits: exponential and logarithm that are the same on every platform, and the highest logit.
 *
 * They are computed here in IEEE double arithmetic in a fixed order, because those of the C libraries differ in their
 * last bits. This holds as long as the compiler neither contracts nor reorders floating point, see the build's flags.
 */
#ifndef PF_RUNTIME_LOGITS_H
#define PF_RUNTIME_LOGITS_H

#include "base/status.h"

#include <stdint.h>
#include <string.h>

/* exp(x) for x <= 0, to a few units in the last place; 0 below -700. */
static inline double pf_exp_nonpositive(double x) {
    if (!(x >= -700.0)) return 0.0;
    int32_t k = (int32_t)(x * 1.4426950408889634 - 0.5);
    double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10; /* ln 2 in two parts; |r| <= 0.35 */
    double sum = 1.0 / 6227020800.0; /* Taylor's series to r^13 */
    sum = sum * r + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    uint64_t bits = (uint64_t)(k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* Checks logits [n] and finds the highest, the lowest id among equals. ARGUMENT when one is not a number or infinite,
 * or all are minus infinity. */
pf_status pf_logits_highest(const float *logits, int64_t n, int32_t *highest, pf_error *err);

/* log(sum of exp(logit - max)), which is what a logit less max exceeds its log-probability by. */
double pf_logits_log_total(const float *logits, int64_t n, double max);

#endif
