/* Defines the loops of search_loops.h as PF_LOOPS, for the file that includes this. */
#include "quantize/search_loops.h"

#include "quantize/lanes.h"

#include <math.h>
#include <stddef.h>

static void terms(const float *grid, int n, int width, const float *a, const float *w, float *double_a, float *b,
                  float *least) {
    for (int g = 0; g < n; g += PF_LANES) {
        pf_lanes sum_a = lanes_set1(0.0f), sum_b = sum_a, smallest = lanes_set1(INFINITY);
        for (int i = 0; i < width; ++i) {
            const pf_lanes point = lanes_load(grid + (ptrdiff_t)i * n + g), product = lanes_mul(lanes_set1(a[i]), point);
            sum_a = lanes_add(sum_a, product);
            sum_b = lanes_add(sum_b, lanes_mul(lanes_set1(w[i]), lanes_mul(point, point)));
            smallest = lanes_min(product, smallest);
        }
        lanes_store(double_a + g, lanes_add(sum_a, sum_a));
        lanes_store(b + g, sum_b);
        if (least != NULL) lanes_store(least + g, smallest);
    }
}

static inline pf_lanes lines_at(const float *double_a, const float *b, pf_lanes t) {
    return lanes_sub(lanes_mul(t, lanes_load(b)), lanes_load(double_a));
}

static float lowest(const float *double_a, const float *b, int n, float t, int *at) {
    const pf_lanes scale = lanes_set1(t);
    pf_lanes even = lanes_set1(INFINITY), odd = even;
    for (int g = 0; g < n; g += 2 * PF_LANES) {
        even = lanes_min(lines_at(double_a + g, b + g, scale), even);
        odd = lanes_min(lines_at(double_a + g + PF_LANES, b + g + PF_LANES, scale), odd);
    }
    const float least = lanes_least(lanes_min(even, odd));
    *at = 0;
    for (int g = 0; g < n; g += PF_LANES) {
        uint32_t found = lanes_equal(lines_at(double_a + g, b + g, scale), lanes_set1(least));
        if (found == 0) continue;
        for (*at = g; (found & 1u) == 0; found >>= 1) ++*at;
        break;
    }
    return least;
}

static float hull_at(const pf_grid_hull *hull, float t) {
    const pf_lanes scale = lanes_set1(t);
    return lanes_least(lanes_min(lines_at(hull->double_a, hull->b, scale),
                                 lines_at(hull->double_a + PF_LANES, hull->b + PF_LANES, scale)));
}

static pf_code_sums code_sums(const float *x, const float *w, int n, float inverse, float offset, float low, float high) {
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

const pf_search_loops PF_LOOPS = {terms, lowest, hull_at, code_sums};
