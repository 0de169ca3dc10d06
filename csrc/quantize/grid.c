#include "quantize/grid.h"

#include "format/floats.h"
#include "quantize/grid_formats.h"
#include "quantize/normalise.h"
#include "quantize/search_loops.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES = 256, MOST_GROUPS = 64, MOST_SUBS = 16, PAIR_POINTS = 256 };
/* How densely scales are tried: more finds little more. */
enum { SUPER_SCALES = 8, ROUNDS = 2 };
static const float PROBE_STEP = 0.72f; /* each scale at which a group's lines are found, over the one before */

/* ---- A search ----------------------------------------------------------------------------------------------- */

/* Of a group of values: every point's line, and those that are lowest somewhere. */
typedef struct group {
    float double_a[PF_GRID_POINTS], b[PF_GRID_POINTS];
} group;

/* What was found: err(d) = d^2 sum u^2 b - d sum u 2a, u being unit (2 s + 1), without the constant. */
typedef struct choice {
    int scales[MOST_SUBS];
    int points[MOST_GROUPS];
    bool is_turned[MOST_GROUPS]; /* the group has a wrong sign */
    double linear, square;
} choice;

struct pf_grid_search {
    const pf_grid_format *format;
    const pf_search_loops *loops;
    float largest;
    float grid[8 * PF_GRID_POINTS], squares[8 * PF_GRID_POINTS]; /* [n_points / chunk][width][chunk] */
    group groups[MOST_GROUPS];
    float turned[MOST_GROUPS][PAIR_POINTS]; /* double_a of the lines of a group of four with a wrong sign; b is the same */
    pf_grid_hull hulls[MOST_GROUPS], turned_hulls[MOST_GROUPS];
    bool odd[VALUES / 8]; /* the signs of eight values are odd in number */
    float reach[MOST_SUBS]; /* a sub-block's largest value, over the largest magnitude */
};

/* Of value i of point g, among those of all. */
static int place_of(const pf_grid_format *f, int g, int i) {
    return (g / PF_GRID_CHUNK * f->width + i) * PF_GRID_CHUNK + g % PF_GRID_CHUNK;
}

pf_grid_search *pf_grid_search_new(uint32_t type) {
    const pf_grid_format *f = pf_grid_format_of(type);
    pf_grid_search *search = f != NULL ? malloc(sizeof *search) : NULL;
    if (search == NULL) return NULL;
    search->format = f;
    search->loops = pf_search_loops_best();
    search->largest = 0.0f;
    for (int g = 0; g < f->n_points; ++g) {
        for (int i = 0; i < f->width; ++i) {
            const float magnitude = f->magnitudes[f->grid[g] >> f->code_bits * i & ((1 << f->code_bits) - 1)];
            const int at = place_of(f, g, i);
            search->grid[at] = magnitude;
            search->squares[at] = magnitude * magnitude;
            if (magnitude > search->largest) search->largest = magnitude;
        }
    }
    return search;
}

void pf_grid_search_delete(pf_grid_search *search) { free(search); }

/* Whether groups of four share signs in twos. */
static bool in_pairs(const pf_grid_format *f) { return f->even && f->width == 4; }

/* The lines that are lowest at some scale up to about `reach`. */
static void find_hull(const pf_grid_search *s, const float *double_a, const float *b, float reach, pf_grid_hull *hull) {
    float t[PF_GRID_LINES];
    t[0] = 1.15f * reach;
    for (int k = 1; k < PF_GRID_LINES; ++k) t[k] = PROBE_STEP * t[k - 1];
    s->loops->find_hull(double_a, b, s->format->n_points, t, hull);
}

/* Chunks outside, so that the grid, which is larger than the processor's first cache, is read once. */
static void find_lines(pf_grid_search *s, const float *x, const float *w) {
    const pf_grid_format *f = s->format;
    float a[VALUES];
    for (int i = 0; i < VALUES; ++i) a[i] = w[i] * fabsf(x[i]);
    for (int p = 0; p < f->n_points; p += PF_GRID_CHUNK) {
        for (int k = 0; k < VALUES / f->width; ++k) {
            const bool odd = f->even && s->odd[k * f->width / 8];
            group *g = &s->groups[k];
            float *turned = !odd ? NULL : in_pairs(f) ? s->turned[k] + p : g->double_a + p;
            s->loops->terms(s->grid + p * f->width, s->squares + p * f->width, f->width, a + k * f->width, w + k * f->width,
                            g->double_a + p, g->b + p, turned);
        }
    }
    for (int k = 0; k < VALUES / f->width; ++k) {
        const float reach = s->reach[k * f->width / f->sub];
        find_hull(s, s->groups[k].double_a, s->groups[k].b, reach, &s->hulls[k]);
        if (in_pairs(f) && s->odd[k / 2]) find_hull(s, s->turned[k], s->groups[k].b, reach, &s->turned_hulls[k]);
    }
}

/* Scales of all sub-blocks for d, as far as the kept lines tell; returns the error. */
static float choose_scales(const pf_grid_search *s, float d, int *scales) {
    const pf_grid_format *f = s->format;
    const int per_sub = f->sub / f->width;
    float total = 0.0f;
    for (int sub = 0; sub < VALUES / f->sub; ++sub) {
        const int k = sub * per_sub;
        float error;
        scales[sub] = s->loops->best_scale(s->hulls + k, s->turned_hulls + k, in_pairs(f) ? s->odd + k / 2 : NULL, per_sub,
                                           d * f->unit, &error);
        total += error;
    }
    return total;
}

/* Takes the best point of the whole grid for group k at scale d u. */
static float choose_point(const pf_grid_search *s, int k, bool is_turned, float d, float u, int *at) {
    const float *double_a = is_turned ? s->turned[k] : s->groups[k].double_a;
    return s->loops->lowest(double_a, s->groups[k].b, s->format->n_points, d * u, at);
}

/* The best points of the whole grid, at the scales chosen. */
static void choose_points(const pf_grid_search *s, float d, choice *c) {
    const pf_grid_format *f = s->format;
    const int per_sub = f->sub / f->width;
    float before = 0.0f; /* the error of the group before, over its scale */
    c->linear = c->square = 0.0;
    for (int k = 0; k < VALUES / f->width; ++k) {
        const float u = f->unit * (float)(2 * c->scales[k / per_sub] + 1);
        c->is_turned[k] = false;
        const float right = choose_point(s, k, false, d, u, &c->points[k]);
        if (in_pairs(f) && k % 2 == 1 && s->odd[k / 2]) {
            int first_at, second_at;
            const float first = choose_point(s, k - 1, true, d, u, &first_at) + right;
            const float second = before + choose_point(s, k, true, d, u, &second_at);
            const int wrong = first < second ? k - 1 : k;
            c->is_turned[wrong] = true;
            c->points[wrong] = first < second ? first_at : second_at;
        }
        before = right;
    }
    for (int k = 0; k < VALUES / f->width; ++k) {
        const float u = f->unit * (float)(2 * c->scales[k / per_sub] + 1);
        const float *double_a = c->is_turned[k] ? s->turned[k] : s->groups[k].double_a;
        c->linear += (double)u * double_a[c->points[k]];
        c->square += (double)u * u * s->groups[k].b[c->points[k]];
    }
}

static double error_of(const choice *c, float d) { return d * (d * c->square - c->linear); }

/* d times `power` as the nearest half, and in *d the float that this stands for, over `power` again. */
static uint16_t to_half(float *d, float power) {
    const uint16_t half = pf_f32_to_f16(*d * power);
    *d = pf_f16_to_f32(half) / power;
    return half;
}

/* Signs of eight values each, with the wrong one where there must be one. */
static void find_signs(const pf_grid_search *s, const choice *c, const float *x, const float *w, uint8_t *signs) {
    const pf_grid_format *f = s->format;
    for (int k = 0; k < VALUES / 8; ++k) {
        uint32_t bits = 0;
        for (int i = 0; i < 8; ++i) bits |= (uint32_t)(x[8 * k + i] < 0.0f) << i;
        if (f->even && s->odd[k]) {
            int begin = 0, end = 8, turn = 0;
            if (in_pairs(f)) {
                begin = c->is_turned[2 * k] ? 0 : 4;
                end = begin + 4;
            }
            float least = INFINITY;
            for (int i = begin; i < end; ++i) {
                const int value = 8 * k + i, at = value / f->width;
                const float cost = w[value] * fabsf(x[value]) * s->grid[place_of(f, c->points[at], value % f->width)];
                if (cost < least) {
                    least = cost;
                    turn = i;
                }
            }
            bits ^= 1u << turn;
        }
        signs[k] = (uint8_t)bits;
    }
}

/* Scales and points for x and w, largest values about 1; d is a half times `power`. */
static uint16_t search_block(pf_grid_search *s, const float *x, const float *w, float power, choice *best) {
    const pf_grid_format *f = s->format;
    float most = 0.0f;
    for (int sub = 0; sub < VALUES / f->sub; ++sub) {
        float reach = 0.0f;
        for (int i = sub * f->sub; i < (sub + 1) * f->sub; ++i) reach = fabsf(x[i]) > reach ? fabsf(x[i]) : reach;
        s->reach[sub] = reach / s->largest;
        if (s->reach[sub] > most) most = s->reach[sub];
    }
    for (int k = 0; k < VALUES / 8; ++k) {
        s->odd[k] = false;
        for (int i = 0; i < 8; ++i) s->odd[k] ^= x[8 * k + i] < 0.0f;
    }
    find_lines(s, x, w);

    float least = INFINITY, d = 0.0f;
    for (int k = 0; k < SUPER_SCALES; ++k) {
        choice c;
        float tried = (0.5f + 0.55f / (SUPER_SCALES - 1) * (float)k) * most / ((float)(2 * PF_GRID_SCALES - 1) * f->unit);
        to_half(&tried, power);
        const float error = tried > 0.0f ? choose_scales(s, tried, c.scales) : INFINITY;
        if (error < least) {
            least = error;
            d = tried;
            *best = c;
        }
    }
    if (d == 0.0f) { /* too small for halves */
        memset(best, 0, sizeof *best);
        return 0;
    }
    choose_points(s, d, best);
    uint16_t half = to_half(&d, power);
    for (int round = 0; round < ROUNDS && best->square > 0.0; ++round) {
        float refitted = (float)(0.5 * best->linear / best->square);
        const uint16_t next_half = to_half(&refitted, power);
        if (refitted <= 0.0f) break;
        choice next = *best;
        choose_scales(s, refitted, next.scales);
        choose_points(s, refitted, &next);
        if (!(error_of(&next, refitted) < error_of(best, d))) break;
        *best = next;
        d = refitted;
        half = next_half;
    }
    return half;
}

void pf_grid_search_block(pf_grid_search *s, const float *x, const float *weights, uint8_t *block) {
    float scaled_x[VALUES], scaled_w[VALUES];
    const float of_x = pf_normalise(x, VALUES, scaled_x);
    pf_normalise(weights, VALUES, scaled_w);
    choice c;
    uint8_t signs[VALUES / 8];
    const uint16_t half = search_block(s, scaled_x, scaled_w, of_x, &c);
    find_signs(s, &c, scaled_x, scaled_w, signs);
    s->format->pack(c.points, signs, c.scales, half, block);
}
