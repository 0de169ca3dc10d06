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

#define PF_EXP_LEAST (-700.0)

/* exp(x) for PF_EXP_LEAST <= x <= 0, to a few units in the last place. Without branches, so that loops of it become
 * vector instructions, of which every width gives the same bits. */
static inline double pf_exp_in_range(double x) {
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
    uint64_t bits = (uint64_t)(uint32_t)(k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* exp(x) for x <= 0; 0 below PF_EXP_LEAST. */
static inline double pf_exp_nonpositive(double x) { return x < PF_EXP_LEAST ? 0.0 : pf_exp_in_range(x); }

/* weights[i] = exp((logits[i] - max) / temperature), 0 where that is below exp(PF_EXP_LEAST). max: at least every logit. */
void pf_logits_weights(double *weights, const float *logits, int64_t n, double max, double temperature);

/* Their sum, in their order. */
double pf_sum(const double *values, int64_t n);

/* Checks logits [n] and finds the highest, the lowest id among equals. ARGUMENT when one is not a number or infinite,
 * or all are minus infinity. */
pf_status pf_logits_highest(const float *logits, int64_t n, int32_t *highest, pf_error *err);

/* log(total), for the sum of weights at temperature 1: what a logit less max exceeds its log-probability by. */
double pf_log_total(double total);

/* The same of logits. */
double pf_logits_log_total(const float *logits, int64_t n, double max);

#endif
