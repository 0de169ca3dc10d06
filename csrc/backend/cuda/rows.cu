/* Operations on rows: RMSNorm, the indexer's roundings, and the encoders of cache rows. */
#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

/* ---- RMSNorm: a block a row; its size depends on the row's length only ---- */

static __global__ void norm_kernel(const float *x, int64_t n, const float *gain, float eps, float *y) {
    PF_SHARED(pf_parts, part);
    x += blockIdx.x * n;
    y += blockIdx.x * n;
    float squares = 0.0f;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
    const float scale = 1.0f / sqrtf(pf_block_sum(squares, part) / (float)n + eps);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) y[i] = gain ? x[i] * scale * gain[i] : x[i] * scale;
}

pf_status pf_cuda_rms_norm(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                           float *y) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    const unsigned threads = n <= 128 ? 32 : n <= 1024 ? 128 : 512;
    PF_LAUNCH(norm_kernel, (unsigned)n_row, threads, 0, pf_device_of(ex)->stream, x, n, gain, eps, y);
    return pf_launched();
}

/* ---- Hadamard: a block a row, in shared memory ---- */

static __global__ void hadamard_kernel(float *x, int n, float norm) {
    PF_DYNAMIC(memory);
    float *v = reinterpret_cast<float *>(memory);
    const int self = (int)threadIdx.x, threads = (int)blockDim.x;
    x += (int64_t)blockIdx.x * n;
    for (int i = self; i < n; i += threads) v[i] = x[i];
    __syncthreads();
    for (int half = 1; half < n; half *= 2) {
        for (int i = self; i < n / 2; i += threads) {
            const int at = i / half * 2 * half + i % half;
            const float a = v[at], b = v[at + half];
            v[at] = a + b;
            v[at + half] = a - b;
        }
        __syncthreads();
    }
    for (int i = self; i < n; i += threads) x[i] = v[i] * norm;
}

pf_status pf_cuda_hadamard(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    pf_status status;
    if (n > 8192) return PF_ERR_INTERNAL; /* what 32 KiB hold */
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(hadamard_kernel, (unsigned)n_row, n <= 64 ? 32 : n <= 256 ? 64 : 256, n * sizeof(float),
              pf_device_of(ex)->stream, x, (int)n, 1.0f / sqrtf((float)n));
    return pf_launched();
}

/* ---- Rounding to FP4: a warp a group of 32 values ---- */

static __global__ void round_kernel(float *x, int64_t n_row, int64_t n) {
    const int64_t groups = (n + PF_IDX_GROUP - 1) / PF_IDX_GROUP, warps = pf_threads() / PF_WARP;
    for (int64_t g = pf_thread() / PF_WARP; g < n_row * groups; g += warps) {
        const int64_t first = g % groups * PF_IDX_GROUP + pf_lane();
        float *at = x + g / groups * n + first;
        const float v = first < n ? *at : 0.0f;
        const int k = pf_fp4_exponent(pf_warp_max_bits(pf_magnitude(v)));
        if (first < n) *at = pf_of_e2m1(pf_to_e2m1(v * pf_power_of_two(-k))) * pf_power_of_two(k);
    }
}

pf_status pf_cuda_round_fp4(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(round_kernel, pf_blocks(ex, n_row * pf_div_up(n, PF_IDX_GROUP), 8), 256, 0, pf_device_of(ex)->stream, x,
              n_row, n);
    return pf_launched();
}

/* ---- Cache rows: a warp a row ---- */

PF_DEV void put_u16(uint8_t *to, uint32_t bits) {
    to[0] = (uint8_t)bits; /* rows lie at odd addresses */
    to[1] = (uint8_t)(bits >> 8);
}

PF_DEV void encode_kv_fp8(const float *x, int width, int rope, uint8_t *out) {
    const int plain = width - rope, lane = pf_lane();
    uint8_t *scales = out + plain;
    for (int first = 0; first < plain; first += PF_KV_GROUP) {
        uint32_t most = 0;
        for (int i = first + lane; i < plain && i < first + PF_KV_GROUP; i += PF_WARP) {
            const uint32_t magnitude = pf_magnitude(x[i]);
            most = magnitude > most ? magnitude : most;
        }
        const int k = pf_fp8_exponent(pf_warp_max_bits(most));
        const float inverse = pf_power_of_two(-k);
        for (int i = first + lane; i < plain && i < first + PF_KV_GROUP; i += PF_WARP) {
            out[i] = (uint8_t)pf_to_e4m3(x[i] * inverse);
        }
        if (lane == 0) *scales = (uint8_t)(k + 127);
        ++scales;
    }
    for (int i = lane; i < rope; i += PF_WARP) put_u16(scales + 2 * i, pf_to_bf16(x[plain + i]));
}

/* A lane takes two neighbours, which share a byte; 16 lanes a group. */
PF_DEV void encode_idx_fp4(const float *x, int width, uint8_t *out) {
    const int lane = pf_lane();
    for (int first = 0; first < width; first += PF_WARP) {
        const int i = first + lane % 16 * 2;
        const bool mine = i < width;
        const float a = mine ? x[i] : 0.0f, b = mine && i + 1 < width ? x[i + 1] : 0.0f;
        const uint32_t am = pf_magnitude(a), bm = pf_magnitude(b);
        const int k = pf_fp4_exponent(pf_warp_max_bits(am > bm ? am : bm));
        const float inverse = pf_power_of_two(-k);
        if (mine && lane < 16) out[i / 2] = (uint8_t)(pf_to_e2m1(a * inverse) | pf_to_e2m1(b * inverse) << 4);
        if (lane == 0) out[width / 2 + first / PF_WARP] = (uint8_t)(k + 127);
    }
}

static __global__ void store_kernel(pf_rows rows, pf_position first, int64_t n, const float *x) {
    const int width = rows.width, lane = pf_lane();
    const int64_t begin = pf_position_of(first);
    for (int64_t r = pf_thread() / PF_WARP; r < n; r += pf_threads() / PF_WARP) {
        const float *in = x + r * width;
        uint8_t *out = pf_slot_of(rows, begin + r);
        switch (rows.format) {
        case PF_ROW_F32:
            for (int i = lane; i < width; i += PF_WARP) {
                put_u16(out + 4 * i, __float_as_uint(in[i]) & 0xffffu);
                put_u16(out + 4 * i + 2, __float_as_uint(in[i]) >> 16);
            }
            break;
        case PF_ROW_F16:
            for (int i = lane; i < width; i += PF_WARP) put_u16(out + 2 * i, pf_to_f16(in[i]));
            break;
        case PF_ROW_KV_FP8: encode_kv_fp8(in, width, rows.rope, out); break;
        case PF_ROW_IDX_FP4: encode_idx_fp4(in, width, out); break;
        }
    }
}

pf_status pf_cuda_store_rows(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(store_kernel, pf_blocks(ex, n, 4), 128, 0, pf_device_of(ex)->stream, *rows,
              pf_position_at(pf_device_of(ex), first), n, x);
    return pf_launched();
}
