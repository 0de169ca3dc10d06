/* The compressor: a softmax per channel over the tokens of a window, then norm and rope. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"
#include "base/arith.h"

#include <math.h>
#include <string.h>

static void push_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const pf_frontier_args *args = arg;
    const int64_t n = args->channels;
    (void)worker;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t slot = (args->position + i) % args->ring;
        const float *g = args->g + i * n, *ape = args->ape + (args->position + i) % args->ratio * n;
        float *ring_g = args->ring_g + slot * n;
        memcpy(args->ring_a + slot * n, args->a + i * n, (size_t)n * sizeof(float));
        for (int64_t c = 0; c < n; ++c) ring_g[c] = g[c] + ape[c];
    }
}

pf_status pf_cpu_push_frontier(pf_exec *ex, const pf_frontier_args *args) {
    pf_frontier_args copy = *args;
    return pf_parallel(ex, args->n, pf_grain(ex, args->n), push_tokens, &copy);
}

/* Channels handled together, so that the passes over the slots stay in L1. */
enum { CHANNELS = 64 };

typedef struct slot_range {
    int64_t first, n; /* absolute token positions */
    int64_t offset;   /* first channel of the half that this window contributes */
} slot_range;

/* Softmax-weighted sum over the slots of one or two windows, for n <= CHANNELS channels from c0. */
static void pool_channels(const pf_cpu_kernels *k, const pf_compress_args *args, const slot_range *ranges, int n_ranges,
                          int64_t c0, int64_t n, float *out) {
    const int64_t stride = args->width * (args->overlap ? 2 : 1);
    float top[CHANNELS], sum[CHANNELS];
    for (int64_t c = 0; c < n; ++c) {
        top[c] = -INFINITY;
        sum[c] = 0.0f;
        out[c] = 0.0f;
    }
    for (int r = 0; r < n_ranges; ++r) {
        for (int64_t p = ranges[r].first; p < ranges[r].first + ranges[r].n; ++p) {
            const float *g = args->g + (p % args->ring) * stride + ranges[r].offset + c0;
            for (int64_t c = 0; c < n; ++c) top[c] = g[c] > top[c] ? g[c] : top[c];
        }
    }
    for (int r = 0; r < n_ranges; ++r) {
        for (int64_t p = ranges[r].first; p < ranges[r].first + ranges[r].n; ++p) {
            const float *g = args->g + (p % args->ring) * stride + ranges[r].offset + c0;
            const float *a = args->a + (p % args->ring) * stride + ranges[r].offset + c0;
            k->pool_add(g, a, top, n, sum, out);
        }
    }
    for (int64_t c = 0; c < n; ++c) out[c] /= sum[c];
}

typedef struct compress_job {
    const pf_cpu_kernels *k;
    const pf_compress_args *args;
} compress_job;

static void compress_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const compress_job *job = arg;
    const pf_compress_args *args = job->args;
    const int64_t ratio = args->ratio;
    (void)worker;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t j = args->first + i;
        slot_range ranges[2];
        int n_ranges = 0;
        if (args->overlap && j > 0) ranges[n_ranges++] = (slot_range){(j - 1) * ratio, ratio, 0};
        ranges[n_ranges++] = (slot_range){j * ratio, ratio, args->overlap ? args->width : 0};
        for (int64_t c = 0; c < args->width; c += CHANNELS) {
            pool_channels(job->k, args, ranges, n_ranges, c, pf_min_i64(CHANNELS, args->width - c),
                          args->out + i * args->width + c);
        }
    }
}

pf_status pf_cpu_compress(pf_exec *ex, const pf_compress_args *args) {
    compress_job job = {pf_cpu_kernels_of(ex), args};
    pf_status status = pf_parallel(ex, args->n, 1, compress_rows, &job);
    if (status != PF_OK) return status;
    status = pf_cpu_rms_norm(ex, args->out, args->n, args->width, args->norm, args->eps, args->out);
    if (status != PF_OK) return status;
    return pf_cpu_rope_tail(ex, args->out, args->n, 1, args->width, &args->rope, false);
}
