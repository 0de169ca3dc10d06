/* Scores of levelled FP4 index rows (fp4.h) on AMX tiles, for kernels_amx.c.
 *
 * A tile of PF_ROW_TILE rows stays in four tiles of the processor while all heads pass, 16 at a time; a product of 16 heads
 * with 16 rows is one integer sum over all columns, so that little is left to do in floats. */
#ifndef PF_BACKEND_CPU_AMX_FP4_H
#define PF_BACKEND_CPU_AMX_FP4_H

/* Rows by half of the tile and 64 columns; heads by 64 columns; sums by half. */
#define LEVEL_ROWS_0_0 0
#define LEVEL_ROWS_0_1 1
#define LEVEL_ROWS_1_0 2
#define LEVEL_ROWS_1_1 3
#define LEVEL_HEADS_0 4
#define LEVEL_HEADS_1 5
#define LEVEL_SUMS_0 6
#define LEVEL_SUMS_1 7

enum { LEVEL_COLUMNS = 64, LEVEL_QUAD_BYTES = 4 * PF_FP4_ROWS, LEVEL_HALF = 4 * TILE };

static const tile_shapes level_config = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE},
};

/* The codes of a set's tile are 12 too large. Shifted in words of four bytes, whose low bits are the bytes' before. */
static bool level_tile(const uint8_t *const *row, int64_t n_row, int64_t width, const uint8_t *tile, uint8_t *level) {
    const int64_t groups = width / PF_FP4_GROUP;
    uint32_t shifts[PF_FP4_LEVEL_WIDTH / PF_FP4_GROUP][PF_FP4_ROWS];
    float *scales = pf_fp4_level_scales(level, width);
    for (int64_t r = 0; r < PF_FP4_ROWS; ++r) {
        const uint8_t *exponents = row[r < n_row ? r : n_row - 1] + width / 2;
        uint8_t least = exponents[0], most = exponents[0];
        for (int64_t g = 1; g < groups; ++g) {
            least = exponents[g] < least ? exponents[g] : least;
            most = exponents[g] > most ? exponents[g] : most;
        }
        if (!pf_fp4_levels(least, most)) return false;
        for (int64_t g = 0; g < groups; ++g) shifts[g][r] = (uint32_t)exponents[g] - least;
        scales[r] = 0.25f * pf_e8m0_to_f32(least);
    }
    const __m512i more = _mm512_set1_epi8(PF_FP4_LARGEST), one = _mm512_set1_epi8(1);
    for (int64_t at = 0; at < PF_FP4_ROWS * width; at += 64) {
        const int64_t quad = at / LEVEL_QUAD_BYTES, half = at / LEVEL_HALF % 2;
        const __m512i shift = _mm512_loadu_si512(shifts[quad / QUADS] + half * TILE);
        const __m512i codes = _mm512_sub_epi8(_mm512_loadu_si512(tile + at), more);
        const __m512i mask = _mm512_sub_epi8(_mm512_setzero_si512(), _mm512_sllv_epi32(one, shift)); /* a byte's own bits */
        _mm512_storeu_si512(level + at, _mm512_and_si512(_mm512_sllv_epi32(codes, shift), mask));
    }
    return true;
}

PF_INLINE void load_level_rows(const uint8_t *tile, int64_t width) {
    _tile_loadd(LEVEL_ROWS_0_0, tile, LEVEL_QUAD_BYTES);
    _tile_loadd(LEVEL_ROWS_1_0, tile + LEVEL_HALF, LEVEL_QUAD_BYTES);
    if (width == LEVEL_COLUMNS) return;
    tile += LEVEL_COLUMNS / 4 * LEVEL_QUAD_BYTES;
    _tile_loadd(LEVEL_ROWS_0_1, tile, LEVEL_QUAD_BYTES);
    _tile_loadd(LEVEL_ROWS_1_1, tile + LEVEL_HALF, LEVEL_QUAD_BYTES);
}

/* Sums [2, 16 heads, 16 rows]. */
PF_INLINE void level_products(const uint8_t *q, int64_t width, int32_t *sums) {
    _tile_loadd(LEVEL_HEADS_0, q, (size_t)width);
    _tile_zero(LEVEL_SUMS_0);
    _tile_zero(LEVEL_SUMS_1);
    _tile_dpbssd(LEVEL_SUMS_0, LEVEL_HEADS_0, LEVEL_ROWS_0_0);
    _tile_dpbssd(LEVEL_SUMS_1, LEVEL_HEADS_0, LEVEL_ROWS_1_0);
    if (width > LEVEL_COLUMNS) {
        _tile_loadd(LEVEL_HEADS_1, q + LEVEL_COLUMNS, (size_t)width);
        _tile_dpbssd(LEVEL_SUMS_0, LEVEL_HEADS_1, LEVEL_ROWS_0_1);
        _tile_dpbssd(LEVEL_SUMS_1, LEVEL_HEADS_1, LEVEL_ROWS_1_1);
    }
    _tile_stored(LEVEL_SUMS_0, sums, 64);
    _tile_stored(LEVEL_SUMS_1, sums + STAGE_INTS, 64);
}

/* total[half] += w max(0, score), in the order of the heads, as weigh_heads does. */
PF_INLINE void weigh_level(const int32_t *sums, const float *q_scale, const float *w, const __m512 *row_scale,
                           __m512 *total) {
    PF_UNROLL for (int h = 0; h < TILE; ++h) {
        PF_UNROLL for (int half = 0; half < 2; ++half) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + half * STAGE_INTS + h * TILE));
            const __m512 score = _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_set1_ps(q_scale[h]), row_scale[half]));
            const __m512 seen = _mm512_max_ps(score, _mm512_setzero_ps());
            total[half] = _mm512_add_ps(total[half], _mm512_mul_ps(_mm512_set1_ps(w[h]), seen));
        }
    }
}

static void level_scores(const pf_fp4_level *q, int64_t n_head, const float *w, const uint8_t *tile, int64_t width,
                         float scale, float *out) {
    _Alignas(64) int32_t stages[2][2 * STAGE_INTS];
    const float *row_scales = pf_fp4_level_scales(tile, width);
    const __m512 row_scale[2] = {_mm512_loadu_ps(row_scales), _mm512_loadu_ps(row_scales + TILE)};
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    _tile_loadconfig(&level_config);
    load_level_rows(tile, width);
    level_products(q->codes, width, stages[0]);
    for (int64_t h = 0; h < n_head; h += TILE) { /* the next products are under way meanwhile */
        if (h + TILE < n_head) level_products(q->codes + (h + TILE) * width, width, stages[(h / TILE + 1) % 2]);
        weigh_level(stages[h / TILE % 2], q->scales + h, w + h, row_scale, total);
    }
    _tile_release();
    PF_UNROLL for (int half = 0; half < 2; ++half) {
        _mm512_storeu_ps(out + half * TILE, _mm512_mul_ps(total[half], _mm512_set1_ps(scale)));
    }
}

#endif
