/* Lightning indexer: scores[t, j] = scale sum_h w[t, h] max(0, q[t, h] . row_j) of all visible rows.
 *
 * FP4 rows against queries that round_fp4 has rounded are integer products, summed as backend/cpu/fp4.h says, so that
 * scores, and with them the selected rows, are the CPU's. Those of up to 64 heads of up to 128 columns, and so those of
 * V4-Flash, are for indexer_tiles.cu. What is here takes any rows: a warp a row, a lane a column of every 32. */
#include "backend/cuda/indexer.cuh"

enum { THREADS = 128, WARPS = THREADS / PF_WARP };

/* q . row by integers, row [width] being doubled values, and scale its groups' scales. All lanes have it. */
PF_DEV float fp4_product(const float *q, const float *row, const uint8_t *scale, int width) {
    float s = 0.0f;
    for (int i = pf_lane(); i < width; i += PF_WARP) {
        const int k = pf_fp4_exponent(pf_warp_max_bits(pf_magnitude(q[i])));
        const float sum = pf_warp_sum((float)pf_fp4_code(q[i], k) * row[i]); /* exact in any order */
        s = fmaf(sum, pf_power_of_two(k) * (0.25f * pf_of_e8m0(scale[i / PF_IDX_GROUP])), s);
    }
    return s;
}

PF_DEV float float_product(const float *q, const float *row, int width) {
    float s = 0.0f;
    for (int i = pf_lane(); i < width; i += PF_WARP) s = fmaf(q[i], row[i], s);
    return pf_warp_sum(s);
}

template <bool INTEGERS> static __global__ void __launch_bounds__(THREADS) row_kernel(pf_score_args args) {
    PF_DYNAMIC(memory);
    const int n_head = (int)args.a.n_head, width = args.rows.width, lane = pf_lane();
    float *row = reinterpret_cast<float *>(memory) + pf_warp() * width;
    for (int64_t t = blockIdx.y; t < args.a.n_token; t += gridDim.y) {
        const int64_t n_row = pf_visible_rows(args, t);
        for (int64_t j = pf_thread() / PF_WARP; j < n_row; j += pf_threads() / PF_WARP) {
            const uint8_t *from = pf_slot_of(args.rows, j);
            float total = 0.0f;
            for (int i = lane; i < width; i += PF_WARP) { /* a lane reads what it has written */
                if (INTEGERS) row[i] = 2.0f * pf_of_e2m1(from[i / 2] >> i % 2 * 4 & 15u);
                else row[i] = pf_row_value(args.rows, from, i);
            }
            for (int h = 0; h < n_head; ++h) {
                const float *q = args.a.q + (t * n_head + h) * width;
                const float s = INTEGERS ? fp4_product(q, row, from + width / 2, width) : float_product(q, row, width);
                total += args.a.w[t * n_head + h] * (s > 0.0f ? s : 0.0f);
            }
            if (lane == 0) args.a.scores[t * args.a.ld + j] = total * args.a.scale;
        }
    }
}

pf_status pf_cuda_index_scores(pf_exec *ex, const pf_index_args *a) {
    const pf_device *device = pf_device_of(ex);
    pf_score_args args = {*a, *a->rows, pf_position_at(device, a->position)};
    args.a.rows = nullptr; /* of the host's memory */
    const int64_t width = args.rows.width;
    const bool integers = args.rows.format == PF_ROW_IDX_FP4 && width % PF_IDX_GROUP == 0;
    pf_status status;
    if (width > 2048) return PF_ERR_INTERNAL; /* of shared memory */
    if (!pf_may_launch(ex, &status)) return status;
    /* The rows are counted on the device where the position is there. */
    const int64_t rows = device->base ? args.rows.capacity : (a->position + a->n_token) / a->ratio;
    if (integers && pf_index_in_tiles(args)) return pf_index_tiles_launch(ex, args, rows);
    const dim3 grid(pf_blocks(ex, rows, WARPS), (unsigned)pf_least(a->n_token, 65535));
    const int64_t bytes = WARPS * width * (int64_t)sizeof(float);
    if (integers) PF_LAUNCH(row_kernel<true>, grid, THREADS, bytes, device->stream, args);
    else PF_LAUNCH(row_kernel<false>, grid, THREADS, bytes, device->stream, args);
    return pf_launched();
}
