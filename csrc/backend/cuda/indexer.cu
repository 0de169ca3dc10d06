/* Lightning indexer: scores[t, j] = scale sum_h w[t, h] max(0, q[t, h] . row_j) of all visible rows.
 *
 * FP4 rows against queries that round_fp4 has rounded are integer products, summed as backend/cpu/fp4.h says, so that
 * scores, and with them the selected rows, are the CPU's. */
#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

enum { THREADS = 128, WARPS = THREADS / PF_WARP, MOST_GROUPS = 4, LARGEST = 12 };

struct score_args {
    pf_index_args a;
    pf_rows rows;
    pf_position position;
};

PF_DEV int64_t visible_rows(const score_args &args, int64_t t) {
    return (pf_position_of(args.position) + t + 1) / args.a.ratio;
}

/* ---- FP4: a thread a row, whose codes stay in registers ---- */

/* 32 products of codes. */
PF_DEV int dot8(uint4 a, uint4 b, const int *v) {
    const int sum = __dp4a((int)a.x, v[0], __dp4a((int)a.y, v[1], __dp4a((int)a.z, v[2], __dp4a((int)a.w, v[3], 0))));
    return __dp4a((int)b.x, v[4], __dp4a((int)b.y, v[5], __dp4a((int)b.z, v[6], __dp4a((int)b.w, v[7], sum))));
}

/* The heads of a token as integers: codes [n_head, 32 GROUPS], then scales [n_head, GROUPS], by a block. */
template <int GROUPS> PF_DEV void encode_heads(const float *q, int n_head, uint8_t *codes, float *scales) {
    for (int g = pf_warp(); g < n_head * GROUPS; g += WARPS) {
        const float v = q[g * PF_IDX_GROUP + pf_lane()], most = (float)LARGEST;
        const int k = pf_fp4_exponent(pf_warp_max_bits(pf_magnitude(v)));
        float code = v * (2.0f * pf_power_of_two(-k));
        code = code < most ? code : most; /* also a NaN */
        codes[g * PF_IDX_GROUP + pf_lane()] = (uint8_t)(int8_t)(int)(code > -most ? code : -most);
        if (pf_lane() == 0) scales[g] = pf_power_of_two(k);
    }
}

template <int GROUPS> static __global__ void __launch_bounds__(THREADS) fp4_kernel(score_args args) {
    enum { WORDS = 8 * GROUPS }; /* of four codes */
    PF_DYNAMIC(memory);
    const int n_head = (int)args.a.n_head, width = PF_IDX_GROUP * GROUPS;
    uint8_t *codes = memory;
    float *scales = reinterpret_cast<float *>(memory + n_head * width), *weights = scales + n_head * GROUPS;
    for (int64_t t = blockIdx.y; t < args.a.n_token; t += gridDim.y) {
        const int64_t n_row = visible_rows(args, t);
        if ((int64_t)blockIdx.x * THREADS >= n_row) continue; /* nothing for the whole block: see its number below */
        encode_heads<GROUPS>(args.a.q + t * n_head * width, n_head, codes, scales);
        for (int h = (int)threadIdx.x; h < n_head; h += THREADS) weights[h] = args.a.w[t * n_head + h];
        __syncthreads();
        for (int64_t j = pf_thread(); j < n_row; j += pf_threads()) {
            const uint8_t *row = pf_slot_of(args.rows, j);
            int values[WORDS];
            float row_scale[GROUPS], total = 0.0f;
PF_UNROLL
            for (int i = 0; i < WORDS / 2; ++i) {
                const uint32_t word = pf_word_at(row + 4 * i);
                values[2 * i] = (int)pf_doubled_values(word);
                values[2 * i + 1] = (int)pf_doubled_values(word >> 16);
            }
PF_UNROLL
            for (int g = 0; g < GROUPS; ++g) row_scale[g] = 0.25f * pf_of_e8m0(row[width / 2 + g]);
            for (int h = 0; h < n_head; ++h) {
                const uint4 *head = reinterpret_cast<const uint4 *>(codes + h * width); /* all lanes read the same */
                float s = 0.0f;
PF_UNROLL
                for (int g = 0; g < GROUPS; ++g) {
                    const uint4 a = head[2 * g], b = head[2 * g + 1];
                    const int sum = dot8(a, b, values + 8 * g);
                    s = fmaf((float)sum, scales[h * GROUPS + g] * row_scale[g], s);
                }
                total += weights[h] * (s > 0.0f ? s : 0.0f);
            }
            args.a.scores[t * args.a.ld + j] = total * args.a.scale;
        }
        __syncthreads(); /* the next token's heads take the place of these */
    }
}

/* ---- Other rows: a warp a row, as floats in shared memory ---- */

static __global__ void __launch_bounds__(THREADS) float_kernel(score_args args) {
    PF_DYNAMIC(memory);
    const int n_head = (int)args.a.n_head, width = args.rows.width, lane = pf_lane();
    float *row = reinterpret_cast<float *>(memory) + pf_warp() * width;
    for (int64_t t = blockIdx.y; t < args.a.n_token; t += gridDim.y) {
        const int64_t n_row = visible_rows(args, t);
        for (int64_t j = pf_thread() / PF_WARP; j < n_row; j += pf_threads() / PF_WARP) {
            const uint8_t *from = pf_slot_of(args.rows, j);
            float total = 0.0f;
            for (int i = lane; i < width; i += PF_WARP) row[i] = pf_row_value(args.rows, from, i);
            for (int h = 0; h < n_head; ++h) { /* a lane reads what it has written */
                const float *q = args.a.q + (t * n_head + h) * width;
                float s = 0.0f;
                for (int i = lane; i < width; i += PF_WARP) s = fmaf(q[i], row[i], s);
                s = pf_warp_sum(s);
                total += args.a.w[t * n_head + h] * (s > 0.0f ? s : 0.0f);
            }
            if (lane == 0) args.a.scores[t * args.a.ld + j] = total * args.a.scale;
        }
    }
}

template <int GROUPS> static void launch_fp4(const pf_exec *ex, const score_args &args, dim3 grid) {
    const int64_t bytes = args.a.n_head * (PF_IDX_GROUP * GROUPS + GROUPS * 4 + 4);
    PF_LAUNCH(fp4_kernel<GROUPS>, grid, THREADS, bytes, pf_device_of(ex)->stream, args);
}

pf_status pf_cuda_index_scores(pf_exec *ex, const pf_index_args *a) {
    const pf_device *device = pf_device_of(ex);
    score_args args = {*a, *a->rows, pf_position_at(device, a->position)};
    args.a.rows = nullptr; /* of the host's memory */
    const int64_t groups = args.rows.width / PF_IDX_GROUP;
    const bool whole = args.rows.width % PF_IDX_GROUP == 0 && groups <= MOST_GROUPS;
    const bool integers = args.rows.format == PF_ROW_IDX_FP4 && whole;
    pf_status status;
    if (a->n_head * (args.rows.width + 20) > 40960 || args.rows.width > 2048) return PF_ERR_INTERNAL; /* of shared */
    if (!pf_may_launch(ex, &status)) return status;
    /* The rows are counted on the device where the position is there. */
    const int64_t rows = device->base ? args.rows.capacity : (a->position + a->n_token) / a->ratio;
    const int64_t each = integers ? THREADS : WARPS;
    const dim3 grid(pf_blocks(ex, rows, each), (unsigned)pf_least(a->n_token, 65535));
    if (!integers) PF_LAUNCH(float_kernel, grid, THREADS, WARPS * args.rows.width * 4, device->stream, args);
    else if (groups == 1) launch_fp4<1>(ex, args, grid);
    else if (groups == 2) launch_fp4<2>(ex, args, grid);
    else if (groups == 3) launch_fp4<3>(ex, args, grid);
    else launch_fp4<4>(ex, args, grid);
    return pf_launched();
}
