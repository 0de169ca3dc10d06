#include "runtime/logits.h"

#include "base/arith.h"

#include <math.h> /* INFINITY */
#include <stdbool.h>

enum { PIECE = 256 }; /* logits whose weights are computed at once, in the nearest cache */

static void weights_of_piece(double *weights, const float *logits, int64_t n, double max, double temperature) {
    double inside[PIECE];
    for (int64_t i = 0; i < n; i++) weights[i] = (logits[i] - max) / temperature;
    for (int64_t i = 0; i < n; i++) inside[i] = weights[i] < PF_EXP_LEAST ? PF_EXP_LEAST : weights[i];
    for (int64_t i = 0; i < n; i++) inside[i] = pf_exp_in_range(inside[i]);
    for (int64_t i = 0; i < n; i++) weights[i] = weights[i] < PF_EXP_LEAST ? 0.0 : inside[i];
}

void pf_logits_weights(double *weights, const float *logits, int64_t n, double max, double temperature) {
    for (int64_t i = 0; i < n; i += PIECE) {
        weights_of_piece(weights + i, logits + i, pf_min_i64(PIECE, n - i), max, temperature);
    }
}

double pf_sum(const double *values, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return sum;
}

/* For total >= 1: total = m 2^e with m near 1, log m = 2 artanh((m - 1) / (m + 1)). */
double pf_log_total(double total) {
    uint64_t bits;
    memcpy(&bits, &total, sizeof bits);
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

/* The way out of logits that nothing can be picked from. */
#define CHECK_THE_MODEL                                                                                       \
    "if a model gave it, its weights may be damaged; check the file with `pyflash info --verify FILE`, or "   \
    "convert it again"

pf_status pf_logits_highest(const float *logits, int64_t n, int32_t *highest, pf_error *err) {
    const float infinity = INFINITY;
    float max = -infinity;
    int32_t found = -1;
    for (int64_t i = 0; i < n; i++) {
        if (logits[i] > max) {
            max = logits[i];
            found = (int32_t)i;
        } else if (logits[i] != logits[i]) {
            return pf_fail(err, PF_ERR_ARGUMENT, "logit %lld is not a number: " CHECK_THE_MODEL, (long long)i);
        }
    }
    if (found < 0) return pf_fail(err, PF_ERR_ARGUMENT, "no token can be picked: every logit is minus infinity");
    if (max == infinity) return pf_fail(err, PF_ERR_ARGUMENT, "logit %d is infinite: " CHECK_THE_MODEL, found);
    *highest = found;
    return PF_OK;
}

double pf_logits_log_total(const float *logits, int64_t n, double max) {
    double weights[PIECE];
    double total = 0.0;
    for (int64_t i = 0; i < n; i += PIECE) {
        int64_t here = pf_min_i64(PIECE, n - i);
        weights_of_piece(weights, logits + i, here, max, 1.0);
        for (int64_t j = 0; j < here; j++) total += weights[j];
    }
    return pf_log_total(total);
}

/* ---- The likeliest ----------------------------------------------------------------------------------------- */

/* Whether token a comes after token b in the order of pf_top_logprobs(). */
static inline bool follows(const float *logits, int32_t a, int32_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

/* A heap with the last in that order on top. */
static void sift_down(const float *logits, int32_t *heap, int64_t n, int64_t i) {
    int32_t item = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && follows(logits, heap[child + 1], heap[child])) child++;
        if (!follows(logits, heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

pf_status pf_top_logprobs(const float *logits, int64_t n_vocab, int32_t n, int32_t *tokens, float *logprobs,
                          pf_error *err) {
    if (!logits || n_vocab < 1 || n_vocab > INT32_MAX || (n > 0 && (!tokens || !logprobs))) {
        return pf_fail(err, PF_ERR_ARGUMENT, "top logprobs: a null pointer or no logits were passed");
    }
    if (n < 0 || n > n_vocab) {
        return pf_fail(err, PF_ERR_ARGUMENT, "top logprobs: ask for 0 to %lld, not %d", (long long)n_vocab, n);
    }
    int32_t highest = 0;
    PF_TRY(pf_logits_highest(logits, n_vocab, &highest, err));
    if (n == 0) return PF_OK;
    for (int32_t i = 0; i < n; i++) tokens[i] = i;
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift_down(logits, tokens, n, i);
    for (int32_t id = n; id < n_vocab; id++) {
        if (!follows(logits, tokens[0], id)) continue;
        tokens[0] = id;
        sift_down(logits, tokens, n, 0);
    }
    for (int32_t rest = n - 1; rest > 0; rest--) {
        int32_t last = tokens[0];
        tokens[0] = tokens[rest];
        tokens[rest] = last;
        sift_down(logits, tokens, rest, 0);
    }
    double max = logits[highest];
    double log_total = pf_logits_log_total(logits, n_vocab, max);
    for (int32_t i = 0; i < n; i++) logprobs[i] = (float)((logits[tokens[i]] - max) - log_total);
    return PF_OK;
}
