/* Defines the loops of search_loops.h as PF_LOOPS, for the file that includes this. */
#include "quantize/search_loops.h"

#include "quantize/lanes.h"

#include <math.h>
#include <stddef.h>

/* `width` is a constant where this is called, so that the factors stay in registers. */
static inline void terms_of(const float *grid, const float *squares, int width, const float *a, const float *w,
                            float *double_a, float *b, float *turned) {
    pf_lanes factors[8];
    for (int i = 0; i < width; ++i) factors[i] = lanes_set1(a[i]);
    for (int g = 0; g < PF_GRID_CHUNK; g += PF_LANES) {
        pf_lanes smallest = lanes_mul(factors[0], lanes_load(grid + g)), sum = smallest;
        for (int i = 1; i < width; ++i) {
            const pf_lanes product = lanes_mul(factors[i], lanes_load(grid + i * PF_GRID_CHUNK + g));
            sum = lanes_add(sum, product);
            if (turned != NULL) smallest = lanes_min(product, smallest);
        }
        sum = lanes_add(sum, sum);
        lanes_store(double_a + g, sum);
        if (turned != NULL) lanes_store(turned + g, lanes_sub(sum, lanes_mul(lanes_set1(4.0f), smallest)));
    }
    for (int i = 0; i < width; ++i) factors[i] = lanes_set1(w[i]);
    for (int g = 0; g < PF_GRID_CHUNK; g += PF_LANES) {
        pf_lanes sum = lanes_mul(factors[0], lanes_load(squares + g));
        for (int i = 1; i < width; ++i) {
            sum = lanes_add(sum, lanes_mul(factors[i], lanes_load(squares + i * PF_GRID_CHUNK + g)));
        }
        lanes_store(b + g, sum);
    }
}

static void terms(const float *grid, const float *squares, int width, const float *a, const float *w, float *double_a,
                  float *b, float *turned) {
    if (width == 8 && turned == NULL) terms_of(grid, squares, 8, a, w, double_a, b, NULL);
    else if (width == 8) terms_of(grid, squares, 8, a, w, double_a, b, turned);
    else if (turned == NULL) terms_of(grid, squares, 4, a, w, double_a, b, NULL);
    else terms_of(grid, squares, 4, a, w, double_a, b, turned);
}

static inline pf_lanes lines_at(const float *double_a, const float *b, pf_lanes t) {
    return lanes_sub(lanes_mul(t, lanes_load(b)), lanes_load(double_a));
}

enum { CHUNK = PF_GRID_CHUNK, MOST_CHUNKS = PF_GRID_POINTS / CHUNK };

/* The first of n lines that has the value `least` at t; chunks: the lowest of each lane and chunk. Without jumps: where it is
 * cannot be foreseen. */
static inline int index_of(const float *double_a, const float *b, int n, float t, float least, const pf_lanes *chunks,
                           int stride) {
    const pf_lanes wanted = lanes_set1(least), scale = lanes_set1(t);
    uint32_t in_chunk = 0, low = 0, high = 0;
    for (int c = 0; c < n / CHUNK; ++c) in_chunk |= (uint32_t)(lanes_equal(chunks[c * stride], wanted) != 0) << c;
    const int begin = lowest_bit(in_chunk) * CHUNK;
    for (int g = 0; g < 4; ++g) {
        const float *of_a = double_a + begin + g * PF_LANES, *of_b = b + begin + g * PF_LANES;
        low |= lanes_equal(lines_at(of_a, of_b, scale), wanted) << g * PF_LANES;
        high |= lanes_equal(lines_at(of_a + CHUNK / 2, of_b + CHUNK / 2, scale), wanted) << g * PF_LANES;
    }
    return begin + (low != 0 ? lowest_bit(low) : CHUNK / 2 + lowest_bit(high));
}

/* First which chunk has the lowest, then where in it: so most lines are looked at once. */
static float lowest(const float *double_a, const float *b, int n, float t, int *at) {
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
    *at = index_of(double_a, b, n, t, least, chunks, 1);
    return least;
}

static void find_hull(const float *double_a, const float *b, int n, const float *t, pf_grid_hull *hull) {
    pf_lanes scales[PF_GRID_LINES], all[PF_GRID_LINES], chunks[MOST_CHUNKS * PF_GRID_LINES];
    for (int k = 0; k < PF_GRID_LINES; ++k) {
        scales[k] = lanes_set1(t[k]);
        all[k] = lanes_set1(INFINITY);
    }
    for (int c = 0; c < n / CHUNK; ++c) {
        pf_lanes least[PF_GRID_LINES];
        for (int k = 0; k < PF_GRID_LINES; ++k) least[k] = lanes_set1(INFINITY);
        for (int g = c * CHUNK; g < (c + 1) * CHUNK; g += PF_LANES) {
            const pf_lanes of_a = lanes_load(double_a + g), of_b = lanes_load(b + g);
            for (int k = 0; k < PF_GRID_LINES; ++k) {
                least[k] = lanes_min(lanes_sub(lanes_mul(scales[k], of_b), of_a), least[k]);
            }
        }
        for (int k = 0; k < PF_GRID_LINES; ++k) {
            chunks[c * PF_GRID_LINES + k] = least[k];
            all[k] = lanes_min(least[k], all[k]);
        }
    }
    int last = -1;
    hull->n_lines = 0;
    for (int k = 0; k < PF_GRID_LINES; ++k) {
        const int at = index_of(double_a, b, n, t[k], lanes_least(all[k]), chunks + k, PF_GRID_LINES);
        hull->double_a[hull->n_lines] = double_a[at];
        hull->b[hull->n_lines] = b[at];
        hull->n_lines += at != last;
        last = at;
    }
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

static void code_sums(const float *x, const float *w, int n, const float *inverse, const float *offset, float low,
                      float high, pf_code_sums *sums) {
    const pf_lanes factor = lanes_load(inverse), shift = lanes_load(offset);
    pf_lanes sum_q = lanes_set1(0.0f), sum_qq = sum_q, sum_qx = sum_q;
    for (int i = 0; i < n; ++i) {
        const pf_lanes value = lanes_set1(x[i]);
        pf_lanes q = lanes_round(lanes_mul(lanes_add(value, shift), factor));
        q = lanes_max(lanes_min(q, lanes_set1(high)), lanes_set1(low));
        const pf_lanes weighted = lanes_mul(lanes_set1(w[i]), q);
        sum_q = lanes_add(sum_q, weighted);
        sum_qq = lanes_add(sum_qq, lanes_mul(weighted, q));
        sum_qx = lanes_add(sum_qx, lanes_mul(weighted, value));
    }
    lanes_store(sums->q, sum_q);
    lanes_store(sums->qq, sum_qq);
    lanes_store(sums->qx, sum_qx);
}

const pf_search_loops PF_LOOPS = {terms, lowest, find_hull, best_scale, code_sums};
