/* Values with a power of two taken out, so that no product of a search overflows or loses bits. */
#ifndef PF_QUANTIZE_NORMALISE_H
#define PF_QUANTIZE_NORMALISE_H

#include <math.h>

/* Writes n values over a power of two of about their largest size; returns the power. */
static inline float pf_normalise(const float *values, int n, float *out) {
    float most = 0.0f;
    for (int i = 0; i < n; ++i) {
        if (fabsf(values[i]) > most) most = fabsf(values[i]);
    }
    int exponent;
    frexpf(most, &exponent);
    /* Values below 2^-100 stay small: the scale that they would need is no half anyway. */
    const float power = ldexpf(1.0f, most == 0.0f ? 0 : exponent < -100 ? -100 : exponent);
    for (int i = 0; i < n; ++i) out[i] = values[i] / power;
    return power;
}

#endif
