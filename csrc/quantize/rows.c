/* Rows of floats to blocks (pyflash.h). */
#include "pyflash.h"

#include "base/status.h"
#include "format/dtypes.h"
#include "quantize/grid.h"
#include "quantize/grid_formats.h"
#include "quantize/k.h"
#include "quantize/length.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

enum { VALUES = 256 };

static bool finite_values(const float *x, int64_t n, bool or_negative) {
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(x[i]) || (!or_negative && x[i] < 0.0f)) return false;
    }
    return true;
}

/* What errors weigh. Columns without importance count a little, so that what stands there is near enough; where none of a
 * super-block has any, all are the same. */
static void find_weights(const float *x, const float *importance, int32_t objective, float *weights) {
    double sum = 0.0, square = 0.0;
    for (int i = 0; i < VALUES; ++i) {
        weights[i] = importance != NULL ? importance[i] : 1.0f;
        sum += weights[i];
        square += (double)x[i] * x[i];
    }
    const float least = sum > 0.0 ? (float)(sum / (double)VALUES * 1e-6) : 1.0f, mean_square = (float)(square / (double)VALUES);
    for (int i = 0; i < VALUES; ++i) {
        if (weights[i] < least) weights[i] = least;
        if (objective == PF_OBJECTIVE_GGML) weights[i] *= sqrtf(mean_square + x[i] * x[i]);
    }
}

static pf_status check(uint32_t type, int32_t objective, const float *x, const float *importance, int64_t n_rows,
                       int64_t n_cols, pf_error *err) {
    if (pf_grid_format_of(type) == NULL && !pf_quantize_k_knows(type)) {
        char name[PF_DTYPE_NAME_BYTES];
        return pf_fail(err, PF_ERR_UNSUPPORTED, "nothing is quantised to type %s", pf_dtype_name(type, name));
    }
    if (objective < PF_OBJECTIVE_PLAIN || objective > PF_OBJECTIVE_UNBIASED) {
        return pf_fail(err, PF_ERR_ARGUMENT, "there is no objective %d", (int)objective);
    }
    if (n_rows < 0 || n_cols < 0 || n_cols % VALUES != 0) {
        return pf_fail(err, PF_ERR_ARGUMENT, "rows of %lld values are no multiple of 256", (long long)n_cols);
    }
    if (!finite_values(x, n_rows * n_cols, true)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "weights to be quantised are not finite: convert a sound checkpoint");
    }
    if (importance != NULL && !finite_values(importance, n_cols, false)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "importance is not finite, or negative: make the importance matrix again");
    }
    return PF_OK;
}

pf_status pf_codec_quantize(uint32_t type, int32_t objective, const float *x, const float *importance, int64_t n_rows,
                            int64_t n_cols, uint8_t *out, pf_error *err) {
    const pf_status status = check(type, objective, x, importance, n_rows, n_cols, err);
    if (status != PF_OK) return status;
    pf_grid_search *search = NULL;
    if (pf_grid_format_of(type) != NULL) {
        search = pf_grid_search_new(type);
        if (search == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory for a search of quantised values");
    }
    const uint32_t block_bytes = pf_dtype_lookup(type)->block_bytes;
    const pf_search_loops *loops = pf_search_loops_best(); /* asks the processor: once, not for every block */
    float weights[VALUES];
    for (int64_t row = 0; row < n_rows; ++row) {
        for (int64_t at = 0; at < n_cols; at += VALUES, x += VALUES, out += block_bytes) {
            find_weights(x, importance != NULL ? importance + at : NULL, objective, weights);
            if (search != NULL) pf_grid_search_block(search, x, weights, out);
            else pf_quantize_k_block(type, loops, x, weights, out);
        }
        if (objective == PF_OBJECTIVE_UNBIASED) {
            pf_restore_length(type, x - n_cols, importance, n_cols, out - n_cols / VALUES * block_bytes);
        }
    }
    pf_grid_search_delete(search);
    return PF_OK;
}
