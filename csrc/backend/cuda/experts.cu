/* The routed experts: out[t] += sum over the token's experts e of down_e (weight * swiglu(gate_e x, up_e x)).
 *
 * (token, slot) pairs are grouped by expert on the device, every product runs over all groups in one launch, and the
 * results of a token's experts, kept apart until then, are added in ascending order of their ids. So nothing is read
 * back, and a token's result depends on its own choices only. */
#include "backend/cuda/matmul.cuh"

#include "base/status.h"

enum { THREADS = 256, TOKENS = 2048 /* at once: pairs take some 2 F or D floats of scratch each */, MOST_EXPERTS = 4096 };

struct pair_lists {
    int32_t *matrix;  /* [n_expert] matrices of the experts that have pairs, ascending */
    int32_t *start;   /* [n_expert + 1] their first pairs */
    int32_t *counts;  /* n_group, n_pair */
    int32_t *token;   /* [n_pair] by place */
    float *weight;    /* [n_pair] by place */
    int32_t *place;   /* [n_token, n_used]: where a pair has gone; -1 for experts that are not used */
};

/* One block. */
static __global__ void __launch_bounds__(THREADS) group_kernel(const int32_t *chosen, const float *weight, int n_pair,
                                                               int n_used, int n_expert, int begin, int end,
                                                               int held_first, const int32_t *held_at,
                                                               pair_lists lists, int *fault) {
    PF_DYNAMIC(memory);
    int *next = reinterpret_cast<int *>(memory); /* [n_expert] counts, then places */
    const auto is_used = [=](int e) { return begin <= e && e < end && (!held_at || held_at[e] >= 0); };
    const int self = (int)threadIdx.x;
    for (int e = self; e < n_expert; e += THREADS) next[e] = 0;
    __syncthreads();
    for (int p = self; p < n_pair; p += THREADS) {
        const int e = chosen[p];
        if (e < 0 || e >= n_expert) atomicExch(fault, 1);
        else if (is_used(e)) atomicAdd(&next[e], 1);
    }
    __syncthreads();
    if (self == 0) {
        int groups = 0, sum = 0;
        for (int e = 0; e < n_expert; ++e) {
            const int count = next[e];
            next[e] = sum;
            if (count == 0) continue;
            lists.matrix[groups] = held_at ? held_at[e] : e - held_first;
            lists.start[groups++] = sum;
            sum += count;
        }
        lists.start[groups] = sum;
        lists.counts[0] = groups;
        lists.counts[1] = sum;
    }
    __syncthreads();
    for (int p = self; p < n_pair; p += THREADS) {
        const int e = chosen[p];
        int place = -1;
        if (e >= 0 && e < n_expert && is_used(e)) {
            place = atomicAdd(&next[e], 1); /* in any order: places have no influence on results */
            lists.token[place] = p / n_used;
            lists.weight[place] = weight[p];
        }
        lists.place[p] = place;
    }
}

/* gate = swiglu(gate, up) * the pair's weight. */
static __global__ void activate_kernel(float *gate, const float *up, int64_t n_ff, const float *weight,
                                       const int32_t *n_pair, float limit) {
    const int64_t n = *n_pair * n_ff;
    for (int64_t i = pf_thread(); i < n; i += pf_threads()) {
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        gate[i] = g / (1.0f + expf(-g)) * u * weight[i / n_ff];
    }
}

/* Adds a token's results, experts ascending, the earlier slot first among equals. */
static __global__ void gather_kernel(const int32_t *chosen, const int32_t *place, int n_used, const float *y,
                                     int64_t n_token, int64_t width, float *out) {
    for (int64_t i = pf_thread(); i < n_token * width; i += pf_threads()) {
        const int64_t t = i / width, c = i % width;
        const int32_t *expert = chosen + t * n_used, *at = place + t * n_used;
        float sum = out[i];
        int last = -1, last_slot = -1;
        for (int turn = 0; turn < n_used; ++turn) {
            int best = -1;
            for (int a = 0; a < n_used; ++a) {
                const bool later = expert[a] > last || (expert[a] == last && a > last_slot);
                if (at[a] >= 0 && later && (best < 0 || expert[a] < expert[best])) best = a;
            }
            if (best < 0) break;
            last = expert[best];
            last_slot = best;
            sum += y[at[best] * width + c];
        }
        out[i] = sum;
    }
}

struct expert_run {
    pair_lists lists;
    int x_planes, h_planes; /* of integer activations; 0 where floats are taken */
    bool tiled;             /* these, for tensor cores */
    uint8_t *x, *h;         /* these activations */
    float *gate, *up, *y;   /* [n_pair, F], [n_pair, F], [n_pair, D]; y takes the others' place where h has been made */
};

static bool take_scratch(const pf_exec *ex, const pf_experts_args *args, int64_t n_token, pf_scratch &scratch,
                         expert_run *run) {
    const int64_t n_pair = n_token * args->n_used, n_expert = args->gate->count, n_embd = args->gate->cols;
    const int64_t n_ff = args->gate->rows, n_out = args->down->rows;
    const int planes = pf_act_planes(ex, args->gate);
    run->x_planes = pf_act_planes(ex, args->up) == planes ? planes : 0;
    run->h_planes = pf_act_planes(ex, args->down);
    run->lists.matrix = scratch.take<int32_t>(n_expert);
    run->lists.start = scratch.take<int32_t>(n_expert + 1);
    run->lists.counts = scratch.take<int32_t>(2);
    run->lists.token = scratch.take<int32_t>(n_pair);
    run->lists.weight = scratch.take<float>(n_pair);
    run->lists.place = scratch.take<int32_t>(n_pair);
    run->gate = scratch.take<float>(n_pair * (run->h_planes > 0 ? pf_most(2 * n_ff, n_out) : 2 * n_ff));
    run->up = run->gate + n_pair * n_ff;
    run->y = run->h_planes > 0 ? run->gate : scratch.take<float>(n_pair * n_out);
    const bool tiled = run->tiled = n_pair >= 4 * n_expert; /* four of an expert on average */
    if (run->x_planes > 0) run->x = scratch.take<uint8_t>(n_token * pf_act_row_bytes(run->x_planes, tiled, n_embd));
    if (run->h_planes > 0) run->h = scratch.take<uint8_t>(n_pair * pf_act_row_bytes(run->h_planes, tiled, n_ff));
    const pair_lists &l = run->lists;
    return l.matrix && l.start && l.counts && l.token && l.weight && l.place && run->gate && run->y &&
           (run->x || run->x_planes == 0) && (run->h || run->h_planes == 0);
}

static pf_status launch_products(pf_exec *ex, const pf_experts_args *args, int64_t n_token, const expert_run &run) {
    const int64_t n_pair = n_token * args->n_used, n_ff = args->gate->rows, n_embd = args->gate->cols;
    const cudaStream_t stream = pf_device_of(ex)->stream;
    const int32_t *n_pair_at = run.lists.counts + 1;
    const int64_t in_range = args->expert_end - args->expert_begin;
    const pf_groups groups = {run.lists.matrix, run.lists.start, run.lists.counts,
                              pf_most(1, pf_least(n_pair, in_range)),
                              pf_least(n_token, pf_most(64, 4 * n_pair / args->gate->count)) /* as a rule */};
    pf_matmul m = {};
    m.groups = groups;
    m.n = n_pair;
    m.in_rows = run.lists.token;
    m.ldy = n_ff;
    m.planes = run.x_planes;
    m.tiled = run.tiled && m.planes > 0;
    m.act = m.planes > 0 ? run.x : reinterpret_cast<const uint8_t *>(args->x);
    m.act_stride = m.planes > 0 ? pf_act_row_bytes(m.planes, m.tiled, n_embd) : n_embd * (int64_t)sizeof(float);
    if (m.planes > 0) pf_quantize_launch(ex, m.planes, m.tiled, args->x, n_embd, n_token, n_embd, nullptr, run.x);
    m.w = *args->gate;
    m.y = run.gate;
    PF_TRY(pf_matmul_launch(ex, m));
    m.w = *args->up;
    m.y = run.up;
    PF_TRY(pf_matmul_launch(ex, m));
    PF_LAUNCH(activate_kernel, pf_blocks(ex, n_pair * n_ff, THREADS), THREADS, 0, stream, run.gate, run.up, n_ff,
              run.lists.weight, n_pair_at, args->limit);
    m.planes = run.h_planes;
    m.tiled = run.tiled && m.planes > 0;
    m.act = m.planes > 0 ? run.h : reinterpret_cast<const uint8_t *>(run.gate);
    m.act_stride = m.planes > 0 ? pf_act_row_bytes(m.planes, m.tiled, n_ff) : n_ff * (int64_t)sizeof(float);
    if (m.planes > 0) pf_quantize_launch(ex, m.planes, m.tiled, run.gate, n_ff, n_pair, n_ff, n_pair_at, run.h);
    m.in_rows = nullptr;
    m.w = *args->down;
    m.y = run.y;
    m.ldy = args->down->rows;
    return pf_matmul_launch(ex, m);
}

pf_status pf_cuda_experts(pf_exec *ex, const pf_experts_args *args) {
    pf_scratch scratch(ex);
    const int64_t most = pf_least(args->n_token, TOKENS), n_expert = args->gate->count, width = args->down->rows;
    const cudaStream_t stream = pf_device_of(ex)->stream;
    expert_run run = {};
    pf_status status;
    if (n_expert > MOST_EXPERTS) return PF_ERR_INTERNAL; /* what group_kernel's 16 KiB hold */
    if (!take_scratch(ex, args, most, scratch, &run)) return PF_ERR_MEMORY;
    if (!pf_may_launch(ex, &status)) return status;
    for (int64_t t = 0; t < args->n_token; t += most) {
        pf_experts_args part = *args;
        const int64_t n = pf_least(most, args->n_token - t), n_used = args->n_used;
        part.x += t * args->gate->cols;
        part.chosen += t * n_used;
        PF_LAUNCH(group_kernel, 1, THREADS, n_expert * sizeof(int), stream, part.chosen, args->weight + t * n_used,
                  (int)(n * n_used), (int)n_used, (int)n_expert, args->expert_begin, args->expert_end, args->held_first,
                  args->held_at, run.lists, pf_device_of(ex)->fault);
        PF_TRY(launch_products(ex, &part, n, run));
        PF_LAUNCH(gather_kernel, pf_blocks(ex, n * width, THREADS), THREADS, 0, stream, part.chosen, run.lists.place,
                  (int)n_used, run.y, n, width, args->out + t * width);
    }
    return pf_launched();
}
