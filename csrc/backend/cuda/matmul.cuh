/* Matrix products of one weight with rows of activations, as one group of rows (linear) or as many groups, each with a
 * matrix of its own (experts): y[i] = W[matrix of i's group] act[in_rows ? in_rows[i] : i].
 *
 * Activations are floats or, where the weight is Q8_0 or MXFP4 and the run is not exact, 16-bit integers: the CPU's q16
 * (backend/cpu/q16.h), of which every product is the same float here as there. */
#ifndef PF_BACKEND_CUDA_MATMUL_CUH
#define PF_BACKEND_CUDA_MATMUL_CUH

#include "backend/cuda/ops.cuh"

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
    bool q16;
    int64_t n;          /* rows, without groups */
    const int32_t *in_rows;
    pf_groups groups;   /* matrix NULL: matrix 0 with all rows */
    float *y;
    int64_t ldy;
};

/* Device layout of a q16 row of n values, a multiple of 32; value = 254 hi + lo:
 * int8 hi [n], int8 lo [n], float scale [n / 32]. Rows are multiples of 16 bytes apart. */
static inline int64_t pf_q16_row_bytes(int64_t n) { return (2 * n + n / 8 + 15) / 16 * 16; }

/* Whether this run multiplies w with q16 activations. */
static inline bool pf_takes_q16(const pf_exec *ex, const pf_weight *w) {
    return !ex->exact && (w->type == PF_Q8_0 || w->type == PF_MXFP4);
}

/* Queues the product. */
void pf_matmul_launch(const pf_exec *ex, const pf_matmul &m);
/* Queues the q16 form of x [n_row, n]; count: rows that there really are, a number in device memory, or NULL. */
void pf_quantize_launch(const pf_exec *ex, const float *x, int64_t ldx, int64_t n_row, int64_t n, const int32_t *count,
                        uint8_t *out);

#endif
