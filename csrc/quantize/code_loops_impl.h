/* Defines the loop of code_loops.h as PF_LOOPS, for the file that includes this. */
#include "quantize/code_loops.h"

#include "quantize/lanes.h"

static pf_code_sums sums(const float *x, const float *w, int n, float inverse, float offset, float low, float high) {
    pf_lanes sum_q = lanes_set1(0.0f), sum_qq = sum_q, sum_qx = sum_q;
    for (int i = 0; i < n; i += PF_LANES) {
        const pf_lanes value = lanes_load(x + i);
        pf_lanes q = lanes_round(lanes_mul(lanes_add(value, lanes_set1(offset)), lanes_set1(inverse)));
        q = lanes_max(lanes_min(q, lanes_set1(high)), lanes_set1(low));
        const pf_lanes weighted = lanes_mul(lanes_load(w + i), q);
        sum_q = lanes_add(sum_q, weighted);
        sum_qq = lanes_add(sum_qq, lanes_mul(weighted, q));
        sum_qx = lanes_add(sum_qx, lanes_mul(weighted, value));
    }
    return (pf_code_sums){lanes_sum(sum_q), lanes_sum(sum_qq), lanes_sum(sum_qx)};
}

const pf_code_loops PF_LOOPS = {sums};
