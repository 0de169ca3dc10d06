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

/* First which chunk has the lowest, then where in it: so most lines are looked at once. */
static float lowest(const float *double_a, const float *b, int n, float t, int *at) {
    enum { CHUNK = 8 * PF_LANES, MOST_CHUNKS = 1024 / CHUNK };
    const pf_lanes scale = lanes_set1(t);
    pf_lanes chunks[MOST_CHUNKS], all = lanes_set1(INFINITY);
    for (int c = 0; c < n / CHUNK; ++c) {
        const float *of_a = double_a + c * CHUNK, *of_b = b + c * CHUNK;
        pf_lanes even = lines_at(of_a, of_b, scale), odd = lines_at(of_a + PF_LANES, of_b + PF_LANES, scale);
        for (int g = 2 * PF_LANES; g < CHUNK; g += 2 * PF_LANES) {
            even = lanes_min(lines_at(of_a + g, of_b + g, scale), even);
            odd = lanes_min(lines_at(of_a + g + PF_LANES, of_b + g + PF_LANES, scale), odd);
        }
        chunks[c] = lanes_min(even, odd);
        all = lanes_min(chunks[c], all);
    }
    const float least = lanes_least(all);
    const pf_lanes wanted = lanes_set1(least);
    int g = 0;
    while (g < n - CHUNK && lanes_equal(chunks[g / CHUNK], wanted) == 0) g += CHUNK;
    uint32_t found;
    while ((found = lanes_equal(lines_at(double_a + g, b + g, scale), wanted)) == 0 && g < n - PF_LANES) g += PF_LANES;
    *at = g + lowest_bit(found);
    return least;
}

/* What a hull's lowest lines have at all scales. */
typedef struct hull_values {
    pf_lanes low, high;
} hull_values;

static inline hull_values values_of(const pf_grid_hull *hull, hull_values t) {
    hull_values least = {lanes_set1(INFINITY), lanes_set1(INFINITY)};
    for (int k = 0; k < hull->n_lines; ++k) {
        const pf_lanes b = lanes_set1(hull->b[k]), double_a = lanes_set1(hull->double_a[k]);
        least.low = lanes_min(lanes_sub(lanes_mul(t.low, b), double_a), least.low);
        least.high = lanes_min(lanes_sub(lanes_mul(t.high, b), double_a), least.high);
    }
    return least;
}

static inline hull_values sum_of(hull_values a, hull_values b) {
    return (hull_values){lanes_add(a.low, b.low), lanes_add(a.high, b.high)};
}

static int best_scale(const pf_grid_hull *hulls, const pf_grid_hull *turned, const bool *odd, int n_hulls, float unit,
                      float *error) {
    static const float factors[PF_GRID_SCALES] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    const hull_values t = {lanes_mul(lanes_set1(unit), lanes_load(factors)),
                           lanes_mul(lanes_set1(unit), lanes_load(factors + PF_LANES))};
    hull_values sum = {lanes_set1(0.0f), lanes_set1(0.0f)};
    for (int k = 0; k < n_hulls; ++k) {
        hull_values found = values_of(&hulls[k], t);
        if (odd != NULL && odd[k / 2]) {
            const hull_values next = values_of(&hulls[k + 1], t);
            const hull_values first = sum_of(values_of(&turned[k], t), next);
            const hull_values second = sum_of(found, values_of(&turned[k + 1], t));
            found = (hull_values){lanes_min(first.low, second.low), lanes_min(first.high, second.high)};
            ++k;
        }
        sum = sum_of(sum, found);
    }
    sum.low = lanes_mul(sum.low, t.low);
    sum.high = lanes_mul(sum.high, t.high);
    *error = lanes_least(lanes_min(sum.low, sum.high));
    const pf_lanes wanted = lanes_set1(*error);
    return lowest_bit(lanes_equal(sum.low, wanted) | lanes_equal(sum.high, wanted) << PF_LANES);
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

const pf_search_loops PF_LOOPS = {terms, lowest, best_scale, code_sums};
