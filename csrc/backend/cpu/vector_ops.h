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

#define PF_WEIGHT_ENTRIES(prefix)                                                                                \
    {[PF_W_F32] = prefix##_f32,   [PF_W_F16] = prefix##_f16,     [PF_W_BF16] = prefix##_bf16,                    \
     [PF_W_Q8_0] = prefix##_q8_0, [PF_W_MXFP4] = prefix##_mxfp4, [PF_W_FP8] = prefix##_fp8}
#define PF_INT_ENTRIES(prefix) {[PF_W_Q8_0] = prefix##_q8_0, [PF_W_MXFP4] = prefix##_mxfp4}

/* Everything that the headers of a vector kernel file define. */
#define PF_VECTOR_ENTRIES                                                                                        \
    .dot = dot, .axpy = axpy, .dequant = PF_WEIGHT_ENTRIES(dequant), .gemm_f32 = PF_WEIGHT_ENTRIES(gemm),        \
    .gemm_q16 = PF_INT_ENTRIES(gemm_q16), .gemm_q8 = PF_INT_ENTRIES(gemm_q8), .load_row = load_row,              \
    .row_dots = row_dots, .softmax_part = softmax_part, .row_sums = row_sums, .fp4_tile = fp4_tile,              \
    .fp4_dots = fp4_dots, .weigh_heads = weigh_heads, .swiglu = swiglu, .norm = norm, .pool_add = pool_add,      \
    .mix = mix, .collect = collect

#endif
