/* The formats whose values are points of a grid: what the search (grid.c) must know of them. */
#ifndef PF_QUANTIZE_GRID_FORMATS_H
#define PF_QUANTIZE_GRID_FORMATS_H

#include <stdbool.h>
#include <stdint.h>

/* Writes a block: the point of every group, the signs of every eight values, the scale of every sub-block. */
typedef void (*pf_grid_pack_fn)(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block);

typedef struct pf_grid_format {
    uint32_t type;
    const uint16_t *grid;
    int n_points;
    int width;      /* values of a group */
    int code_bits;  /* of a value in an entry of the grid */
    int sub;        /* values that share a scale */
    bool even;      /* negative signs of eight values are even in number */
    float unit;     /* a sub-block's scale is d unit (2 s + 1) */
    const float *magnitudes;
    pf_grid_pack_fn pack;
} pf_grid_format;

/* NULL for a type that is none of them. */
const pf_grid_format *pf_grid_format_of(uint32_t type);

#endif
