/* Attention over rows of PF_ROW_KV_FP8 by the tensor cores' bfloat16 products, in runs that are not exact.
 *
 * All values of such a row are bfloat16 to the bit. A query is the sum of three, a probability that of two, and the sum
 * of probabilities is that of the cut ones. Heads are the rows of a product, as they share what they attend to: so a
 * token that is alone already makes one.
 *
 * A tile of 32 rows is a matter of its own: scores, each the sum of spans of 128 columns in ascending order, a span by
 * one chain of instructions; the largest score; the rest by its exponential; and the values' sums from zero. Then it is
 * joined to the tiles before it. So tiles may be joined by one block in its registers (many tokens), or lie in memory
 * for a second kernel to do it in the same way (few, where there are no other blocks to fill a device), and a token has
 * the same bits. With more tiles than 64 a split joins its own first, and only the second way is taken.
 *
 * A block takes 16 or 32 heads, of which a warp has 16 and one span: of the queries, which stay in its registers, of
 * the rows, and of the sums. Rows lie at odd addresses: their bytes come in pieces of 16 while the tile before is worked
 * on, and a byte permutation puts four into a word. */
#include "backend/cuda/attention.cuh"

enum { TILE = PF_ATTN_TILE, HEADS = 16, SPAN = 128, STEPS = SPAN / 16, MOST_SPANS = 4, Q_PARTS = 3, P_PARTS = 2 };
enum { PIECES = SPAN / 8 /* of 8 columns */, OCTETS = TILE / 8, QUAD = 4 };
enum { PADDED = TILE + 8 /* floats, or bfloat16, so that lanes meet different banks */, JOIN_THREADS = 128 };
enum { CHUNK = 16, NONE = CHUNK };
enum { MOST_SHARED = 72 << 10 /* beside tile_memory; of all row sizes */ };

/* GROUPS: of 16 heads. */
template <int GROUPS> struct tile_memory {
    float score[MOST_SPANS][GROUPS * HEADS][PADDED];
    alignas(16) uint16_t p[P_PARTS][GROUPS * HEADS][PADDED];
    float before[GROUPS * HEADS], own[GROUPS * HEADS]; /* factors of what was summed before a tile, and of its sums */
    float top[GROUPS * HEADS], sum[GROUPS * HEADS];
};

/* What a block works with: rows as they were copied and as bfloat16 [TILE, stride]. */
struct tile_rows {
    uint8_t *copied, *values;
    int copied_stride, stride, spans; /* bytes */
};

/* ---- Rows ---- */

/* Begins to copy the warp's rows of the tile from row `first` of the list on. Lane r gets what comes before row r in
 * its first piece of 16 bytes, or NONE. */
PF_DEV uint32_t fetch_rows(const pf_attend_args &args, const pf_row_list &list, int64_t first, const tile_rows &to) {
    const int64_t i = first + pf_lane();
    const unsigned long long own =
        i < list.n ? (unsigned long long)(uintptr_t)pf_attn_row(args, list, i) : 0; /* a division for each lane's row */
    for (int r = pf_warp(); r < TILE; r += (int)(blockDim.x / PF_WARP)) {
        const uint8_t *row = reinterpret_cast<const uint8_t *>((uintptr_t)__shfl_sync(PF_ALL_LANES, own, r));
        if (!row) continue;
        const int before = (int)((uintptr_t)row % CHUNK), bytes = before + (int)args.raw.row_bytes;
        for (int c = pf_lane() * CHUNK; c < bytes; c += PF_WARP * CHUNK) {
            pf_copy_later(to.copied + r * to.copied_stride + c, row - before + c);
        }
    }
    return own ? (uint32_t)(own % CHUNK) : (uint32_t)NONE;
}

/* Four bytes at an offset, of which order takes the place that the bytes have. */
PF_DEV uint32_t word_of(const uint8_t *copied, int at, uint32_t order) {
    const uint32_t *from = reinterpret_cast<const uint32_t *>(copied + at / 4 * 4);
    return __byte_perm(from[0], from[1], order + 0x1111u * (uint32_t)(at % 4));
}

/* A copied row as bfloat16, zeros behind its end. */
PF_DEV void decode_row(const pf_rows &rows, const uint8_t *copied, int before, int stride, uint8_t *to) {
    const int plain = rows.width - rows.rope, tail = before + plain + (plain + PF_KV_GROUP - 1) / PF_KV_GROUP;
    for (int c = 8 * pf_lane(); c < plain; c += 8 * PF_WARP) { /* eight share a scale */
        const uint32_t scale = __float_as_uint(pf_of_e8m0(copied[before + plain + c / PF_KV_GROUP])) >> 16;
        /* In the order for which pf_bf16_of_e4m3 gives neighbours. */
        uint4 v = pf_bf16_of_e4m3(word_of(copied, before + c, 0x3120u), word_of(copied, before + c + 4, 0x3120u));
        v.x = pf_bf16_pair_times(v.x, scale | scale << 16);
        v.y = pf_bf16_pair_times(v.y, scale | scale << 16);
        v.z = pf_bf16_pair_times(v.z, scale | scale << 16);
        v.w = pf_bf16_pair_times(v.w, scale | scale << 16);
        *reinterpret_cast<uint4 *>(to + 2 * c) = v;
    }
    for (int c = 2 * pf_lane(); c < rows.rope; c += 2 * PF_WARP) {
        *reinterpret_cast<uint32_t *>(to + 2 * (plain + c)) = word_of(copied, tail + 2 * c, 0x3210u);
    }
    for (int at = 2 * rows.width + 4 * pf_lane(); at < stride; at += 4 * PF_WARP) {
        *reinterpret_cast<uint32_t *>(to + at) = 0;
    }
}

/* The warp's rows, which only it has copied. */
PF_DEV void decode_rows(const pf_attend_args &args, uint32_t before, const tile_rows &to) {
    pf_await_copies();
    __syncwarp(); /* all lanes' */
    for (int r = pf_warp(); r < TILE; r += (int)(blockDim.x / PF_WARP)) {
        const int of_row = (int)__shfl_sync(PF_ALL_LANES, before, r);
        uint8_t *row = to.values + r * to.stride;
        if (of_row != NONE) {
            decode_row(args.raw, to.copied + r * to.copied_stride, of_row, to.stride, row);
        } else {
            for (int at = 4 * pf_lane(); at < to.stride; at += 4 * PF_WARP) *reinterpret_cast<uint32_t *>(row + at) = 0;
        }
    }
    __syncwarp(); /* what was copied may be written over */
}

/* ---- Queries and scores ---- */

/* Two neighbouring columns of a head, zeros where there are none. */
PF_DEV float2 load_pair(const pf_attn_args &a, int64_t t, int64_t head, int64_t c) {
    float2 v = {0.0f, 0.0f};
    if (head < a.n_head && c < a.head_dim) { /* of which there is an even number */
        const float *from = a.q + (t * a.n_head + head) * a.head_dim + c;
        if (pf_aligned(from, 8)) return *reinterpret_cast<const float2 *>(from);
        v.x = from[0];
        v.y = from[1];
    }
    return v;
}

/* The warp's heads from head0 on, and columns from col0. */
PF_DEV void load_queries(const pf_attn_args &a, int64_t t, int64_t head0, int col0, uint32_t (&q)[STEPS][Q_PARTS][4]) {
    const int g = pf_lane() / QUAD, c = col0 + pf_lane() % QUAD * 2;
PF_UNROLL
    for (int k = 0; k < STEPS; ++k) {
PF_UNROLL
        for (int e = 0; e < 4; ++e) {
            const float2 v = load_pair(a, t, head0 + g + e % 2 * 8, c + 16 * k + e / 2 * 8);
            uint32_t part[Q_PARTS];
            pf_cut_pair(v.x, v.y, part);
PF_UNROLL
            for (int p = 0; p < Q_PARTS; ++p) q[k][p][e] = part[p];
        }
    }
}

/* The span's products of 16 heads with a tile's rows, into score [16, PADDED]. */
PF_DEV void score_rows(const uint32_t (&q)[STEPS][Q_PARTS][4], const uint8_t *values, int stride, int col0,
                       float (*score)[PADDED]) {
    const int lane = pf_lane(), g = lane / QUAD, pair = lane % QUAD * 2;
    const uint8_t *from = values + (lane / 16 * 8 + lane % 8) * stride + (col0 + lane / 8 % 2 * 8) * 2;
    float sum[OCTETS][4] = {};
PF_UNROLL
    for (int k = 0; k < STEPS; ++k) {
PF_UNROLL
        for (int n = 0; n < OCTETS; n += 2) {
            uint32_t rows[4];
            pf_load_matrices<false>(from + 8 * n * stride + 32 * k, rows);
PF_UNROLL
            for (int p = 0; p < Q_PARTS; ++p) {
PF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    uint2 b;
                    b.x = rows[2 * i];
                    b.y = rows[2 * i + 1];
                    pf_mma_bf16(sum[n + i], q[k][p], b);
                }
            }
        }
    }
PF_UNROLL
    for (int e = 0; e < 2 * OCTETS; ++e) {
        float2 v;
        v.x = sum[e / 2][e % 2 * 2];
        v.y = sum[e / 2][e % 2 * 2 + 1];
        *reinterpret_cast<float2 *>(&score[g + e % 2 * 8][e / 2 * 8 + pair]) = v;
    }
}

/* ---- Joining tiles ---- */

struct joined {
    float top, before, own; /* factors of what there was and of what comes */
};
PF_DEV joined join_tops(float top, float own) {
    const float most = fmaxf(top, own);
    return {most, expf(top - most), expf(own - most)};
}
PF_DEV float join_sums(float sum, float before, float tile, float own) { return fmaf(sum, before, tile * own); }

/* The factor of a token's sums. The sink joins the denominator with value 0. */
PF_DEV float sink_scale(float top, float sum, float sink) {
    if (sink <= top) return 1.0f / (sum + expf(sink - top));
    const float shrink = expf(top - sink);
    return shrink / fmaf(sum, shrink, 1.0f);
}

/* Probabilities of n rows of a tile, a warp a head and a lane a row. */
template <int GROUPS> PF_DEV void weigh_rows(tile_memory<GROUPS> &s, int spans, int64_t n, float scale) {
    const int lane = pf_lane();
    for (int h = pf_warp(); h < GROUPS * HEADS; h += (int)(blockDim.x / PF_WARP)) {
        float score = s.score[0][h][lane];
        for (int i = 1; i < spans; ++i) score += s.score[i][h][lane];
        score = lane < n ? score * scale : -INFINITY;
        const float own = pf_warp_max(score);
        uint32_t part[P_PARTS];
        pf_cut_pair(expf(score - own), 0.0f, part);
        float p = 0.0f;
PF_UNROLL
        for (int i = 0; i < P_PARTS; ++i) {
            s.p[i][h][lane] = (uint16_t)part[i];
            p += pf_of_bf16(part[i] & 0xffffu);
        }
        const float sum = pf_warp_sum(p);
        const joined j = join_tops(s.top[h], own);
        __syncwarp();
        if (lane == 0) {
            s.before[h] = j.before;
            s.own[h] = j.own;
            s.sum[h] = join_sums(s.sum[h], j.before, sum, j.own);
            s.top[h] = j.top;
        }
    }
}

/* Joins the tile's values, of 16 heads in the span, to acc: pieces of 8 columns; heads g, g, g + 8, g + 8. p: of the
 * first head, parts `apart` values from each other. */
PF_DEV void add_values(const uint16_t *p, int apart, const float *before, const float *own, const uint8_t *values,
                       int stride, int col0, float (&acc)[PIECES][4]) {
    const int lane = pf_lane(), g = lane / QUAD;
    uint32_t a[TILE / 16][P_PARTS][4];
PF_UNROLL
    for (int i = 0; i < TILE / 16 * P_PARTS; ++i) {
        pf_load_matrices<false>(p + i % P_PARTS * apart + lane % 16 * PADDED + i / P_PARTS * 16 + lane / 16 * 8,
                                a[i / P_PARTS][i % P_PARTS]);
    }
    const float before_of[2] = {before[g], before[g + 8]}, own_of[2] = {own[g], own[g + 8]};
PF_UNROLL
    for (int n = 0; n < PIECES; ++n) {
        float sum[4] = {};
        uint32_t rows[4];
        if (n % 4 == 0) __syncwarp(); /* so that ptxas begins no more than four at once: it spills fewer registers */
        pf_load_matrices<true>(values + lane * stride + (col0 + 8 * n) * 2, rows);
PF_UNROLL
        for (int i = 0; i < TILE / 16 * P_PARTS; ++i) {
            uint2 b;
            b.x = rows[i / P_PARTS * 2];
            b.y = rows[i / P_PARTS * 2 + 1];
            pf_mma_bf16(sum, a[i / P_PARTS][i % P_PARTS], b);
        }
PF_UNROLL
        for (int e = 0; e < 4; ++e) acc[n][e] = join_sums(acc[n][e], before_of[e / 2], sum[e], own_of[e / 2]);
    }
}

/* ---- A block ---- */

/* The warp's sums times a head's factor to [heads, ld]; none NULL: 1. */
PF_DEV void store_sums(const float (&acc)[PIECES][4], const float *factor, int heads, int64_t d, int col0, int64_t ld,
                       float *to) {
    const int g = pf_lane() / QUAD, first = col0 + pf_lane() % QUAD * 2;
PF_UNROLL
    for (int e = 0; e < 2 * PIECES; ++e) {
        const int head = g + e % 2 * 8, c = first + e / 2 * 8;
        const float by = factor ? factor[head] : 1.0f;
        if (head >= heads || c >= d) continue;
        to[head * ld + c] = acc[e / 2][e % 2 * 2] * by;
        to[head * ld + c + 1] = acc[e / 2][e % 2 * 2 + 1] * by;
    }
}

template <int GROUPS>
static __global__ void __launch_bounds__(GROUPS *MOST_SPANS *PF_WARP, 1)
    tile_kernel(pf_attend_args args, tile_rows rows) {
    PF_SHARED(tile_memory<GROUPS>, s);
    PF_DYNAMIC(memory);
    rows.copied = memory;
    rows.values = memory + TILE * rows.copied_stride;
    const int64_t t = blockIdx.z, d = args.a.head_dim, n_head = args.a.n_head;
    const bool whole = gridDim.x == 1;
    const int group = pf_warp() / rows.spans, span = pf_warp() % rows.spans, col0 = span * SPAN;
    const int64_t block0 = (int64_t)blockIdx.y * GROUPS * HEADS, head0 = block0 + group * HEADS;
    const int heads = (int)pf_least(n_head - head0, HEADS);
    const pf_row_list list = pf_attn_rows(args, t);
    const int tiles = pf_attn_tiles(list), each = whole ? tiles : pf_attn_tiles_a_split(tiles);
    const int begin = (int)blockIdx.x * each, end = begin + each < tiles ? begin + each : tiles;
    if (begin >= end) return; /* the whole block */
    uint32_t before = fetch_rows(args, list, (int64_t)begin * TILE, rows), q[STEPS][Q_PARTS][4];
    float acc[PIECES][4] = {};
    load_queries(args.a, t, head0, col0, q);
    for (int h = (int)threadIdx.x; h < GROUPS * HEADS; h += (int)blockDim.x) {
        s.top[h] = -INFINITY;
        s.sum[h] = 0.0f;
    }
    for (int i = begin; i < end; ++i) {
        __syncthreads(); /* nobody needs the last tile any more */
        decode_rows(args, before, rows);
        if (i + 1 < end) before = fetch_rows(args, list, (int64_t)(i + 1) * TILE, rows);
        __syncthreads();
        score_rows(q, rows.values, rows.stride, col0, s.score[span] + group * HEADS);
        __syncthreads();
        weigh_rows(s, rows.spans, list.n - (int64_t)i * TILE, args.a.scale);
        __syncthreads();
        add_values(s.p[0][group * HEADS], GROUPS * HEADS * PADDED, s.before + group * HEADS, s.own + group * HEADS,
                   rows.values, rows.stride, col0, acc);
    }
    if (whole) {
        __syncthreads(); /* the last tile's factors have been used */
        for (int h = (int)threadIdx.x; h < GROUPS * HEADS && block0 + h < n_head; h += (int)blockDim.x) {
            s.before[h] = sink_scale(s.top[h], s.sum[h], args.a.sinks[block0 + h]);
        }
        __syncthreads();
        store_sums(acc, s.before + group * HEADS, heads, d, col0, d, args.a.out + (t * n_head + head0) * d);
        return;
    }
    float *partial = args.partial + ((t * args.most_splits + blockIdx.x) * n_head + block0) * (d + 2);
    store_sums(acc, nullptr, heads, d, col0, d + 2, partial + group * HEADS * (d + 2));
    for (int h = (int)threadIdx.x; h < GROUPS * HEADS && block0 + h < n_head; h += (int)blockDim.x) {
        partial[h * (d + 2) + d] = s.top[h];
        partial[h * (d + 2) + d + 1] = s.sum[h];
    }
}

/* Joins the splits of a head of a token, as a block joins tiles. */
static __global__ void __launch_bounds__(JOIN_THREADS) join_tiles_kernel(pf_attend_args args) {
    const int64_t d = args.a.head_dim, n_head = args.a.n_head, t = blockIdx.x / n_head, h = blockIdx.x % n_head;
    const int tiles = pf_attn_tiles(pf_attn_rows(args, t)), each = pf_attn_tiles_a_split(tiles);
    const float *partial = args.partial + (t * args.most_splits * n_head + h) * (d + 2);
    float top = -INFINITY, sum = 0.0f, acc[MOST_SPANS] = {};
    for (int i = 0; i * each < tiles; ++i, partial += n_head * (d + 2)) {
        const joined j = join_tops(top, partial[d]);
        sum = join_sums(sum, j.before, partial[d + 1], j.own);
        top = j.top;
PF_UNROLL
        for (int k = 0; k < MOST_SPANS; ++k) {
            const int64_t c = threadIdx.x + k * JOIN_THREADS;
            if (c < d) acc[k] = join_sums(acc[k], j.before, partial[c], j.own);
        }
    }
    const float scale = sink_scale(top, sum, args.a.sinks[h]);
PF_UNROLL
    for (int k = 0; k < MOST_SPANS; ++k) {
        const int64_t c = threadIdx.x + k * JOIN_THREADS;
        if (c < d) args.a.out[(t * n_head + h) * d + c] = acc[k] * scale;
    }
}

/* ---- Launching; what is chosen here changes no result ---- */

template <int GROUPS> static pf_status launch(const pf_exec *ex, const pf_attend_args &args, int splits, int64_t n) {
    const int spans = (int)pf_div_up(args.a.head_dim, SPAN);
    tile_rows rows = {nullptr, nullptr, 0, 0, spans};
    rows.copied_stride = (int)pf_div_up(args.raw.row_bytes + CHUNK - 1 + 4, CHUNK) * CHUNK;
    rows.stride = spans * SPAN * 2 + 16; /* so that rows begin in different banks */
    const int64_t bytes = TILE * (int64_t)(rows.copied_stride + rows.stride);
    const dim3 grid((unsigned)splits, (unsigned)pf_div_up(args.a.n_head, GROUPS * HEADS), (unsigned)n);
    if (!pf_allow_shared(tile_kernel<GROUPS>, MOST_SHARED)) return PF_ERR_DEVICE;
    PF_LAUNCH(tile_kernel<GROUPS>, grid, (unsigned)(GROUPS * spans * PF_WARP), bytes, pf_device_of(ex)->stream, args,
              rows);
    return pf_launched();
}

bool pf_attn_in_tiles(const pf_exec *ex, const pf_attn_args *a) {
    const int64_t plain = a->raw->width - a->raw->rope;
    return !ex->exact && a->raw->format == PF_ROW_KV_FP8 && (!a->pool || a->pool->format == PF_ROW_KV_FP8) &&
           a->head_dim <= MOST_SPANS * SPAN && plain % 8 == 0 && a->raw->rope % 2 == 0;
}

pf_status pf_attn_tiles_launch(const pf_exec *ex, const pf_attend_args &args, int64_t n, int64_t n_token) {
    const int64_t pairs = pf_div_up(args.a.n_head, 2 * HEADS), n_sm = pf_device_of(ex)->n_sm;
    /* A block with all tiles of a token takes as long as some three rounds of blocks with one. */
    const bool whole = n_token > 1 && args.most_splits < PF_ATTN_SPLITS && 3 * n_token * pairs >= n_sm;
    const int splits = whole ? 1 : args.most_splits;
    const bool wide = args.a.n_head > HEADS && (whole || n_token * splits * pairs >= 2 * n_sm);
    const pf_status status = wide ? launch<2>(ex, args, splits, n) : launch<1>(ex, args, splits, n);
    if (status != PF_OK || splits == 1) return status;
    PF_LAUNCH(join_tiles_kernel, (unsigned)(n * args.a.n_head), JOIN_THREADS, 0, pf_device_of(ex)->stream, args);
    return pf_launched();
}
