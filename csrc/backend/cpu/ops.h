/* The CPU backend's operations, one function per entry of pf_backend. Contracts are in backend/backend.h.
 *
 * Every operation restores the arena mark it found, and returns
 * PF_ERR_CANCELLED when pf_cancelled(ex) was seen (the outputs are then undefined). */
#ifndef PF_BACKEND_CPU_OPS_H
#define PF_BACKEND_CPU_OPS_H

#include "backend/cpu/kernels.h"

static inline const pf_cpu_kernels *pf_cpu_kernels_of(const pf_exec *ex) {
    return (const pf_cpu_kernels *)ex->backend->kernels;
}

/* linear.c */

/* What a gemm kernel takes as activations: floats, or rows of int_acts.h. */
typedef enum pf_acts_form { PF_ACTS_F32, PF_ACTS_Q16, PF_ACTS_Q8 } pf_acts_form;
/* Of a form that is not F32. */
static inline int pf_acts_planes(pf_acts_form form) { return form == PF_ACTS_Q8 ? PF_Q8_PLANES : PF_Q16_PLANES; }

/* Rows of activations. */
typedef struct pf_acts {
    const uint8_t *data;
    int64_t stride; /* bytes */
} pf_acts;

/* Bytes from one quantised row of n values to the next: 17 lines of 64 bytes more than a multiple of 2048, so that the
 * same columns of the rows of a batch do not meet in the same sets of L1. */
static inline int64_t pf_acts_stride(pf_acts_form form, int64_t n) {
    enum { TURN = 2048, SHIFT = 17 * 64 };
    const int64_t bytes = pf_int_row_bytes(pf_acts_planes(form), n);
    return (bytes + TURN - 1 - SHIFT) / TURN * TURN + SHIFT;
}
/* What this run multiplies w with. */
pf_acts_form pf_cpu_acts_form(const pf_exec *ex, const pf_weight *w);
pf_gemm_fn pf_cpu_gemm(const pf_exec *ex, pf_acts_form form, const pf_weight *w);
/* Of a form that is not F32. */
pf_quantize_fn pf_cpu_quantizer(const pf_exec *ex, pf_acts_form form);
/* x [n_row, n], ldx apart, in the form: F32 as it lies, others quantised into arena memory. */
pf_status pf_cpu_take_acts(pf_exec *ex, pf_acts_form form, const float *x, int64_t ldx, int64_t n_row, int64_t n,
                           pf_acts *out);
/* Kernel scratch of every worker, [threads, *floats]; NULL when out of memory. cols: the widest weight; tiled: enough for
 * the tile kernels. */
float *pf_cpu_gemm_scratch(pf_exec *ex, int64_t cols, bool tiled, int64_t *floats);

/* The kernels of one product: for any number of tokens, and for many. */
typedef struct pf_product {
    pf_gemm_fn fn, tile_fn;
} pf_product;

/* NULL: there is none. */
pf_gemm_fn pf_cpu_tile_gemm(const pf_exec *ex, pf_acts_form form, const pf_weight *w);
/* How many of n tokens, from the first on, the tile kernels of w should take. */
int64_t pf_cpu_tile_tokens(const pf_exec *ex, pf_acts_form form, const pf_weight *w, int64_t n);
/* Rows of a product whose first n_tiled tokens are packed. */
void pf_cpu_gemm_run(const pf_exec *ex, const pf_product *p, const pf_gemm *gemm, int64_t n_tiled, int64_t row_begin,
                     int64_t row_end);

pf_status pf_cpu_embed(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n_token, int64_t n_stream,
                       float *x);
pf_status pf_cpu_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                        int64_t ldy);
pf_status pf_cpu_add(pf_exec *ex, float *y, const float *x, int64_t n);
pf_status pf_cpu_swiglu(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h);

/* experts.c */
pf_status pf_cpu_experts(pf_exec *ex, const pf_experts_args *args);

/* rows.c */
pf_status pf_cpu_store_rows(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x);
pf_status pf_cpu_hadamard(pf_exec *ex, float *x, int64_t n_row, int64_t n);
pf_status pf_cpu_round_fp4(pf_exec *ex, float *x, int64_t n_row, int64_t n);
/* A head q [width] that round_fp4 has rounded, as fp4_dots takes it; width a multiple of 32. */
void pf_cpu_fp4_query(const float *q, int64_t width, uint8_t *head);
/* What that made, levelled (fp4.h): its codes [width] and scale. False where its scales are too far apart. */
bool pf_cpu_fp4_level_query(const uint8_t *head, int64_t width, uint8_t *codes, float *scale);

/* norm_rope.c */
pf_status pf_cpu_rms_norm(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                          float *y);
pf_status pf_cpu_rope_tail(pf_exec *ex, float *x, int64_t n_token, int64_t n_head, int64_t d,
                           const pf_rope_table *table, bool inverse);

/* compress.c */
pf_status pf_cpu_push_frontier(pf_exec *ex, const pf_frontier_args *args);
pf_status pf_cpu_compress(pf_exec *ex, const pf_compress_args *args);

/* indexer.c */
pf_status pf_cpu_index_scores(pf_exec *ex, const pf_index_args *args);
pf_status pf_cpu_topk(pf_exec *ex, const float *scores, int64_t ld, int64_t n_token, int64_t position, int32_t ratio,
                      int64_t k, int32_t *select, int32_t *select_n);

/* attention.c */
pf_status pf_cpu_sparse_attn(pf_exec *ex, const pf_attn_args *args);

/* mhc.c */
pf_status pf_cpu_mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                         int64_t n_token, float *x, float *post, float *comb);
pf_status pf_cpu_mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post,
                          const float *comb, int64_t n_token, float *streams);
pf_status pf_cpu_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x);

/* route.c */
pf_status pf_cpu_route(pf_exec *ex, const pf_route_args *args);

#endif
