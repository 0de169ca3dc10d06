/* The inner loops of the quantisers' searches, compiled for each instruction set. */
#ifndef PF_QUANTIZE_SEARCH_LOOPS_H
#define PF_QUANTIZE_SEARCH_LOOPS_H

#include <stdbool.h>

enum { PF_GRID_POINTS = 1024 }; /* of a grid, at most */
enum { PF_GRID_CHUNK = 64 };    /* points that are looked at together */
enum { PF_GRID_LINES = 8 };     /* kept of a group, at most */
enum { PF_GRID_SCALES = 16 };   /* of a sub-block */

/* Lines that are lowest somewhere. */
typedef struct pf_grid_hull {
    int n_lines;
    float double_a[PF_GRID_LINES], b[PF_GRID_LINES];
} pf_grid_hull;

enum { PF_TRIED = 8 }; /* scales with minima, side by side */

/* What codes q of n values x with weights w add up to: sum w q, sum w q^2, sum w q x. */
typedef struct pf_code_sums {
    float q[PF_TRIED], qq[PF_TRIED], qx[PF_TRIED];
} pf_code_sums;

typedef struct pf_search_loops {
    /* ---- grid.c ---- */
    /* Of a chunk of points G: double_a[g] = 2 sum_i a[i] G[i][g], b[g] = sum_i w[i] G[i][g]^2, and, unless it is NULL,
     * turned[g] = double_a[g] - 4 min_i a[i] G[i][g] (which may be double_a), of `width` values, 4 or 8; grid
     * [width][PF_GRID_CHUNK] is G, squares its squares. */
    void (*terms)(const float *grid, const float *squares, int width, const float *a, const float *w, float *double_a,
                  float *b, float *turned);
    /* The lowest of n lines b t - double_a at t, the first of several; returns its value there. n: a multiple of
     * PF_GRID_CHUNK. */
    float (*lowest)(const float *double_a, const float *b, int n, float t, int *at);
    /* The lines that are lowest at the scales t[PF_GRID_LINES], in this order, each once where neighbours are the same. */
    void (*find_hull)(const float *double_a, const float *b, int n, const float *t, pf_grid_hull *hull);
    /* The best of the scales t = (2 k + 1) unit, k below 16, for groups with these hulls; *error is t times the sum of what
     * their lowest lines have there. odd: NULL, or which twos of groups have a wrong sign: one of them has its hull of
     * `turned`. */
    int (*best_scale)(const pf_grid_hull *hulls, const pf_grid_hull *turned, const bool *odd, int n_hulls, float unit,
                      float *error);
    /* ---- k.c ---- */
    /* For each k codes q = (x + offset[k]) inverse[k], rounded and held between low and high. */
    void (*code_sums)(const float *x, const float *w, int n, const float *inverse, const float *offset, float low,
                      float high, pf_code_sums *sums);
} pf_search_loops;

const pf_search_loops *pf_search_loops_best(void); /* of this machine */

extern const pf_search_loops pf_search_loops_base;
extern const pf_search_loops pf_search_loops_avx2; /* x86-64 only, and only where the machine has it */

#endif
