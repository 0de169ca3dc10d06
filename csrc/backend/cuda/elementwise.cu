/* Operations of one value each: embedding, sums, SwiGLU and rotary embedding. */
#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

enum { THREADS = 256 };

static __global__ void embed_kernel(pf_weight w, const int32_t *tokens, int64_t n_token, int64_t n_stream, float *x) {
    for (int64_t i = pf_thread(); i < n_token * w.cols; i += pf_threads()) {
        const int64_t t = i / w.cols, col = i % w.cols;
        const float value = pf_weight_value(w, 0, tokens[t], col);
        for (int64_t s = 0; s < n_stream; ++s) x[(t * n_stream + s) * w.cols + col] = value;
    }
}

pf_status pf_cuda_embed(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n_token, int64_t n_stream,
                        float *x) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(embed_kernel, pf_blocks(ex, n_token * w->cols, THREADS), THREADS, 0, pf_device_of(ex)->stream, *w, tokens,
              n_token, n_stream, x);
    return pf_launched();
}

static __global__ void add_kernel(float *y, const float *x, int64_t n) {
    for (int64_t i = pf_thread(); i < n; i += pf_threads()) y[i] += x[i];
}

pf_status pf_cuda_add(pf_exec *ex, float *y, const float *x, int64_t n) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(add_kernel, pf_blocks(ex, n, THREADS), THREADS, 0, pf_device_of(ex)->stream, y, x, n);
    return pf_launched();
}

static __global__ void swiglu_kernel(const float *gate, const float *up, int64_t n, float limit, float *h) {
    for (int64_t i = pf_thread(); i < n; i += pf_threads()) {
        /* Written so that a NaN stays one. */
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        h[i] = g / (1.0f + expf(-g)) * u;
    }
}

pf_status pf_cuda_swiglu(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(swiglu_kernel, pf_blocks(ex, n, THREADS), THREADS, 0, pf_device_of(ex)->stream, gate, up, n, limit, h);
    return pf_launched();
}

static __global__ void rope_kernel(float *x, int64_t n_token, int64_t n_head, int64_t d, pf_rope_table table,
                                   float sign) {
    const int64_t half = table.half;
    for (int64_t k = pf_thread(); k < n_token * n_head * half; k += pf_threads()) {
        const int64_t vector = k / half, i = k % half, angle = vector / n_head * half + i;
        float *pair = x + (vector + 1) * d - 2 * half + 2 * i;
        const float even = pair[0], odd = pair[1], c = table.cos[angle], s = sign * table.sin[angle];
        pair[0] = even * c - odd * s;
        pair[1] = even * s + odd * c;
    }
}

pf_status pf_cuda_rope_tail(pf_exec *ex, float *x, int64_t n_token, int64_t n_head, int64_t d,
                            const pf_rope_table *table, bool inverse) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(rope_kernel, pf_blocks(ex, n_token * n_head * table->half, THREADS), THREADS, 0,
              pf_device_of(ex)->stream, x, n_token, n_head, d, *table, inverse ? -1.0f : 1.0f);
    return pf_launched();
}
