/* Products of Q8_0 and MXFP4 weights with many rows of integer activations, by the tensor cores' byte products.
 *
 * One instruction multiplies 16 rows by 8 tokens over 32 columns, which is a block: its sums are the exact integers of
 * int_acts.h's rule, so that the results are the bits of linear.cu and of the CPU. They become floats block by block,
 * which takes longer than the product. Blocks with the same b % 16 follow each other, so that their sum stays in
 * registers, and the classes follow in the order of the rule's tree, whose open branches are four more values.
 *
 * A warp takes 16 rows of the weight and 32 tokens; lane 4 g + q has columns 4 q to 4 q + 3 and 16 more of rows g and g + 8
 * and of tokens g, and the sums of tokens 2 q and 2 q + 1 (PTX ISA, "Matrix Fragments for mma.m16n8k32"). Weights come
 * straight from where they lie: what a warp takes of a row next is in the same lines, and in the first cache.
 *
 * By count of instructions, not measured: 800 products a cycle and multiprocessor of an A100, where dp4a does 128. */
#include "backend/cuda/matmul.cuh"

enum { ROWS = 16, TOKENS = 32, NARROW = TOKENS / 8 /* products side by side */, LEVELS = 4, STEP = 2 /* blocks at once */ };
enum { WORDS = PF_BLOCK / 4 };
enum { ROW_WARPS = 4, TOKEN_WARPS = 2, THREADS = ROW_WARPS * TOKEN_WARPS * PF_WARP };

/* Sums start with the bits of this float: as floats they are it plus the sum, for |sum| < 2^22. */
#define MAGIC_BITS 0x4b400000
#define MAGIC 12582912.0f

/* Lane q's columns of the block at `at`: columns 4 q on, and 16 more; and the block's scale. */
template <int TYPE> PF_DEV void load_block(const uint8_t *at, int q, uint32_t &low, uint32_t &high, float &scale) {
    static_assert(pf_has_integers<TYPE>, "no integer products of this type");
    if constexpr (TYPE == PF_Q8_0) {
        scale = pf_of_f16(pf_u16_at(at));
        low = pf_word_at(at + 2 + 4 * q);
        high = pf_word_at(at + 18 + 4 * q);
    } else {
        const uint32_t codes = pf_word_at(at + 1 + 4 * q);
        const uint32_t first = pf_doubled_values(codes), second = pf_doubled_values(codes >> 16);
        scale = __uint_as_float((uint32_t)at[0] << 23);
        low = __byte_perm(first, second, 0x6420u); /* first and second: low, high, low, high */
        high = __byte_perm(first, second, 0x7531u);
    }
}

template <int PLANES> struct tile {
    const uint8_t *row[2];        /* of the weight: g, g + 8 */
    const uint32_t *act;          /* of it, in words, which takes half the registers of pointers: */
    uint32_t values[NARROW];      /* lane q's bytes of token g of every 8 */
    uint32_t scales[NARROW][2];   /* of tokens 2 q and 2 q + 1 */
    uint32_t plane;               /* from one plane to the next */
    float sum[NARROW][4];         /* of the class; rows g, g, g + 8, g + 8; tokens 2 q, 2 q + 1, 2 q, 2 q + 1 */
    float branch[LEVELS][NARROW][4];
};

/* n blocks of a class, a constant, from block b and from their place `slot` on. */
template <int TYPE, int PLANES> PF_DEV void add_blocks(tile<PLANES> &w, int64_t b, uint32_t slot, int n) {
    const int64_t bytes = TYPE == PF_Q8_0 ? (int)PF_Q8_0_BYTES : (int)PF_MXFP4_BYTES;
    const int q = pf_lane() % 4;
    uint32_t a[STEP][4];
    float row_scale[STEP][2];
PF_UNROLL
    for (int k = 0; k < n; ++k) {
PF_UNROLL
        for (int r = 0; r < 2; ++r) {
            load_block<TYPE>(w.row[r] + (b + k * PF_INT_BLOCKS) * bytes, q, a[k][r], a[k][r + 2], row_scale[k][r]);
        }
    }
PF_UNROLL
    for (int i = 0; i < NARROW; ++i) {
PF_UNROLL
        for (int k = 0; k < n; ++k) {
            int product[PLANES][4];
PF_UNROLL
            for (int p = 0; p < PLANES; ++p) {
                const uint32_t *v = w.act + (w.values[i] + (uint32_t)p * w.plane + (slot + (uint32_t)k) * WORDS);
                pf_mma_bytes(product[p], a[k], *reinterpret_cast<const uint2 *>(v), MAGIC_BITS);
            }
            float scale[2];
PF_UNROLL
            for (int t = 0; t < 2; ++t) scale[t] = __uint_as_float(w.act[w.scales[i][t] + slot + (uint32_t)k]);
PF_UNROLL
            for (int e = 0; e < 4; ++e) {
                float sum = __uint_as_float((uint32_t)product[0][e]) - MAGIC;
                /* The planes' sum, rounded once. */
                if (PLANES == 2) {
                    sum = fmaf(sum, (float)PF_INT_BASE, __uint_as_float((uint32_t)product[PLANES - 1][e]) - MAGIC);
                }
                w.sum[i][e] = fmaf(sum, row_scale[k][e / 2] * scale[e % 2], w.sum[i][e]);
            }
        }
    }
}

/* Adds the class of this rank to the tree: a branch of 2^level classes is complete when the rank's low bits are ones. */
template <int PLANES> PF_DEV void add_class(tile<PLANES> &w, int rank) {
PF_UNROLL
    for (int level = 0; level < LEVELS; ++level) {
        const bool open = (rank >> level & 1) == 0;
PF_UNROLL
        for (int i = 0; i < NARROW; ++i) {
PF_UNROLL
            for (int e = 0; e < 4; ++e) {
                if (open) w.branch[level][i][e] = w.sum[i][e];
                else w.sum[i][e] = w.branch[level][i][e] + w.sum[i][e];
            }
        }
        if (open) break;
    }
}

/* Rows from row0 on times the tokens of items i0 .. of the group. */
template <int TYPE, int PLANES>
PF_DEV void multiply(const pf_matmul &m, const pf_span &group, int64_t row0, int64_t i0) {
    const int64_t n_block = m.w.cols / PF_BLOCK, each = pf_class_blocks(n_block), slots = each * PF_INT_BLOCKS;
    const int g = pf_lane() / 4, q = pf_lane() % 4;
    tile<PLANES> w;
    w.act = reinterpret_cast<const uint32_t *>(m.act);
    w.plane = (uint32_t)(slots * WORDS);
PF_UNROLL
    for (int r = 0; r < 2; ++r) w.row[r] = pf_row_of(m.w, group.matrix, pf_least(row0 + g + 8 * r, m.w.rows - 1));
PF_UNROLL
    for (int i = 0; i < NARROW; ++i) {
        w.values[i] = (uint32_t)((pf_act_of(m, i0 + 8 * i + g, group.end) - m.act) / 4 + 2 * q);
PF_UNROLL
        for (int t = 0; t < 2; ++t) {
            const uint8_t *act = pf_act_of(m, i0 + 8 * i + 2 * q + t, group.end);
            w.scales[i][t] = (uint32_t)((act - m.act) / 4) + PLANES * w.plane;
        }
    }
    for (int rank = 0; rank < PF_INT_BLOCKS; ++rank) {
        const int64_t c = pf_reversed(rank), count = (n_block - c + PF_INT_BLOCKS - 1) / PF_INT_BLOCKS;
PF_UNROLL
        for (int i = 0; i < NARROW; ++i) {
PF_UNROLL
            for (int e = 0; e < 4; ++e) w.sum[i][e] = 0.0f;
        }
        int64_t j = 0;
        for (; j + STEP <= count; j += STEP) {
            add_blocks<TYPE>(w, c + j * PF_INT_BLOCKS, (uint32_t)(rank * each + j), STEP);
        }
        if (j < count) add_blocks<TYPE>(w, c + j * PF_INT_BLOCKS, (uint32_t)(rank * each + j), 1);
        add_class(w, rank);
    }
PF_UNROLL
    for (int i = 0; i < NARROW; ++i) {
PF_UNROLL
        for (int e = 0; e < 4; ++e) {
            const int64_t item = i0 + 8 * i + 2 * q + e % 2, row = row0 + g + 8 * (e / 2);
            const float v = TYPE == PF_MXFP4 ? w.sum[i][e] * PF_INT_MXFP4_UNIT : w.sum[i][e];
            if (row < m.w.rows && item < group.end) m.y[item * m.ldy + row] = v;
        }
    }
}

template <int TYPE, int PLANES> static __global__ void __launch_bounds__(THREADS) tile_kernel(pf_matmul m) {
    const pf_span group = pf_group_of(m, blockIdx.y);
    const int64_t row0 = ((int64_t)blockIdx.x * ROW_WARPS + pf_warp() / TOKEN_WARPS) * ROWS;
    const int64_t first = (int64_t)blockIdx.z * TOKEN_WARPS + pf_warp() % TOKEN_WARPS;
    if (row0 >= m.w.rows) return; /* a whole warp; nobody waits for the block */
    for (int64_t i0 = group.begin + first * TOKENS; i0 < group.end; i0 += (int64_t)gridDim.z * TOKEN_WARPS * TOKENS) {
        multiply<TYPE, PLANES>(m, group, row0, i0);
    }
}

template <int TYPE> static void launch(const pf_exec *ex, const pf_matmul &m) {
    const bool grouped = m.groups.matrix != nullptr;
    const int64_t most = grouped ? m.groups.rows : m.n;
    const dim3 grid((unsigned)pf_div_up(m.w.rows, ROW_WARPS * ROWS), (unsigned)(grouped ? m.groups.most_groups : 1),
                    (unsigned)pf_least(64, pf_div_up(most, TOKEN_WARPS * TOKENS)));
    const cudaStream_t stream = pf_device_of(ex)->stream;
    if (m.planes == PF_Q8_PLANES) PF_LAUNCH((tile_kernel<TYPE, PF_Q8_PLANES>), grid, THREADS, 0, stream, m);
    else PF_LAUNCH((tile_kernel<TYPE, PF_Q16_PLANES>), grid, THREADS, 0, stream, m);
}

pf_status pf_tiles_launch(const pf_exec *ex, const pf_matmul &m) {
    switch (m.w.type) {
    case PF_Q8_0: launch<PF_Q8_0>(ex, m); return PF_OK;
    case PF_MXFP4: launch<PF_MXFP4>(ex, m); return PF_OK;
    default: return PF_ERR_INTERNAL;
    }
}
