/* Products of packed tokens with panels of rows, for the x86 kernel files (pf_tile_kernels of kernels.h): lanes are rows.
 *
 * A panel is PANEL_ROWS rows of a weight. Of PANEL_BLOCKS blocks at a time they are unpacked to words in L1, and meet
 * PANEL_TOKENS tokens at once, whose words are broadcast: the exact sums of a block stay in registers, become floats, and
 * join the 16 sums of int_acts.h, which lie in g->scratch. What is unpacked does for up to BATCH_TILES tiles of tokens.
 *
 * A word of a weight times one of an activation: 32 columns must have an exact sum in int32, with |activation| up to
 * PF_Q16_MAX. Two columns share a 32-bit lane; the 16 pairs of a block are
 *     pair 2q: columns 4q and 4q + 2;  pair 2q + 1: columns 4q + 1 and 4q + 3;  q = 0 to 7, the lower column lower.
 *
 * A format adds a function that unpacks it,
 *     void unpack_<type>(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out):
 *         of the rows at row[0] to row[PF_VEC_LANES - 1], lane l being row[l], blocks of 32 columns [block, block + n_block):
 *         out->pairs[b][p] is pair p of block + b, out->scale[b] what its sums are multiplied with. block is a multiple of
 *         PANEL_BLOCKS, so that a call never crosses 256 columns and gets all of them of formats with blocks of 256;
 *         1 <= n_block <= PANEL_BLOCKS. All rows may be read up to their ends and no further.
 * and PANEL_GEMM(name, unpack, unit, kind), unit being what the products are multiplied with at last; set_panel_entries() of
 * x86_panels.h names it. Of other kinds than PANEL_PLAIN it fills in more of `out`.
 *
 * The including file defines pf_vec, pf_ivec, PANEL_TOKENS (4 or 6), and
 *     pf_ivec pf_ivec_add_pairs(pf_ivec s, pf_ivec a, pf_ivec b): to every lane of s its two products of words;
 *     PANEL_HOLD(v): nothing, or what keeps gcc from reordering sums until the registers are not enough;
 *     void panel_pairs(const uint8_t *row, int64_t padded, int64_t group, int quad, int32_t *even, int32_t *odd):
 *         pairs 2 quad and 2 quad + 1 of the PF_INT_BLOCKS blocks of a group of a q16 row of `padded` columns. */
#ifndef PF_BACKEND_CPU_GEMM_PANEL_H
#define PF_BACKEND_CPU_GEMM_PANEL_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

#include <string.h>

enum {
    PANEL_VECS = 2,
    PANEL_ROWS = PANEL_VECS * PF_VEC_LANES,
    PANEL_BLOCKS = 8,
    PANEL_PAIRS = BLOCK / 2,
    BATCH_TILES = 4,
    /* A packed tile: of every PANEL_TOKENS tokens all blocks, a block having of every token its pairs, then of every token its
     * scale. Behind them in the same order the sums of the blocks' halves, which few types take. */
    GROUPS = (PF_TILE_TOKENS + PANEL_TOKENS - 1) / PANEL_TOKENS,
    GROUP_PAIRS = PANEL_TOKENS * PANEL_PAIRS,
    GROUP_BLOCK = GROUP_PAIRS + PANEL_TOKENS, /* int32 or float, all of them */
    GROUP_HALVES = 2 * PANEL_TOKENS
};

typedef enum panel_kind {
    PANEL_PLAIN,
    PANEL_MINIMUMS, /* with minimums */
    PANEL_HALVES,   /* with a float scale for every 16 columns */
    PANEL_KINDS
} panel_kind;

typedef struct panel_rows {
    pf_ivec pairs[PANEL_BLOCKS][PANEL_PAIRS];
    pf_vec scale[PANEL_BLOCKS];      /* PANEL_HALVES: of the first halves */
    pf_vec half_scale[PANEL_BLOCKS]; /* PANEL_HALVES: of the second ones */
    pf_vec min_scale[PANEL_BLOCKS];  /* PANEL_MINIMUMS: -dmin, and the halves' minimums */
    pf_ivec m[PANEL_BLOCKS][2];
} panel_rows;
typedef void (*panel_unpack_fn)(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out);

/* The 16 sums of PANEL_TOKENS tokens with a panel's rows. */
typedef struct panel_sums {
    pf_vec s[PF_INT_SUMS][PANEL_TOKENS][PANEL_VECS];
} panel_sums;

/* ---- Packed tokens ------------------------------------------------------------------------------------------- */

static int64_t panel_packed_bytes(int planes, int64_t cols) {
    (void)planes;
    return (GROUPS * (cols / BLOCK) * (4 * (GROUP_BLOCK + GROUP_HALVES)) + 63) / 64 * 64;
}

/* Of PANEL_TOKENS tokens, their blocks from `block` on; and the sums of these blocks' halves. */
PF_INLINE const int32_t *panel_group(const uint8_t *tile, int64_t cols, int64_t group, int64_t block) {
    return (const int32_t *)(const void *)tile + (group * (cols / BLOCK) + block) * GROUP_BLOCK;
}
PF_INLINE const int32_t *panel_halves(const uint8_t *tile, int64_t cols, int64_t group, int64_t block) {
    return panel_group(tile, cols, GROUPS, 0) + (group * (cols / BLOCK) + block) * GROUP_HALVES;
}

/* Token t of a tile. */
static void panel_pack_token(const uint8_t *row, int planes, int64_t cols, int64_t t, uint8_t *tile) {
    const int64_t padded = pf_int_padded(cols), blocks = cols / BLOCK, group = t / PANEL_TOKENS, at = t % PANEL_TOKENS;
    const float *scales = pf_int_scales(row, planes, cols);
    for (int64_t begin = 0; begin < blocks; begin += PF_INT_BLOCKS) {
        const int64_t end = pf_min_i64(begin + PF_INT_BLOCKS, blocks);
        int32_t pairs[PANEL_PAIRS][PF_INT_BLOCKS];
        for (int quad = 0; quad < BLOCK / 4; ++quad) {
            panel_pairs(row, padded, begin / PF_INT_BLOCKS, quad, pairs[2 * quad], pairs[2 * quad + 1]);
        }
        for (int64_t b = begin; b < end; ++b) {
            int32_t *to = (int32_t *)(uintptr_t)panel_group(tile, cols, group, b);
            int32_t *halves = (int32_t *)(uintptr_t)panel_halves(tile, cols, group, b);
            for (int p = 0; p < PANEL_PAIRS; ++p) to[at * PANEL_PAIRS + p] = pairs[p][b - begin];
            memcpy(to + GROUP_PAIRS + at, scales + b, sizeof *scales);
            for (int h = 0; h < 2; ++h) {
                const uint8_t *sum = row + pf_int_halves_at(cols) + 4 * (pf_int_half_place(b) + h * PF_INT_BLOCKS);
                memcpy(halves + h * PANEL_TOKENS + at, sum, sizeof *halves);
            }
        }
    }
}
static void panel_pack(const pf_gemm *g, int planes, int64_t first, int64_t n, uint8_t *out) {
    for (int64_t t = 0; t < n; ++t) panel_pack_token(pf_gemm_act(g, first + t), planes, g->w->cols, t, out);
}

/* ---- Products -------------------------------------------------------------------------------------------------- */

static int64_t panel_scratch_bytes(int64_t cols) {
    (void)cols;
    return BATCH_TILES * GROUPS * (int64_t)sizeof(panel_sums);
}

/* n_token tokens of a group (a constant, as is kind): their n_block blocks at act, whose sums begin at sum. */
PF_INLINE void panel_product(const panel_rows *rows, int n_block, const int32_t *act, const int32_t *halves,
                             pf_vec (*s)[PANEL_TOKENS][PANEL_VECS], int n_token, panel_kind kind) {
    PF_KEEP_LOOP for (int b = 0; b < n_block; ++b, act += GROUP_BLOCK, halves += GROUP_HALVES, ++s) {
        const float *scale = (const float *)(const void *)(act + GROUP_PAIRS);
        pf_ivec i[PANEL_TOKENS][PANEL_VECS];
        PF_UNROLL for (int t = 0; t < n_token; ++t) {
            PF_UNROLL for (int v = 0; v < PANEL_VECS; ++v) i[t][v] = pf_ivec_set1(0);
        }
        PF_UNROLL for (int p = 0; p < PANEL_PAIRS; ++p) {
            const pf_ivec w0 = rows[0].pairs[b][p], w1 = rows[1].pairs[b][p];
            PF_UNROLL for (int t = 0; t < n_token; ++t) {
                const pf_ivec a = pf_ivec_set1(act[t * PANEL_PAIRS + p]);
                i[t][0] = pf_ivec_add_pairs(i[t][0], w0, a);
                i[t][1] = pf_ivec_add_pairs(i[t][1], w1, a);
                PANEL_HOLD(i[t][0]);
                PANEL_HOLD(i[t][1]);
            }
            if (kind != PANEL_HALVES || p != PANEL_PAIRS / 2 - 1) continue;
            PF_UNROLL for (int t = 0; t < n_token; ++t) {
                PF_UNROLL for (int v = 0; v < PANEL_VECS; ++v) {
                    const pf_vec both = pf_vec_mul(rows[v].scale[b], pf_vec_set1(scale[t]));
                    (*s)[t][v] = pf_vec_fma(pf_vec_of_ints(i[t][v]), both, (*s)[t][v]);
                    i[t][v] = pf_ivec_set1(0);
                }
            }
        }
        PF_UNROLL for (int t = 0; t < n_token; ++t) {
            const pf_vec act_scale = pf_vec_set1(scale[t]);
            PF_UNROLL for (int v = 0; v < PANEL_VECS; ++v) {
                const pf_vec row_scale = kind == PANEL_HALVES ? rows[v].half_scale[b] : rows[v].scale[b];
                (*s)[t][v] = pf_vec_fma(pf_vec_of_ints(i[t][v]), pf_vec_mul(row_scale, act_scale), (*s)[t][v]);
                if (kind != PANEL_MINIMUMS) continue;
                const pf_ivec first = pf_ivec_mul(rows[v].m[b][0], pf_ivec_set1(halves[t]));
                const pf_ivec second = pf_ivec_mul(rows[v].m[b][1], pf_ivec_set1(halves[PANEL_TOKENS + t]));
                (*s)[t][v] = pf_vec_fma(pf_vec_of_ints(pf_ivec_add(first, second)),
                                        pf_vec_mul(rows[v].min_scale[b], act_scale), (*s)[t][v]);
            }
        }
    }
}

#define PANEL_PRODUCT(name, n, kind)                                                                              \
    static void name##_##n(const panel_rows *rows, int n_block, const int32_t *act, const int32_t *halves,        \
                           pf_vec (*s)[PANEL_TOKENS][PANEL_VECS]) {                                               \
        panel_product(rows, n_block, act, halves, s, n, kind);                                                    \
    }
#if PANEL_TOKENS > 4
#  define PANEL_MORE(name, kind) PANEL_PRODUCT(name, 5, kind) PANEL_PRODUCT(name, 6, kind)
#  define PANEL_MORE_NAMES(name) , name##_5, name##_6
#else
#  define PANEL_MORE(name, kind)
#  define PANEL_MORE_NAMES(name)
#endif
#define PANEL_PRODUCTS(name, kind)                                                               \
    PANEL_PRODUCT(name, 1, kind) PANEL_PRODUCT(name, 2, kind) PANEL_PRODUCT(name, 3, kind)       \
    PANEL_PRODUCT(name, 4, kind) PANEL_MORE(name, kind)
PANEL_PRODUCTS(panel_plain, PANEL_PLAIN)
PANEL_PRODUCTS(panel_minimums, PANEL_MINIMUMS)
PANEL_PRODUCTS(panel_halves, PANEL_HALVES)

typedef void (*panel_product_fn)(const panel_rows *rows, int n_block, const int32_t *act, const int32_t *halves,
                                 pf_vec (*s)[PANEL_TOKENS][PANEL_VECS]);
#define PANEL_NAMES(name) {NULL, name##_1, name##_2, name##_3, name##_4 PANEL_MORE_NAMES(name)}
static const panel_product_fn panel_products[PANEL_KINDS][PANEL_TOKENS + 1] = {
    [PANEL_PLAIN] = PANEL_NAMES(panel_plain),
    [PANEL_MINIMUMS] = PANEL_NAMES(panel_minimums),
    [PANEL_HALVES] = PANEL_NAMES(panel_halves),
};

/* Rows that will be wanted, asked for a few lines at a time. */
typedef struct panel_ahead {
    const uint8_t *at;
    int64_t lines, share;
} panel_ahead;

PF_INLINE void panel_ask(panel_ahead *ahead) {
    const int64_t n = pf_min_i64(ahead->share, ahead->lines);
    for (int64_t i = 0; i < n; ++i) pf_prefetch_outer(ahead->at + 64 * i);
    ahead->at += 64 * n;
    ahead->lines -= n;
}

/* All tokens of a batch, packed from `tiles` on, with n_block unpacked blocks. */
static void panel_meet(const panel_rows *rows, int64_t cols, int64_t block, int n_block, const uint8_t *tiles,
                       int64_t n_token, panel_kind kind, panel_ahead *ahead, panel_sums *sums) {
    const int64_t tile_bytes = panel_packed_bytes(PF_Q16_PLANES, cols);
    for (int64_t first = 0; first < n_token; first += PF_TILE_TOKENS, tiles += tile_bytes, sums += GROUPS) {
        const int64_t n_tile = pf_min_i64(PF_TILE_TOKENS, n_token - first);
        for (int64_t group = 0; group * PANEL_TOKENS < n_tile; ++group) {
            const int64_t n = pf_min_i64(PANEL_TOKENS, n_tile - group * PANEL_TOKENS);
            panel_ask(ahead);
            panel_products[kind][n](rows, n_block, panel_group(tiles, cols, group, block),
                                    panel_halves(tiles, cols, group, block), sums[group].s + block % PF_INT_SUMS);
        }
    }
}

/* The sums of rows [row, row + n_row) and tokens [token, token + n_token), added up, to their places. */
static void panel_put(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token, float unit,
                      panel_sums *sums) {
    for (int64_t i = 0; i < n_token; ++i) {
        const int64_t t = i % PF_TILE_TOKENS, at = token + i;
        pf_vec(*of)[PANEL_TOKENS][PANEL_VECS] = sums[i / PF_TILE_TOKENS * GROUPS + t / PANEL_TOKENS].s;
        for (int64_t v = 0; v < PANEL_VECS && v * PF_VEC_LANES < n_row; ++v) {
            pf_vec s[4];
            PF_UNROLL for (int l = 0; l < 4; ++l) {
                s[l] = pf_vec_add(pf_vec_add(of[l][t % PANEL_TOKENS][v], of[l + 8][t % PANEL_TOKENS][v]),
                                  pf_vec_add(of[l + 4][t % PANEL_TOKENS][v], of[l + 12][t % PANEL_TOKENS][v]));
            }
            pf_vec sum = pf_vec_mul(pf_vec_add(pf_vec_add(s[0], s[2]), pf_vec_add(s[1], s[3])), pf_vec_set1(unit));
            float *y = g->y + (g->out_rows ? g->out_rows[at] : at) * g->ldy + row + v * PF_VEC_LANES;
            const int64_t n = n_row - v * PF_VEC_LANES;
            if (g->gain) sum = pf_vec_add(pf_vec_load_part(y, n), pf_vec_mul(pf_vec_set1(g->gain[at]), sum));
            pf_vec_store_part(y, sum, n);
        }
    }
}

/* Rows [row, row + n_row) with the tokens of a batch, of which the first is packed at `tiles`. */
PF_INLINE void panel_batch(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token,
                           panel_ahead ahead, panel_unpack_fn unpack, float unit, panel_kind kind) {
    const int64_t blocks = g->w->cols / BLOCK, tile_bytes = panel_packed_bytes(PF_Q16_PLANES, g->w->cols);
    panel_sums *sums = (panel_sums *)(void *)g->scratch;
    panel_rows panel[PANEL_VECS];
    const uint8_t *rows[PANEL_ROWS];
    for (int64_t r = 0; r < PANEL_ROWS; ++r) { /* the last one fills the panel up */
        rows[r] = pf_weight_row(g->w, g->matrix, row + pf_min_i64(r, n_row - 1));
    }
    memset(sums, 0, (size_t)(pf_ceil_div(n_token, PF_TILE_TOKENS) * GROUPS) * sizeof *sums);
    ahead.share = pf_ceil_div(ahead.lines, pf_ceil_div(blocks, PANEL_BLOCKS) * pf_ceil_div(n_token, PANEL_TOKENS));
    for (int64_t block = 0; block < blocks; block += PANEL_BLOCKS) {
        const int n_block = (int)pf_min_i64(PANEL_BLOCKS, blocks - block);
        for (int v = 0; v < PANEL_VECS; ++v) unpack(rows + v * PF_VEC_LANES, block, n_block, &panel[v]);
        panel_meet(panel, g->w->cols, block, n_block, g->packed + token / PF_TILE_TOKENS * tile_bytes, n_token, kind, &ahead,
                   sums);
    }
    panel_put(g, row, n_row, token, n_token, unit, sums);
}

PF_INLINE void panel_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, panel_unpack_fn unpack, float unit,
                          panel_kind kind) {
    const int64_t tiles = pf_ceil_div(g->n, PF_TILE_TOKENS), batches = pf_ceil_div(tiles, BATCH_TILES);
    const int64_t batch = pf_ceil_div(tiles, batches) * PF_TILE_TOKENS; /* of nearly the same size */
    for (int64_t token = 0; token < g->n; token += batch) {
        for (int64_t row = row_begin; row < row_end; row += PANEL_ROWS) {
            const int64_t n_row = pf_min_i64(PANEL_ROWS, row_end - row), rest = pf_min_i64(PANEL_ROWS, row_end - row - n_row);
            panel_ahead ahead = {NULL, 0, 0};
            if (rest > 0) {
                ahead.at = pf_weight_row(g->w, g->matrix, row + n_row);
                ahead.lines = rest * g->w->row_bytes / 64;
            } else if (rest <= 0 && token + batch >= g->n && g->next) {
                ahead.at = g->next;
                ahead.lines = pf_min_i64(g->next_bytes, PANEL_ROWS * g->w->row_bytes) / 64;
            }
            panel_batch(g, row, n_row, token, pf_min_i64(batch, g->n - token), ahead, unpack, unit, kind);
        }
    }
}

#define PANEL_GEMM(name, ...)                                                                                     \
    static void name(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {             \
        (void)k;                                                                                                  \
        panel_gemm(g, row_begin, row_end, __VA_ARGS__);                                                           \
    }

#endif
