/* Sampling from logits.
 *
 * The same seed, parameters and logits give the same tokens on every platform: the generator is xoshiro256** (Blackman
 * and Vigna, 2018) seeded through splitmix64, and all arithmetic has a fixed order, see runtime/logits.h.
 *
 * A step works on what the one before has left:
 *   allowed      the logit of every other token becomes minus infinity;
 *   penalties    see penalised() below;
 *   top_k        the k highest logits, the lower id first among equals;
 *   top_p        the shortest run of the highest whose share of the probability reaches top_p;
 *   min_p        those with at least min_p times the probability of the most likely token;
 *   temperature  the rest is drawn with weights exp(logit / temperature).
 * top_p and min_p look at probabilities of temperature 1. The most likely token always stays. */
#include "base/arith.h"
#include "base/memory.h"
#include "base/params.h"
#include "base/status.h"
#include "runtime/logits.h"

#include <float.h>
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
    int64_t n_vocab;    /* room of the next five */
    float *logits;      /* after mask and penalties; once there are candidates, theirs */
    int32_t *counts;    /* of each token in history; zero between picks */
    candidate *items;
    candidate *spare;   /* where they are sorted to */
    double *weights;    /* of the items, or of all logits */
    int32_t *history;   /* the last n_history tokens; a ring once there are penalty_last_n of them */
    int64_t n_history;
    int64_t next;       /* where the ring's next token goes, over the oldest */
    int64_t history_capacity;
};

/* ---- Random numbers ------------------------------------------------------------------------------------------ */

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

/* A number that is the lower the higher the logit is, equal for equal logits. */
static inline uint32_t rank_of(float logit) {
    float unsigned_zero = logit + 0.0f; /* -0.0 becomes 0.0 */
    uint32_t bits;
    memcpy(&bits, &unsigned_zero, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu;
}

/* Sorts candidates that stand in the order of their ids, the highest logit first, equals as they stand: by the ranks' bytes,
 * the lowest byte first, so that the time hardly depends on the logits. */
static void sort(pf_sampler *s, int64_t n) {
    int32_t counts[4][256] = {{0}};
    for (int64_t i = 0; i < n; i++) {
        uint32_t rank = rank_of(s->items[i].logit);
        for (int byte = 0; byte < 4; byte++) counts[byte][rank >> 8 * byte & 255]++;
    }
    for (int byte = 0; byte < 4; byte++) {
        int32_t places[256];
        int32_t place = 0;
        for (int value = 0; value < 256; value++) {
            places[value] = place;
            place += counts[byte][value];
        }
        for (int64_t i = 0; i < n; i++) {
            candidate item = s->items[i];
            s->spare[places[rank_of(item.logit) >> 8 * byte & 255]++] = item;
        }
        candidate *sorted = s->spare;
        s->spare = s->items;
        s->items = sorted;
    }
}

/* s->weights of the first n candidates, and their sum. */
static double weigh(pf_sampler *s, int64_t n, double max, double temperature) {
    for (int64_t i = 0; i < n; i++) s->logits[i] = s->items[i].logit;
    pf_logits_weights(s->weights, s->logits, n, max, temperature);
    return pf_sum(s->weights, n);
}

/* Keeps the candidates that weigh at least so much, in their order. Returns how many are left. */
static int64_t keep_heavy(pf_sampler *s, int64_t n, double least) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (s->weights[i] >= least) s->items[kept++] = s->items[i];
    }
    return kept;
}

/* The k first candidates in order: only those need sorting whose ranks begin like the last one's or before. Returns how many
 * are left. */
static int64_t keep_top_k(pf_sampler *s, int64_t n, int64_t k) {
    if (k > n) k = n;
    int32_t counts[2048] = {0};
    for (int64_t i = 0; i < n; i++) counts[rank_of(s->items[i].logit) >> 21]++;
    uint32_t last = 0;
    for (int64_t found = counts[0]; found < k; found += counts[last]) last++;
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) {
        if (rank_of(s->items[i].logit) >> 21 <= last) s->items[left++] = s->items[i];
    }
    sort(s, left);
    return k;
}

/* Returns how many are left, in order. `total` is what all n weigh at temperature 1, as s->weights has it. */
static int64_t keep_top_p(pf_sampler *s, int64_t n, double max, double total, bool sorted) {
    double top_p = s->params.top_p;
    double wanted = top_p * total;
    if (!sorted) {
        /* All that are lighter than this weigh half of what may be left out at most, so the run ends before them: half
         * of 1 - top_p, a float's, is far above what sums of doubles are off by. */
        n = keep_heavy(s, n, (1.0 - top_p) * total / (2.0 * (double)n));
        sort(s, n);
        weigh(s, n, max, 1.0);
    }
    double sum = 0.0;
    int64_t kept = 0;
    while (kept < n && (kept == 0 || sum < wanted)) sum += s->weights[kept++];
    return kept;
}

/* ---- Penalties --------------------------------------------------------------------------------------------- */

static bool has_penalties(const pf_sampler_params *p) {
    bool neutral = p->repetition_penalty == 1.0f && p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f;
    return !neutral && p->penalty_last_n != 0;
}

/* Most tokens that the history holds. */
static int64_t history_limit(const pf_sampler *s) {
    return s->params.penalty_last_n < 0 ? INT64_MAX : s->params.penalty_last_n;
}

/* Room for n more tokens. */
static pf_status reserve_history(pf_sampler *s, int64_t n, pf_error *err) {
    int64_t limit = history_limit(s);
    int64_t wanted = n < limit - s->n_history ? s->n_history + n : limit;
    if (wanted <= s->history_capacity) return PF_OK;
    int64_t capacity = pf_min_i64(limit, pf_max_i64(wanted, 2 * s->history_capacity));
    if (capacity < 64) capacity = pf_min_i64(limit, 64);
    int32_t *history = pf_calloc((size_t)capacity, sizeof *history);
    if (!history) return pf_fail(err, PF_ERR_MEMORY, "out of memory for the penalties' last %lld tokens",
                                 (long long)capacity);
    /* It has not wrapped yet, because it grows only below its limit. */
    if (s->n_history > 0) memcpy(history, s->history, (size_t)s->n_history * sizeof *history);
    pf_free(s->history);
    s->history = history;
    s->history_capacity = capacity;
    return PF_OK;
}

/* Needs the room. */
static void remember(pf_sampler *s, int32_t token) {
    if (s->n_history < s->history_capacity) {
        s->history[s->n_history++] = token;
        return;
    }
    s->history[s->next] = token;
    s->next = (s->next + 1) % s->history_capacity;
}

/* The logit of a token that is in the history `count` times, in float32 with one rounding a step. */
static float penalised(const pf_sampler_params *p, float logit, int32_t count) {
    if (logit < -FLT_MAX) return logit;
    float scaled = logit > 0.0f ? logit / p->repetition_penalty : logit * p->repetition_penalty;
    float subtracted = (float)count * p->frequency_penalty;
    subtracted = subtracted + p->presence_penalty;
    float result = scaled - subtracted;
    if (result > FLT_MAX) return FLT_MAX;
    return result < -FLT_MAX ? -FLT_MAX : result;
}

/* Applies the penalties to s->logits. */
static void penalise(pf_sampler *s, int64_t n_vocab) {
    for (int64_t i = 0; i < s->n_history; i++) {
        if (s->history[i] < n_vocab) s->counts[s->history[i]]++;
    }
    for (int64_t i = 0; i < s->n_history; i++) {
        int32_t token = s->history[i];
        if (token >= n_vocab || s->counts[token] == 0) continue;
        s->logits[token] = penalised(&s->params, s->logits[token], s->counts[token]);
        s->counts[token] = 0;
    }
}

/* ---- The sampler ------------------------------------------------------------------------------------------- */

void pf_sampler_params_init(pf_sampler_params *params) {
    *params = (pf_sampler_params){.struct_size = sizeof *params, .temperature = 1.0f, .top_p = 1.0f,
                                  .repetition_penalty = 1.0f, .penalty_last_n = 64};
}

/* The comparisons are written so that a NaN fails them. */
static pf_status check_params(const pf_sampler_params *p, pf_error *err) {
    if (!(p->temperature >= 0.0f && p->temperature <= 1e30f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "temperature must be 0 or more, not %g", (double)p->temperature);
    }
    if (p->top_k < 0) return pf_fail(err, PF_ERR_ARGUMENT, "top_k must be 0 (off) or more, not %d", p->top_k);
    if (!(p->top_p >= 0.0f && p->top_p <= 1.0f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "top_p must be between 0 and 1 (off), not %g", (double)p->top_p);
    }
    if (!(p->min_p >= 0.0f && p->min_p <= 1.0f)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "min_p must be between 0 (off) and 1, not %g", (double)p->min_p);
    }
    if (!(p->repetition_penalty > 0.0f && p->repetition_penalty <= FLT_MAX)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "repetition_penalty must be more than 0 (1: off), not %g",
                       (double)p->repetition_penalty);
    }
    if (!(p->presence_penalty >= -FLT_MAX && p->presence_penalty <= FLT_MAX)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "presence_penalty must be a finite number (0: off), not %g",
                       (double)p->presence_penalty);
    }
    if (!(p->frequency_penalty >= -FLT_MAX && p->frequency_penalty <= FLT_MAX)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "frequency_penalty must be a finite number (0: off), not %g",
                       (double)p->frequency_penalty);
    }
    if (p->penalty_last_n < -1) {
        return pf_fail(err, PF_ERR_ARGUMENT, "penalty_last_n must be -1 (all), 0 (none) or more, not %d",
                       p->penalty_last_n);
    }
    return PF_OK;
}

pf_status pf_sampler_open(const pf_sampler_params *given, pf_sampler **out, pf_error *err) {
    pf_sampler_params params;
    pf_sampler_params_init(&params);
    if (!out || !pf_params_take(&params, sizeof params, given)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "sampler: fill the parameters with pf_sampler_params_init() first");
    }
    PF_TRY(check_params(&params, err));
    pf_sampler *sampler = pf_calloc(1, sizeof *sampler);
    if (!sampler) return pf_fail(err, PF_ERR_MEMORY, "out of memory for a sampler");
    sampler->params = params;
    seed_random(sampler->state, params.seed);
    *out = sampler;
    return PF_OK;
}

static void free_room(pf_sampler *s) {
    pf_free(s->logits);
    pf_free(s->counts);
    pf_free(s->items);
    pf_free(s->spare);
    pf_free(s->weights);
}

void pf_sampler_close(pf_sampler *sampler) {
    if (!sampler) return;
    free_room(sampler);
    pf_free(sampler->history);
    pf_free(sampler);
}

static pf_status reserve(pf_sampler *s, int64_t n, pf_error *err) {
    if (n <= s->n_vocab) return PF_OK;
    pf_sampler room = {
        .logits = pf_calloc((size_t)n, sizeof *room.logits),
        .counts = pf_calloc((size_t)n, sizeof *room.counts),
        .items = pf_calloc((size_t)n, sizeof *room.items),
        .spare = pf_calloc((size_t)n, sizeof *room.spare),
        .weights = pf_calloc((size_t)n, sizeof *room.weights),
    };
    if (!room.logits || !room.counts || !room.items || !room.spare || !room.weights) {
        free_room(&room);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for sampling from %lld logits", (long long)n);
    }
    free_room(s);
    s->logits = room.logits;
    s->counts = room.counts;
    s->items = room.items;
    s->spare = room.spare;
    s->weights = room.weights;
    s->n_vocab = n;
    return PF_OK;
}

pf_status pf_sampler_accept(pf_sampler *sampler, const int32_t *tokens, int64_t n_tokens, pf_error *err) {
    if (!sampler || n_tokens < 0 || (!tokens && n_tokens > 0)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "sampler: a null pointer or a negative number of tokens was passed");
    }
    for (int64_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0) {
            return pf_fail(err, PF_ERR_ARGUMENT, "sampler: token %lld is %d, which is no token's id", (long long)i,
                           tokens[i]);
        }
    }
    if (!has_penalties(&sampler->params)) return PF_OK;
    PF_TRY(reserve_history(sampler, n_tokens, err));
    for (int64_t i = 0; i < n_tokens; i++) remember(sampler, tokens[i]);
    return PF_OK;
}

static bool has_filters(const pf_sampler_params *p) { return p->top_k > 0 || p->top_p < 1.0f || p->min_p > 0.0f; }

/* Draws one of n weights. */
static int64_t draw(pf_sampler *s, int64_t n, double total) {
    double target = (double)(next_random(s->state) >> 11) * 0x1p-53 * total;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        if (s->weights[i] == 0.0) continue;
        last = i;
        target -= s->weights[i];
        if (target < 0.0) break;
    }
    return last;
}

/* Draws one of all logits. total: what they weigh at temperature 1, where that had to be computed, else it is left alone. */
static int32_t draw_any(pf_sampler *s, const float *logits, int64_t n_vocab, double max, double *total) {
    double temperature = s->params.temperature;
    pf_logits_weights(s->weights, logits, n_vocab, max, temperature);
    double all = pf_sum(s->weights, n_vocab);
    if (temperature == 1.0) *total = all;
    return (int32_t)draw(s, n_vocab, all);
}

/* The same of those that the filters leave. */
static int32_t filter_and_draw(pf_sampler *s, const float *logits, int64_t n_vocab, double max, double *total) {
    const pf_sampler_params *p = &s->params;
    int64_t n = 0;
    for (int64_t i = 0; i < n_vocab; i++) {
        if (logits[i] >= -FLT_MAX) s->items[n++] = (candidate){logits[i], (int32_t)i}; /* the others weigh nothing */
    }
    const bool has_top_k = p->top_k > 0 && p->top_k < n_vocab;
    if (has_top_k) n = keep_top_k(s, n, p->top_k);
    if (p->top_p < 1.0f) {
        double all = weigh(s, n, max, 1.0);
        if (!has_top_k) *total = all;
        n = keep_top_p(s, n, max, all, has_top_k);
    }
    if (p->min_p > 0.0f) {
        weigh(s, n, max, 1.0);
        n = keep_heavy(s, n, p->min_p);
    }
    double left = weigh(s, n, max, p->temperature);
    return s->items[draw(s, n, left)].id;
}

/* Copies the logits, those that are not allowed as minus infinity. Returns whether any is allowed. */
static bool mask(float *out, const float *logits, int64_t n_vocab, const uint32_t *allowed) {
    bool any = false;
    for (int64_t begin = 0; begin < n_vocab; begin += 32) {
        int64_t n = pf_min_i64(32, n_vocab - begin);
        uint32_t bits = allowed ? allowed[begin / 32] : UINT32_MAX;
        if (n < 32) bits &= (UINT32_C(1) << n) - 1; /* those beyond the vocabulary mean nothing */
        any = any || bits != 0;
        if (bits == UINT32_MAX) {
            memcpy(out + begin, logits + begin, 32 * sizeof *out);
        } else {
            for (int64_t i = 0; i < n; i++) out[begin + i] = -INFINITY;
            for (int i = 0; bits != 0; i++, bits >>= 1) {
                if ((bits & 1u) != 0) out[begin + i] = logits[begin + i];
            }
        }
    }
    return any;
}

pf_status pf_sampler_pick_allowed(pf_sampler *sampler, const float *logits, int64_t n_vocab, const uint32_t *allowed,
                                  int32_t *token, float *logprob, pf_error *err) {
    if (!sampler || !logits || !token || n_vocab < 1 || n_vocab > INT32_MAX) {
        return pf_fail(err, PF_ERR_ARGUMENT, "sampler: a null pointer or no logits were passed");
    }
    const bool penalties = has_penalties(&sampler->params);
    const bool random = sampler->params.temperature > 0.0f;
    int32_t highest = 0;
    PF_TRY(pf_logits_highest(logits, n_vocab, &highest, err));
    if (random || penalties || allowed) PF_TRY(reserve(sampler, n_vocab, err));
    if (penalties) PF_TRY(reserve_history(sampler, 1, err));

    int32_t picked = highest;
    const float *adjusted = logits;
    if (penalties || allowed) {
        bool any = mask(sampler->logits, logits, n_vocab, allowed);
        if (penalties) penalise(sampler, n_vocab);
        adjusted = sampler->logits;
        if (pf_logits_highest(adjusted, n_vocab, &picked, NULL) != PF_OK) {
            return pf_fail(err, PF_ERR_ARGUMENT, "no token can be picked: %s",
                           any ? "every allowed logit is minus infinity" : "none is allowed");
        }
    }
    double total = 0.0;
    if (random) {
        bool all = !allowed && !has_filters(&sampler->params);
        picked = (all ? draw_any : filter_and_draw)(sampler, adjusted, n_vocab, adjusted[picked], &total);
    }
    if (logprob) {
        double max = logits[highest];
        bool is_known = total > 0.0 && adjusted == logits;
        double log_total = is_known ? pf_log_total(total) : pf_logits_log_total(logits, n_vocab, max);
        *logprob = (float)((logits[picked] - max) - log_total);
    }
    if (penalties) remember(sampler, picked);
    *token = picked;
    return PF_OK;
}

pf_status pf_sampler_pick(pf_sampler *sampler, const float *logits, int64_t n_vocab, int32_t *token, float *logprob,
                          pf_error *err) {
    return pf_sampler_pick_allowed(sampler, logits, n_vocab, NULL, token, logprob, err);
}
