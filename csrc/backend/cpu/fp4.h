/* Index rows of FP4 against queries rounded to FP4, as integer products.
 *
 * Codes are doubled e2m1 values, so integers of at most 12. Of a group of 32 columns the sum of products is exact and
 * the product of both scales a power of two; what a head gets from a row is, over groups from the first,
 *     s = fma((float)sum, q_scale * row_scale, s)
 * with row_scale = e8m0 / 4, and is the same float on all sets. Columns lie in quads, as the nibbles of a word of four
 * bytes of a row give them: 0 2 4 6, 1 3 5 7, 8 10 12 14, ...
 *
 * A query's head: int8 codes [width], float scales [width / 32], int32 sums of the codes [width / 32].
 * A tile of PF_ROW_TILE rows: codes, one byte each, [width / 4] quads [PF_ROW_TILE] rows [4]; then float row_scale
 * [width / 32] [PF_ROW_TILE]. Its codes are int8, or where x86 multiplies unsigned with signed bytes, 12 more.
 *
 * Levelled, for matrix instructions: where the scales of a head, or of a row, are at most PF_FP4_LEVELS powers of two
 * apart, its codes are multiplied by what they have more than the least of them (int8, at most 96), which is left as the
 * only one. The product of a head and a row is one integer then: at most 128 * 96 * 96, so below 2^24, as are all partial
 * sums of the s above. So it is the same float. A levelled tile: codes as above, int8; then float scales [PF_ROW_TILE]. */
#ifndef PF_BACKEND_CPU_FP4_H
#define PF_BACKEND_CPU_FP4_H

#include <stdbool.h>
#include <stdint.h>

enum { PF_FP4_GROUP = 32, PF_FP4_LARGEST = 12, PF_FP4_ROWS = 32, PF_FP4_LEVELS = 3, PF_FP4_LEVEL_WIDTH = 128 };

/* Levelled heads of a token. */
typedef struct pf_fp4_level {
    uint8_t *codes; /* int8 [n_head, width] */
    float *scales;  /* [n_head] */
} pf_fp4_level;

static inline int64_t pf_fp4_query_bytes(int64_t width) { return width + width / PF_FP4_GROUP * 8; }
static inline int64_t pf_fp4_tile_bytes(int64_t width) { return PF_FP4_ROWS * (width + width / PF_FP4_GROUP * 4); }

/* Where column i of a query lies; of row r of a tile, a quad further every 4 PF_FP4_ROWS bytes. */
static inline int64_t pf_fp4_place(int64_t i) { return i / 8 * 8 + i % 2 * 4 + i % 8 / 2; }

static inline float *pf_fp4_query_scales(const uint8_t *head, int64_t width) {
    return (float *)(void *)(uintptr_t)(head + width);
}
static inline int32_t *pf_fp4_query_sums(const uint8_t *head, int64_t width) {
    return (int32_t *)(void *)(uintptr_t)(head + width + width / PF_FP4_GROUP * 4);
}
static inline float *pf_fp4_row_scales(const uint8_t *tile, int64_t width) {
    return (float *)(void *)(uintptr_t)(tile + PF_FP4_ROWS * width);
}
/* Whether scales of these biased exponents can be levelled: neither they nor their products leave the normal floats. */
static inline bool pf_fp4_levels(int32_t least, int32_t most) {
    return least >= 72 && most <= 182 && most - least <= PF_FP4_LEVELS;
}
static inline int64_t pf_fp4_level_bytes(int64_t width) { return PF_FP4_ROWS * (width + 4); } /* of a tile */
static inline float *pf_fp4_level_scales(const uint8_t *tile, int64_t width) {
    return (float *)(void *)(uintptr_t)(tile + PF_FP4_ROWS * width);
}

#endif
