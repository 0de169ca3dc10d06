/* Index scores of FP4 rows by the tensor cores' byte products, to the bit as backend/cpu/fp4.h says.
 *
 * Rows are A of a product and heads are B, so that lane 4 g + q has the sums of rows g and g + 8 with two heads (PTX
 * ISA, "Matrix Fragments for mma.m16n8k32"). Heads are dealt out so that lane q has heads 16 q and on, two a product: a
 * row's total, which the rule adds up in the order of heads, goes through a quad's lanes from the first to the last. So
 * that none has to wait, each works with many tokens one token behind the lane before it; the columns of B are then
 * heads of up to four tokens. With few tokens the lanes take turns.
 *
 * Levelled as on the CPU, a head's codes, and a row's, have one scale, and their product is one integer, by four
 * instructions. The rest is done with powers of two taken out: those of heads are in the weights, a row's comes last.
 * This changes no bit where nothing leaves the normal floats, for which scales and weights are bounded. Where a row of
 * a tile, or a head or weight of the block's tokens, is out of bounds, groups are summed as the rule is written.
 *
 * A block has its tokens' heads in shared memory; its warps go through tiles of rows, which come straight from where
 * they lie and stay in registers.
 *
 * By count of instructions, not measured: at most 1,750 products a cycle and multiprocessor of an A100 for a prompt, limited by
 * its tensor cores (dp4a: 256). A token alone is limited by issuing instructions: 45 to 60 % of the memory's bandwidth. */
#include "backend/cuda/indexer.cuh"

enum { GROUPS = 4, WORDS = GROUPS * PF_IDX_GROUP / 4, QUAD = 4 };
enum { MOST_HEADS = 64, LANE_HEADS = MOST_HEADS / QUAD, PADDED = LANE_HEADS + 4 /* so that banks differ */ };
/* Octets of rows that a warp has, and tokens that a block has at most. */
template <bool SHIFTED> struct way {
    enum { OCTETS = 2, TOKENS = 7 };
};
template <> struct way<true> {
    enum { OCTETS = 4, TOKENS = 24 };
};
enum { WARPS = 16, THREADS = WARPS * PF_WARP, AMORTISING_ROWS = 2048 };

/* Scales are at most 2^3 apart, as on the CPU, and from 2^-32 to 2^23; weights are 0, or from 2^-60 to below 2^41. With
 * a row's quarter, what is summed is 0 or at least 2^-126, and 64 times less than 2^100: normal with powers in it or
 * without. */
enum { LEVELS = 3, LEAST_SCALE = 127 - 32, MOST_SCALE = 127 + 23, LEAST_WEIGHT = 127 - 60, MOST_WEIGHT = 127 + 40 };

/* Sums start with the bits of this float: as floats they are it plus the sum, for |sum| < 2^22; they are below 2^21. */
#define MAGIC_BITS 0x4b400000
#define MAGIC 12582912.0f

/* Of one token. Codes: of a group lane q has columns 8 q on, as two words; where they are, piece_of() says. */
struct alignas(16) token_heads {
    uint32_t codes[MOST_HEADS][WORDS];
    float weight[QUAD][PADDED], levelled[QUAD][PADDED]; /* the second times the least scale */
    uint32_t exponents[MOST_HEADS];                     /* of the groups' scales, biased, a byte each */
};
static_assert(sizeof(token_heads) % 128 == 0, "a word of all tokens is in the same bank");

struct block_state {
    int64_t seen[way<true>::TOKENS]; /* rows that a token sees */
    bool levelled[WARPS];            /* the heads that a warp has encoded */
};

/* n tokens from token t on. */
struct token_span {
    const token_heads *heads;
    const int64_t *seen;
    int64_t t;
    int n;
};

template <int OCTETS> struct row_tile {
    int64_t first;                         /* row */
    uint32_t codes[OCTETS / 2][GROUPS][4]; /* as fragments of A */
    uint32_t exponents[OCTETS];            /* as of heads, of rows g + 8 i */
    float unit[OCTETS];                    /* what a total is to be multiplied with */
    bool levelled;                         /* as all heads are */
};

/* ---- Scales ---- */

PF_DEV uint32_t exponent_of(uint32_t exponents, int group) { return exponents >> 8 * group & 0xffu; }

/* The least of the groups' exponents; false where codes are not brought to it. */
PF_DEV bool find_level(uint32_t exponents, uint32_t &least) {
    uint32_t most = least = exponents & 0xffu;
PF_UNROLL
    for (int k = 1; k < GROUPS; ++k) {
        least = min(least, exponent_of(exponents, k));
        most = max(most, exponent_of(exponents, k));
    }
    return least >= LEAST_SCALE && most <= MOST_SCALE && most - least <= LEVELS;
}

PF_DEV bool fits(float weight) {
    const uint32_t exponent = pf_magnitude(weight) >> 23;
    return weight == 0.0f || (exponent >= LEAST_WEIGHT && exponent <= MOST_WEIGHT);
}

/* ---- Heads ---- */

/* Where groups 2 half and 2 half + 1 of lane q's columns are among a head's words: halves change places in every second
 * head, so that eight lanes that load 16 bytes meet all banks. */
PF_DEV int piece_of(int head, int half, int q) { return (half ^ (head & 1)) * (WORDS / 2) + 4 * q; }

/* The heads of n tokens from token t on by the block, two at a time by a warp, and eight columns by a lane. Where there
 * are fewer groups, others repeat them, as rows have zeros there. Returns whether all of the warp's can be levelled. */
PF_DEV bool encode_heads(const pf_score_args &args, int64_t t, int n, token_heads *to) {
    const int lane = pf_lane(), q = lane % QUAD, group = lane / QUAD % GROUPS;
    const int64_t groups = args.rows.width / PF_IDX_GROUP, n_head = args.a.n_head;
    bool all = true;
    for (int i = pf_warp(); i < n * MOST_HEADS / 2; i += WARPS) {
        token_heads &token = to[i / (MOST_HEADS / 2)];
        const int head = i % (MOST_HEADS / 2) * 2 + lane / 16;
        const int64_t at = (t + i / (MOST_HEADS / 2)) * n_head + head;
        const bool is_there = head < n_head;
        float v[8] = {};
        if (is_there) pf_load_floats(args.a.q + at * args.rows.width + group % groups * PF_IDX_GROUP + 8 * q, v);
        uint32_t top = 0, least, codes[2] = {0, 0};
PF_UNROLL
        for (int c = 0; c < 8; ++c) top = max(top, pf_magnitude(v[c]));
        for (int mask = 1; mask < QUAD; mask *= 2) top = max(top, pf_shfl_xor(top, mask));
        const int k = pf_fp4_exponent(top);
        uint32_t exponents = ((uint32_t)(k + 127) & 0xffu) << 8 * group;
        for (int mask = QUAD; mask < QUAD * GROUPS; mask *= 2) exponents |= pf_shfl_xor(exponents, mask);
        const bool levelled = find_level(exponents, least);
        const uint32_t shift = levelled ? exponent_of(exponents, group) - least : 0;
PF_UNROLL
        for (int c = 0; c < 8; ++c) {
            const uint32_t code = (uint32_t)pf_fp4_code(v[c], k) << shift & 0xffu;
            codes[c / 4] |= code << c % 4 * 8;
        }
        uint32_t *words = token.codes[head] + piece_of(head, group / 2, q) + group % 2 * 2;
        words[0] = codes[0];
        words[1] = codes[1];
        const float w = is_there ? args.a.w[at] : 0.0f;
        if (lane % 16 == 0) {
            token.weight[head / LANE_HEADS][head % LANE_HEADS] = w;
            token.levelled[head / LANE_HEADS][head % LANE_HEADS] = w * pf_of_e8m0(least);
            token.exponents[head] = exponents;
        }
        all = all && (!is_there || (levelled && fits(w)));
    }
    return __ballot_sync(PF_ALL_LANES, all) == PF_ALL_LANES;
}

/* ---- Rows ---- */

PF_DEV const uint8_t *row_of(const pf_rows &rows, int64_t index) { /* a division takes long */
    return rows.data + (index < rows.capacity ? index : index % rows.capacity) * rows.row_bytes;
}

/* Lane q's words of a row's groups, and its exponents; whole: of a row of four groups that is aligned to 4. Of fewer
 * groups, others are of zeros, with the scale of one that is there. */
PF_DEV void load_row(const uint8_t *row, int groups, bool whole, uint32_t (&words)[GROUPS], uint32_t &exponents) {
    const int at = 4 * (pf_lane() % QUAD);
    if (whole) {
PF_UNROLL
        for (int k = 0; k < GROUPS; ++k) words[k] = *reinterpret_cast<const uint32_t *>(row + 16 * k + at);
        exponents = *reinterpret_cast<const uint32_t *>(row + 16 * GROUPS);
    } else {
        exponents = 0;
PF_UNROLL
        for (int k = 0; k < GROUPS; ++k) {
            words[k] = k < groups ? pf_word_at(row + 16 * k + at) : 0;
            exponents |= (uint32_t)row[16 * groups + k % groups] << 8 * k;
        }
    }
}

/* Rows from row `first` on, of which the last is n_row - 1: it stands for those behind it. levelled: the heads are. */
template <int OCTETS>
PF_DEV void load_rows(const pf_rows &rows, int64_t first, int64_t n_row, bool levelled, row_tile<OCTETS> &tile) {
    tile.first = first;
    const int groups = rows.width / PF_IDX_GROUP;
    const bool whole = groups == GROUPS && rows.row_bytes % 4 == 0 && pf_aligned(rows.data, 4);
    uint32_t words[OCTETS][GROUPS], least[OCTETS];
PF_UNROLL
    for (int i = 0; i < OCTETS; ++i) {
        const uint8_t *row = row_of(rows, pf_least(first + 8 * i + pf_lane() / QUAD, n_row - 1));
        load_row(row, groups, whole, words[i], tile.exponents[i]);
    }
PF_UNROLL
    for (int i = 0; i < OCTETS; ++i) levelled = find_level(tile.exponents[i], least[i]) && levelled;
    tile.levelled = levelled = __ballot_sync(PF_ALL_LANES, levelled) == PF_ALL_LANES;
PF_UNROLL
    for (int i = 0; i < OCTETS; ++i) {
        const uint32_t shifts = levelled ? tile.exponents[i] - least[i] * 0x01010101u : 0; /* a byte each */
        tile.unit[i] = levelled ? 0.25f * pf_of_e8m0(least[i]) : 1.0f;
PF_UNROLL
        for (int k = 0; k < GROUPS; ++k) {
            const uint32_t shift = exponent_of(shifts, k);
            const uint32_t own_bits = __byte_perm(0xf8fcfeffu, 0, shift * 0x1111u); /* of each byte */
            tile.codes[i / 2][k][i % 2] = pf_doubled_values(words[i][k]) << shift & own_bits;
            tile.codes[i / 2][k][i % 2 + 2] = pf_doubled_values(words[i][k] >> 16) << shift & own_bits;
        }
    }
}

/* ---- Products ---- */

PF_DEV float of_sum(int sum) { return __uint_as_float((uint32_t)sum) - MAGIC; }

/* max(0, q . row) in units of the scales, of levelled codes: rows g, g, g + 8, g + 8 with heads 0, 1, 0, 1. */
PF_DEV void levelled_products(const uint32_t (&rows)[GROUPS][4], const uint2 (&heads)[GROUPS], float (&s)[4]) {
    int sum[4];
    pf_mma_bytes(sum, rows[0], heads[0], MAGIC_BITS);
PF_UNROLL
    for (int k = 1; k < GROUPS; ++k) pf_mma_bytes_add(sum, rows[k], heads[k]);
PF_UNROLL
    for (int e = 0; e < 4; ++e) s[e] = fmaxf(__uint_as_float((uint32_t)sum[e]), MAGIC) - MAGIC;
}

/* The same as the rule is written. Rows' codes are as they were, a head's are levelled where they can be. */
PF_DEV void plain_products(const uint32_t (&rows)[GROUPS][4], const uint2 (&heads)[GROUPS],
                           const uint32_t *row_exponents, const uint32_t *head_exponents, int groups, float (&s)[4]) {
    uint32_t least[2], shifted[2];
PF_UNROLL
    for (int e = 0; e < 2; ++e) shifted[e] = find_level(head_exponents[e], least[e]) ? 1u : 0u;
PF_UNROLL
    for (int e = 0; e < 4; ++e) s[e] = 0.0f;
PF_UNROLL
    for (int k = 0; k < GROUPS; ++k) {
        if (k >= groups) break;
        int sum[4];
        pf_mma_bytes(sum, rows[k], heads[k], MAGIC_BITS);
PF_UNROLL
        for (int e = 0; e < 4; ++e) {
            const uint32_t of_head = exponent_of(head_exponents[e % 2], k);
            const uint32_t of_row = exponent_of(row_exponents[e / 2], k);
            const uint32_t shift = shifted[e % 2] * (of_head - least[e % 2]);
            const float exact = of_sum(sum[e]) * __uint_as_float((127u - shift) << 23);
            s[e] = fmaf(exact, pf_of_e8m0(of_head) * (0.25f * pf_of_e8m0(of_row)), s[e]);
        }
    }
PF_UNROLL
    for (int e = 0; e < 4; ++e) s[e] = s[e] > 0.0f ? s[e] : 0.0f;
}

/* What the lane's heads 2 j and 2 j + 1, which are of token `own`, add to rows g + 8 i. column: the token of which the
 * lane has a head's columns of B. */
template <bool LEVELLED, int OCTETS>
PF_DEV void weigh_heads(const row_tile<OCTETS> &tile, const token_heads &column, const token_heads &own, int j,
                        int groups, float (&term)[OCTETS][2]) {
    const int g = pf_lane() / QUAD, q = pf_lane() % QUAD, head = g / 2 * LANE_HEADS + 2 * j + g % 2;
    const float2 w = *reinterpret_cast<const float2 *>((LEVELLED ? own.levelled : own.weight)[q] + 2 * j);
    const uint32_t *exponents = own.exponents + q * LANE_HEADS + 2 * j;
    uint2 heads[GROUPS];
PF_UNROLL
    for (int half = 0; half < 2; ++half) {
        const uint4 v = *reinterpret_cast<const uint4 *>(column.codes[head] + piece_of(g % 2, half, q));
        heads[2 * half].x = v.x;
        heads[2 * half].y = v.y;
        heads[2 * half + 1].x = v.z;
        heads[2 * half + 1].y = v.w;
    }
PF_UNROLL
    for (int m = 0; m < OCTETS / 2; ++m) {
        float s[4];
        if (LEVELLED) levelled_products(tile.codes[m], heads, s);
        else plain_products(tile.codes[m], heads, tile.exponents + 2 * m, exponents, groups, s);
PF_UNROLL
        for (int e = 0; e < 4; ++e) term[2 * m + e / 2][e % 2] = (e % 2 ? w.y : w.x) * s[e];
    }
}

/* ---- Totals ---- */

/* Of token u, whose totals a quad's last lane has. */
template <int OCTETS>
PF_DEV void store_scores(const pf_score_args &args, const token_span &tokens, int u, const row_tile<OCTETS> &tile,
                         const float (&total)[OCTETS]) {
    if (pf_lane() % QUAD != QUAD - 1) return;
PF_UNROLL
    for (int i = 0; i < OCTETS; ++i) {
        const int64_t j = tile.first + 8 * i + pf_lane() / QUAD;
        if (j < tokens.seen[u]) args.a.scores[(tokens.t + u) * args.a.ld + j] = total[i] * tile.unit[i] * args.a.scale;
    }
}

/* Each lane of a quad is one token behind the lane before it. What is of no token, before the first and after the last,
 * is computed and goes nowhere. */
template <bool LEVELLED, int OCTETS>
PF_DEV void score_shifted(const pf_score_args &args, const token_span &tokens, const row_tile<OCTETS> &tile) {
    const int q = pf_lane() % QUAD, of_column = pf_lane() / QUAD / 2, last = tokens.n - 1;
    const int groups = args.rows.width / PF_IDX_GROUP;
    float total[OCTETS] = {};
    for (int i = 0; i < tokens.n + QUAD - 1; ++i) {
        const token_heads &column = tokens.heads[min(max(i - of_column, 0), last)];
        const token_heads &own = tokens.heads[min(max(i - q, 0), last)];
PF_UNROLL
        for (int r = 0; r < OCTETS; ++r) {
            const float before = __shfl_up_sync(PF_ALL_LANES, total[r], 1u);
            total[r] = q == 0 ? 0.0f : before;
        }
PF_UNROLL_BY(LEVELLED ? 4 : 1) /* what is rare may be slow, and takes no registers from the rest */
        for (int j = 0; j < LANE_HEADS / 2; ++j) {
            float term[OCTETS][2];
            weigh_heads<LEVELLED>(tile, column, own, j, groups, term);
PF_UNROLL
            for (int r = 0; r < OCTETS; ++r) {
                total[r] += term[r][0];
                total[r] += term[r][1];
            }
        }
        if (i >= QUAD - 1) store_scores(args, tokens, i - (QUAD - 1), tile, total);
    }
}

/* All lanes add up in every turn, and lane q's sum is right in turn q. */
template <bool LEVELLED, int OCTETS>
PF_DEV void score_in_turns(const pf_score_args &args, const token_span &tokens, const row_tile<OCTETS> &tile) {
    const int groups = args.rows.width / PF_IDX_GROUP;
    for (int u = 0; u < tokens.n; ++u) {
        const token_heads &heads = tokens.heads[u];
        float term[LANE_HEADS / 2][OCTETS][2], total[OCTETS] = {};
PF_UNROLL
        for (int j = 0; j < LANE_HEADS / 2; ++j) weigh_heads<LEVELLED>(tile, heads, heads, j, groups, term[j]);
PF_UNROLL
        for (int turn = 0; turn < QUAD; ++turn) {
PF_UNROLL
            for (int r = 0; r < OCTETS; ++r) {
                if (turn > 0) total[r] = __shfl_up_sync(PF_ALL_LANES, total[r], 1u);
PF_UNROLL
                for (int j = 0; j < LANE_HEADS; ++j) total[r] += term[j / 2][r][j % 2];
            }
        }
        store_scores(args, tokens, u, tile, total);
    }
}

/* each: tokens of a block. */
template <bool SHIFTED>
static __global__ void __launch_bounds__(THREADS) tile_kernel(pf_score_args args, int64_t each) {
    enum { OCTETS = way<SHIFTED>::OCTETS, ROWS = 8 * OCTETS };
    PF_SHARED(block_state, state);
    PF_DYNAMIC(memory);
    token_heads *heads = reinterpret_cast<token_heads *>(memory);
    const int64_t t = blockIdx.y * each, step = (int64_t)gridDim.x * WARPS;
    const token_span tokens = {heads, state.seen, t, (int)pf_least(each, args.a.n_token - t)};
    const int64_t n_row = pf_visible_rows(args, t + tokens.n - 1);
    if ((int64_t)blockIdx.x * ROWS >= n_row) return; /* the whole block: see its tiles below */
    const bool own = encode_heads(args, t, tokens.n, heads);
    if (pf_lane() == 0) state.levelled[pf_warp()] = own;
    if ((int)threadIdx.x < tokens.n) state.seen[threadIdx.x] = pf_visible_rows(args, t + threadIdx.x);
    __syncthreads();
    bool levelled = true;
    for (int w = 0; w < WARPS; ++w) levelled = levelled && state.levelled[w];
    for (int64_t i = blockIdx.x + (int64_t)gridDim.x * pf_warp(); i * ROWS < n_row; i += step) {
        row_tile<OCTETS> tile;
        load_rows(args.rows, i * ROWS, n_row, levelled, tile);
        if (SHIFTED && tile.levelled) score_shifted<true>(args, tokens, tile);
        else if (SHIFTED) score_shifted<false>(args, tokens, tile);
        else if (tile.levelled) score_in_turns<true>(args, tokens, tile);
        else score_in_turns<false>(args, tokens, tile);
    }
}

/* ---- Launching; what is chosen here changes no result ---- */

bool pf_index_in_tiles(const pf_score_args &args) {
    return args.a.n_head <= MOST_HEADS && args.rows.width <= GROUPS * PF_IDX_GROUP;
}

/* Of a block, beside its block_state. */
static int64_t free_shared(const pf_exec *ex) {
    return pf_device_of(ex)->shared_bytes - (int64_t)sizeof(block_state);
}

/* rows: at most; each: tokens a block; blocks: with the same tokens, as far as there are rows for them. */
template <bool SHIFTED>
static pf_status launch(const pf_exec *ex, const pf_score_args &args, int64_t rows, int64_t each, int64_t blocks) {
    const int64_t bytes = each * (int64_t)sizeof(token_heads), tiles = pf_div_up(rows, 8 * way<SHIFTED>::OCTETS);
    const dim3 grid((unsigned)pf_most(1, pf_least(blocks, tiles)), (unsigned)pf_div_up(args.a.n_token, each));
    if (!pf_allow_shared(tile_kernel<SHIFTED>, free_shared(ex))) return PF_ERR_DEVICE;
    PF_LAUNCH(tile_kernel<SHIFTED>, grid, THREADS, bytes, pf_device_of(ex)->stream, args, each);
    return pf_launched();
}

pf_status pf_index_tiles_launch(const pf_exec *ex, const pf_score_args &args, int64_t rows) {
    const pf_device *device = pf_device_of(ex);
    const int64_t n_sm = device->n_sm, n_token = args.a.n_token;
    if (n_token <= way<false>::TOKENS) return launch<false>(ex, args, rows, n_token, n_sm);
    const int64_t room = free_shared(ex) / (int64_t)sizeof(token_heads);
    const int64_t n = pf_div_up(n_token, pf_least(room, way<true>::TOKENS)); /* blocks with the same rows */
    /* As many as fill the device, and more as far as encoding heads takes a small part of a block's time. */
    const int64_t fill = pf_div_up(n_sm, n), even = pf_div_up(8 * n_sm, n);
    return launch<true>(ex, args, rows, pf_div_up(n_token, n), pf_most(fill, pf_least(even, rows / AMORTISING_ROWS)));
}
