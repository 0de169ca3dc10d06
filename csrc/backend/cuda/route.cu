/* Expert routing on the device: a warp a token. */
#include "backend/cuda/ops.cuh"

#include <cfloat>

/* log(1 + exp(x)) without overflow, and without losing small results. */
PF_DEV float softplus(float x) { return x > 0.0f ? x + log1pf(expf(-x)) : log1pf(expf(x)); }

/* Whether (score a, expert i) comes before (b, j): the higher score, then the lower index. */
PF_DEV bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

/* The best expert that comes after (last_score, last) in the order of `before`, or -1. Every lane looks at its own
 * experts, then the warp agrees. */
PF_DEV int next_best(const float *score, const float *bias, int n_expert, float last_score, int last,
                     float *best_score) {
    float best = -INFINITY;
    int expert = -1;
    for (int e = pf_lane(); e < n_expert; e += PF_WARP) {
        const float sum = score[e] + bias[e], v = sum == sum ? sum : -INFINITY; /* the CPU chooses on, with a NaN too */
        if (last >= 0 && !before(last_score, last, v, e)) continue;
        if (expert < 0 || before(v, e, best, expert)) {
            best = v;
            expert = e;
        }
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const float v = pf_shfl_xor(best, mask);
        const int e = pf_shfl_xor(expert, mask);
        if (e >= 0 && (expert < 0 || before(v, e, best, expert))) {
            best = v;
            expert = e;
        }
    }
    *best_score = best;
    return expert;
}

static __global__ void route_kernel(pf_route_args args, int *fault) {
    const int n_expert = (int)args.n_expert, n_used = (int)args.n_used, lane = pf_lane();
    const int64_t t = pf_thread() / PF_WARP;
    if (t < args.n_token) { /* whole warps */
        const float *logits = args.logits + t * n_expert;
        float *score = args.scores + t * n_expert, *weight = args.weight + t * n_used;
        int32_t *chosen = args.chosen + t * n_used;
        for (int e = lane; e < n_expert; e += PF_WARP) score[e] = sqrtf(softplus(logits[e]));
        __syncwarp();
        float last_score = 0.0f, sum = 0.0f;
        int last = -1;
        for (int i = 0; i < n_used; ++i) {
            int e;
            if (args.table) {
                e = args.table[t * n_used + i];
            } else {
                e = next_best(score, args.bias, n_expert, last_score, last, &last_score);
                last = e;
            }
            if (e < 0 || e >= n_expert) { /* a table's mistake */
                if (lane == 0) atomicExch(fault, 1);
                e = 0;
            }
            if (lane == 0) chosen[i] = e;
            sum += score[e];
        }
        sum = fmaxf(sum, FLT_MIN); /* all scores underflow only far outside trained ranges */
        __syncwarp();
        for (int i = lane; i < n_used; i += PF_WARP) weight[i] = args.scale * score[chosen[i]] / sum;
    }
}

pf_status pf_cuda_route(pf_exec *ex, const pf_route_args *args) {
    pf_status status;
    if (!pf_may_launch(ex, &status)) return status;
    PF_LAUNCH(route_kernel, (unsigned)pf_div_up(args->n_token, 4), 128, 0, pf_device_of(ex)->stream, *args,
              pf_device_of(ex)->fault);
    return pf_launched();
}
