/* Attention over the window rows and the selected compressed rows: one shared row per token is both key and value.
 *
 * A token's list of rows is cut into tiles of 32 and the tiles into at most 64 splits, by the token's position only.
 * Where tensor cores can, they do it (attention_tiles.cu). Here a block takes eight heads through one split: it decodes
 * a tile once into shared memory, a warp computes a head's products with a lane a row, and then all threads add up
 * columns. A second kernel joins the splits in order. So one token alone keeps the whole device busy, and gets the same
 * result as in a batch. */
#include "backend/cuda/attention.cuh"

enum { TILE = PF_ATTN_TILE, MOST_SPLITS = PF_ATTN_SPLITS, HEADS = 8, THREADS = HEADS * PF_WARP, MOST_COLUMNS = 4 };
enum { JOIN_THREADS = 128 };
static const int64_t SCRATCH_FLOATS = 16 << 20; /* partial results at once, or else one token's */
static const int64_t USUAL_SHARED = 96 << 10;   /* with attend_memory what every device has */

/* Four columns of a row. */
PF_DEV float4 load_columns(const pf_rows &rows, const uint8_t *row, int c) {
    const int plain = rows.width - rows.rope;
    if (rows.format == PF_ROW_KV_FP8 && c + 4 <= plain) { /* four columns share a scale */
        const uint32_t codes = pf_u32_at(row + c);
        const float scale = pf_of_e8m0(row[plain + c / PF_KV_GROUP]);
        return {pf_of_e4m3(codes & 0xffu) * scale, pf_of_e4m3(codes >> 8 & 0xffu) * scale,
                pf_of_e4m3(codes >> 16 & 0xffu) * scale, pf_of_e4m3(codes >> 24) * scale};
    }
    float v[4];
    for (int i = 0; i < 4; ++i) v[i] = c + i < rows.width ? pf_row_value(rows, row, c + i) : 0.0f;
    return {v[0], v[1], v[2], v[3]};
}

/* Rows first .. of the list into tile [TILE, stride], zeros behind the last; a warp a row. */
PF_DEV void load_tile(const pf_attend_args &args, const pf_row_list &list, int64_t first, int stride, float *tile) {
    for (int r = pf_warp(); r < TILE; r += HEADS) {
        const int64_t i = first + r;
        float4 *to = reinterpret_cast<float4 *>(tile + r * stride);
        if (i >= list.n) {
            for (int c = pf_lane(); c < stride / 4; c += PF_WARP) to[c] = float4{0.0f, 0.0f, 0.0f, 0.0f};
            continue;
        }
        const pf_rows &rows = i < list.n_window ? args.raw : args.pool;
        const uint8_t *row = pf_attn_row(args, list, i);
        for (int c = pf_lane(); c < stride / 4; c += PF_WARP) to[c] = load_columns(rows, row, 4 * c);
    }
}

PF_DEV float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

struct attend_memory {
    float4 p[TILE][HEADS / 4]; /* exp(score - top) */
    float shrink[HEADS];
};

/* stride: floats of a row in shared memory: d rounded up to 4, and 4 more, so that lanes meet different banks. */
template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS) attend_kernel(pf_attend_args args, int stride) {
    PF_SHARED(attend_memory, s);
    PF_DYNAMIC(memory);
    float *tile = reinterpret_cast<float *>(memory), *q = tile + TILE * stride;
    const int64_t t = blockIdx.z, d = args.a.head_dim, n_head = args.a.n_head;
    const int warp = pf_warp(), lane = pf_lane(), self = (int)threadIdx.x, split = (int)blockIdx.x;
    const int head0 = (int)blockIdx.y * HEADS;
    const pf_row_list list = pf_attn_rows(args, t);
    const int tiles = pf_attn_tiles(list), each = pf_attn_tiles_a_split(tiles), begin = split * each;
    const int end = begin + each < tiles ? begin + each : tiles;
    if (begin >= end) return; /* the whole block */
    for (int i = self; i < HEADS * stride; i += THREADS) {
        const int h = head0 + i / stride, c = i % stride;
        q[i] = h < n_head && c < d ? args.a.q[(t * n_head + h) * d + c] : 0.0f;
    }
    float top = -INFINITY, sum = 0.0f, acc[HEADS][COLUMNS];
PF_UNROLL
    for (int h = 0; h < HEADS; ++h) {
PF_UNROLL
        for (int k = 0; k < COLUMNS; ++k) acc[h][k] = 0.0f;
    }
    for (int i = begin; i < end; ++i) {
        __syncthreads(); /* q is there, and nobody needs the last tile any more */
        load_tile(args, list, (int64_t)i * TILE, stride, tile);
        __syncthreads();
        const float4 *row = reinterpret_cast<const float4 *>(tile + lane * stride);
        const float4 *head = reinterpret_cast<const float4 *>(q + warp * stride);
        float score = 0.0f;
        for (int c = 0; c < stride / 4; ++c) score = dot4(head[c], row[c], score); /* both end in zeros */
        score = (int64_t)i * TILE + lane < list.n ? score * args.a.scale : -INFINITY;
        const float most = fmaxf(top, pf_warp_max(score)), shrink = expf(top - most), p = expf(score - most);
        sum = sum * shrink + pf_warp_sum(p);
        top = most;
        reinterpret_cast<float *>(s.p[lane])[warp] = p;
        if (lane == 0) s.shrink[warp] = shrink;
        __syncthreads();
PF_UNROLL
        for (int h = 0; h < HEADS; ++h) {
PF_UNROLL
            for (int k = 0; k < COLUMNS; ++k) acc[h][k] *= s.shrink[h];
        }
        for (int r = 0; r < TILE; ++r) {
            const float4 a = s.p[r][0], b = s.p[r][1];
PF_UNROLL
            for (int k = 0; k < COLUMNS; ++k) {
                const int c = self + k * THREADS;
                const float v = c < d ? tile[r * stride + c] : 0.0f;
                acc[0][k] = fmaf(a.x, v, acc[0][k]);
                acc[1][k] = fmaf(a.y, v, acc[1][k]);
                acc[2][k] = fmaf(a.z, v, acc[2][k]);
                acc[3][k] = fmaf(a.w, v, acc[3][k]);
                acc[4][k] = fmaf(b.x, v, acc[4][k]);
                acc[5][k] = fmaf(b.y, v, acc[5][k]);
                acc[6][k] = fmaf(b.z, v, acc[6][k]);
                acc[7][k] = fmaf(b.w, v, acc[7][k]);
            }
        }
    }
    float *partial = args.partial + (t * args.most_splits + split) * n_head * (d + 2);
PF_UNROLL
    for (int h = 0; h < HEADS; ++h) {
PF_UNROLL
        for (int k = 0; k < COLUMNS; ++k) {
            const int c = self + k * THREADS;
            if (head0 + h < n_head && c < d) partial[(head0 + h) * (d + 2) + c] = acc[h][k];
        }
    }
    if (lane == 0 && head0 + warp < n_head) {
        partial[(head0 + warp) * (d + 2) + d] = top;
        partial[(head0 + warp) * (d + 2) + d + 1] = sum;
    }
}

/* A block a head of a token. The sink joins the denominator with value 0. */
static __global__ void __launch_bounds__(JOIN_THREADS) join_kernel(pf_attend_args args) {
    const int64_t d = args.a.head_dim, n_head = args.a.n_head, t = blockIdx.x / n_head, h = blockIdx.x % n_head;
    const pf_row_list list = pf_attn_rows(args, t);
    const int tiles = pf_attn_tiles(list), each = pf_attn_tiles_a_split(tiles), splits = (tiles + each - 1) / each;
    const int64_t step = n_head * (d + 2);
    const float *partial = args.partial + t * args.most_splits * step + h * (d + 2), sink = args.a.sinks[h];
    float top = sink;
    for (int i = 0; i < splits; ++i) top = fmaxf(top, partial[i * step + d]);
    float sum = expf(sink - top);
    for (int i = 0; i < splits; ++i) sum = fmaf(partial[i * step + d + 1], expf(partial[i * step + d] - top), sum);
    const float scale = 1.0f / sum;
    for (int64_t c = threadIdx.x; c < d; c += JOIN_THREADS) {
        float v = 0.0f;
        for (int i = 0; i < splits; ++i) v = fmaf(partial[i * step + c], expf(partial[i * step + d] - top), v);
        args.a.out[(t * n_head + h) * d + c] = v * scale;
    }
}

template <int COLUMNS> static pf_status launch_attend(const pf_exec *ex, const pf_attend_args &args, int64_t n_token) {
    const int64_t d = args.a.head_dim, stride = (d + 3) / 4 * 4 + 4, bytes = (TILE + HEADS) * stride * 4;
    const dim3 grid((unsigned)args.most_splits, (unsigned)pf_div_up(args.a.n_head, HEADS), (unsigned)n_token);
    if (!pf_allow_shared(attend_kernel<COLUMNS>, pf_most(bytes, USUAL_SHARED))) return PF_ERR_DEVICE;
    PF_LAUNCH(attend_kernel<COLUMNS>, grid, THREADS, bytes, pf_device_of(ex)->stream, args, (int)stride);
    PF_LAUNCH(join_kernel, (unsigned)(n_token * args.a.n_head), JOIN_THREADS, 0, pf_device_of(ex)->stream, args);
    return pf_launched();
}

/* Rows that a token of the call attends to at most. */
static int64_t most_rows(const pf_device *device, const pf_attn_args *a) {
    int64_t pool = 0;
    if (a->pool && a->select) pool = a->select_ld;
    else if (a->pool) pool = device->base ? a->pool->capacity : (a->position + a->n_token) / a->ratio;
    return a->window + pool;
}

pf_status pf_cuda_sparse_attn(pf_exec *ex, const pf_attn_args *a) {
    const pf_device *device = pf_device_of(ex);
    const int64_t splits = pf_least(MOST_SPLITS, pf_div_up(most_rows(device, a), TILE));
    const int64_t token_floats = splits * a->n_head * (a->head_dim + 2);
    const int64_t most = pf_most(1, pf_least(pf_least(a->n_token, SCRATCH_FLOATS / token_floats), 65535));
    pf_scratch scratch(ex);
    float *partial = scratch.take<float>(most * token_floats);
    pf_status status;
    const bool tiled = pf_attn_in_tiles(ex, a);
    if (a->head_dim > MOST_COLUMNS * THREADS) return PF_ERR_INTERNAL;
    if (!partial) return PF_ERR_MEMORY;
    if (!pf_may_launch(ex, &status)) return status;
    for (int64_t t = 0; t < a->n_token && status == PF_OK; t += most) {
        pf_attend_args args = {*a, *a->raw, a->pool ? *a->pool : *a->raw, pf_position_at(device, a->position + t),
                               a->pool != nullptr, (int)splits, partial};
        const int64_t n = pf_least(most, a->n_token - t), columns = pf_div_up(a->head_dim, THREADS);
        args.a.raw = args.a.pool = nullptr; /* of the host's memory */
        args.a.q += t * a->n_head * a->head_dim;
        args.a.out += t * a->n_head * a->head_dim;
        if (a->select) {
            args.a.select += t * a->select_ld;
            args.a.select_n += t;
        }
        if (tiled) status = pf_attn_tiles_launch(ex, args, n, a->n_token);
        else if (columns == 1) status = launch_attend<1>(ex, args, n);
        else if (columns == 2) status = launch_attend<2>(ex, args, n);
        else status = launch_attend<MOST_COLUMNS>(ex, args, n);
    }
    return status;
}
