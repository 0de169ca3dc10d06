/* The compressor: contributions into the frontier rings, and a softmax per channel over a window's tokens, then norm
 * and rope. */
#include "backend/cuda/ops.cuh"

static __global__ void push_kernel(pf_frontier_args args, pf_position first) {
    const int64_t position = pf_position_of(first), channels = args.channels;
    for (int64_t k = pf_thread(); k < args.n * channels; k += pf_threads()) {
        const int64_t p = position + k / channels, c = k % channels, at = p % args.ring * channels + c;
        args.ring_a[at] = args.a[k];
        args.ring_g[at] = args.g[k] + args.ape[p % args.ratio * channels + c];
    }
}

pf_status pf_cuda_push_frontier(pf_exec *ex, const pf_frontier_args *args) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(push_kernel, pf_blocks(ex, args->n * args->channels, 256), 256, 0, pf_device_of(ex)->stream, *args,
              pf_position_at(pf_device_of(ex), args->position));
    return pf_launched();
}

/* One channel of row j. Slots with overlap: window j-1 with the first half of a and g, then window j with the other. */
PF_DEV float pool_channel(const pf_compress_args &args, int64_t j, int64_t c) {
    const int64_t ratio = args.ratio, stride = args.width * (args.overlap ? 2 : 1);
    const int64_t begin = args.overlap && j > 0 ? (j - 1) * ratio : j * ratio, end = (j + 1) * ratio;
    float top = -INFINITY, sum = 0.0f, out = 0.0f;
    for (int64_t p = begin; p < end; ++p) {
        const float g = args.g[p % args.ring * stride + (args.overlap && p >= j * ratio ? args.width : 0) + c];
        top = g > top ? g : top;
    }
    for (int64_t p = begin; p < end; ++p) {
        const int64_t at = p % args.ring * stride + (args.overlap && p >= j * ratio ? args.width : 0) + c;
        const float e = expf(args.g[at] - top);
        sum += e;
        out += e * args.a[at];
    }
    return out / sum;
}

/* A block a row, which stays in shared memory until it is done. */
static __global__ void compress_kernel(pf_compress_args args, pf_position first) {
    PF_SHARED(pf_parts, part);
    PF_DYNAMIC(memory);
    float *row = reinterpret_cast<float *>(memory), squares = 0.0f;
    const int64_t j = pf_position_of(first) + blockIdx.x, width = args.width, half = args.rope.half;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
        row[c] = pool_channel(args, j, c);
        squares = fmaf(row[c], row[c], squares);
    }
    const float scale = 1.0f / sqrtf(pf_block_sum(squares, part) / (float)width + args.eps);
    const float *cosine = args.rope.cos + blockIdx.x * half, *sine = args.rope.sin + blockIdx.x * half;
    float *out = args.out + blockIdx.x * width;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
        const int64_t pair = c - (width - 2 * half); /* pf_block_sum has waited for all of the row */
        const float v = row[c] * scale * args.norm[c];
        if (pair < 0) {
            out[c] = v;
            continue;
        }
        const float other = row[c ^ 1] * scale * args.norm[c ^ 1], cos = cosine[pair / 2], sin = sine[pair / 2];
        out[c] = pair % 2 == 0 ? v * cos - other * sin : other * sin + v * cos;
    }
}

pf_status pf_cuda_compress(pf_exec *ex, const pf_compress_args *args) {
    pf_status status;
    if (args->width % 2 != 0 || args->width > 8192) return PF_ERR_INTERNAL; /* pairs; what 32 KiB hold */
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(compress_kernel, (unsigned)args->n, args->width <= 128 ? 128 : 512, args->width * sizeof(float),
              pf_device_of(ex)->stream, *args, pf_position_at(pf_device_of(ex), args->first));
    return pf_launched();
}
