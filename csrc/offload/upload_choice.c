#include "offload/upload_choice.h"

static const double kept = 0.9;      /* of a measurement's weight, after the next one */
static const double least_spread = 1e-3; /* of the numbers of tokens, in their mean's square, for a slope */

double pf_upload_host_seconds(const pf_upload_choice *c, int64_t n) {
    const double mean_n = c->n / c->weight, mean_t = c->t / c->weight;
    const double spread = c->nn / c->weight - mean_n * mean_n, common = c->nt / c->weight - mean_n * mean_t;
    const double steepest = mean_t / mean_n; /* nothing for no tokens */
    double slope = spread > least_spread * mean_n * mean_n ? common / spread : steepest;
    if (slope > steepest) slope = steepest;
    if (slope < 0.0) slope = 0.0;
    return mean_t + slope * ((double)n - mean_n);
}

double pf_upload_device_seconds(const pf_upload_choice *c, uint64_t bytes) {
    return c->seconds_per_byte * (double)bytes;
}

/* Whether a side that would take so long has not been measured for too long. */
static bool is_due(const pf_upload_choice *c, pf_upload_side side, double seconds) {
    return c->last != side && c->since_other >= (double)PF_UPLOAD_RETRY * seconds;
}

pf_upload_side pf_upload_choose(const pf_upload_choice *c, int64_t n, uint64_t bytes) {
    if (n < PF_UPLOAD_LEAST) return PF_UPLOAD_HOST;
    if (c->always) return PF_UPLOAD_DEVICE;
    const bool is_long = n >= PF_UPLOAD_TRY;
    for (int side = PF_UPLOAD_HOST; side <= PF_UPLOAD_DEVICE; ++side) {
        if (c->n_noted[side] >= (is_long ? PF_UPLOAD_TRIES : 1)) continue;
        return is_long ? (pf_upload_side)side : PF_UPLOAD_HOST;
    }
    const double host = pf_upload_host_seconds(c, n), device = pf_upload_device_seconds(c, bytes);
    if (device < host) return is_long && is_due(c, PF_UPLOAD_HOST, host) ? PF_UPLOAD_HOST : PF_UPLOAD_DEVICE;
    return is_long && is_due(c, PF_UPLOAD_DEVICE, device) ? PF_UPLOAD_DEVICE : PF_UPLOAD_HOST;
}

/* Counts a measurement. What is kept of the weight of those before it: nothing of the first one, nor of those so long ago
 * that the side was due. expected: seconds by those. */
static double note(pf_upload_choice *c, pf_upload_side side, double seconds, double expected) {
    const bool fresh = c->n_noted[side]++ < PF_UPLOAD_TRIES, stale = !fresh && is_due(c, side, expected);
    if (c->last != side || fresh) c->since_other = 0.0;
    if (!fresh) c->since_other += seconds;
    c->last = side;
    return fresh || stale ? 0.0 : kept;
}

void pf_upload_note_host(pf_upload_choice *c, int64_t n, double seconds) {
    const double expected = c->n_noted[PF_UPLOAD_HOST] > 0 ? pf_upload_host_seconds(c, n) : 0.0;
    const double keep = note(c, PF_UPLOAD_HOST, seconds, expected), tokens = (double)n;
    c->weight = keep * c->weight + 1.0;
    c->n = keep * c->n + tokens;
    c->nn = keep * c->nn + tokens * tokens;
    c->t = keep * c->t + seconds;
    c->nt = keep * c->nt + tokens * seconds;
}

void pf_upload_note_device(pf_upload_choice *c, uint64_t bytes, double seconds) {
    const double keep = note(c, PF_UPLOAD_DEVICE, seconds, pf_upload_device_seconds(c, bytes));
    c->seconds_per_byte = keep * c->seconds_per_byte + (1.0 - keep) * seconds / (double)bytes;
}
