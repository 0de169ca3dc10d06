#include "quantize/k.h"

#include "format/dtypes.h"
#include "format/floats.h"
#include "quantize/normalise.h"
#include "quantize/search_loops.h"

#include <math.h>
#include <stddef.h>

enum { VALUES = 256, MOST_SUBS = 16, ROUNDS = 4 };

/* y = d s q - dmin m, s and m from 0 to most_scale, q from 0 to most_code; or y = d s q, s from least_scale, q from
 * least_code. */
typedef struct k_format {
    uint32_t type;
    int sub; /* values that share a scale */
    bool has_minimum;
    int least_code, most_code, least_scale, most_scale;
    void (*pack)(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block);
} k_format;

/* ---- Layouts (format/blocks_k.c); codes count from 0 ---------------------------------------------------------- */

static void store_u16(uint8_t *p, uint16_t value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

/* Codes of two bits: 32 bytes hold 128 values, those with the same shift next to each other. */
static void pack_pairs(const uint8_t *codes, uint8_t *out) {
    for (int half = 0; half < 2; ++half) {
        for (int j = 0; j < 32; ++j) {
            const uint8_t *c = codes + 128 * half + j;
            out[32 * half + j] = (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
    }
}

static void pack_q2_k(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block) {
    for (int k = 0; k < 16; ++k) block[k] = (uint8_t)(scales[k] | minima[k] << 4);
    pack_pairs(codes, block + 16);
    store_u16(block + 80, d);
    store_u16(block + 82, dmin);
}

static void pack_q3_k(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block) {
    (void)minima, (void)dmin;
    for (int j = 0; j < 32; ++j) {
        uint32_t high = 0;
        for (int k = 0; k < 8; ++k) high |= (uint32_t)(codes[32 * k + j] >> 2) << k;
        block[j] = (uint8_t)high;
    }
    pack_pairs(codes, block + 32);
    for (int k = 0; k < 8; ++k) {
        block[96 + k] = (uint8_t)(((scales[k] + 32) & 15) | ((scales[k + 8] + 32) & 15) << 4);
    }
    for (int k = 0; k < 4; ++k) {
        uint32_t high = 0;
        for (int j = 0; j < 4; ++j) high |= (uint32_t)((scales[4 * j + k] + 32) >> 4) << 2 * j;
        block[104 + k] = (uint8_t)high;
    }
    store_u16(block + 108, d);
}

/* Eight scales and minima of six bits in 12 bytes. */
static void pack_q45_scales(const int *scales, const int *minima, uint8_t *out) {
    for (int k = 0; k < 4; ++k) {
        out[k] = (uint8_t)(scales[k] | (scales[k + 4] >> 4) << 6);
        out[4 + k] = (uint8_t)(minima[k] | (minima[k + 4] >> 4) << 6);
        out[8 + k] = (uint8_t)((scales[k + 4] & 15) | (minima[k + 4] & 15) << 4);
    }
}

/* Low nibbles: of every 32 bytes, the low ones are 32 values and the high ones the next 32. */
static void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    for (int part = 0; part < 4; ++part) {
        for (int j = 0; j < 32; ++j) {
            const uint8_t *c = codes + 64 * part + j;
            out[32 * part + j] = (uint8_t)((c[0] & 15) | (c[32] & 15) << 4);
        }
    }
}

static void pack_q4_k(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block) {
    store_u16(block, d);
    store_u16(block + 2, dmin);
    pack_q45_scales(scales, minima, block + 4);
    pack_nibbles(codes, block + 16);
}

static void pack_q5_k(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block) {
    pack_q4_k(codes, scales, minima, d, dmin, block); /* the first 16 bytes; the rest is written below */
    for (int j = 0; j < 32; ++j) {
        uint32_t high = 0;
        for (int k = 0; k < 8; ++k) high |= (uint32_t)(codes[32 * k + j] >> 4) << k;
        block[16 + j] = (uint8_t)high;
    }
    pack_nibbles(codes, block + 48);
}

static void pack_q6_k(const uint8_t *codes, const int *scales, const int *minima, uint16_t d, uint16_t dmin, uint8_t *block) {
    (void)minima, (void)dmin;
    for (int half = 0; half < 2; ++half) {
        const uint8_t *c = codes + 128 * half;
        for (int j = 0; j < 64; ++j) block[64 * half + j] = (uint8_t)((c[j] & 15) | (c[j + 64] & 15) << 4);
        for (int j = 0; j < 32; ++j) {
            block[128 + 32 * half + j] =
                (uint8_t)(c[j] >> 4 | (c[j + 32] >> 4) << 2 | (c[j + 64] >> 4) << 4 | (c[j + 96] >> 4) << 6);
        }
    }
    for (int k = 0; k < 16; ++k) block[192 + k] = (uint8_t)(int8_t)scales[k];
    store_u16(block + 208, d);
}

static const k_format formats[] = {
    {PF_Q2_K, 16, true, 0, 3, 0, 15, pack_q2_k},      {PF_Q3_K, 16, false, -4, 3, -32, 31, pack_q3_k},
    {PF_Q4_K, 32, true, 0, 15, 0, 63, pack_q4_k},     {PF_Q5_K, 32, true, 0, 31, 0, 63, pack_q5_k},
    {PF_Q6_K, 16, false, -32, 31, -128, 127, pack_q6_k},
};

static const k_format *format_of(uint32_t type) {
    for (size_t k = 0; k < sizeof formats / sizeof formats[0]; ++k) {
        if (formats[k].type == type) return &formats[k];
    }
    return NULL;
}

bool pf_quantize_k_knows(uint32_t type) { return format_of(type) != NULL; }

/* ---- A sub-block -------------------------------------------------------------------------------------------- */

typedef struct sub_block {
    const float *x, *w;
    double sum_w, sum_x, sum_xx; /* of w, w x, w x^2 */
    float scale, minimum;        /* y = scale q - minimum, by real numbers */
} sub_block;

typedef struct search {
    const k_format *format;
    const pf_search_loops *loops;
    sub_block subs[MOST_SUBS];
    int n_sub;
} search;

/* Integers of all sub-blocks, and what they make of d and dmin:
 * err = xx + d^2 dd + dmin^2 mm - 2 d dx + 2 dmin mx - 2 d dmin dm */
typedef struct choice {
    int scales[MOST_SUBS], minima[MOST_SUBS];
    double error, dd, mm, dx, mx, dm;
} choice;

/* Scales and minima side by side, with what their codes add up to. */
typedef struct tried {
    int n;
    float scale[PF_TRIED], minimum[PF_TRIED];
    pf_code_sums sums;
} tried;

static void add_tried(tried *t, float scale, float minimum) {
    t->scale[t->n] = scale;
    t->minimum[t->n++] = minimum;
}

static void find_sums(const search *s, const sub_block *b, tried *t) {
    const k_format *f = s->format;
    float inverse[PF_TRIED], offset[PF_TRIED];
    for (int k = 0; k < PF_TRIED; ++k) {
        inverse[k] = k < t->n && t->scale[k] != 0.0f ? 1.0f / t->scale[k] : 0.0f;
        offset[k] = k < t->n ? t->minimum[k] : 0.0f;
    }
    s->loops->code_sums(b->x, b->w, f->sub, inverse, offset, (float)f->least_code, (float)f->most_code, &t->sums);
}

/* With the codes of number k, and this scale and minimum. */
static double error_of(const sub_block *b, const tried *t, int k, double scale, double minimum) {
    return b->sum_xx + scale * scale * t->sums.qq[k] + minimum * minimum * b->sum_w - 2.0 * scale * t->sums.qx[k] +
           2.0 * minimum * b->sum_x - 2.0 * scale * minimum * t->sums.q[k];
}

/* Least squares for a scale and a minimum >= 0, given the codes of number k; false where there is none. */
static bool fit(const sub_block *b, const tried *t, int k, bool has_minimum, float *scale, float *minimum) {
    const double q = t->sums.q[k], qq = t->sums.qq[k], qx = t->sums.qx[k];
    double minimum_found = 0.0, scale_found = qq > 0.0 ? qx / qq : 0.0;
    if (has_minimum) {
        const double determinant = b->sum_w * qq - q * q;
        if (determinant > 1e-9 * b->sum_w * qq) {
            const double m = (q * qx - qq * b->sum_x) / determinant;
            if (m > 0.0) {
                scale_found = (b->sum_w * qx - b->sum_x * q) / determinant;
                minimum_found = m;
            }
        }
        if (scale_found <= 0.0) return false;
    }
    *scale = (float)scale_found;
    *minimum = (float)minimum_found;
    return scale_found != 0.0;
}

/* The best that were fitted, the best first. */
typedef struct fitted {
    int n;
    float scale[PF_TRIED], minimum[PF_TRIED];
    double error[PF_TRIED];
} fitted;

static void keep_fitted(fitted *best, float scale, float minimum, double error) {
    if (best->n == PF_TRIED && !(error < best->error[PF_TRIED - 1])) return;
    int at = best->n < PF_TRIED ? best->n++ : PF_TRIED - 1;
    for (; at > 0 && error < best->error[at - 1]; --at) {
        best->scale[at] = best->scale[at - 1];
        best->minimum[at] = best->minimum[at - 1];
        best->error[at] = best->error[at - 1];
    }
    best->scale[at] = scale;
    best->minimum[at] = minimum;
    best->error[at] = error;
}

/* Fits what is tried to its codes, and begins anew. */
static void fit_tried(const search *s, const sub_block *b, tried *t, fitted *best) {
    if (t->n == 0) return;
    find_sums(s, b, t);
    for (int k = 0; k < t->n; ++k) {
        float scale, minimum;
        if (!fit(b, t, k, s->format->has_minimum, &scale, &minimum)) continue;
        keep_fitted(best, scale, minimum, error_of(b, t, k, scale, minimum));
    }
    t->n = 0;
}

static void find_ends(const k_format *f, sub_block *b, float *low, float *high) {
    *low = *high = 0.0f;
    b->sum_w = b->sum_x = b->sum_xx = 0.0;
    for (int i = 0; i < f->sub; ++i) {
        b->sum_w += b->w[i];
        b->sum_x += (double)b->w[i] * b->x[i];
        b->sum_xx += (double)b->w[i] * b->x[i] * b->x[i];
        if (b->x[i] < *low) *low = b->x[i];
        if (b->x[i] > *high) *high = b->x[i];
    }
}

/* The best real scale and minimum of a sub-block that are found when its ends are cut by various shares. */
static void fit_sub(const search *s, sub_block *b) {
    const k_format *f = s->format;
    float low, high;
    find_ends(f, b, &low, &high);
    tried t = {.n = 0};
    fitted best = {.n = 0};
    if (f->has_minimum) {
        const int n_cut = f->most_code <= 3 ? 5 : 4;
        const float step = f->most_code <= 3 ? 0.17f : 0.08f;
        for (int cut = 0; cut < n_cut * n_cut; ++cut) {
            const float from = low * (1.0f - step * (float)(cut / n_cut)), to = high * (1.0f - step * (float)(cut % n_cut));
            if (to > from) add_tried(&t, (to - from) / (float)f->most_code, -from);
            if (t.n == PF_TRIED) fit_tried(s, b, &t, &best);
        }
    } else {
        const float most = high > -low ? high : -low;
        for (int cut = 0; cut < 8 && most > 0.0f; ++cut) {
            const float scale = most * (1.05f - 0.08f * (float)cut) / (float)-f->least_code;
            add_tried(&t, scale, 0.0f);
            add_tried(&t, -scale, 0.0f);
            if (t.n == PF_TRIED) fit_tried(s, b, &t, &best);
        }
    }
    fit_tried(s, b, &t, &best);
    for (int again = 0; again < 2 && best.n > 0; ++again) {
        const fitted before = best;
        best.n = 0;
        for (int k = 0; k < before.n; ++k) add_tried(&t, before.scale[k], before.minimum[k]);
        fit_tried(s, b, &t, &best);
        keep_fitted(&best, before.scale[0], before.minimum[0], before.error[0]);
    }
    const bool is_better = best.n > 0 && best.error[0] < b->sum_xx;
    b->scale = is_better ? best.scale[0] : 0.0f;
    b->minimum = is_better ? best.minimum[0] : 0.0f;
}

/* ---- A super-block ------------------------------------------------------------------------------------------ */

static int held(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

/* A sub-block's best integers so far, with their error and what they make of d and dmin. */
typedef struct integers {
    int scale, minimum;
    double error, q, qq, qx;
} integers;

/* Tries integers: those of t, which are held to what the format has. */
static void try_integers(const search *s, const sub_block *b, float d, float dmin, tried *t, integers *best) {
    const k_format *f = s->format;
    int scales[PF_TRIED], minima[PF_TRIED];
    for (int k = 0; k < t->n; ++k) {
        scales[k] = held((int)t->scale[k], f->least_scale, f->most_scale);
        minima[k] = held((int)t->minimum[k], 0, f->most_scale);
        t->scale[k] = d * (float)scales[k];
        t->minimum[k] = dmin * (float)minima[k];
    }
    find_sums(s, b, t);
    for (int k = 0; k < t->n; ++k) {
        const double error = error_of(b, t, k, t->scale[k], t->minimum[k]);
        if (error < best->error) {
            *best = (integers){scales[k], minima[k], error, t->sums.q[k], t->sums.qq[k], t->sums.qx[k]};
        }
    }
}

/* The best integers near those wanted of a sub-block. */
static integers choose_near(const search *s, const sub_block *b, float d, float dmin, int at, int at_minimum) {
    /* Not those that shift all values one way: up with a larger scale and a smaller minimum. */
    static const int near[PF_TRIED][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {-1, -1}, {1, 1}, {-1, 1}};
    integers best = {.error = INFINITY};
    tried t = {.n = 0};
    if (s->format->has_minimum) {
        for (int k = 0; k < PF_TRIED; ++k) add_tried(&t, (float)(at + near[k][0]), (float)(at_minimum + near[k][1]));
        try_integers(s, b, d, dmin, &t, &best);
        return best;
    }
    for (int sign = 1; sign >= -1; sign -= 2) {
        t.n = 0;
        for (int k = 0; k < PF_TRIED; ++k) add_tried(&t, (float)(sign * (at - 3 + k)), 0.0f);
        try_integers(s, b, d, 0.0f, &t, &best);
    }
    return best;
}

/* The best integers for d and dmin, near those of *from or, without, near the real numbers; gives up when the error is no
 * longer below `below`. */
static void choose(const search *s, float d, float dmin, const choice *from, double below, choice *c) {
    c->error = c->dd = c->mm = c->dx = c->mx = c->dm = 0.0;
    for (int k = 0; k < s->n_sub && c->error < below; ++k) {
        const sub_block *b = &s->subs[k];
        const int at = from != NULL ? from->scales[k] : (int)lrintf(b->scale / d);
        const int at_minimum = from != NULL ? from->minima[k] : dmin > 0.0f ? (int)lrintf(b->minimum / dmin) : 0;
        const integers best = choose_near(s, b, d, dmin, at, at_minimum);
        const double scale = best.scale, minimum = best.minimum;
        c->scales[k] = best.scale;
        c->minima[k] = best.minimum;
        c->error += best.error;
        c->dd += scale * scale * best.qq;
        c->mm += minimum * minimum * b->sum_w;
        c->dx += scale * best.qx;
        c->mx += minimum * b->sum_x;
        c->dm += scale * minimum * best.q;
    }
}

static float as_half(double value, float power, uint16_t *half) {
    *half = pf_f32_to_f16((float)value * power);
    return pf_f16_to_f32(*half) / power;
}

/* Least squares for d and dmin, given all integers. */
static void refit(const choice *c, bool has_minimum, double *d, double *dmin) {
    *d = c->dd > 0.0 ? c->dx / c->dd : 0.0;
    *dmin = 0.0;
    const double determinant = c->dd * c->mm - c->dm * c->dm;
    if (!has_minimum || !(determinant > 1e-12 * c->dd * c->mm)) return;
    const double both = (c->dm * c->dx - c->dd * c->mx) / determinant;
    if (both > 0.0) {
        *d = (c->mm * c->dx - c->dm * c->mx) / determinant;
        *dmin = both;
    }
}

typedef struct halves {
    uint16_t d, dmin;
    float d_value, dmin_value;
} halves;

static bool take(const search *s, double d, double dmin, float power, const choice *from, choice *best, halves *h) {
    halves next;
    next.d_value = as_half(d, power, &next.d);
    next.dmin_value = as_half(dmin, power, &next.dmin);
    if (next.d_value == 0.0f || (s->format->has_minimum && next.d_value < 0.0f)) return false;
    choice c;
    choose(s, next.d_value, next.dmin_value, from, best->error, &c);
    if (!(c.error < best->error)) return false;
    *best = c;
    *h = next;
    return true;
}

static void search_block(search *s, float power, choice *best, halves *h) {
    const k_format *f = s->format;
    float most_scale = 0.0f, most_minimum = 0.0f;
    for (int k = 0; k < s->n_sub; ++k) {
        fit_sub(s, &s->subs[k]);
        if (fabsf(s->subs[k].scale) > fabsf(most_scale)) most_scale = s->subs[k].scale;
        if (s->subs[k].minimum > most_minimum) most_minimum = s->subs[k].minimum;
    }
    *best = (choice){.error = INFINITY};
    *h = (halves){0, 0, 0.0f, 0.0f};
    const int n_tried = f->has_minimum ? 3 : 8;
    const double reach = f->has_minimum ? f->most_scale : f->least_scale;
    const double step = f->most_scale > 31 ? 0.02 : f->has_minimum ? 0.1 : 0.06;
    for (int k = 0; k < n_tried; ++k) {
        for (int m = 0; m < (f->has_minimum ? n_tried : 1); ++m) {
            const double d = most_scale / reach * (1.06 - step * k), dmin = most_minimum / reach * (1.06 - step * m);
            take(s, d, f->has_minimum ? dmin : 0.0, power, NULL, best, h);
        }
    }
    for (int round = 0; round < ROUNDS && best->error < INFINITY; ++round) {
        double d, dmin;
        const choice from = *best;
        refit(&from, f->has_minimum, &d, &dmin);
        if (!take(s, d, dmin, power, &from, best, h)) break;
    }
}

void pf_quantize_k_block(uint32_t type, const pf_search_loops *loops, const float *x, const float *weights,
                         uint8_t *block) {
    search s = {.format = format_of(type), .loops = loops};
    float scaled_x[VALUES], scaled_w[VALUES];
    const float of_x = pf_normalise(x, VALUES, scaled_x);
    pf_normalise(weights, VALUES, scaled_w);
    s.n_sub = VALUES / s.format->sub;
    for (int k = 0; k < s.n_sub; ++k) {
        s.subs[k].x = scaled_x + k * s.format->sub;
        s.subs[k].w = scaled_w + k * s.format->sub;
    }
    choice c;
    halves h;
    search_block(&s, of_x, &c, &h);
    uint8_t codes[VALUES];
    for (int i = 0; i < VALUES; ++i) {
        const int sub = i / s.format->sub;
        const float scale = h.d_value * (float)c.scales[sub], minimum = h.dmin_value * (float)c.minima[sub];
        const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        const float rounded = ((scaled_x[i] + minimum) * inverse + 0x1.8p23f) - 0x1.8p23f;
        const float code = rounded > (float)s.format->most_code ? (float)s.format->most_code : rounded;
        const float least = (float)s.format->least_code;
        codes[i] = (uint8_t)((int)(code < least ? least : code) - s.format->least_code);
    }
    s.format->pack(codes, c.scales, c.minima, h.d, h.dmin, block);
}
