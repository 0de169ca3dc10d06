/* The k best scores of a token: a block a token, radix selection of the k-th key, then the chosen indices in order. */
#include "backend/cuda/ops.cuh"

enum { THREADS = 512, WARPS = THREADS / PF_WARP, DIGITS = 256 };

/* Floats as integers of the same order; -0 and +0 share a key. */
PF_DEV uint32_t order_key(float x) {
    const uint32_t u = __float_as_uint(x + 0.0f);
    return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

struct topk_args {
    const float *scores;
    int64_t ld, n_token, k;
    pf_position position;
    int32_t ratio;
    int32_t *select, *select_n;
};

struct topk_memory {
    int count[DIGITS];
    uint32_t digit;
    int rest;
    int above[WARPS], equal[WARPS]; /* per warp, of one chunk */
};

/* By one warp: the highest digit such that it and the higher ones have at least `want` entries, and how many of the
 * digit's own are wanted. */
PF_DEV void find_digit(topk_memory &s, int want) {
    enum { EACH = DIGITS / PF_WARP };
    const int lane = pf_lane(), top = DIGITS - 1 - lane * EACH; /* lane 0 has the highest */
    int mine = 0;
    for (int i = 0; i < EACH; ++i) mine += s.count[top - i];
    int before = mine;
    for (int delta = 1; delta < PF_WARP; delta *= 2) {
        const int other = __shfl_up_sync(PF_ALL_LANES, before, (unsigned)delta);
        if (lane >= delta) before += other;
    }
    before -= mine;
    if (before < want && want <= before + mine) {
        int digit = top;
        for (; before + s.count[digit] < want; --digit) before += s.count[digit];
        s.digit = (uint32_t)digit;
        s.rest = want - before;
    }
}

/* Indices of keys above kth, and the first n_equal of those equal to it, ascending. */
PF_DEV void write_selected(topk_memory &s, const float *scores, int64_t n, uint32_t kth, int n_equal, int32_t *select) {
    const int self = (int)threadIdx.x, warp = pf_warp();
    const uint32_t lower = (1u << pf_lane()) - 1u;
    int above = 0, equal = 0; /* before this chunk */
    for (int64_t first = 0; first < n; first += THREADS) {
        const int64_t i = first + self;
        const uint32_t key = i < n ? order_key(scores[i]) : 0;
        const bool is_above = i < n && key > kth, is_equal = i < n && key == kth;
        const uint32_t above_votes = __ballot_sync(PF_ALL_LANES, is_above);
        const uint32_t equal_votes = __ballot_sync(PF_ALL_LANES, is_equal);
        if (pf_lane() == 0) {
            s.above[warp] = __popc(above_votes);
            s.equal[warp] = __popc(equal_votes);
        }
        __syncthreads();
        int my_above = above + __popc(above_votes & lower), my_equal = equal + __popc(equal_votes & lower);
        for (int w = 0; w < WARPS; ++w) {
            if (w < warp) my_above += s.above[w], my_equal += s.equal[w];
            above += s.above[w];
            equal += s.equal[w];
        }
        if (is_above || (is_equal && my_equal < n_equal)) {
            select[my_above + (my_equal < n_equal ? my_equal : n_equal)] = (int32_t)i;
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(THREADS) topk_kernel(topk_args args) {
    PF_SHARED(topk_memory, s);
    const int self = (int)threadIdx.x;
    for (int64_t t = blockIdx.x; t < args.n_token; t += gridDim.x) {
        const int64_t n = (pf_position_of(args.position) + t + 1) / args.ratio;
        const float *scores = args.scores + t * args.ld;
        int32_t *select = args.select + t * args.k;
        if (self == 0) args.select_n[t] = (int32_t)(n < args.k ? n : args.k);
        if (n <= args.k) {
            for (int64_t j = self; j < n; j += THREADS) select[j] = (int32_t)j;
            continue;
        }
        uint32_t prefix = 0, mask = 0;
        int want = (int)args.k;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int i = self; i < DIGITS; i += THREADS) s.count[i] = 0;
            __syncthreads();
            for (int64_t i = self; i < n; i += THREADS) {
                const uint32_t key = order_key(scores[i]);
                if ((key & mask) == prefix) atomicAdd(&s.count[key >> shift & 255u], 1);
            }
            __syncthreads();
            if (pf_warp() == 0) find_digit(s, want);
            __syncthreads();
            prefix |= s.digit << shift;
            mask |= 255u << shift;
            want = s.rest;
            __syncthreads();
        }
        write_selected(s, scores, n, prefix, want, select);
    }
}

pf_status pf_cuda_topk(pf_exec *ex, const float *scores, int64_t ld, int64_t n_token, int64_t position, int32_t ratio,
                       int64_t k, int32_t *select, int32_t *select_n) {
    const pf_position at = pf_position_at(pf_device_of(ex), position);
    const topk_args args = {scores, ld, n_token, k, at, ratio, select, select_n};
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(topk_kernel, pf_blocks(ex, n_token, 1), THREADS, 0, pf_device_of(ex)->stream, args);
    return pf_launched();
}
