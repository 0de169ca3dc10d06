/* Expert routing: scores, selection, weights. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include <float.h>
#include <math.h>

/* log(1 + exp(x)) without overflow, and without losing small results. */
static float softplus(float x) { return x > 0.0f ? x + log1pf(expf(-x)) : log1pf(expf(x)); }

/* The n highest of score + bias, best first, lower index first among equals: insertion into a short sorted list. */
static void select_best(const float *score, const float *bias, int64_t n_expert, int64_t n, int32_t *chosen) {
    int64_t have = 0;
    for (int64_t e = 0; e < n_expert; ++e) {
        const float v = score[e] + bias[e];
        int64_t at = have;
        while (at > 0 && v > score[chosen[at - 1]] + bias[chosen[at - 1]]) --at;
        if (at == n) continue;
        if (have < n) ++have;
        for (int64_t i = have - 1; i > at; --i) chosen[i] = chosen[i - 1];
        chosen[at] = (int32_t)e;
    }
}

static void route_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const pf_route_args *args = arg;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *logits = args->logits + t * args->n_expert;
        float *score = args->scores + t * args->n_expert, *weight = args->weight + t * args->n_used;
        int32_t *chosen = args->chosen + t * args->n_used;
        for (int64_t e = 0; e < args->n_expert; ++e) score[e] = sqrtf(softplus(logits[e]));
        if (args->table != NULL) {
            for (int64_t i = 0; i < args->n_used; ++i) chosen[i] = args->table[t * args->n_used + i];
        } else {
            select_best(score, args->bias, args->n_expert, args->n_used, chosen);
        }
        float sum = 0.0f;
        for (int64_t i = 0; i < args->n_used; ++i) sum += score[chosen[i]];
        sum = fmaxf(sum, FLT_MIN); /* all scores underflow only far outside trained ranges */
        for (int64_t i = 0; i < args->n_used; ++i) weight[i] = args->scale * score[chosen[i]] / sum;
    }
}

pf_status pf_cpu_route(pf_exec *ex, const pf_route_args *args) {
    pf_route_args copy = *args;
    return pf_parallel(ex, args->n_token, pf_grain(ex, args->n_token), route_tokens, &copy);
}
