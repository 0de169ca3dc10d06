#include "quantize/length.h"

#include "format/dtypes.h"
#include "format/floats.h"

#include <math.h>
#include <string.h>

enum { VALUES = 256 };

/* Where a block has its half floats, all of which are scales. */
static int scale_places(uint32_t type, size_t places[2]) {
    switch (type) {
    case PF_Q2_K: places[0] = 80; places[1] = 82; return 2;
    case PF_Q3_K: places[0] = 108; return 1;
    case PF_Q4_K:
    case PF_Q5_K: places[0] = 0; places[1] = 2; return 2;
    case PF_Q6_K: places[0] = 208; return 1;
    default: places[0] = 0; return 1; /* the grids' */
    }
}

static void scale(uint8_t *place, double gain) {
    uint16_t bits;
    memcpy(&bits, place, sizeof bits);
    const uint16_t scaled = pf_f32_to_f16((float)(pf_f16_to_f32(bits) * gain));
    if (isfinite(pf_f16_to_f32(scaled))) memcpy(place, &scaled, sizeof scaled);
}

void pf_restore_length(uint32_t type, const float *x, const float *importance, int64_t n_cols, uint8_t *blocks) {
    const uint32_t block_bytes = pf_dtype_lookup(type)->block_bytes;
    double wanted = 0.0, got = 0.0;
    float y[VALUES];
    for (int64_t at = 0; at < n_cols; at += VALUES) {
        if (pf_codec_decode(type, blocks + at / VALUES * block_bytes, 1, y, NULL) != PF_OK) return;
        for (int i = 0; i < VALUES; ++i) {
            const double h = importance != NULL ? importance[at + i] : 1.0;
            wanted += h * x[at + i] * x[at + i];
            got += h * x[at + i] * y[i];
        }
    }
    const double gain = wanted / got;
    if (!(gain > 0.5 && gain < 2.0)) return; /* nothing of the row is left */
    size_t places[2];
    const int n = scale_places(type, places);
    for (int64_t block = 0; block < n_cols / VALUES; ++block) {
        for (int i = 0; i < n; ++i) scale(blocks + block * block_bytes + places[i], gain);
    }
}
