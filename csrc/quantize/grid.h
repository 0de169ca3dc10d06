/* Quantisers of the formats whose values are points of a grid: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.
 *
 * A super-block is 256 values x with weights w >= 0, and what is made least is sum w (x - y)^2, y being what the decoder
 * gives. With magnitudes G of a grid, sign as x, and a scale t, a group of values has the error
 *
 *     C - 2 t A + t^2 B,   A = sum w |x| G,   B = sum w G^2.
 *
 * So every point of the grid is a line in t, B t - 2 A, and a scale's best point is the lowest line there. The few lines that
 * are lowest somewhere in a group's range of scales are found first; with these all scales are tried, those of the
 * sub-blocks (16) for each of the super-block's. What is chosen is then refined with the whole grid: points, least squares for
 * the super-block's scale, the sub-blocks' scales for that, a few times while something is gained.
 *
 * Where signs must be even in number (IQ2_XXS, IQ2_XS, IQ3_XXS), the value with the least w |x| G gets the wrong one, which
 * adds 4 t of that: a point has another line where a group's signs are odd. For IQ3_XXS two groups share them, and either may
 * take it.
 *
 * Results do not depend on the machine: see lanes.h. */
#ifndef PF_QUANTIZE_GRID_H
#define PF_QUANTIZE_GRID_H

#include "format/dtypes.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pf_grid_search pf_grid_search;

/* What a search of one thread needs, for one type; NULL when out of memory. */
pf_grid_search *pf_grid_search_new(uint32_t type);
void pf_grid_search_delete(pf_grid_search *search); /* NULL is allowed */
/* x [256] and weights [256] >= 0, all finite, to one block. */
void pf_grid_search_block(pf_grid_search *search, const float *x, const float *weights, uint8_t *block);

#endif
