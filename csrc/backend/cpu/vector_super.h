/* Super-blocks times one token, as int_acts.h says: what follows from the products of a vector of blocks.
 *
 * The including file defines in int_weights besides `scale` (of blocks, or of first halves) `half_scale` (of second halves),
 * `min_scale` (-dmin), and of both halves the integers c and m (m[0] alone where minimums are of blocks); of pf_ivec _add,
 * _sub, _mul (32 bits), _set1; and for super_products(), which gemm_int_tile.h takes where it defines PF_SUPER, _load and
 *     pf_ivec half_products(const int_weights *w, const uint8_t *values, int64_t padded, int half): every block's sum of
 *         products with q16 in this half of its columns, the activations of whose first plane begin at values. */
#ifndef PF_BACKEND_CPU_VECTOR_SUPER_H
#define PF_BACKEND_CPU_VECTOR_SUPER_H

/* Joined to the blocks' sums: i, of both halves, the integer sums of products; sums, of both halves, those of activations,
 * where the type has a bias or minimums. With PF_SCALES_OF_BLOCKS only the sum of the i matters, and else they have no bias. */
PF_INLINE pf_vec super_join(const int_weights *w, const pf_ivec *i, const pf_ivec *sums, pf_vec act_scale, pf_vec sum,
                            int_format f) {
    const pf_vec scale = pf_vec_mul(w->scale, act_scale);
    if (f.scaling == PF_SCALES_OF_HALVES) {
        sum = pf_vec_fma(pf_vec_of_ints(i[0]), scale, sum);
        return pf_vec_fma(pf_vec_of_ints(i[1]), pf_vec_mul(w->half_scale, act_scale), sum);
    }
    pf_ivec all;
    if (f.scaling == PF_SCALES_IN_SUMS) {
        all = pf_ivec_add(pf_ivec_mul(i[0], w->c[0]), pf_ivec_mul(i[1], w->c[1]));
    } else {
        all = pf_ivec_add(i[0], i[1]);
        if (f.bias) all = pf_ivec_sub(all, pf_ivec_mul(pf_ivec_add(sums[0], sums[1]), pf_ivec_set1(f.bias)));
    }
    sum = pf_vec_fma(pf_vec_of_ints(all), scale, sum);
    if (!f.has_minimums) return sum;
    const pf_ivec less = f.scaling == PF_SCALES_IN_SUMS
                             ? pf_ivec_add(pf_ivec_mul(sums[0], w->m[0]), pf_ivec_mul(sums[1], w->m[1]))
                             : pf_ivec_mul(pf_ivec_add(sums[0], sums[1]), w->m[0]);
    return pf_vec_fma(pf_vec_of_ints(less), pf_vec_mul(w->min_scale, act_scale), sum);
}

#if defined(PF_SUPER)
PF_INLINE pf_vec super_products(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part,
                                pf_vec act_scale, pf_vec sum, int_format f) {
    const uint8_t *values = act + group * PF_INT_GROUP + part * (4 * PF_VEC_LANES);
    const uint8_t *halves = act + 2 * padded + 3 * padded / 8 + group * (2 * PF_INT_QUADS) + part * (4 * PF_VEC_LANES);
    pf_ivec i[2], sums[2];
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        i[h] = half_products(w, values, padded, h);
        if (f.bias || f.has_minimums) sums[h] = pf_ivec_load(halves + h * PF_INT_QUADS);
        if (f.bias && f.scaling != PF_SCALES_OF_BLOCKS) {
            i[h] = pf_ivec_sub(i[h], pf_ivec_mul(sums[h], pf_ivec_set1(f.bias)));
        }
    }
    return super_join(w, i, sums, act_scale, sum, f);
}
#  define SUPER_PRODUCTS super_products
#endif

#endif
