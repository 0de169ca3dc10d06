/* Sampling from logits.
 *
 * The same seed, parameters and logits give the same tokens on every platform: the generator is xoshiro256** (Blackman
 * and Vigna, 2018) seeded through splitmix64, and exponential and logarithm are computed here in IEEE double arithmetic
 * in a fixed order, because those of the C libraries differ in their last bits. This holds as long as the compiler
 * neither contracts nor reorders floating point, see the build's flags.
 *
 * A filter works on what the one before has left:
 *   top_k        the k highest logits, the lower id first among equals;
 *   top_p        the shortest run of the highest whose share of the probability reaches top_p;
 *   min_p        those with at least min_p times the probability of the most likely token;
 *   temperature  the rest is drawn with weights exp(logit / temperature).
 * top_p and min_p look at probabilities of temperature 1. The most likely token always stays. */
#include "base/memory.h"
#include "base/params.h"
#include "base/status.h"

#include <math.h> /* INFINITY */
#include <stdbool.h>
#include <string.h>

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct pf_sampler {
    pf_sampler_params params;
    uint64_t state[4];
    candidate *items; /* [capacity] */
    double *weights;  /* [capacity] */
    int64_t capacity;
};

/* ---- Arithmetic -------------------------------------------------------------------------------------------- */

/* exp(x) for x <= 0, to a few units in the last place; 0 below -700. */
static inline double exp_nonpositive(double x) {
    if (!(x >= -700.0)) return 0.0;
    int32_t k = (int32_t)(x * 1.4426950408889634 - 0.5);
    double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10; /* ln 2 in two parts; |r| <= 0.35 */
    double sum = 1.0 / 6227020800.0; /* Taylor's series to r^13 */
    sum = sum * r + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    uint64_t bits = (uint64_t)(k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* log(x) for x >= 1: x = m 2^e with m near 1, log m = 2 artanh((m - 1) / (m + 1)). */
static double log_positive(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t e = (int32_t)(bits >> 52) - 1023;
    bits = (bits & UINT64_C(0xFFFFFFFFFFFFF)) | UINT64_C(1023) << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double s = (m - 1.0) / (m + 1.0);
    double s2 = s * s;
    double sum = 0.0;
    for (int n = 21; n >= 1; n -= 2) sum = sum * s2 + 1.0 / n;
    return e * 0.6931471803691238 + (2.0 * s * sum + e * 1.9082149292705877e-10);
}

static inline uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }

static uint64_t next_random(uint64_t s[4]) {
    uint64_t result = rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

static void seed_random(uint64_t s[4], uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        seed += UINT64_C(0x9E3779B97F4A7C15);
        uint64_t z = seed;
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        s[i] = z ^ z >> 31;
    }
}

/* ---- Selecting --------------------------------------------------------------------------------------------- */

static inline bool precedes(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(candidate *heap, int64_t n, int64_t i) {
    candidate item = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && precedes(heap[child + 1], heap[child])) child++;
        if (!precedes(heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static void make_heap(candidate *items, int64_t n) {
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(items, n, i);
}

/* Moves the first of a heap of n to its end, and leaves a heap of n - 1. */
static void pop_to_end(candidate *heap, int64_t n) {
    candidate top = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = top;
    sift_down(heap, n - 1, 0);
}

/* Brings the k items that were popped to the end of items[0 .. n) to its front, first popped first. */
static void popped_to_front(candidate *items, int64_t n, int64_t k) {
    for (int64_t i = 0; i < k && i < n / 2; i++) {
        candidate item = items[i];
        items[i] = items[n - 1 - i];
        items[n - 1 - i] = item;
    }
}

/* The k first candidates in order. Returns how many are left. */
static int64_t keep_top_k(candidate *items, int64_t n, int64_t k) {
    if (k > n) k = n;
    make_heap(items, n);
    for (int64_t i = 0; i < k; i++) pop_to_end(items, n - i);
    popped_to_front(items, n, k);
    return k;
}

/* Returns how many are left, in order. `max` is the highest logit. */
static int64_t keep_top_p(candidate *items, int64_t n, double top_p, double max, bool sorted) {
    double total = 0.0;
    for (int64_t i = 0; i < n; i++) total += exp_nonpositive(items[i].logit - max);
    double wanted = top_p * total;
    double sum = 0.0;
    int64_t kept = 0;
    if (sorted) {
        while (kept < n && (kept == 0 || sum < wanted)) sum += exp_nonpositive(items[kept++].logit - max);
        return kept;
    }
    make_heap(items, n);
    while (kept < n && (kept == 0 || sum < wanted)) {
        sum += exp_nonpositive(items[0].logit - max);
        pop_to_end(items, n - kept++);
    }
    popped_to_front(items, n, kept);
    return kept;
}

/* Keeps the order. */
static int64_t keep_min_p(candidate *items, int64_t n, double min_p, double max) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (exp_nonpositive(items[i].logit - max) >= min_p) items[kept++] = items[i];
    }
    return kept;
}

/* ---- The sampler ------------------------------------------------------------------------------------------- */

void pf_sampler_params_init(pf_sampler_params *params) {
    *params = (pf_sampler_params){.struct_size = sizeof *params, .temperature = 1.0f, .top_p = 1.0f};
}

pf_status pf_sampler_open(const pf_sampler_params *given, pf_sampler **out, pf_error *err) {
    pf_sampler_params params;
    pf_sampler_params_init(&params);
    if (!out || !pf_params_take(&params, sizeof params, given)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "sampler: fill the parameters with pf_sampler_params_init() first");
    }
    /* The comparisons are written so that a NaN fails them. */
    if (!(params.temperature >= 0.0f && params.temperature <= 1e30f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "temperature must be 0 or more, not %g", (double)params.temperature);
    }
    if (params.top_k < 0) return pf_fail(err, PF_ERR_ARGUMENT, "top_k must be 0 (off) or more, not %d", params.top_k);
    if (!(params.top_p >= 0.0f && params.top_p <= 1.0f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "top_p must be between 0 and 1 (off), not %g", (double)params.top_p);
    }
    if (!(params.min_p >= 0.0f && params.min_p <= 1.0f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "min_p must be between 0 (off) and 1, not %g", (double)params.min_p);
    }
    pf_sampler *sampler = pf_calloc(1, sizeof *sampler);
    if (!sampler) return pf_fail(err, PF_ERR_MEMORY, "out of memory for a sampler");
    sampler->params = params;
    seed_random(sampler->state, params.seed);
    *out = sampler;
    return PF_OK;
}

void pf_sampler_close(pf_sampler *sampler) {
    if (!sampler) return;
    pf_free(sampler->items);
    pf_free(sampler->weights);
    pf_free(sampler);
}

static pf_status reserve(pf_sampler *s, int64_t n, pf_error *err) {
    if (n <= s->capacity) return PF_OK;
    candidate *items = pf_calloc((size_t)n, sizeof *items);
    double *weights = pf_calloc((size_t)n, sizeof *weights);
    if (!items || !weights) {
        pf_free(items);
        pf_free(weights);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for sampling from %lld logits", (long long)n);
    }
    pf_free(s->items);
    pf_free(s->weights);
    s->items = items;
    s->weights = weights;
    s->capacity = n;
    return PF_OK;
}

/* Checks the logits and finds the highest, the lowest id among equals. */
static pf_status find_highest(const float *logits, int64_t n, int32_t *highest, pf_error *err) {
    const float infinity = INFINITY;
    float max = -infinity;
    *highest = -1;
    for (int64_t i = 0; i < n; i++) {
        if (logits[i] > max) {
            max = logits[i];
            *highest = (int32_t)i;
        } else if (logits[i] != logits[i]) {
            return pf_fail(err, PF_ERR_ARGUMENT, "logit %lld is not a number", (long long)i);
        }
    }
    if (*highest < 0) return pf_fail(err, PF_ERR_ARGUMENT, "no token can be picked: every logit is minus infinity");
    if (max == infinity) return pf_fail(err, PF_ERR_ARGUMENT, "logit %d is infinite", *highest);
    return PF_OK;
}

/* Draws one of items[0 .. n). */
static int32_t draw(pf_sampler *s, int64_t n, double max) {
    double temperature = s->params.temperature;
    double total = 0.0;
    for (int64_t i = 0; i < n; i++) {
        s->weights[i] = exp_nonpositive((s->items[i].logit - max) / temperature);
        total += s->weights[i];
    }
    double target = (double)(next_random(s->state) >> 11) * 0x1p-53 * total;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        if (s->weights[i] == 0.0) continue;
        last = i;
        target -= s->weights[i];
        if (target < 0.0) break;
    }
    return s->items[last].id;
}

static int32_t filter_and_draw(pf_sampler *s, const float *logits, int64_t n_vocab, double max) {
    const pf_sampler_params *p = &s->params;
    int64_t n = 0;
    for (int64_t i = 0; i < n_vocab; i++) s->items[n++] = (candidate){logits[i], (int32_t)i};
    bool sorted = p->top_k > 0 && p->top_k < n_vocab;
    if (sorted) n = keep_top_k(s->items, n, p->top_k);
    if (p->top_p < 1.0f) n = keep_top_p(s->items, n, p->top_p, max, sorted);
    if (p->min_p > 0.0f) n = keep_min_p(s->items, n, p->min_p, max);
    return draw(s, n, max);
}

pf_status pf_sampler_pick(pf_sampler *sampler, const float *logits, int64_t n_vocab, int32_t *token, float *logprob,
                          pf_error *err) {
    if (!sampler || !logits || !token || n_vocab < 1 || n_vocab > INT32_MAX) {
        return pf_fail(err, PF_ERR_ARGUMENT, "sampler: a null pointer or no logits were passed");
    }
    int32_t picked;
    pf_status status = find_highest(logits, n_vocab, &picked, err);
    if (status == PF_OK && sampler->params.temperature > 0.0f) status = reserve(sampler, n_vocab, err);
    if (status != PF_OK) return status;
    double max = logits[picked];
    if (sampler->params.temperature > 0.0f) picked = filter_and_draw(sampler, logits, n_vocab, max);
    if (logprob) {
        double total = 0.0;
        for (int64_t i = 0; i < n_vocab; i++) total += exp_nonpositive(logits[i] - max);
        *logprob = (float)((logits[picked] - max) - log_positive(total));
    }
    *token = picked;
    return PF_OK;
}
