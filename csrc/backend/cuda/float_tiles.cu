/* Products of BF16 and FP8 weights with float activations, by the tensor cores' bfloat16 products, in runs that are not
 * exact.
 *
 * A weight of either type is a bfloat16 to the bit, an FP8 one before its scale. An activation is the sum of three, and
 * meets the weight three times in the same float sum. (Two parts keep 2^-17 of a value. The gate does not take what
 * they give: sums near zero were 1e-5 and 7e-5 off.) It is cut up where it is needed, in registers: kept in planes it
 * would be larger, and a token that is alone would need one more launch.
 *
 * The order of a sum is a matter of its columns alone. 128 of them, a span, are summed from zero by one chain of
 * instructions, the sum is multiplied by the FP8 scale that they share, and spans are added in ascending order. So a
 * span may be anybody's, and a token has the same bits alone (stream_kernel) as among many (tile_kernel). A long chain
 * would also keep less: tensor cores do not round to nearest. What is no number stays none; an infinite weight gives
 * NaN, since most activations' third part is zero.
 *
 * An instruction takes 16 rows, 8 tokens and 16 columns. Lane 4 g + q has rows g and g + 8 and token g, four columns of
 * each, and the sums of tokens 2 q and 2 q + 1 (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Which columns of a span
 * those are is free where weights and activations agree: they are chosen for what a lane loads to lie together.
 *
 * By count of instructions, not measured: 64 tokens by 128 rows by 32 columns are 768 cycles of an A100's multiprocessor, so
 * at most 340 products a cycle. */
#include "backend/cuda/matmul.cuh"

enum { ROWS = 16, TOKENS = 8, STEPS = 2, CHUNK = 16 * STEPS, SPAN = PF_FP8_BLOCK, CHUNKS = SPAN / CHUNK };
enum { PIECE = 8 /* columns of a chunk that a lane has */, QUAD = CHUNK / PIECE };
enum { PARTS = 3 /* of an activation */ };

/* First column, within a span, of lane q's piece of chunk c. Of FP8 the pieces of two chunks are 16 bytes. */
template <int TYPE> PF_DEV int piece_at(int c, int q) {
    static_assert(TYPE == PF_FP8 || TYPE == PF_BF16, "no branch for this type");
    return TYPE == PF_FP8 ? c / 2 * 2 * CHUNK + 2 * PIECE * q + c % 2 * PIECE : c * CHUNK + PIECE * q;
}

PF_DEV uint4 words_of(const uint32_t (&v)[4]) {
    uint4 out;
    out.x = v[0], out.y = v[1], out.z = v[2], out.w = v[3];
    return out;
}

/* A piece of activations as pairs, in the order in which the weight's pairs come: pf_bf16_of_e4m3. */
template <int TYPE> PF_DEV void split(const float (&v)[PIECE], uint4 (&part)[PARTS]) {
    uint32_t pairs[PARTS][4];
PF_UNROLL
    for (int i = 0; i < 4; ++i) {
        const int first = TYPE == PF_FP8 ? i / 2 * 4 + i % 2 : 2 * i;
        uint32_t of_pair[PARTS];
        pf_cut_pair(v[first], v[first + (TYPE == PF_FP8 ? 2 : 1)], of_pair);
PF_UNROLL
        for (int p = 0; p < PARTS; ++p) pairs[p][i] = of_pair[p];
    }
PF_UNROLL
    for (int p = 0; p < PARTS; ++p) part[p] = words_of(pairs[p]);
}

/* A piece of activations; zeros from the row's end on. */
PF_DEV void load_acts(const float *x, int64_t col, int64_t cols, float (&v)[PIECE]) {
    if (col + PIECE <= cols) pf_load_floats(x + col, v);
    else for (int i = 0; i < PIECE; ++i) v[i] = col + i < cols ? x[col + i] : 0.0f;
}

template <int TYPE> PF_DEV int64_t row_end(const pf_weight &w) { return TYPE == PF_FP8 ? w.cols : 2 * w.cols; }
PF_DEV bool rows_aligned(const pf_weight &w) { return pf_aligned(w.data, 16) && w.row_bytes % 16 == 0; }

/* n <= 16 bytes of a row whose bytes end at `end`, zeros from there on. */
PF_DEV uint4 load_bytes(const uint8_t *row, int64_t at, int64_t end, int n) {
    uint32_t v[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) {
        if (at + i < end) v[i / 4] |= (uint32_t)row[at + i] << i % 4 * 8;
    }
    return words_of(v);
}

/* Of a piece what the chunk's first or second instruction takes. */
PF_DEV uint2 half_of(const uint4 &piece, int step) {
    uint2 half;
    half.x = step == 0 ? piece.x : piece.z;
    half.y = step == 0 ? piece.y : piece.w;
    return half;
}

/* The products of one instruction's columns in 16 times TILES rows (a: the lane's, g and g + 8) and 8 tokens. */
template <int TILES>
PF_DEV void add_products(float (&sum)[TILES][4], const uint2 (&a)[TILES][2], const uint2 (&part)[PARTS]) {
PF_UNROLL
    for (int p = 0; p < PARTS; ++p) {
PF_UNROLL
        for (int t = 0; t < TILES; ++t) {
            const uint32_t of_a[4] = {a[t][0].x, a[t][1].x, a[t][0].y, a[t][1].y};
            pf_mma_bf16(sum[t], of_a, part[p]);
        }
    }
}

/* The FP8 scale of a span in one of the warp's rows, at most 32 from row0 on: lane l has row l's. */
template <int TYPE> PF_DEV float load_scale(const pf_weight &w, int64_t matrix, int64_t row0, int64_t span) {
    return TYPE == PF_FP8 ? pf_fp8_scale(w, matrix, pf_least(row0 + pf_lane(), w.rows - 1), span * SPAN) : 1.0f;
}
/* That of row 8 e + g. */
template <int TYPE> PF_DEV float scale_at(float scale, int e) {
    return TYPE == PF_FP8 ? __shfl_sync(PF_ALL_LANES, scale, 8 * e + pf_lane() / QUAD) : 1.0f;
}
/* A span's sum, which then is added to those before it. */
template <int TYPE> PF_DEV float scaled(float sum, float scale) { return TYPE == PF_FP8 ? sum * scale : sum; }

/* ---- Few tokens: the weight's bytes are what takes time ---- */

/* A block takes 16 times TILES rows, its warps spans in turn, with all loads of a span's weights under way at once (of
 * a row, four lanes load 64 bytes together). Sums of spans meet in shared memory, where a thread adds up one token's in
 * one row. How many warps there are changes no result. */
enum { STREAM_WARPS = 8, STREAM_MOST_WARPS = 16, STREAM_SPANS = 32 /* of which sums are kept at once */ };

template <int TYPE, int TILES>
PF_DEV void add_span(const pf_weight &w, const uint8_t *const (&row)[TILES][2], bool aligned, const float *x,
                     int64_t span, float (&sum)[TILES][4]) {
    enum { BYTES = TYPE == PF_FP8 ? SPAN : 2 * SPAN, LOADS = BYTES / (16 * QUAD) };
    const int q = pf_lane() % QUAD;
    const int64_t end = row_end<TYPE>(w), at = span * BYTES + 16 * q;
    uint4 raw[TILES][2][LOADS];
    if (aligned && span * BYTES + BYTES <= end) {
PF_UNROLL
        for (int t = 0; t < TILES; ++t) {
PF_UNROLL
            for (int h = 0; h < 2; ++h) {
PF_UNROLL
                for (int i = 0; i < LOADS; ++i) {
                    raw[t][h][i] = *reinterpret_cast<const uint4 *>(row[t][h] + at + 16 * QUAD * i);
                }
            }
        }
    } else {
PF_UNROLL
        for (int t = 0; t < TILES; ++t) {
PF_UNROLL
            for (int h = 0; h < 2; ++h) {
PF_UNROLL
                for (int i = 0; i < LOADS; ++i) raw[t][h][i] = load_bytes(row[t][h], at + 16 * QUAD * i, end, 16);
            }
        }
    }
PF_UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
        float v[PIECE];
        uint4 part[PARTS], a[TILES][2];
        load_acts(x, span * SPAN + piece_at<TYPE>(c, q), w.cols, v);
        split<TYPE>(v, part);
PF_UNROLL
        for (int t = 0; t < TILES; ++t) {
PF_UNROLL
            for (int h = 0; h < 2; ++h) {
                const uint4 &r = raw[t][h][TYPE == PF_FP8 ? c / 2 : c];
                if (TYPE == PF_FP8) a[t][h] = c % 2 == 0 ? pf_bf16_of_e4m3(r.x, r.y) : pf_bf16_of_e4m3(r.z, r.w);
                else a[t][h] = r;
            }
        }
PF_UNROLL
        for (int s = 0; s < STEPS; ++s) {
            uint2 half_a[TILES][2], half[PARTS];
PF_UNROLL
            for (int e = 0; e < 2 * TILES; ++e) half_a[e / 2][e % 2] = half_of(a[e / 2][e % 2], s);
PF_UNROLL
            for (int p = 0; p < PARTS; ++p) half[p] = half_of(part[p], s);
            add_products<TILES>(sum, half_a, half);
        }
    }
}

template <int TYPE, int TILES>
static __global__ void __launch_bounds__(STREAM_MOST_WARPS * PF_WARP) stream_kernel(pf_matmul m) {
    struct memory { float2 sum[STREAM_SPANS][TILES * ROWS][TOKENS / 2]; };
    PF_SHARED(memory, shared);
    const pf_span group = pf_group_of(m, blockIdx.y);
    const int64_t row0 = (int64_t)blockIdx.x * TILES * ROWS, n_span = (m.w.cols + SPAN - 1) / SPAN;
    const int g = pf_lane() / QUAD, q = pf_lane() % QUAD, warps = (int)blockDim.x / PF_WARP;
    const int own_row = (int)threadIdx.x / TOKENS, own_token = (int)threadIdx.x % TOKENS;
    const bool aligned = rows_aligned(m.w);
    const uint8_t *row[TILES][2];
PF_UNROLL
    for (int t = 0; t < TILES; ++t) {
PF_UNROLL
        for (int h = 0; h < 2; ++h) {
            row[t][h] = pf_row_of(m.w, group.matrix, pf_least(row0 + t * ROWS + 8 * h + g, m.w.rows - 1));
        }
    }
    for (int64_t i0 = group.begin + blockIdx.z * TOKENS; i0 < group.end; i0 += (int64_t)gridDim.z * TOKENS) {
        const float *x = reinterpret_cast<const float *>(pf_act_of(m, i0 + g, group.end));
        float total = 0.0f;
        for (int64_t first = 0; first < n_span; first += STREAM_SPANS) {
            const int n = (int)pf_least(STREAM_SPANS, n_span - first);
            for (int s = pf_warp(); s < n; s += warps) {
                float sum[TILES][4] = {};
                const float scale = load_scale<TYPE>(m.w, group.matrix, row0, first + s);
                add_span<TYPE, TILES>(m.w, row, aligned, x, first + s, sum);
PF_UNROLL
                for (int e = 0; e < 2 * TILES; ++e) {
                    const float of_row = scale_at<TYPE>(scale, e);
                    float2 &to = shared.sum[s][8 * e + g][q];
                    to.x = scaled<TYPE>(sum[e / 2][e % 2 * 2], of_row);
                    to.y = scaled<TYPE>(sum[e / 2][e % 2 * 2 + 1], of_row);
                }
            }
            __syncthreads();
            if (own_row < TILES * ROWS) {
                for (int s = 0; s < n; ++s) {
                    const float2 &pair = shared.sum[s][own_row][own_token / 2];
                    total += own_token % 2 == 0 ? pair.x : pair.y;
                }
            }
            __syncthreads(); /* shared may be used again */
        }
        if (own_row < TILES * ROWS && row0 + own_row < m.w.rows && i0 + own_token < group.end) {
            m.y[(i0 + own_token) * m.ldy + row0 + own_row] = total;
        }
    }
}

/* ---- Many tokens: a block multiplies 128 rows by 32 or 64 tokens ---- */

/* Chunks come through shared memory, in which pieces lie as lanes read them, already converted and split; the next
 * one's loads are under way while one is multiplied. An instruction's halves of pieces lie apart: lanes that load whole
 * ones would need more registers than two blocks a multiprocessor leave. */
enum { ROW_WARPS = 4, TOKEN_WARPS = 2, THREADS = ROW_WARPS * TOKEN_WARPS * PF_WARP, WARP_TILES = 2 /* a warp's */ };
enum { TILE_ROWS = ROW_WARPS * WARP_TILES * ROWS, ROW_PIECES = TILE_ROWS * QUAD, CARRIED = ROW_PIECES / THREADS };
enum { BUFFERS = 2 };

/* OCTETS: of tokens, a warp's. */
template <int OCTETS> struct tile_shape {
    static constexpr int tokens = TOKEN_WARPS * OCTETS * TOKENS, pieces = tokens * QUAD;
    struct memory { uint2 rows[BUFFERS][STEPS][ROW_PIECES], acts[BUFFERS][STEPS][PARTS][pieces]; };
};

/* What a thread carries of a chunk: of the rows pieces threadIdx.x and threadIdx.x + THREADS, of the tokens one where
 * there are so many. */
struct carried {
    const uint8_t *row[CARRIED];
    uint32_t x; /* floats from the first activation on: half of a pointer's registers */
    uint4 weights[CARRIED];
    float acts[PIECE];
};

template <int TYPE, int OCTETS> PF_DEV void load_chunk(const pf_matmul &m, bool aligned, int chunk, carried &mine) {
    const int64_t col = chunk / CHUNKS * SPAN + piece_at<TYPE>(chunk % CHUNKS, (int)threadIdx.x % QUAD);
    const int64_t at = TYPE == PF_FP8 ? col : 2 * col;
PF_UNROLL
    for (int k = 0; k < CARRIED; ++k) {
        uint4 &v = mine.weights[k];
        if (!aligned || col + PIECE > m.w.cols) {
            v = load_bytes(mine.row[k], at, row_end<TYPE>(m.w), TYPE == PF_FP8 ? PIECE : 2 * PIECE);
        } else if (TYPE == PF_FP8) {
            const uint2 codes = *reinterpret_cast<const uint2 *>(mine.row[k] + at);
            v.x = codes.x;
            v.y = codes.y;
        } else {
            v = *reinterpret_cast<const uint4 *>(mine.row[k] + at);
        }
    }
    if ((int)threadIdx.x < tile_shape<OCTETS>::pieces) {
        load_acts(reinterpret_cast<const float *>(m.act) + mine.x, col, m.w.cols, mine.acts);
    }
}

template <int TYPE, int OCTETS>
PF_DEV void store_chunk(const carried &mine, typename tile_shape<OCTETS>::memory &shared, int buffer) {
    const int self = (int)threadIdx.x;
PF_UNROLL
    for (int k = 0; k < CARRIED; ++k) {
        const uint4 v = TYPE == PF_FP8 ? pf_bf16_of_e4m3(mine.weights[k].x, mine.weights[k].y) : mine.weights[k];
PF_UNROLL
        for (int s = 0; s < STEPS; ++s) shared.rows[buffer][s][self + k * THREADS] = half_of(v, s);
    }
    if (self < tile_shape<OCTETS>::pieces) {
        uint4 part[PARTS];
        split<TYPE>(mine.acts, part);
PF_UNROLL
        for (int p = 0; p < PARTS; ++p) {
PF_UNROLL
            for (int s = 0; s < STEPS; ++s) shared.acts[buffer][s][p][self] = half_of(part[p], s);
        }
    }
}

/* The block's rows from row0 on times the tokens of items i0 .. of the group. */
template <int TYPE, int OCTETS>
PF_DEV void multiply(const pf_matmul &m, const pf_span &group, int64_t row0, int64_t i0,
                     typename tile_shape<OCTETS>::memory &shared) {
    const int lane = pf_lane(), self = (int)threadIdx.x;
    const int tile0 = pf_warp() / TOKEN_WARPS * WARP_TILES, octet0 = pf_warp() % TOKEN_WARPS * OCTETS;
    const int chunks = (int)((m.w.cols + SPAN - 1) / SPAN) * CHUNKS;
    const int live = (int)pf_least(OCTETS * TOKENS, group.end - i0 - octet0 * TOKENS); /* tokens */
    const bool aligned = rows_aligned(m.w);
    float sum[OCTETS][WARP_TILES][4] = {}, total[OCTETS][WARP_TILES][4] = {}, scale = 1.0f;
    carried mine;
PF_UNROLL
    for (int k = 0; k < CARRIED; ++k) {
        mine.row[k] = pf_row_of(m.w, group.matrix, pf_least(row0 + (self + k * THREADS) / QUAD, m.w.rows - 1));
    }
    mine.x = (uint32_t)((pf_act_of(m, i0 + self / QUAD, group.end) - m.act) / (int64_t)sizeof(float));
    load_chunk<TYPE, OCTETS>(m, aligned, 0, mine);
    store_chunk<TYPE, OCTETS>(mine, shared, 0);
    __syncthreads();
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int buffer = chunk % BUFFERS;
        const bool last = chunk % CHUNKS == CHUNKS - 1; /* of its span */
        if (chunk + 1 < chunks) load_chunk<TYPE, OCTETS>(m, aligned, chunk + 1, mine);
        if (last) scale = load_scale<TYPE>(m.w, group.matrix, row0 + tile0 * ROWS, chunk / CHUNKS);
PF_UNROLL
        for (int s = 0; s < STEPS; ++s) {
            uint2 a[WARP_TILES][2];
PF_UNROLL
            for (int e = 0; e < 2 * WARP_TILES; ++e) {
                a[e / 2][e % 2] = shared.rows[buffer][s][(2 * tile0 + e) * PF_WARP + lane];
            }
PF_UNROLL
            for (int n = 0; n < OCTETS; ++n) {
                if (n * TOKENS >= live) break;
                uint2 part[PARTS];
PF_UNROLL
                for (int p = 0; p < PARTS; ++p) part[p] = shared.acts[buffer][s][p][(octet0 + n) * PF_WARP + lane];
                add_products<WARP_TILES>(sum[n], a, part);
            }
        }
        if (last) {
PF_UNROLL
            for (int e = 0; e < 2 * WARP_TILES; ++e) {
                const float of_row = scale_at<TYPE>(scale, e);
PF_UNROLL
                for (int k = 0; k < 2 * OCTETS; ++k) {
                    float &v = sum[k / 2][e / 2][e % 2 * 2 + k % 2];
                    total[k / 2][e / 2][e % 2 * 2 + k % 2] += scaled<TYPE>(v, of_row);
                    v = 0.0f;
                }
            }
        }
        if (chunk + 1 < chunks) store_chunk<TYPE, OCTETS>(mine, shared, 1 - buffer);
        __syncthreads();
    }
PF_UNROLL
    for (int n = 0; n < OCTETS; ++n) {
PF_UNROLL
        for (int e = 0; e < 4 * WARP_TILES; ++e) {
            const int64_t item = i0 + (octet0 + n) * TOKENS + lane % QUAD * 2 + e % 2;
            const int64_t row = row0 + tile0 * ROWS + e / 2 * 8 + lane / QUAD;
            if (row < m.w.rows && item < group.end) m.y[item * m.ldy + row] = total[n][e / 4][e % 4];
        }
    }
}

/* Blocks that share rows of the weight follow each other, so that the second cache has them. */
template <int TYPE, int OCTETS> static __global__ void __launch_bounds__(THREADS, 2) tile_kernel(pf_matmul m) {
    typedef tile_shape<OCTETS> shape;
    PF_SHARED(typename shape::memory, shared);
    const pf_span group = pf_group_of(m, blockIdx.y);
    const int64_t step = (int64_t)gridDim.x * shape::tokens, row0 = (int64_t)blockIdx.z * TILE_ROWS;
    for (int64_t i0 = group.begin + blockIdx.x * shape::tokens; i0 < group.end; i0 += step) {
        multiply<TYPE, OCTETS>(m, group, row0, i0, shared);
    }
}

/* ---- Launching; what is chosen here changes no result ---- */

template <int TYPE, int TILES>
static void launch_stream(const pf_exec *ex, const pf_matmul &m, int64_t groups, int64_t most) {
    const pf_device *device = pf_device_of(ex);
    const dim3 grid((unsigned)pf_div_up(m.w.rows, TILES * ROWS), (unsigned)groups,
                    (unsigned)pf_least(64, pf_div_up(most, TOKENS)));
    const bool few = (int64_t)grid.x * grid.y < 2 * (int64_t)device->n_sm;
    const unsigned threads = (few ? STREAM_MOST_WARPS : STREAM_WARPS) * PF_WARP;
    PF_LAUNCH((stream_kernel<TYPE, TILES>), grid, threads, 0, device->stream, m);
}

template <int TYPE, int OCTETS>
static void launch_tiles(const pf_exec *ex, const pf_matmul &m, int64_t groups, int64_t most) {
    const dim3 grid((unsigned)pf_least(64, pf_div_up(most, tile_shape<OCTETS>::tokens)), (unsigned)groups,
                    (unsigned)pf_div_up(m.w.rows, TILE_ROWS));
    PF_LAUNCH((tile_kernel<TYPE, OCTETS>), grid, THREADS, 0, pf_device_of(ex)->stream, m);
}

template <int TYPE> static void launch(const pf_exec *ex, const pf_matmul &m) {
    const bool grouped = m.groups.matrix != nullptr;
    const int64_t groups = grouped ? m.groups.most_groups : 1, most = grouped ? m.groups.rows : m.n;
    const int64_t usual = grouped ? pf_div_up(m.n, groups) : m.n, n_sm = pf_device_of(ex)->n_sm;
    const int64_t wide = pf_div_up(m.w.rows, TILE_ROWS) * pf_div_up(usual, tile_shape<4>::tokens) * groups; /* blocks */
    if (usual > tile_shape<2>::tokens && wide >= n_sm) return launch_tiles<TYPE, 4>(ex, m, groups, most);
    if (usual > TOKENS) return launch_tiles<TYPE, 2>(ex, m, groups, most);
    if constexpr (TYPE == PF_FP8) {
        /* Two tiles at once halve the work of splitting activations, for which converting FP8 leaves little time. */
        if (m.w.rows * groups >= 8 * 2 * ROWS * n_sm) return launch_stream<TYPE, 2>(ex, m, groups, most);
    }
    launch_stream<TYPE, 1>(ex, m, groups, most);
}

pf_status pf_float_tiles_launch(const pf_exec *ex, const pf_matmul &m) {
    switch (m.w.type) {
    case PF_FP8: launch<PF_FP8>(ex, m); return PF_OK;
    case PF_BF16: launch<PF_BF16>(ex, m); return PF_OK;
    default: return PF_ERR_INTERNAL;
    }
}
