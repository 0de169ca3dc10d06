/* Matrix products of one weight with rows of activations, as one group of rows (linear) or as many groups, each with a
 * matrix of its own (experts): y[i] = W[matrix of i's group] act[in_rows ? in_rows[i] : i].
 *
 * Activations are floats or, where the weight is Q8_0 or MXFP4 and the run is not exact, integers of 16 or 8 bits: the
 * CPU's q16 and q8 (backend/cpu/int_acts.h), of which every product is the same float here as there. */
#ifndef PF_BACKEND_CUDA_MATMUL_CUH
#define PF_BACKEND_CUDA_MATMUL_CUH

#include "backend/cpu/int_acts.h"
#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

/* The types of weights that there are kernels for (linear.cu has them), X(name); and the bits of pf_backend.weight_kinds. A
 * type of the table that is not here is refused when a model is placed on the device. */
#define PF_CUDA_WEIGHT_TYPES(X) X(F32) X(F16) X(BF16) X(Q8_0) X(MXFP4) X(FP8)
#define PF_CUDA_KIND(name) | UINT64_C(1) << PF_W_##name
#define PF_CUDA_WEIGHT_KINDS (0 PF_CUDA_WEIGHT_TYPES(PF_CUDA_KIND))

/* Types with integer products. */
template <int TYPE> constexpr bool pf_has_integers = TYPE == PF_Q8_0 || TYPE == PF_MXFP4;

/* Groups of rows, in device memory. */
struct pf_groups {
    const int32_t *matrix;  /* [n_group] */
    const int32_t *start;   /* [n_group + 1] */
    const int32_t *n_group; /* one number */
    int64_t most_groups; /* that there can be */
    int64_t rows;        /* that a large one has: how the work is cut; more are worked off too */
};

struct pf_matmul {
    pf_weight w;
    const uint8_t *act;
    int64_t act_stride; /* bytes */
    int planes;         /* of integer activations; 0: floats */
    bool tiled;         /* these are packed for tensor cores (tiles.cu) */
    int64_t n;          /* rows, without groups */
    const int32_t *in_rows;
    pf_groups groups;   /* matrix NULL: matrix 0 with all rows */
    float *y;
    int64_t ldy;
};

/* 16 blocks of a row of integer activations. The lanes of half a warp take a block each, so what they read together,
 * the first or the second 16 columns of their blocks, lies together. A row is filled up to whole groups; nobody reads
 * what it is filled with. */
template <int PLANES> struct pf_act_group {
    int4 values[PLANES][2][PF_INT_BLOCKS];
    float scale[PF_INT_BLOCKS];
};

/* A row packed for tensor cores: of every plane the blocks' 32 bytes, then the blocks' scales. Blocks are kept by class,
 * b % 16, and the classes in the order in which the sums of int_acts.h are added up as a tree: the bits of a class read
 * backwards. Of a block, lane q of four takes columns 4 q to 4 q + 3 and 16 more: its 8 bytes lie together. */
static __host__ __device__ inline int pf_reversed(int four_bits) {
    return (four_bits & 1) << 3 | (four_bits & 2) << 1 | (four_bits & 4) >> 1 | four_bits >> 3;
}
static __host__ __device__ inline int64_t pf_class_blocks(int64_t n_block) { /* as many as the first class has */
    return (n_block + PF_INT_BLOCKS - 1) / PF_INT_BLOCKS;
}

static inline int64_t pf_act_row_bytes(int planes, bool tiled, int64_t n) {
    const size_t q8 = sizeof(pf_act_group<PF_Q8_PLANES>), q16 = sizeof(pf_act_group<PF_Q16_PLANES>);
    if (tiled) return pf_class_blocks(n / PF_INT_BLOCK) * PF_INT_BLOCKS * (planes * PF_INT_BLOCK + (int64_t)sizeof(float));
    return pf_div_up(n, PF_INT_GROUP) * (int64_t)(planes == PF_Q8_PLANES ? q8 : q16);
}

/* Planes of the activations that this run multiplies w with; 0: floats. */
static inline int pf_act_planes(const pf_exec *ex, const pf_weight *w) {
    const bool has_integers = w->type == PF_Q8_0 || w->type == PF_MXFP4;
    if (ex->exact || !has_integers) return 0;
    return ex->int8 ? PF_Q8_PLANES : PF_Q16_PLANES;
}

/* Whether tensor cores multiply w with float activations, as sums of bfloat16 (float_tiles.cu): decided by the run and
 * the type alone, since another kernel would give other bits. */
static inline bool pf_in_bf16(const pf_exec *ex, const pf_weight *w) {
    return !ex->exact && (w->type == PF_BF16 || w->type == PF_FP8);
}

/* Queues the product. INTERNAL for a type without kernels, which should have been refused. */
pf_status pf_matmul_launch(const pf_exec *ex, const pf_matmul &m);
pf_status pf_tiles_launch(const pf_exec *ex, const pf_matmul &m); /* where m.tiled */
pf_status pf_float_tiles_launch(const pf_exec *ex, const pf_matmul &m); /* where pf_in_bf16 */
/* Queues the integer form of x [n_row, n]; count: rows that there really are, a number in device memory, or NULL. */
void pf_quantize_launch(const pf_exec *ex, int planes, bool tiled, const float *x, int64_t ldx, int64_t n_row,
                        int64_t n, const int32_t *count, uint8_t *out);

/* ---- What a block works on ---- */

struct pf_span {
    int64_t matrix, begin, end; /* rows of activations */
};

PF_DEV pf_span pf_group_of(const pf_matmul &m, int64_t group) {
    if (!m.groups.matrix) return {0, 0, m.n};
    if (group >= *m.groups.n_group) return {0, 0, 0};
    const int64_t matrix = m.groups.matrix[group];
    PF_READS(m.w.data + matrix * m.w.rows * m.w.row_bytes, m.w.rows * m.w.row_bytes);
    return {matrix, m.groups.start[group], m.groups.start[group + 1]};
}

/* Activation row of item i; the last one for what fills a tile up. */
PF_DEV const uint8_t *pf_act_of(const pf_matmul &m, int64_t i, int64_t end) {
    const int64_t item = i < end ? i : end - 1;
    return m.act + (m.in_rows ? m.in_rows[item] : item) * m.act_stride;
}

#endif
