/* Products of integer weights with many tokens on AMX tiles (Intel, from Sapphire Rapids on); all else is AVX-512's.
 *
 * A tile multiplies 16 rows by 16 tokens over one block of 32 columns in 16 cycles, which is eight times what vpdpbusd does.
 * Its 256 sums then become floats and meet both scales, as int_acts.h has it: that takes longer than the product. So
 *   - weights are unpacked once, 64 rows at a time, into int8 panels that stay in L2 while all tokens pass;
 *   - tokens are packed once a product, 16 to a tile (pack_tokens);
 *   - blocks with the same b % 16 follow each other, so that their sum s[b % 16] stays in registers;
 *   - the tile product of a step is under way while the sums of the step before become floats;
 *   - the rows behind these are asked for meanwhile, a few lines a step. */
#include "backend/cpu/kernels.h"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(PF_AMX)

#include "backend/cpu/blocks.h"
#include "backend/cpu/x86_intrinsics.h"

#include "base/arith.h"
#include "format/floats.h"

enum { TILE = PF_TILE_TOKENS, PANELS = PF_TILE_ROWS / TILE, QUADS = 8, CLASSES = PF_INT_SUMS, LEVELS = 4 };
enum { BLOCK_BYTES = TILE * BLOCK };     /* of a panel, and of a plane of packed tokens */
enum { STAGE_INTS = TILE * TILE };

/* A class is the blocks with the same b % 16. Their order is that in which the sums of int_acts.h are added up as a tree, a
 * pair of neighbours at a time: the bits of its rank, read backwards, are a class, and the other way round. */
static const int class_order[CLASSES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

/* ---- Packed tokens and rows -------------------------------------------------------------------------------- */

/* Blocks are kept class by class, by rank; every class has room for as many as the first one has. */
static int64_t class_blocks(int64_t cols) { return pf_ceil_div(cols / BLOCK, CLASSES); }
static int64_t class_count(int64_t cols, int c) { return (cols / BLOCK - c + CLASSES - 1) / CLASSES; }

/* 16 tokens: of every plane, block and four columns their bytes, token after token; then of every block their scales. */
static int64_t packed_bytes(int planes, int64_t cols) {
    return class_blocks(cols) * CLASSES * (planes * BLOCK_BYTES + TILE * (int64_t)sizeof(float));
}

/* Lane l of row t to lane t of row l. */
PF_INLINE void transpose(__m512i *v) {
    __m512i a[16];
    PF_UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    PF_UNROLL for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    PF_UNROLL for (int i = 0; i < 4; ++i) { /* lanes of 128 bits, of rows 4 apart */
        const __m512i low = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x44), high = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xee);
        const __m512i low2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x44);
        const __m512i high2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xee);
        a[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(high, high2, 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    PF_UNROLL for (int i = 0; i < 16; ++i) v[i] = a[i];
}

static void pack_tokens(const pf_gemm *g, int planes, int64_t first, int64_t n, uint8_t *out) {
    const int64_t cols = g->w->cols, padded = pf_int_padded(cols), groups = class_blocks(cols);
    const uint8_t *row[TILE];
    for (int64_t t = 0; t < TILE; ++t) row[t] = pf_gemm_act(g, first + (t < n ? t : n - 1));
    for (int64_t kind = 0; kind < planes * QUADS + 1; ++kind) { /* of every plane eight times four columns; the scales */
        const int64_t plane = kind / QUADS, quad = kind % QUADS;
        const bool is_scale = plane == planes;
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t at = plane * padded + (is_scale ? group * 64 : group * PF_INT_GROUP + quad * PF_INT_QUADS);
            __m512i v[TILE];
            PF_UNROLL for (int t = 0; t < TILE; ++t) v[t] = _mm512_loadu_si512((const void *)(row[t] + at));
            transpose(v);
            uint8_t *to = out + plane * groups * CLASSES * BLOCK_BYTES + group * (is_scale ? 64 : BLOCK_BYTES) + quad * 64;
            PF_UNROLL for (int c = 0; c < CLASSES; ++c) {
                _mm512_storeu_si512((void *)(to + class_order[c] * groups * (is_scale ? 64 : BLOCK_BYTES)), v[c]);
            }
        }
    }
}

/* A panel is 16 rows: of a block their 32 bytes, row after row. Up to four panels lie in the order of the steps that use
 * them, which go by class, panel and block; behind them of every step the scales of its 16 rows, and the place of its block
 * among those of packed tokens. */
typedef void (*unpack_fn)(const uint8_t *const *row, int64_t block, uint8_t *values, float *scales);

PF_INLINE void unpack_q8_0(const uint8_t *const *row, int64_t block, uint8_t *values, float *scales) {
    uint16_t halves[TILE];
    PF_UNROLL for (int r = 0; r < TILE; ++r) {
        const uint8_t *at = row[r] + block * Q8_0_BYTES;
        halves[r] = pf_load_u16(at);
        _mm256_storeu_si256((__m256i *)(void *)(values + r * BLOCK), load256(at + 2));
    }
    _mm512_storeu_ps(scales, _mm512_cvtph_ps(load256((const uint8_t *)halves)));
}

PF_INLINE void unpack_mxfp4(const uint8_t *const *row, int64_t block, uint8_t *values, float *scales) {
    const __m256i table = _mm256_broadcastsi128_si256(e2m1_table()), right = _mm256_setr_epi64x(0, 0, 4, 4);
    uint32_t *scale_bits = (uint32_t *)(void *)scales;
    PF_UNROLL for (int r = 0; r < TILE; ++r) {
        const uint8_t *at = row[r] + block * MXFP4_BYTES;
        const __m256i codes = _mm256_broadcastsi128_si256(load128(at + 1));
        const __m256i nibbles = _mm256_and_si256(_mm256_srlv_epi64(codes, right), _mm256_set1_epi8(15));
        scale_bits[r] = opaque((uint32_t)at[0] << 23);
        _mm256_storeu_si256((__m256i *)(void *)(values + r * BLOCK), _mm256_shuffle_epi8(table, nibbles));
    }
}

static int64_t panel_bytes(int64_t cols) {
    return PANELS * cols / BLOCK * (BLOCK_BYTES + TILE * (int64_t)sizeof(float) + (int64_t)sizeof(int32_t));
}

typedef struct row_panels {
    int n_panel;
    int64_t n_step;
    uint8_t *values; /* [n_step, BLOCK_BYTES] */
    float *scales;   /* [n_step, TILE] */
    int32_t *places; /* [n_step] */
} row_panels;

/* Rows [row, row + n_row); the last one fills the last panel up. */
PF_INLINE row_panels unpack_rows(const pf_gemm *g, int64_t row, int64_t n_row, unpack_fn unpack) {
    const int64_t cols = g->w->cols, groups = class_blocks(cols);
    row_panels p = {.n_panel = (int)pf_ceil_div(n_row, TILE), .values = (uint8_t *)g->scratch};
    p.n_step = p.n_panel * (cols / BLOCK);
    p.scales = (float *)(void *)(p.values + p.n_step * BLOCK_BYTES);
    p.places = (int32_t *)(void *)(p.scales + p.n_step * TILE);
    for (int panel = 0; panel < p.n_panel; ++panel) {
        const uint8_t *rows[TILE];
        int64_t first[CLASSES], begin = 0; /* steps of the panel */
        for (int64_t r = 0; r < TILE; ++r) {
            rows[r] = pf_weight_row(g->w, g->matrix, row + pf_min_i64(panel * TILE + r, n_row - 1));
        }
        for (int rank = 0; rank < CLASSES; ++rank) {
            const int64_t count = class_count(cols, class_order[rank]);
            first[class_order[rank]] = begin + panel * count;
            begin += p.n_panel * count;
        }
        for (int64_t b = 0; b < cols / BLOCK; ++b) {
            const int c = (int)(b % CLASSES);
            const int64_t step = first[c] + b / CLASSES;
            unpack(rows, b, p.values + step * BLOCK_BYTES, p.scales + step * TILE);
            p.places[step] = (int32_t)(class_order[c] * groups + b / CLASSES);
        }
    }
    return p;
}

/* ---- Products ---------------------------------------------------------------------------------------------- */

/* Tiles, twice over for steps in turn: 16 x 16 sums of a plane, and the block of 16 rows; of 16 tokens a plane's. The
 * processor does not rename them: what is loaded into one waits for the products that still read it. Macros, because the
 * intrinsics paste them into the names of registers. */
#define SUMS_0_EVEN 0
#define SUMS_1_EVEN 1
#define SUMS_0_ODD 2
#define SUMS_1_ODD 3
#define ROWS_EVEN 4
#define ROWS_ODD 5
#define TOKENS_0 6
#define TOKENS_1 7

/* What _tile_loadconfig takes. */
typedef struct tile_shapes {
    uint8_t palette, start, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Static, because gcc believes that the instruction reads but 8 bytes of it, and drops what is written to the others. */
static const tile_shapes tile_config = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, [ROWS_EVEN] = BLOCK, [ROWS_ODD] = BLOCK, [TOKENS_0] = 64, [TOKENS_1] = 64},
    .rows = {TILE, TILE, TILE, TILE, [ROWS_EVEN] = TILE, [ROWS_ODD] = TILE, [TOKENS_0] = QUADS, [TOKENS_1] = QUADS},
};

typedef struct tile_job {
    const pf_gemm *g;
    int64_t cols, plane_stride;
    row_panels rows;
    const uint8_t *tokens;  /* one packed tile */
    const uint8_t *next;    /* lines to ask for, n_next of them, share a step */
    int64_t n_next, share;
    float unit;
} tile_job;

/* The integer sums of a step, into its tiles; and from there to memory. */
#define MULTIPLY(turn)                                                                                           \
    do {                                                                                                         \
        _tile_loadd(ROWS_##turn, rows, BLOCK);                                                                   \
        _tile_loadd(TOKENS_0, tokens, 64);                                                                       \
        _tile_zero(SUMS_0_##turn);                                                                               \
        _tile_dpbssd(SUMS_0_##turn, ROWS_##turn, TOKENS_0);                                                      \
        if (planes == 1) break;                                                                                  \
        _tile_loadd(TOKENS_1, tokens + j->plane_stride, 64);                                                     \
        _tile_zero(SUMS_1_##turn);                                                                               \
        _tile_dpbssd(SUMS_1_##turn, ROWS_##turn, TOKENS_1);                                                      \
    } while (0)
#define STORE(turn)                                                                                              \
    do {                                                                                                         \
        _tile_stored(SUMS_0_##turn, sums, 64);                                                                   \
        if (planes == 2) _tile_stored(SUMS_1_##turn, sums + STAGE_INTS, 64);                                     \
    } while (0)

PF_INLINE void multiply(const tile_job *j, int planes, int64_t step) {
    const uint8_t *rows = j->rows.values + step * BLOCK_BYTES;
    const uint8_t *tokens = j->tokens + (int64_t)j->rows.places[step] * BLOCK_BYTES;
    if (step % 2 == 0) MULTIPLY(EVEN);
    else MULTIPLY(ODD);
}
PF_INLINE void store(int planes, int64_t step, int32_t *sums) {
    if (step % 2 == 0) STORE(EVEN);
    else STORE(ODD);
}

/* s[row] = fma(i, d_w d_a, s[row]) for the sums of a step. */
PF_INLINE void accumulate(const tile_job *j, int planes, int64_t step, const int32_t *sums, __m512 *acc) {
    const float *token_scales = (const float *)(const void *)(j->tokens + planes * j->plane_stride);
    const float *row_scale = j->rows.scales + step * TILE;
    const __m512 token_scale = _mm512_loadu_ps(token_scales + (int64_t)j->rows.places[step] * TILE);
    PF_UNROLL for (int r = 0; r < TILE; ++r) {
        __m512 i = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * TILE));
        if (planes == 2) {
            const __m512 low = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + STAGE_INTS + r * TILE));
            i = _mm512_fmadd_ps(i, _mm512_set1_ps((float)PF_INT_BASE), low);
        }
        acc[r] = _mm512_fmadd_ps(i, _mm512_mul_ps(_mm512_set1_ps(row_scale[r]), token_scale), acc[r]);
    }
}

/* Sums of 16 rows (a vector's lanes are tokens) to their places. */
static void put_panel(const tile_job *j, int64_t row, int64_t n_row, int64_t token, int64_t n_token,
                      const __m512 *acc) {
    const __mmask16 lanes = (__mmask16)((1u << n_row) - 1u);
    const pf_gemm *g = j->g;
    __m512i v[TILE];
    PF_UNROLL for (int r = 0; r < TILE; ++r) v[r] = _mm512_castps_si512(_mm512_mul_ps(acc[r], _mm512_set1_ps(j->unit)));
    transpose(v);
    for (int64_t t = 0; t < n_token; ++t) {
        float *y = g->y + (g->out_rows ? g->out_rows[token + t] : token + t) * g->ldy + row;
        __m512 sum = _mm512_castsi512_ps(v[t]);
        if (g->gain) {
            const __m512 share = _mm512_mul_ps(_mm512_set1_ps(g->gain[token + t]), sum);
            sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y), share);
        }
        _mm512_mask_storeu_ps(y, lanes, sum);
    }
}

/* Rows [row, row + n_row), which the panels hold, times one tile of tokens. While the sums of a step become floats, those
 * of the next one are stored, and the tiles of the one after it multiply. */
PF_INLINE void tile_product(tile_job *j, int planes, int64_t row, int64_t n_row, int64_t token, int64_t n_token) {
    _Alignas(64) int32_t stages[2][2 * STAGE_INTS];
    __m512 waiting[PANELS][LEVELS][TILE]; /* sums of classes, to be added to later ones */
    const int64_t n_step = j->rows.n_step;
    int64_t step = 0;
    multiply(j, planes, 0);
    if (n_step > 1) multiply(j, planes, 1);
    store(planes, 0, stages[0]);
    for (int rank = 0; rank < CLASSES; ++rank) {
        const int64_t count = class_count(j->cols, class_order[rank]);
        for (int panel = 0; panel < j->rows.n_panel; ++panel) {
            __m512 acc[TILE], total[TILE];
            PF_UNROLL for (int r = 0; r < TILE; ++r) acc[r] = _mm512_setzero_ps();
            PF_KEEP_LOOP for (const int64_t end = step + count; step < end; ++step) {
                if (step + 2 < n_step) multiply(j, planes, step + 2);
                if (step + 1 < n_step) store(planes, step + 1, stages[(step + 1) % 2]);
                for (int64_t i = 0; i < j->share && j->n_next > 0; ++i, --j->n_next, j->next += 64) {
                    _mm_prefetch((const char *)j->next, _MM_HINT_T1);
                }
                accumulate(j, planes, step, stages[step % 2], acc);
            }
            int level = 0;
            for (; rank >> level & 1; ++level) {
                PF_UNROLL for (int r = 0; r < TILE; ++r) acc[r] = _mm512_add_ps(waiting[panel][level][r], acc[r]);
            }
            /* A copy, so that nobody has the address of acc, which then lives in registers. */
            __m512 *to = level < LEVELS ? waiting[panel][level] : total;
            PF_UNROLL for (int r = 0; r < TILE; ++r) to[r] = acc[r];
            if (level < LEVELS) continue;
            const int64_t first = panel * TILE;
            put_panel(j, row + first, pf_min_i64(TILE, n_row - first), token, n_token, total);
        }
    }
}

PF_INLINE void tile_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, int planes, unpack_fn unpack, float unit) {
    const int64_t cols = g->w->cols, tile_bytes = packed_bytes(planes, cols);
    tile_job j = {.g = g, .cols = cols, .plane_stride = class_blocks(cols) * CLASSES * BLOCK_BYTES, .unit = unit};
    _tile_loadconfig(&tile_config);
    for (int64_t row = row_begin; row < row_end; row += PF_TILE_ROWS) {
        const int64_t n_row = pf_min_i64(PF_TILE_ROWS, row_end - row), tiles = pf_ceil_div(g->n, TILE);
        j.rows = unpack_rows(g, row, n_row, unpack);
        /* The next 64 rows, at the end those of what comes next. */
        const int64_t rest = pf_min_i64(PF_TILE_ROWS, row_end - row - n_row);
        j.next = rest > 0 ? pf_weight_row(g->w, g->matrix, row + n_row) : g->next;
        j.n_next = (rest > 0 ? rest * g->w->row_bytes : g->next_bytes) / 64;
        j.share = pf_ceil_div(j.n_next, tiles * j.rows.n_step);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t token = tile * TILE;
            j.tokens = g->packed + tile * tile_bytes;
            tile_product(&j, planes, row, n_row, token, pf_min_i64(TILE, g->n - token));
        }
    }
    _tile_release();
}

#include "backend/cpu/amx_fp4.h"

#define TILE_GEMM(name, ...)                                                                                     \
    static void name(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {            \
        (void)k;                                                                                                 \
        tile_gemm(g, row_begin, row_end, __VA_ARGS__);                                                           \
    }
TILE_GEMM(tiles_q16_q8_0, PF_Q16_PLANES, unpack_q8_0, 1.0f)
TILE_GEMM(tiles_q16_mxfp4, PF_Q16_PLANES, unpack_mxfp4, PF_INT_MXFP4_UNIT)
TILE_GEMM(tiles_q8_q8_0, PF_Q8_PLANES, unpack_q8_0, 1.0f)
TILE_GEMM(tiles_q8_mxfp4, PF_Q8_PLANES, unpack_mxfp4, PF_INT_MXFP4_UNIT)

void pf_kernels_amx_init(pf_cpu_kernels *k) {
    pf_tile_kernels *t = &k->tiles;
    t->from = 5;
    t->rest = 5;
    t->packed_bytes = packed_bytes;
    t->pack = pack_tokens;
    t->scratch_bytes = panel_bytes;
    t->gemm_q16[PF_W_Q8_0] = tiles_q16_q8_0;
    t->gemm_q16[PF_W_MXFP4] = tiles_q16_mxfp4;
    t->gemm_q8[PF_W_Q8_0] = tiles_q8_q8_0;
    t->gemm_q8[PF_W_MXFP4] = tiles_q8_mxfp4;
    t->fp4_level = level_tile;
    t->fp4_scores = level_scores;
}

#endif
