/* The CPU backend's inner kernels: what the operations in this folder are built from, one table per instruction set.
 *
 * The scalar table (kernels_scalar.c) is complete, plain, and the reference. A set begins as a copy of the one that it
 * extends, the scalar one last, and its init overrides entry by entry; what it leaves is inherited (pf_kernels_extend).
 * Entries that share a layout are overridden together: quantize_q16 with q16_words, fp4_tile with fp4_dots. ISA files are
 * compiled with their own flags, so they hold only static functions and one exported `pf_kernels_<isa>_init`.
 *
 * Tables of weight types are indexed by PF_W_* (format/dtypes.h), which pf_weight_kind() gives.
 *
 * Accumulation: what a kernel computes for one (row, token) pair must not depend on how many rows or tokens share the
 * call, on alignment, or on where a tile starts: a dot product over K runs through the same lanes in the same order
 * whether it is called alone or in a tile. Memory is read only within [ptr, ptr + size): cache rows and weights sit at
 * odd addresses and at the end of maps. */
#ifndef PF_BACKEND_CPU_KERNELS_H
#define PF_BACKEND_CPU_KERNELS_H

#include "backend/backend.h"
#include "backend/cpu/fp4.h"
#include "backend/cpu/int_acts.h"

/* One block of a matrix product: rows [row_begin, row_end) of one matrix times n activation rows.
 *   v = W[row] . act[in_rows ? in_rows[i] : i]
 *   y[(out_rows ? out_rows[i] : i) * ldy + row] = v,  or  += gain[i] * v when gain is given. */
typedef struct pf_gemm {
    const pf_weight *w;
    int64_t matrix;        /* which of w->count */
    const uint8_t *act;    /* float [cols], or a row of int_acts.h (64-byte aligned), act_stride bytes apart */
    int64_t act_stride;
    int64_t n;
    const int32_t *in_rows, *out_rows; /* NULL: identity */
    const float *gain;     /* NULL: store */
    float *y;
    int64_t ldy;
    float *scratch;        /* [cols] floats of this worker, for a dequantised row; or what the tile kernels say */
    /* For the tile kernels: the activations, packed; and weights that will be wanted after these (NULL: unknown). */
    const uint8_t *packed, *next;
    int64_t next_bytes;
} pf_gemm;

struct pf_cpu_kernels;
typedef void (*pf_gemm_fn)(const struct pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end);
typedef void (*pf_quantize_fn)(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row);
typedef void (*pf_dequant_fn)(const pf_weight *w, int64_t matrix, int64_t row, float *out);

static inline const uint8_t *pf_weight_row(const pf_weight *w, int64_t matrix, int64_t row) {
    return w->data + (matrix * w->rows + row) * w->row_bytes;
}
/* PF_FP8: index of the row's first scale in w->scale; one more every 128 columns. */
static inline int64_t pf_weight_scale_index(const pf_weight *w, int64_t matrix, int64_t row) {
    return (matrix * w->scale_rows + (w->row0 + row) / PF_FP8_BLOCK) * w->scale_cols;
}

/* Where v of activation row i goes. */
static inline void pf_gemm_put(const pf_gemm *g, int64_t i, int64_t row, float v) {
    float *y = g->y + (g->out_rows ? g->out_rows[i] : i) * g->ldy + row;
    *y = g->gain ? *y + g->gain[i] * v : v;
}
static inline const uint8_t *pf_gemm_act(const pf_gemm *g, int64_t i) {
    return g->act + (g->in_rows ? g->in_rows[i] : i) * g->act_stride;
}

/* Products with a few tokens wait for memory, and one stream of reads leaves most of it idle. So the rows are cut into
 * runs of following rows, which are read side by side, a row of each at a time. Rows next to each other would be streams
 * that start anew with every row. How many runs are best is a matter of the processor (pf_cpu_kernels.streams): PF_STREAMS,
 * the most, or few, which then ask for what they read PF_FAR_AHEAD bytes ahead. */
enum { PF_STREAMS = 8, PF_FAR_AHEAD = 2048 };

enum { PF_ROW_TILE = PF_FP4_ROWS, PF_MIX_MAX = 17 };

/* Integer products for many tokens, from packed activations: the same results, by panels of rows (gemm_panel.h) or by
 * matrix instructions. */
enum { PF_TILE_TOKENS = 16, PF_TILE_ROWS = 64 };
typedef struct pf_tile_kernels {
    int64_t from; /* the fewest tokens that these are quicker for; 0: there are none */
    int64_t super_from; /* the same of types of super-blocks, whose rows cost more to unpack */
    int64_t rest; /* and the fewest that are left over behind PF_TILE_TOKENS of them */
    int64_t (*packed_bytes)(int planes, int64_t cols); /* of PF_TILE_TOKENS, a multiple of 64 */
    /* Activations [first, first + n) of g, n <= PF_TILE_TOKENS. */
    void (*pack)(const pf_gemm *g, int planes, int64_t first, int64_t n, uint8_t *out);
    int64_t (*scratch_bytes)(int64_t cols); /* what gemms need */
    pf_gemm_fn gemm_q16[PF_W_COUNT], gemm_q8[PF_W_COUNT]; /* best with multiples of PF_TILE_ROWS rows */
    /* NULL where there are none: a levelled tile (fp4.h) of n_row FP4 rows and of the same set's tile of them, false where
     * their scales are too far apart; and out[i] = scale sum_h w[h] max(0, q_h . row_i), by fp4_dots and weigh_heads, for
     * all PF_ROW_TILE rows of one and a multiple of PF_TILE_TOKENS heads. width: 64 or PF_FP4_LEVEL_WIDTH. */
    bool (*fp4_level)(const uint8_t *const *row, int64_t n_row, int64_t width, const uint8_t *tile, uint8_t *level);
    void (*fp4_scores)(const pf_fp4_level *q, int64_t n_head, const float *w, const uint8_t *level, int64_t width,
                       float scale, float *out);
} pf_tile_kernels;

typedef struct pf_cpu_kernels {
    const char *name;
    int64_t streams; /* 2 or PF_STREAMS */

    /* sum a[i] b[i]; a, b float [n], any alignment. */
    float (*dot)(const float *a, const float *b, int64_t n);
    /* y += s x */
    void (*axpy)(float *y, float s, const float *x, int64_t n);

    /* One row of a weight to float [cols], exactly. */
    pf_dequant_fn dequant[PF_W_COUNT];
    /* float activations, any weight type: every product with the exactly dequantised weight, float accumulation. */
    pf_gemm_fn gemm_f32[PF_W_COUNT];
    /* q16 and q8 activations; NULL for types that have no integer products (PF_TYPE_INTEGER), on all sets alike: gemm_f32
     * is used then. Types of super-blocks have those with q16 only, which then stand in for q8. */
    pf_gemm_fn gemm_q16[PF_W_COUNT], gemm_q8[PF_W_COUNT];
    /* Columns [begin, end) of x [n], multiples of 32, into their places of its q16 or q8 row; where end is n, the zeros
     * behind them too. */
    pf_quantize_fn quantize_q16, quantize_q8;
    bool q16_words; /* how this set keeps q16 (int_acts.h) */
    pf_tile_kernels tiles;

    /* Cache rows to float [width]. */
    void (*load_row)(const pf_rows *rows, const uint8_t *row, float *out);

    /* Heads against rows [n_row, d], as attention and the indexer tile them; n_row <= PF_ROW_TILE.
     * out[h * ld + i] = q_h . row_i for q [n_q, d]. */
    void (*row_dots)(const float *q, int64_t n_q, const float *rows, int64_t n_row, int64_t d, float *out, int64_t ld);
    /* One more part of a running softmax: s [n, room for PF_ROW_TILE] becomes exp(scale s - top) with *top and *sum
     * brought up to date; returns what earlier weights are to be multiplied with. */
    float (*softmax_part)(float *s, int64_t n, float scale, float *top, float *sum);
    /* acc[h, c] = acc[h, c] * shrink[h] + sum_i p[h * ld + i] row_i[c], acc [n_q, d]. */
    void (*row_sums)(const float *p, int64_t ld, const float *shrink, int64_t n_q, const float *rows, int64_t n_row,
                     int64_t d, float *acc);
    /* out[i] = scale sum_h w[h] max(0, s[h * ld + i]); s readable up to PF_ROW_TILE in every row. */
    void (*weigh_heads)(const float *s, int64_t ld, int64_t n_row, const float *w, int64_t n_head, float scale,
                        float *out);

    /* n_row <= PF_ROW_TILE FP4 rows, width a multiple of 32, as the tile that fp4_dots of the same set takes; the last
     * one fills it up. */
    void (*fp4_tile)(const uint8_t *const *row, int64_t n_row, int64_t width, uint8_t *tile);
    /* out[h * ld + i] = q_h . row_i for n_q heads (fp4.h) and all PF_ROW_TILE rows of a tile. */
    void (*fp4_dots)(const uint8_t *q, int64_t n_q, const uint8_t *tile, int64_t width, float *out, int64_t ld);

    /* h = silu(min(gate, limit)) * clamp(up, -limit, limit) * gain; h may be gate. */
    void (*swiglu)(const float *gate, const float *up, int64_t n, float limit, float gain, float *h);
    /* y = x * scale * gain; gain may be NULL, y may be x. */
    void (*norm)(const float *x, float scale, const float *gain, int64_t n, float *y);
    /* e = exp(g - top); sum += e; out += e a. */
    void (*pool_add)(const float *g, const float *a, const float *top, int64_t n, float *sum, float *out);
    /* out[o][i] = sum_j w[o * n_in + j] in[j][i], n_in and n_out <= PF_MIX_MAX; an output may be an input. */
    void (*mix)(const float *const *in, int n_in, const float *w, int n_out, float *const *out, int64_t n);
    /* Ascending indices of the s that are not below limit (NaN is not), and how many; index has room for n. */
    int64_t (*collect)(const float *s, int64_t n, float limit, int32_t *index);
} pf_cpu_kernels;

/* Each overrides entries of the table that it is given, and leaves the others. */
typedef void (*pf_kernels_init_fn)(pf_cpu_kernels *k);
void pf_kernels_scalar_init(pf_cpu_kernels *k);
void pf_kernels_avx2_init(pf_cpu_kernels *k);
void pf_kernels_avxvnni_init(pf_cpu_kernels *k);
void pf_kernels_avx512_init(pf_cpu_kernels *k);
void pf_kernels_avx512_vbmi_init(pf_cpu_kernels *k);
void pf_kernels_amx_init(pf_cpu_kernels *k);
void pf_kernels_neon_init(pf_cpu_kernels *k);
void pf_kernels_dotprod_init(pf_cpu_kernels *k);
void pf_kernels_i8mm_init(pf_cpu_kernels *k);

/* Makes k, the table of some set, that of one that extends it. scalar: what stands in for products of q16 that k has and
 * init leaves, where the two keep q16 in different ways: the scalar ones read both. Nothing stands in for products of
 * tokens that k packs in another way. */
static inline void pf_kernels_extend(pf_cpu_kernels *k, pf_kernels_init_fn init, const pf_cpu_kernels *scalar) {
    const pf_cpu_kernels below = *k;
    pf_tile_kernels *tiles = &k->tiles;
    init(k);
    for (int kind = 0; kind < PF_W_COUNT && tiles->pack != below.tiles.pack; ++kind) {
        if (tiles->gemm_q16[kind] == below.tiles.gemm_q16[kind]) tiles->gemm_q16[kind] = NULL;
        if (tiles->gemm_q8[kind] == below.tiles.gemm_q8[kind]) tiles->gemm_q8[kind] = NULL;
    }
    if (k->q16_words == below.q16_words) return;
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        if (k->gemm_q16[kind] == below.gemm_q16[kind]) k->gemm_q16[kind] = scalar->gemm_q16[kind];
    }
}

#endif
