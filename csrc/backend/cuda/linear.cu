/* linear, and the matrix products that experts.cu shares.
 *
 * A warp takes several rows of the weight, and one or four rows of activations (more integer ones: tiles.cu; floats
 * that meet BF16 or FP8 in runs that are not exact: float_tiles.cu). Weights are read in 16-byte pieces that lie next
 * to each other; those of block formats, whose blocks have 17 and 34 bytes, by way of shared memory. */
#include "backend/cuda/matmul.cuh"

enum { WARPS = 4, THREADS = WARPS * PF_WARP, TILED_FROM = 8 /* tokens; only speed depends on it */ };

/* ---- Float activations ---- */

/* Values of 8 columns, a multiple of 8 from the row's start. */
template <int TYPE>
PF_DEV void load_weights(const pf_weight &w, int64_t matrix, int64_t row, int64_t col, float (&v)[8]) {
    static_assert(TYPE == PF_F32 || TYPE == PF_F16 || TYPE == PF_BF16 || TYPE == PF_FP8 || TYPE == PF_Q8_0 ||
                  TYPE == PF_MXFP4, "no branch for this type");
    const uint8_t *at = pf_row_of(w, matrix, row);
    if (TYPE == PF_F32) {
        uint32_t a[4], b[4];
        pf_load_words(at + 4 * col, a);
        pf_load_words(at + 4 * col + 16, b);
        for (int i = 0; i < 4; ++i) {
            v[i] = __uint_as_float(a[i]);
            v[i + 4] = __uint_as_float(b[i]);
        }
    } else if (TYPE == PF_F16 || TYPE == PF_BF16) {
        uint32_t a[4];
        pf_load_words(at + 2 * col, a);
        for (int i = 0; i < 8; ++i) {
            const uint32_t bits = a[i / 2] >> 16 * (i % 2) & 0xffffu;
            v[i] = TYPE == PF_F16 ? pf_of_f16(bits) : pf_of_bf16(bits);
        }
    } else if (TYPE == PF_FP8) {
        uint32_t a[2];
        const float scale = pf_fp8_scale(w, matrix, row, col);
        pf_load_words(at + col, a);
        for (int i = 0; i < 8; ++i) v[i] = scale * pf_of_e4m3(a[i / 4] >> 8 * (i % 4) & 0xffu);
    } else if (TYPE == PF_Q8_0) {
        at += col / PF_BLOCK * PF_Q8_0_BYTES;
        const float scale = pf_of_f16(pf_u16_at(at));
        at += 2 + col % PF_BLOCK;
        for (int i = 0; i < 8; ++i) v[i] = scale * (float)(int8_t)at[i];
    } else {
        at += col / PF_BLOCK * PF_MXFP4_BYTES;
        const float scale = pf_of_e8m0(at[0]);
        const int first = (int)(col % PF_BLOCK), shift = first < 16 ? 0 : 4;
        at += 1 + first % 16;
        for (int i = 0; i < 8; ++i) v[i] = scale * pf_of_e2m1((uint32_t)at[i] >> shift & 15u);
    }
}

/* The same at a row's end, with zeros behind it. */
PF_DEV void load_rest(const pf_weight &w, int64_t matrix, int64_t row, int64_t col, float (&v)[8]) {
    for (int i = 0; i < 8; ++i) v[i] = col + i < w.cols ? pf_weight_value(w, matrix, row, col + i) : 0.0f;
}

template <int TYPE, int ROWS, int TOKENS> static __global__ void __launch_bounds__(THREADS) f32_kernel(pf_matmul m) {
    const pf_span group = pf_group_of(m, blockIdx.y);
    const int64_t row0 = ((int64_t)blockIdx.x * WARPS + pf_warp()) * ROWS, cols = m.w.cols;
    const int lane = pf_lane();
    if (row0 >= m.w.rows) return; /* a whole warp; nobody waits for the block */
    for (int64_t i0 = group.begin + blockIdx.z * TOKENS; i0 < group.end; i0 += (int64_t)gridDim.z * TOKENS) {
        const float *x[TOKENS];
        float sum[ROWS][TOKENS];
PF_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            x[t] = reinterpret_cast<const float *>(pf_act_of(m, i0 + t, group.end));
PF_UNROLL
            for (int r = 0; r < ROWS; ++r) sum[r][t] = 0.0f;
        }
        for (int64_t col = 8 * lane; col < cols; col += 8 * PF_WARP) {
            const bool whole = cols - col >= 8;
            float v[TOKENS][8], w[8];
PF_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                if (whole) pf_load_floats(x[t] + col, v[t]);
                else for (int i = 0; i < 8; ++i) v[t][i] = col + i < cols ? x[t][col + i] : 0.0f;
            }
PF_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int64_t row = row0 + r < m.w.rows ? row0 + r : m.w.rows - 1;
                if (whole) load_weights<TYPE>(m.w, group.matrix, row, col, w);
                else load_rest(m.w, group.matrix, row, col, w);
PF_UNROLL
                for (int t = 0; t < TOKENS; ++t) {
PF_UNROLL
                    for (int i = 0; i < 8; ++i) sum[r][t] = fmaf(w[i], v[t][i], sum[r][t]);
                }
            }
        }
PF_UNROLL
        for (int r = 0; r < ROWS; ++r) {
PF_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                const float v = pf_warp_sum(sum[r][t]);
                if (lane == 0 && row0 + r < m.w.rows && i0 + t < group.end) m.y[(i0 + t) * m.ldy + row0 + r] = v;
            }
        }
    }
}

/* ---- Integer activations ---- */

/* To nearest even, for |v| < 2^22. */
PF_DEV int round_to_int(float v) { return (int)(__float_as_uint(v + 0x1.8p23f) - 0x4b400000u); }

/* A warp a block of 32 values. */
template <int PLANES, bool TILED>
static __global__ void quantize_kernel(const float *x, int64_t ldx, int64_t n_row, int64_t n, const int32_t *count,
                                       int64_t stride, uint8_t *out) {
    const int64_t blocks = n / PF_BLOCK, rows = count ? *count : n_row;
    const int lane = pf_lane();
    for (int64_t k = pf_thread() / PF_WARP; k < rows * blocks; k += pf_threads() / PF_WARP) {
        const int64_t row = k / blocks, b = k % blocks;
        const float most = (float)(PLANES == PF_Q8_PLANES ? (int)PF_Q8_MAX : (int)PF_Q16_MAX);
        const float value = x[row * ldx + b * PF_BLOCK + lane];
        const float d = __uint_as_float(pf_warp_max_bits(pf_magnitude(value))) / most;
        float v = d != 0.0f ? value / d : 0.0f;
        v = v > -most ? v : -most; /* also a NaN; its block's scale is NaN or infinite */
        v = v < most ? v : most;
        int plane[2] = {round_to_int(v), 0};
        if (PLANES == PF_Q16_PLANES) {
            const int q = plane[0];
            plane[0] = round_to_int((float)q * (1.0f / (float)PF_INT_BASE));
            plane[1] = q - PF_INT_BASE * plane[0];
        }
        const int at = (int)(b % PF_INT_BLOCKS);
        if constexpr (TILED) {
            const int64_t each = pf_class_blocks(blocks), slots = each * PF_INT_BLOCKS;
            const int64_t slot = pf_reversed(at) * each + b / PF_INT_BLOCKS;
            int8_t *to = reinterpret_cast<int8_t *>(out + row * stride) + slot * PF_BLOCK;
            for (int p = 0; p < PLANES; ++p) {
                to[p * slots * PF_BLOCK + lane % 16 / 4 * 8 + lane / 16 * 4 + lane % 4] = (int8_t)plane[p];
            }
            if (lane == 0) reinterpret_cast<float *>(out + row * stride + PLANES * slots * PF_BLOCK)[slot] = d;
        } else {
            pf_act_group<PLANES> &to = reinterpret_cast<pf_act_group<PLANES> *>(out + row * stride)[b / PF_INT_BLOCKS];
            for (int p = 0; p < PLANES; ++p) {
                reinterpret_cast<int8_t *>(&to.values[p][lane / 16][at])[lane % 16] = (int8_t)plane[p];
            }
            if (lane == 0) to.scale[at] = d;
        }
    }
}

template <int PLANES, bool TILED>
static void launch_quantize(const pf_exec *ex, const float *x, int64_t ldx, int64_t n_row, int64_t n,
                            const int32_t *count, uint8_t *out) {
    PF_LAUNCH((quantize_kernel<PLANES, TILED>), pf_blocks(ex, n_row * (n / PF_BLOCK), 4), 128, 0,
              pf_device_of(ex)->stream, x, ldx, n_row, n, count, pf_act_row_bytes(PLANES, TILED, n), out);
}

void pf_quantize_launch(const pf_exec *ex, int planes, bool tiled, const float *x, int64_t ldx, int64_t n_row,
                        int64_t n, const int32_t *count, uint8_t *out) {
    const bool q8 = planes == PF_Q8_PLANES;
    if (q8 && tiled) launch_quantize<PF_Q8_PLANES, true>(ex, x, ldx, n_row, n, count, out);
    else if (q8) launch_quantize<PF_Q8_PLANES, false>(ex, x, ldx, n_row, n, count, out);
    else if (tiled) launch_quantize<PF_Q16_PLANES, true>(ex, x, ldx, n_row, n, count, out);
    else launch_quantize<PF_Q16_PLANES, false>(ex, x, ldx, n_row, n, count, out);
}

/* Half a warp takes a row, lane l of it every 16th block, of which its sum is the rule's s[l]. ROWS: of each half. */
template <int TYPE, int ROWS> struct block_format {
    static_assert(pf_has_integers<TYPE>, "no integer products of this type");
    static constexpr int bytes = TYPE == PF_Q8_0 ? (int)PF_Q8_0_BYTES : (int)PF_MXFP4_BYTES;
    static constexpr int scale_bytes = TYPE == PF_Q8_0 ? 2 : 1;
    static constexpr int words = (bytes + 3) / 4; /* that a block lies in, wherever it begins */
    static constexpr int chunk = PF_INT_BLOCKS * bytes, pieces = chunk / 16; /* 34 or 17 times 16 bytes */
    /* From one row in shared memory to the next, so that the rows of the warp's halves are 64 bytes more than a
     * multiple of 128 apart: then its lanes, 34 or 17 bytes apart in each half, read from 32 different banks. */
    static constexpr int step = 128 / ROWS;
    static constexpr int stride = chunk + (step + step / 2 - chunk % step) % step;
};

/* The warp's rows from row0 on, blocks c0 .. into `stage`. */
template <int TYPE, int ROWS>
PF_DEV void stage_rows(const pf_weight &w, int64_t matrix, int64_t row0, int64_t c0, uint8_t *stage) {
    typedef block_format<TYPE, ROWS> format;
    const int64_t blocks = w.cols / PF_BLOCK - c0;
    const int bytes = (blocks < PF_INT_BLOCKS ? (int)blocks : (int)PF_INT_BLOCKS) * format::bytes;
    for (int i = pf_lane(); i < 2 * ROWS * format::pieces; i += PF_WARP) {
        const int r = i / format::pieces, at = i % format::pieces * 16;
        const int64_t row = row0 + r < w.rows ? row0 + r : w.rows - 1;
        const uint8_t *from = pf_row_of(w, matrix, row) + c0 * format::bytes + at;
        uint8_t *to = stage + r * format::stride + at;
        if (at + 16 <= bytes && pf_aligned(from, 16)) {
            *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
        } else {
            for (int k = 0; k < 16 && at + k < bytes; ++k) to[k] = from[k];
        }
    }
}

/* Block l of a row in shared memory: columns 4 i to 4 i + 3 in w[i], and its scale. */
template <int TYPE, int ROWS> PF_DEV float staged_block(const uint8_t *row, int l, int (&w)[8]) {
    typedef block_format<TYPE, ROWS> format;
    const int at = l * format::bytes;
    const uint32_t *from = reinterpret_cast<const uint32_t *>(row) + at / 4;
    const uint32_t before = (uint32_t)(at % 4) * 8u, skip = before + 8u * format::scale_bytes; /* bits; at most 32 */
    uint32_t word[format::words];
PF_UNROLL
    for (int i = 0; i < format::words; ++i) word[i] = from[i];
    const uint32_t scale = word[0] >> before;
    if constexpr (TYPE == PF_Q8_0) {
PF_UNROLL
        for (int i = 0; i < 8; ++i) w[i] = (int)__funnelshift_rc(word[i], word[i + 1], skip);
        return pf_of_f16(scale & 0xffffu);
    } else {
PF_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t codes = __funnelshift_rc(word[i], word[i + 1], skip);
            const uint32_t first = pf_doubled_values(codes), second = pf_doubled_values(codes >> 16);
            w[i] = (int)__byte_perm(first, second, 0x6420u); /* first and second: low, high, low, high */
            w[i + 4] = (int)__byte_perm(first, second, 0x7531u);
        }
        return __uint_as_float((scale & 0xffu) << 23);
    }
}

/* The sum of a block's products with one plane. */
PF_DEV int plane_products(const int (&w)[8], const int4 (&v)[2]) {
    int sum = 0;
PF_UNROLL
    for (int i = 0; i < 2; ++i) {
        sum = __dp4a(w[4 * i], v[i].x, sum);
        sum = __dp4a(w[4 * i + 1], v[i].y, sum);
        sum = __dp4a(w[4 * i + 2], v[i].z, sum);
        sum = __dp4a(w[4 * i + 3], v[i].w, sum);
    }
    return sum;
}

template <int TYPE, int PLANES, int ROWS, int TOKENS>
static __global__ void __launch_bounds__(THREADS) int_kernel(pf_matmul m) {
    typedef block_format<TYPE, ROWS> format;
    typedef pf_act_group<PLANES> acts;
    struct memory { uint4 stage[WARPS][2 * ROWS][format::stride / 16]; };
    PF_SHARED(memory, shared);
    const pf_span group = pf_group_of(m, blockIdx.y);
    const int64_t row0 = ((int64_t)blockIdx.x * WARPS + pf_warp()) * 2 * ROWS;
    const int64_t n_block = m.w.cols / PF_BLOCK;
    const int half = pf_lane() / 16, l = pf_lane() % 16;
    uint8_t *stage = reinterpret_cast<uint8_t *>(shared.stage[pf_warp()]);
    const uint8_t *mine = stage + half * ROWS * format::stride;
    if (row0 >= m.w.rows) return; /* a whole warp; nobody waits for the block */
    for (int64_t i0 = group.begin + blockIdx.z * TOKENS; i0 < group.end; i0 += (int64_t)gridDim.z * TOKENS) {
        const acts *x[TOKENS];
        float sum[ROWS][TOKENS];
PF_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            x[t] = reinterpret_cast<const acts *>(pf_act_of(m, i0 + t, group.end));
PF_UNROLL
            for (int r = 0; r < ROWS; ++r) sum[r][t] = 0.0f;
        }
        for (int64_t c0 = 0; c0 < n_block; c0 += PF_INT_BLOCKS) {
            stage_rows<TYPE, ROWS>(m.w, group.matrix, row0, c0, stage);
            __syncwarp();
            if (c0 + l < n_block) {
                int w[ROWS][8];
                float scale[ROWS];
PF_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    scale[r] = staged_block<TYPE, ROWS>(mine + r * format::stride, l, w[r]);
                }
PF_UNROLL
                for (int t = 0; t < TOKENS; ++t) {
                    const acts &a = x[t][c0 / PF_INT_BLOCKS];
                    const float d = a.scale[l];
                    int4 v[PLANES][2];
PF_UNROLL
                    for (int p = 0; p < PLANES; ++p) {
                        v[p][0] = a.values[p][0][l];
                        v[p][1] = a.values[p][1][l];
                    }
PF_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        int i = 0;
PF_UNROLL
                        for (int p = 0; p < PLANES; ++p) i = PF_INT_BASE * i + plane_products(w[r], v[p]);
                        sum[r][t] = fmaf((float)i, scale[r] * d, sum[r][t]);
                    }
                }
            }
            __syncwarp();
        }
PF_UNROLL
        for (int r = 0; r < ROWS; ++r) {
PF_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                float v = sum[r][t];
                /* Within half a warp, and in the rule's order: s[l] and s[l + 8] first, t[0] and t[1] last. */
                for (int mask = 8; mask > 0; mask /= 2) v += pf_shfl_xor(v, mask);
                if (TYPE == PF_MXFP4) v *= PF_INT_MXFP4_UNIT;
                const int64_t row = row0 + half * ROWS + r;
                if (l == 0 && row < m.w.rows && i0 + t < group.end) m.y[(i0 + t) * m.ldy + row] = v;
            }
        }
    }
}

/* ---- Launching ---- */

template <int TYPE, int ROWS, int TOKENS> static void launch(const pf_exec *ex, const pf_matmul &m) {
    const bool grouped = m.groups.matrix != nullptr;
    const int64_t rows = m.w.rows, tile = WARPS * ROWS * (m.planes > 0 ? 2 : 1);
    const int64_t most = grouped ? m.groups.rows : m.n;
    const dim3 grid((unsigned)pf_div_up(rows, tile), (unsigned)(grouped ? m.groups.most_groups : 1),
                    (unsigned)pf_least(64, pf_div_up(most, TOKENS)));
    const cudaStream_t stream = pf_device_of(ex)->stream;
    if constexpr (pf_has_integers<TYPE>) {
        if (m.planes == PF_Q8_PLANES) {
            PF_LAUNCH((int_kernel<TYPE, PF_Q8_PLANES, ROWS, TOKENS>), grid, THREADS, 0, stream, m);
            return;
        }
        if (m.planes == PF_Q16_PLANES) {
            PF_LAUNCH((int_kernel<TYPE, PF_Q16_PLANES, ROWS, TOKENS>), grid, THREADS, 0, stream, m);
            return;
        }
    }
    PF_LAUNCH((f32_kernel<TYPE, ROWS, TOKENS>), grid, THREADS, 0, stream, m);
}

/* Few rows are spread over more warps; it changes no result. */
template <int TYPE> static pf_status launch_type(const pf_exec *ex, const pf_matmul &m) {
    const bool grouped = m.groups.matrix != nullptr;
    const int64_t most = grouped ? m.groups.rows : m.n, groups = grouped ? m.groups.most_groups : 1;
    const bool few = m.w.rows * groups < 32 * (int64_t)pf_device_of(ex)->n_sm * WARPS;
    if (most > 1) launch<TYPE, 4, 4>(ex, m);
    else if (few) launch<TYPE, 1, 1>(ex, m);
    else launch<TYPE, 4, 1>(ex, m);
    return PF_OK;
}

pf_status pf_matmul_launch(const pf_exec *ex, const pf_matmul &m) {
    if (m.tiled) return pf_tiles_launch(ex, m);
    if (pf_in_bf16(ex, &m.w)) return pf_float_tiles_launch(ex, m);
    switch (m.w.type) {
#define LAUNCH(name) case PF_##name: return launch_type<PF_##name>(ex, m);
    PF_CUDA_WEIGHT_TYPES(LAUNCH)
#undef LAUNCH
    default: return PF_ERR_INTERNAL;
    }
}

pf_status pf_cuda_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                         int64_t ldy) {
    pf_scratch scratch(ex);
    pf_matmul m = {};
    pf_status status;
    m.w = *w;
    m.n = n_token;
    m.y = y;
    m.ldy = ldy;
    m.planes = pf_act_planes(ex, w);
    m.tiled = m.planes > 0 && n_token >= TILED_FROM;
    m.act = reinterpret_cast<const uint8_t *>(x);
    m.act_stride = ldx * (int64_t)sizeof(float);
    uint8_t *quantized = nullptr;
    if (m.planes > 0) {
        m.act_stride = pf_act_row_bytes(m.planes, m.tiled, w->cols);
        m.act = quantized = scratch.take<uint8_t>(n_token * m.act_stride);
        if (!quantized) return PF_ERR_MEMORY;
    }
    if (!pf_may_launch(ex, &status)) return status;
    if (m.planes > 0) pf_quantize_launch(ex, m.planes, m.tiled, x, ldx, n_token, w->cols, nullptr, quantized);
    status = pf_matmul_launch(ex, m);
    return status == PF_OK ? pf_launched() : status;
}
