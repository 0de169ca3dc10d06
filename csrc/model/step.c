#include "model/step.h"

#include <math.h>

pf_status pf_step_rope(const pf_step *s, const double *freq, int64_t first, int64_t stride, int64_t n,
                       pf_rope_table *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    PF_SCRATCH(float, cosines, s, n * half);
    PF_SCRATCH(float, sines, s, n * half);
    for (int64_t t = 0; t < n && !s->ex->dry; ++t) {
        for (int64_t i = 0; i < half; ++i) {
            const double angle = (double)(first + t * stride) * freq[i];
            cosines[t * half + i] = (float)cos(angle);
            sines[t * half + i] = (float)sin(angle);
        }
    }
    *out = (pf_rope_table){cosines, sines, half};
    return PF_OK;
}

pf_status pf_step_prepare(pf_step *s) {
    PF_TRY(pf_step_rope(s, s->net->rope_freq, s->position, 1, s->n, &s->rope));
    return pf_step_rope(s, s->net->rope_freq_compressed, s->position, 1, s->n, &s->rope_compressed);
}

void pf_step_tap_row(const pf_step *s, const char *name, int32_t layer, int64_t position, const float *data,
                     int64_t width) {
    if (s->tap != NULL) s->tap(s->tap_user, name, layer, position, data, width, 0);
}

void pf_step_tap(const pf_step *s, const char *name, int32_t layer, const float *data, int64_t width) {
    if (s->tap == NULL) return;
    for (int64_t t = 0; t < s->n; ++t) pf_step_tap_row(s, name, layer, s->position + t, data + t * width, width);
}

void pf_step_tap_ints(const pf_step *s, const char *name, int32_t layer, int64_t token, const int32_t *data,
                      int64_t width) {
    if (s->tap != NULL) s->tap(s->tap_user, name, layer, s->position + token, data, width, 1);
}
