/* Manifold-constrained hyper-connections. Entering a site is one kernel: blocks take slices of fn . streams, and the
 * last of a token's blocks to finish adds the slices up, runs Sinkhorn and mixes the streams. */
#include "backend/cuda/ops.cuh"

enum { MOST_STREAMS = 16, MOST_ROWS = (2 + MOST_STREAMS) * MOST_STREAMS, THREADS = 256, SLICE = 256 };

PF_DEV float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

PF_DEV void normalise_rows(float *c, int n, float eps, int lane) {
    for (int j = lane; j < n; j += PF_WARP) {
        float sum = 0.0f;
        for (int i = 0; i < n; ++i) sum += c[j * n + i];
        for (int i = 0; i < n; ++i) c[j * n + i] /= sum + eps;
    }
    __syncwarp();
}

PF_DEV void normalise_columns(float *c, int n, float eps, int lane) {
    for (int i = lane; i < n; i += PF_WARP) {
        float sum = 0.0f;
        for (int j = 0; j < n; ++j) sum += c[j * n + i];
        for (int j = 0; j < n; ++j) c[j * n + i] /= sum + eps;
    }
    __syncwarp();
}

/* By one warp, in shared memory: softmax over each row, then alternating normalisation (Sinkhorn-Knopp). */
PF_DEV void sinkhorn(float *c, int n, int iters, float eps, int lane) {
    for (int j = lane; j < n; j += PF_WARP) {
        float top = c[j * n], sum = 0.0f;
        for (int i = 1; i < n; ++i) top = fmaxf(top, c[j * n + i]);
        for (int i = 0; i < n; ++i) sum += c[j * n + i] = expf(c[j * n + i] - top);
        for (int i = 0; i < n; ++i) c[j * n + i] = c[j * n + i] / sum + eps;
    }
    __syncwarp();
    normalise_columns(c, n, eps, lane);
    for (int it = 1; it < iters; ++it) {
        normalise_rows(c, n, eps, lane);
        normalise_columns(c, n, eps, lane);
    }
}

struct enter_args {
    pf_mhc_shape shape;
    pf_mhc_site site;
    const float *streams; /* [n_token, N D] */
    float *x, *post, *comb;
    int n_rows, n_slices; /* rows of fn; N for the head, whose post and comb are NULL */
    float *partial;       /* [n_token, n_slices, n_rows + 1]: products, then the sum of squares */
    uint32_t *tickets;    /* [n_token], zero */
};

struct enter_memory {
    float m[MOST_ROWS + 1], pre[MOST_STREAMS], post[MOST_STREAMS], comb[MOST_STREAMS * MOST_STREAMS];
    uint32_t ticket;
};

/* This block's slice of all rows: warps take rows in turn, and row n_rows is the streams themselves. */
PF_DEV void slice_products(const enter_args &args, const float *streams, float *out) {
    const int64_t width = args.shape.n_stream * args.shape.n_embd, begin = (int64_t)blockIdx.x * SLICE;
    const int64_t end = begin + SLICE < width ? begin + SLICE : width;
    for (int row = pf_warp(); row <= args.n_rows; row += THREADS / PF_WARP) {
        const float *w = row < args.n_rows ? args.site.fn + row * width : streams;
        float sum = 0.0f;
        for (int64_t i = begin + pf_lane(); i < end; i += PF_WARP) sum = fmaf(w[i], streams[i], sum);
        sum = pf_warp_sum(sum);
        if (pf_lane() == 0) out[row] = sum;
    }
}

/* pre, post and comb from the products m, by one warp. */
PF_DEV void coefficients(const enter_args &args, enter_memory &s, int lane) {
    const int n = args.shape.n_stream;
    const pf_mhc_site &site = args.site;
    const float squares = s.m[args.n_rows] / (float)(n * args.shape.n_embd);
    const float scale = 1.0f / sqrtf(squares + args.shape.norm_eps);
    for (int i = lane; i < n; i += PF_WARP) {
        s.pre[i] = sigmoid(s.m[i] * scale * site.scale[0] + site.base[i]) + args.shape.hc_eps;
        if (args.comb) s.post[i] = 2.0f * sigmoid(s.m[n + i] * scale * site.scale[1] + site.base[n + i]);
    }
    if (!args.comb) return;
    for (int i = lane; i < n * n; i += PF_WARP) {
        s.comb[i] = s.m[2 * n + i] * scale * site.scale[2] + site.base[2 * n + i];
    }
    __syncwarp();
    sinkhorn(s.comb, n, args.shape.sinkhorn_iters, args.shape.hc_eps, lane);
}

static __global__ void __launch_bounds__(THREADS) enter_kernel(enter_args args) {
    PF_SHARED(enter_memory, s);
    const int64_t t = blockIdx.y, width = args.shape.n_embd;
    const int n = args.shape.n_stream, self = (int)threadIdx.x, stride = args.n_rows + 1;
    const float *streams = args.streams + t * n * width;
    float *partial = args.partial + t * args.n_slices * stride;
    slice_products(args, streams, partial + blockIdx.x * stride);
    __threadfence();
    __syncthreads();
    if (self == 0) s.ticket = atomicAdd(args.tickets + t, 1u);
    __syncthreads();
    if (s.ticket == (uint32_t)args.n_slices - 1) { /* all of this block's threads, or none */
        __threadfence();
        for (int row = self; row < stride; row += THREADS) {
            float sum = 0.0f;
            for (int i = 0; i < args.n_slices; ++i) sum += *(volatile float *)&partial[i * stride + row];
            s.m[row] = sum;
        }
        __syncthreads();
        if (pf_warp() == 0) coefficients(args, s, pf_lane());
        __syncthreads();
        for (int64_t c = self; c < width; c += THREADS) {
            float sum = s.pre[0] * streams[c];
            for (int k = 1; k < n; ++k) sum += s.pre[k] * streams[k * width + c];
            args.x[t * width + c] = sum;
        }
        if (args.comb) {
            for (int i = self; i < n; i += THREADS) args.post[t * n + i] = s.post[i];
            for (int i = self; i < n * n; i += THREADS) args.comb[t * n * n + i] = s.comb[i];
        }
        if (self == 0) args.tickets[t] = 0;
    }
}

/* As many tokens a launch as there are tickets. */
static pf_status enter(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                       int64_t n_token, int n_rows, float *x, float *post, float *comb) {
    const int64_t width = shape->n_stream * shape->n_embd, most = pf_least(n_token, PF_TICKETS);
    const int64_t n_slices = pf_div_up(width, SLICE);
    pf_scratch scratch(ex);
    float *partial = scratch.take<float>(most * n_slices * (n_rows + 1));
    pf_status status;
    if (!partial) return PF_ERR_MEMORY;
    if (!pf_may_launch(ex, &status)) return status;
    for (int64_t t = 0; t < n_token; t += most) {
        const enter_args args = {*shape, *site, streams + t * width, x + t * shape->n_embd,
                                 post ? post + t * shape->n_stream : nullptr,
                                 comb ? comb + t * shape->n_stream * shape->n_stream : nullptr,
                                 n_rows, (int)n_slices, partial, pf_device_of(ex)->tickets};
        const dim3 grid((unsigned)n_slices, (unsigned)pf_least(most, n_token - t));
        PF_LAUNCH(enter_kernel, grid, THREADS, 0, pf_device_of(ex)->stream, args);
    }
    return pf_launched();
}

pf_status pf_cuda_mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x, float *post, float *comb) {
    if (shape->n_stream > MOST_STREAMS) return PF_ERR_INTERNAL;
    return enter(ex, shape, site, streams, n_token, (2 + shape->n_stream) * shape->n_stream, x, post, comb);
}

pf_status pf_cuda_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                           int64_t n_token, float *x) {
    if (shape->n_stream > MOST_STREAMS) return PF_ERR_INTERNAL;
    return enter(ex, shape, site, streams, n_token, shape->n_stream, x, nullptr, nullptr);
}

static __global__ void leave_kernel(pf_mhc_shape shape, const float *y, const float *post, const float *comb,
                                    int64_t n_token, float *streams) {
    const int n = shape.n_stream;
    const int64_t width = shape.n_embd;
    for (int64_t i = pf_thread(); i < n_token * width; i += pf_threads()) {
        const int64_t t = i / width;
        float *at = streams + t * n * width + i % width, in[MOST_STREAMS];
PF_UNROLL
        for (int j = 0; j < MOST_STREAMS; ++j) { /* unrolled, so that `in` stays in registers */
            if (j < n) in[j] = at[j * width];
        }
        for (int k = 0; k < n; ++k) {
            float sum = post[t * n + k] * y[i];
PF_UNROLL
            for (int j = 0; j < MOST_STREAMS; ++j) {
                if (j < n) sum += comb[(t * n + j) * n + k] * in[j];
            }
            at[k * width] = sum;
        }
    }
}

pf_status pf_cuda_mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post,
                           const float *comb, int64_t n_token, float *streams) {
    pf_status status;
    if (shape->n_stream > MOST_STREAMS) return PF_ERR_INTERNAL;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(leave_kernel, pf_blocks(ex, n_token * shape->n_embd, 256), 256, 0, pf_device_of(ex)->stream, *shape, y,
              post, comb, n_token, streams);
    return pf_launched();
}
