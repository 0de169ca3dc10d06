/* Float vectors of any length, for the vector kernel files: what they have in common once pf_vec is defined. */
#ifndef PF_BACKEND_CPU_VECTOR_OPS_H
#define PF_BACKEND_CPU_VECTOR_OPS_H

#include "backend/cpu/gemm_f32_tile.h"
#include "backend/cpu/gemm_int_tile.h"
#include "backend/cpu/vector_attention.h"
#include "backend/cpu/vector_fp4.h"
#include "backend/cpu/vector_rows.h"
#include "backend/cpu/vector_tokens.h"

static float dot(const float *a, const float *b, int64_t n) {
    pf_vec s[4] = {pf_vec_zero(), pf_vec_zero(), pf_vec_zero(), pf_vec_zero()};
    int64_t i = 0;
    for (; i + 4 * PF_VEC_LANES <= n; i += 4 * PF_VEC_LANES) {
        PF_UNROLL for (int j = 0; j < 4; ++j) {
            s[j] = pf_vec_fma(pf_vec_load(a + i + j * PF_VEC_LANES), pf_vec_load(b + i + j * PF_VEC_LANES), s[j]);
        }
    }
    for (; i + PF_VEC_LANES <= n; i += PF_VEC_LANES) s[0] = pf_vec_fma(pf_vec_load(a + i), pf_vec_load(b + i), s[0]);
    if (i < n) s[0] = pf_vec_fma(pf_vec_load_part(a + i, n - i), pf_vec_load_part(b + i, n - i), s[0]);
    return pf_vec_sum(pf_vec_add(pf_vec_add(s[0], s[1]), pf_vec_add(s[2], s[3])));
}

static void axpy(float *y, float s, const float *x, int64_t n) {
    const pf_vec vs = pf_vec_set1(s);
    int64_t i = 0;
    for (; i + PF_VEC_LANES <= n; i += PF_VEC_LANES) {
        pf_vec_store(y + i, pf_vec_fma(vs, pf_vec_load(x + i), pf_vec_load(y + i)));
    }
    if (i < n) {
        const pf_vec rest = pf_vec_fma(vs, pf_vec_load_part(x + i, n - i), pf_vec_load_part(y + i, n - i));
        pf_vec_store_part(y + i, rest, n - i);
    }
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

/* Overrides what the headers of a vector kernel file define. */
static void set_vector_entries(pf_cpu_kernels *k) {
    k->dot = dot;
    k->axpy = axpy;
#define SET_WEIGHT(kind, type) k->dequant[PF_W_##kind] = dequant_##type, k->gemm_f32[PF_W_##kind] = gemm_##type;
    PF_VECTOR_TYPES(SET_WEIGHT)
#undef SET_WEIGHT
    set_int_entries(k);
    k->load_row = load_row;
    k->row_dots = row_dots;
    k->softmax_part = softmax_part;
    k->row_sums = row_sums;
    k->fp4_tile = fp4_tile;
    k->fp4_dots = fp4_dots;
    k->weigh_heads = weigh_heads;
    k->swiglu = swiglu;
    k->norm = norm;
    k->pool_add = pool_add;
    k->mix = mix;
    k->collect = collect;
}

#endif
