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

/* Integers of all sub-blocks, and what they make of d and dmin: err = xx + d^2 dd + dmin^2 mm - 2 d dx + 2 dmin mx - 2 d dmin dm */
typedef struct choice {
    int scales[MOST_SUBS], minima[MOST_SUBS];
    double error, dd, mm, dx, mx, dm;
} choice;

static double error_of(const sub_block *b, const pf_code_sums *c, double scale, double minimum) {
    return b->sum_xx + scale * scale * c->qq + minimum * minimum * b->sum_w - 2.0 * scale * c->qx +
           2.0 * minimum * b->sum_x - 2.0 * scale * minimum * c->q;
}

static pf_code_sums sums_of(const search *s, const sub_block *b, float scale, float minimum) {
    const k_format *f = s->format;
    return s->loops->code_sums(b->x, b->w, f->sub, scale != 0.0f ? 1.0f / scale : 0.0f, minimum, (float)f->least_code,
                          (float)f->most_code);
}

/* Least squares for a scale and a minimum >= 0, given codes; false where there is none. */
static bool fit(const sub_block *b, const pf_code_sums *c, bool has_minimum, float *scale, float *minimum) {
    double minimum_found = 0.0, scale_found = c->qq > 0.0f ? c->qx / (double)c->qq : 0.0;
    if (has_minimum) {
        const double determinant = b->sum_w * c->qq - (double)c->q * c->q;
        if (determinant > 1e-9 * b->sum_w * c->qq) {
            const double a = (b->sum_w * c->qx - b->sum_x * c->q) / determinant;
            const double m = (c->q * (double)c->qx - c->qq * b->sum_x) / determinant;
            if (m > 0.0) {
                scale_found = a;
                minimum_found = m;
            }
        }
        if (scale_found <= 0.0) return false;
    }
    *scale = (float)scale_found;
    *minimum = (float)minimum_found;
    return scale_found != 0.0;
}

/* Keeps scale and minimum when they are better than *least; goes on from them a few times. */
static void try_fit(const search *s, sub_block *b, float scale, float minimum, double *least) {
    for (int round = 0; round < 3; ++round) {
        const pf_code_sums c = sums_of(s, b, scale, minimum);
        if (!fit(b, &c, s->format->has_minimum, &scale, &minimum)) return;
        const double error = error_of(b, &c, scale, minimum);
        if (error < *least) {
            *least = error;
            b->scale = scale;
            b->minimum = minimum;
        } else if (round > 0) {
            return;
        }
    }
}

/* The best real scale and minimum of a sub-block that are found when its ends are cut by various shares. */
static void fit_sub(const search *s, sub_block *b) {
    const k_format *f = s->format;
    float low = 0.0f, high = 0.0f;
    b->sum_w = b->sum_x = b->sum_xx = 0.0;
    for (int i = 0; i < f->sub; ++i) {
        b->sum_w += b->w[i];
        b->sum_x += (double)b->w[i] * b->x[i];
        b->sum_xx += (double)b->w[i] * b->x[i] * b->x[i];
        if (b->x[i] < low) low = b->x[i];
        if (b->x[i] > high) high = b->x[i];
    }
    b->scale = b->minimum = 0.0f;
    double least = b->sum_xx;
    if (f->has_minimum) {
        const int n_cut = f->most_code <= 3 ? 5 : 3;
        const float step = f->most_code <= 3 ? 0.17f : 0.1f;
        for (int cut_low = 0; cut_low < n_cut; ++cut_low) {
            for (int cut_high = 0; cut_high < n_cut; ++cut_high) {
                const float from = low * (1.0f - step * (float)cut_low), to = high * (1.0f - step * (float)cut_high);
                if (to > from) try_fit(s, b, (to - from) / (float)f->most_code, -from, &least);
            }
        }
        return;
    }
    const float most = high > -low ? high : -low;
    for (int cut = 0; cut < 8; ++cut) {
        const float scale = most * (1.05f - 0.08f * (float)cut) / (float)-f->least_code;
        if (scale <= 0.0f) continue;
        try_fit(s, b, scale, 0.0f, &least);
        try_fit(s, b, -scale, 0.0f, &least);
    }
}

/* ---- A super-block ------------------------------------------------------------------------------------------ */

static int held(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

static void add_sub(choice *c, const sub_block *b, const pf_code_sums *sums, int scale, int minimum) {
    c->dd += (double)scale * scale * sums->qq;
    c->mm += (double)minimum * minimum * b->sum_w;
    c->dx += (double)scale * sums->qx;
    c->mx += (double)minimum * b->sum_x;
    c->dm += (double)scale * minimum * sums->q;
}

/* The best integers near those wanted of a sub-block; returns the error. */
static double choose_near(const search *s, const sub_block *b, float d, float dmin, int at, int near, int at_minimum,
                          double least, choice *c, int sub, pf_code_sums *best) {
    const k_format *f = s->format;
    const int first = held(at - near, f->least_scale, f->most_scale), last = held(at + near, f->least_scale, f->most_scale);
    const int first_m = f->has_minimum ? held(at_minimum - 1, 0, f->most_scale) : 0;
    const int last_m = f->has_minimum ? held(at_minimum + 1, 0, f->most_scale) : 0;
    for (int scale = first; scale <= last; ++scale) {
        for (int m = first_m; m <= last_m; ++m) {
            const float a = d * (float)scale, minimum = dmin * (float)m;
            const pf_code_sums sums = sums_of(s, b, a, minimum);
            const double error = error_of(b, &sums, a, minimum);
            if (error < least) {
                least = error;
                c->scales[sub] = scale;
                c->minima[sub] = m;
                *best = sums;
            }
        }
    }
    return least;
}

/* The best integers for d and dmin, near those of *from or, without, near the real numbers. */
static void choose(const search *s, float d, float dmin, const choice *from, choice *c) {
    c->error = c->dd = c->mm = c->dx = c->mx = c->dm = 0.0;
    for (int k = 0; k < s->n_sub; ++k) {
        const sub_block *b = &s->subs[k];
        pf_code_sums sums = {0.0f, 0.0f, 0.0f};
        const int at = from != NULL ? from->scales[k] : (int)lrintf(b->scale / d);
        const int at_minimum = from != NULL ? from->minima[k] : dmin > 0.0f ? (int)lrintf(b->minimum / dmin) : 0;
        c->scales[k] = c->minima[k] = 0;
        const int near = s->format->has_minimum ? 1 : 3;
        double error = choose_near(s, b, d, dmin, at, near, at_minimum, INFINITY, c, k, &sums);
        if (!s->format->has_minimum) error = choose_near(s, b, d, dmin, -at, near, 0, error, c, k, &sums);
        c->error += error;
        add_sub(c, b, &sums, c->scales[k], c->minima[k]);
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
    halves tried;
    tried.d_value = as_half(d, power, &tried.d);
    tried.dmin_value = as_half(dmin, power, &tried.dmin);
    if (tried.d_value == 0.0f || (s->format->has_minimum && tried.d_value < 0.0f)) return false;
    choice c;
    choose(s, tried.d_value, tried.dmin_value, from, &c);
    if (!(c.error < best->error)) return false;
    *best = c;
    *h = tried;
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
    const double reach = f->has_minimum ? f->most_scale : f->least_scale, step = f->most_scale > 31 ? 0.02 : f->has_minimum ? 0.1 : 0.06;
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
        codes[i] = (uint8_t)((int)(code < (float)s.format->least_code ? (float)s.format->least_code : code) - s.format->least_code);
    }
    s.format->pack(codes, c.scales, c.minima, h.d, h.dmin, block);
}
