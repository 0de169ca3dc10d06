/* The inner loops of the search, compiled for each instruction set. */
#ifndef PF_QUANTIZE_GRID_LOOPS_H
#define PF_QUANTIZE_GRID_LOOPS_H

enum { PF_GRID_LINES = 16 }; /* kept of a group, at most */

/* Lines that are lowest somewhere; those not in use have double_a -infinity and b 0, so that they never are. */
typedef struct pf_grid_hull {
    float double_a[PF_GRID_LINES], b[PF_GRID_LINES];
} pf_grid_hull;

typedef struct pf_grid_loops {
    /* double_a[g] = 2 sum_i a[i] G[i][g], b[g] = sum_i w[i] G[i][g]^2, least[g] = min_i a[i] G[i][g] (least: NULL is
     * allowed), of `width` values and n points, a multiple of 16; grid [width][n]. */
    void (*terms)(const float *grid, int n, int width, const float *a, const float *w, float *double_a, float *b,
                  float *least);
    /* The lowest of n lines b t - double_a at t, the first of several; returns its value there. */
    float (*lowest)(const float *double_a, const float *b, int n, float t, int *at);
    float (*hull_at)(const pf_grid_hull *hull, float t);
} pf_grid_loops;

const pf_grid_loops *pf_grid_loops_best(void); /* of this machine */

extern const pf_grid_loops pf_grid_loops_base;
extern const pf_grid_loops pf_grid_loops_avx2; /* x86-64 only, and only where the machine has it */

#endif
