/* Products of q16 with any number of tokens for the NEON kernel files, all types of integer weights: the sums of int_acts.h.
 *
 * Weights stay in the order of their columns. A part of a row, four blocks (neon_values.h), becomes 128 signed bytes, and
 * with both planes of a token's bytes four sums a block, which are added up across the lanes. So a weight costs what its
 * format does, and nothing to bring it beside others. Tokens are brought into that order once a call (put_token): in
 * g->scratch for one, as packed tiles for more (pf_tile_kernels).
 *
 * With one token a part is used at once; else some rows' parts are kept in the first cache while all tokens of a tile pass.
 *
 * The kernel file may define PF_NEON_DOT (sdot) and PF_NEON_I8MM (smmla). smmla multiplies two rows with two others, eight
 * columns each: two rows of weights with both planes of a token. */
#ifndef PF_BACKEND_CPU_NEON_UNITS_H
#define PF_BACKEND_CPU_NEON_UNITS_H

#include "backend/cpu/neon_values.h"

#include "backend/cpu/gemm_int_tile.h"
#include "backend/cpu/vector_super.h"

#if defined(PF_NEON_I8MM)
enum { ROWS_AT_ONCE = 2 };
#else
enum { ROWS_AT_ONCE = 1 };
#endif
/* int_weights of ROWS_AT_ONCE rows hold their own bytes, or with smmla eight of the one and eight of the other in turn. */
enum {
    UNIT_PARTS = PF_SUPER_BLOCKS / PART,
    PART_VECS = PART * BLOCK / 16,    /* of weights; a plane of activations has as many */
    BLOCK_ACT_BYTES = 2 * BLOCK,
    PART_ACT_BYTES = PART * (BLOCK_ACT_BYTES + 3 * 4), /* both planes, the scales, the sums of first and second halves */
    MANY_ROWS = 4, /* whose parts are kept */
    SMALL_COLS = 4 * BLOCK /* so few fill less of g->scratch than they need */
};

typedef void (*values_fn)(const uint8_t *at, int part, int n, int8x16_t *w);
typedef void (*scales_fn)(const uint8_t *at, int part, int n, int_weights *v);
typedef struct unit_format {
    values_fn values;
    scales_fn scales;
    int_format f; /* block_bytes: of a unit; the members for scales, minimums and the unit */
    bool wide;    /* more than two products of its weights with bytes may pass 16 bits */
} unit_format;

/* ---- Activations ------------------------------------------------------------------------------------------- */

/* Part `part` of a token's row, to `out`: of every block both planes, 16 bytes in turn, or with smmla 8. */
PF_INLINE void put_part(const uint8_t *row, int64_t cols, int64_t part, uint8_t *out) {
    const int64_t padded = pf_int_padded(cols), block = part * PART;
    const uint8_t *halves = row + pf_int_halves_at(cols) + 4 * pf_int_half_place(block);
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        uint8x16_t planes[2][PART]; /* 16 columns of every block */
        PF_UNROLL for (int plane = 0; plane < 2; ++plane) {
            const uint8_t *at = row + plane * padded + pf_int_place(block) + 4 * h * PF_INT_QUADS;
            blocks_quads(at, PF_INT_QUADS, 4, planes[plane]); /* that turns quads of blocks into blocks, too */
        }
        PF_UNROLL for (int b = 0; b < PART; ++b) {
            uint8_t *to = out + b * BLOCK_ACT_BYTES + 32 * h;
#if defined(PF_NEON_I8MM)
            const uint64x2_t high = vreinterpretq_u64_u8(planes[0][b]), low = vreinterpretq_u64_u8(planes[1][b]);
            vst1q_u8(to, vreinterpretq_u8_u64(vzip1q_u64(high, low)));
            vst1q_u8(to + 16, vreinterpretq_u8_u64(vzip2q_u64(high, low)));
#else
            vst1q_u8(to, planes[0][b]);
            vst1q_u8(to + 16, planes[1][b]);
#endif
        }
    }
    out += PART * BLOCK_ACT_BYTES;
    vst1q_u8(out, vld1q_u8((const uint8_t *)(pf_int_scales(row, PF_Q16_PLANES, cols) + block)));
    vst1q_u8(out + 16, vld1q_u8(halves));
    vst1q_u8(out + 32, vld1q_u8(halves + 4 * PF_INT_BLOCKS));
}

static int64_t parts_of(int64_t cols) { return pf_ceil_div(cols / BLOCK, PART); }

/* A token's row; its parts lie `stride` bytes apart. */
static void put_token(const uint8_t *row, int64_t cols, int64_t stride, uint8_t *out) {
    for (int64_t part = 0; part < parts_of(cols); ++part) put_part(row, cols, part, out + part * stride);
}

/* ---- Products ---------------------------------------------------------------------------------------------- */

PF_INLINE int32x4_t plane_sums(const int8x16_t *w, const uint8_t *acts, int n, bool wide) {
#if defined(PF_NEON_DOT)
    int32x4_t s = vdupq_n_s32(0);
    (void)wide;
    PF_UNROLL for (int i = 0; i < n; ++i) s = vdotq_s32(s, w[i], vreinterpretq_s8_u8(vld1q_u8(acts + 32 * i)));
    return s;
#else
    int32x4_t all = vdupq_n_s32(0);
    int16x8_t s = vdupq_n_s16(0);
    PF_UNROLL for (int i = 0; i < n; ++i) {
        const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(acts + 32 * i));
        s = i == 0 || wide ? vmull_s8(vget_low_s8(w[i]), vget_low_s8(a)) : vmlal_s8(s, vget_low_s8(w[i]), vget_low_s8(a));
        s = vmlal_high_s8(s, w[i], a);
        if (wide || i == n - 1) all = i == 0 || !wide ? vpaddlq_s16(s) : vpadalq_s16(all, s);
    }
    return all;
#endif
}

/* Of ROWS_AT_ONCE rows the integer sums of all blocks with a token's part: of n times 16 columns, from column 16 h on. */
PF_INLINE void block_sums(const int_weights *rows, const uint8_t *acts, int h, int n, bool wide, int32x4_t *out) {
    int32x4_t p[PART];
#if defined(PF_NEON_I8MM)
    const int32x4_t base = vreinterpretq_s32_u64(vdupq_n_u64(PF_INT_BASE | (uint64_t)1 << 32));
    (void)wide;
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        p[b] = vdupq_n_s32(0);
        PF_UNROLL for (int k = 0; k < 2 * n; ++k) { /* 8 columns of both rows, vector 4b + 2h + k of both together */
            const int at = 4 * b + 2 * h + k;
            const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(acts + 16 * at));
            p[b] = vmmlaq_s32(p[b], rows[at / PART_VECS].w[at % PART_VECS], a);
        }
        p[b] = vmulq_s32(p[b], base);
    }
    const int32x4_t first = vpaddq_s32(p[0], p[1]), second = vpaddq_s32(p[2], p[3]);
    out[0] = vuzp1q_s32(first, second);
    out[1] = vuzp2q_s32(first, second);
#else
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        const uint8_t *at = acts + b * BLOCK_ACT_BYTES + 32 * h;
        const int32x4_t high = plane_sums(rows->w + 2 * b + h, at, n, wide);
        p[b] = vmlaq_s32(plane_sums(rows->w + 2 * b + h, at + 16, n, wide), high, vdupq_n_s32(PF_INT_BASE));
    }
    out[0] = vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
#endif
}

/* n: the blocks that there are. */
PF_INLINE void load_part(const uint8_t *const *at, int part, int n, unit_format u, int_weights *out) {
    PF_UNROLL for (int r = 0; r < ROWS_AT_ONCE; ++r) {
        u.values(at[r], part, n, out[r].w);
        u.scales(at[r], part, n, &out[r]);
    }
#if defined(PF_NEON_I8MM)
    uint64x2_t first[PART_VECS], second[PART_VECS];
    PF_UNROLL for (int i = 0; i < PART_VECS; ++i) {
        first[i] = vreinterpretq_u64_s8(out[0].w[i]);
        second[i] = vreinterpretq_u64_s8(out[1].w[i]);
    }
    PF_UNROLL for (int i = 0; i < PART_VECS; ++i) {
        int8x16_t *to = out[2 * i / PART_VECS].w + 2 * i % PART_VECS;
        to[0] = vreinterpretq_s8_u64(vzip1q_u64(first[i], second[i]));
        to[1] = vreinterpretq_s8_u64(vzip2q_u64(first[i], second[i]));
    }
#endif
}

/* sums: of ROWS_AT_ONCE rows, `apart` from one to the next. */
PF_INLINE void join_part(const int_weights *rows, const uint8_t *acts, unit_format u, pf_vec *sums, int64_t apart) {
    const pf_vec act_scale = vreinterpretq_f32_u8(vld1q_u8(acts + PART * BLOCK_ACT_BYTES));
    const bool of_halves = u.f.scaling != PF_SCALES_OF_BLOCKS;
    int32x4_t i[2][ROWS_AT_ONCE], halves[2];
    block_sums(rows, acts, 0, of_halves ? 1 : 2, u.wide, i[0]);
    if (of_halves) block_sums(rows, acts, 1, 1, u.wide, i[1]);
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        halves[h] = vreinterpretq_s32_u8(vld1q_u8(acts + PART * BLOCK_ACT_BYTES + 16 * (1 + h)));
    }
    PF_UNROLL for (int r = 0; r < ROWS_AT_ONCE; ++r) {
        const int32x4_t both[2] = {i[0][r], of_halves ? i[1][r] : vdupq_n_s32(0)};
        sums[r * apart] = super_join(&rows[r], both, halves, act_scale, sums[r * apart], u.f);
    }
}

/* ---- Rows -------------------------------------------------------------------------------------------------- */

/* A token and PF_STREAMS rows, `step` apart; of fewer rows the last one fills up. */
PF_INLINE void one_rows(const pf_gemm *g, int64_t token, const uint8_t *acts, int64_t row, int64_t n_row, int64_t step,
                        unit_format u) {
    const int64_t blocks = g->w->cols / BLOCK, units = pf_ceil_div(blocks, PF_SUPER_BLOCKS);
    const uint8_t *rows[PF_STREAMS];
    pf_vec sums[PF_STREAMS][PARTS];
    for (int64_t r = 0; r < PF_STREAMS; ++r) {
        rows[r] = pf_weight_row(g->w, g->matrix, row + pf_min_i64(r, n_row - 1) * step);
        PF_UNROLL for (int part = 0; part < PARTS; ++part) sums[r][part] = pf_vec_zero();
    }
    for (int64_t unit = 0; unit < units; ++unit, acts += UNIT_PARTS * PART_ACT_BYTES) {
        const int64_t left = blocks - unit * PF_SUPER_BLOCKS;
        PF_KEEP_LOOP for (int64_t r = 0; r < n_row; r += ROWS_AT_ONCE) {
            const uint8_t *at[ROWS_AT_ONCE];
            PF_UNROLL for (int k = 0; k < ROWS_AT_ONCE; ++k) {
                at[k] = rows[r + k] + unit * u.f.block_bytes;
                for (int64_t j = 0; j + 16 <= u.f.block_bytes; j += 64) pf_prefetch(at[k] + READ_AHEAD + j);
            }
            PF_UNROLL for (int part = 0; part < UNIT_PARTS; ++part) {
                const int64_t n = left - part * PART;
                int_weights own[ROWS_AT_ONCE];
                if (n <= 0) break;
                load_part(at, part, u.f.blocks > 1 || n > PART ? PART : (int)n, u, own);
                join_part(own, acts + part * PART_ACT_BYTES, u, &sums[r][unit % 2 * UNIT_PARTS + part], PARTS);
            }
        }
    }
    for (int64_t r = 0; r < n_row; ++r) pf_gemm_put(g, token, row + r * step, int_total(sums[r]) * u.f.unit);
}

/* Token by token, in runs as int_runs() has them. */
PF_INLINE void one_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, unit_format u) {
    const int64_t run = (row_end - row_begin) / PF_STREAMS, rest = row_begin + PF_STREAMS * run;
    uint8_t few[PART_ACT_BYTES], *acts = g->w->cols < SMALL_COLS ? few : (uint8_t *)g->scratch;
    for (int64_t token = 0; token < g->n; ++token) {
        put_token(pf_gemm_act(g, token), g->w->cols, PART_ACT_BYTES, acts);
        PF_KEEP_LOOP for (int64_t i = 0; i < run + (rest < row_end); ++i) {
            const bool in_run = i < run;
            one_rows(g, token, acts, in_run ? row_begin + i : rest, in_run ? PF_STREAMS : row_end - rest, in_run ? run : 1, u);
        }
    }
}

/* MANY_ROWS rows, of which the last one fills up, and a tile of tokens. */
PF_INLINE void many_rows(const pf_gemm *g, int64_t row, int64_t n_row, int64_t first, int64_t n_token, const uint8_t *tile,
                         unit_format u) {
    const int64_t blocks = g->w->cols / BLOCK;
    const uint8_t *rows[MANY_ROWS];
    pf_vec sums[MANY_ROWS][PF_TILE_TOKENS][PARTS];
    for (int64_t r = 0; r < MANY_ROWS; ++r) {
        rows[r] = pf_weight_row(g->w, g->matrix, row + pf_min_i64(r, n_row - 1));
        for (int64_t t = 0; t < n_token; ++t) {
            PF_UNROLL for (int part = 0; part < PARTS; ++part) sums[r][t][part] = pf_vec_zero();
        }
    }
    for (int64_t begin = 0; begin < blocks; begin += PF_SUPER_BLOCKS) {
        PF_UNROLL for (int part = 0; part < UNIT_PARTS; ++part) {
            const int64_t n = blocks - begin - part * PART, of_unit = begin / PF_SUPER_BLOCKS;
            int_weights kept[MANY_ROWS];
            if (n <= 0) break;
            PF_KEEP_LOOP for (int r = 0; r < MANY_ROWS; r += ROWS_AT_ONCE) {
                const uint8_t *at[ROWS_AT_ONCE];
                PF_UNROLL for (int k = 0; k < ROWS_AT_ONCE; ++k) at[k] = rows[r + k] + of_unit * u.f.block_bytes;
                load_part(at, part, u.f.blocks > 1 || n > PART ? PART : (int)n, u, &kept[r]);
            }
            PF_KEEP_LOOP for (int64_t t = 0; t < n_token; ++t, tile += PART_ACT_BYTES) {
                PF_KEEP_LOOP for (int r = 0; r < MANY_ROWS; r += ROWS_AT_ONCE) {
                    join_part(&kept[r], tile, u, &sums[r][t][of_unit % 2 * UNIT_PARTS + part],
                              PF_TILE_TOKENS * PARTS);
                }
            }
            tile += (PF_TILE_TOKENS - n_token) * PART_ACT_BYTES;
        }
    }
    for (int64_t t = 0; t < n_token; ++t) {
        for (int64_t r = 0; r < n_row; ++r) pf_gemm_put(g, first + t, row + r, int_total(sums[r][t]) * u.f.unit);
    }
}

/* ---- Tiles (pf_tile_kernels) ------------------------------------------------------------------------------- */

static int64_t tile_bytes(int planes, int64_t cols) {
    (void)planes;
    return parts_of(cols) * PF_TILE_TOKENS * PART_ACT_BYTES;
}
static int64_t tile_scratch_bytes(int64_t cols) { return cols * (int64_t)sizeof(float); }
static void pack_tile(const pf_gemm *g, int planes, int64_t first, int64_t n, uint8_t *out) {
    (void)planes;
    for (int64_t t = 0; t < n; ++t) {
        put_token(pf_gemm_act(g, first + t), g->w->cols, PF_TILE_TOKENS * PART_ACT_BYTES, out + t * PART_ACT_BYTES);
    }
}

PF_INLINE void many_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, unit_format u) {
    const int64_t bytes = tile_bytes(PF_Q16_PLANES, g->w->cols);
    for (int64_t first = 0; first < g->n; first += PF_TILE_TOKENS) {
        const int64_t n = pf_min_i64(PF_TILE_TOKENS, g->n - first);
        const uint8_t *tile = g->packed + first / PF_TILE_TOKENS * bytes;
        PF_KEEP_LOOP for (int64_t row = row_begin; row < row_end; row += MANY_ROWS) {
            many_rows(g, row, pf_min_i64(MANY_ROWS, row_end - row), first, n, tile, u);
        }
    }
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

#define UNIT_GEMMS(lower, is_wide, ...)                                                                       \
    static void one_q16_##lower(const pf_cpu_kernels *k, const pf_gemm *g, int64_t begin, int64_t end) {      \
        (void)k;                                                                                              \
        one_gemm(g, begin, end, (unit_format){values_##lower, scales_##lower, {__VA_ARGS__}, is_wide});       \
    }                                                                                                         \
    static void many_q16_##lower(const pf_cpu_kernels *k, const pf_gemm *g, int64_t begin, int64_t end) {     \
        (void)k;                                                                                              \
        many_gemm(g, begin, end, (unit_format){values_##lower, scales_##lower, {__VA_ARGS__}, is_wide});      \
    }
#define UNIT_SUPER(type, lower, scales, minimums)                                                             \
    UNIT_GEMMS(lower, (int)PF_W_##type == (int)PF_W_IQ4_XS, .block_bytes = PF_##type##_BYTES, .blocks = PF_SUPER_BLOCKS, \
               .unit = 1.0f, .scaling = (scales), .has_minimums = (minimums))
UNIT_GEMMS(q8_0, true, .block_bytes = PF_SUPER_BLOCKS * Q8_0_BYTES, .blocks = 1, .unit = 1.0f, .scaling = PF_SCALES_OF_BLOCKS)
UNIT_GEMMS(mxfp4, false, .block_bytes = PF_SUPER_BLOCKS * MXFP4_BYTES, .blocks = 1, .unit = PF_INT_MXFP4_UNIT,
           .scaling = PF_SCALES_OF_BLOCKS)
PF_SUPER_TYPES(UNIT_SUPER)
#undef UNIT_SUPER

/* Overrides the table's products of q16. */
static inline void set_unit_entries(pf_cpu_kernels *k) {
    pf_tile_kernels *t = &k->tiles;
    t->from = t->super_from = 2;
    t->rest = 1;
    t->packed_bytes = tile_bytes;
    t->pack = pack_tile;
    t->scratch_bytes = tile_scratch_bytes;
#define SET_UNIT(type, lower) k->gemm_q16[PF_W_##type] = one_q16_##lower, t->gemm_q16[PF_W_##type] = many_q16_##lower;
#define SET_SUPER(type, lower, scales, minimums) SET_UNIT(type, lower)
    SET_UNIT(Q8_0, q8_0)
    SET_UNIT(MXFP4, mxfp4)
    PF_SUPER_TYPES(SET_SUPER)
#undef SET_SUPER
#undef SET_UNIT
}

#endif
