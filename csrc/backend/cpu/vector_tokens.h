/* Element-by-element work on a token's vectors, for the vector kernel files: what remains is done with parts of
 * vectors, so a value never depends on its place.
 *
 * The including file defines, beyond what vector_attention.h asks for: pf_vec_min (as pf_vec_max), pf_vec_div, and
 * pf_vec_not_below (a bit for every lane that is not < limit). */
#ifndef PF_BACKEND_CPU_VECTOR_TOKENS_H
#define PF_BACKEND_CPU_VECTOR_TOKENS_H

#include "backend/cpu/vector_attention.h"

/* The vector at p, of which n values are there, and back. */
PF_INLINE pf_vec take_some(const float *p, int64_t n) {
    return n >= PF_VEC_LANES ? pf_vec_load(p) : pf_vec_load_part(p, n);
}
PF_INLINE void put_some(float *p, pf_vec v, int64_t n) {
    if (n >= PF_VEC_LANES) pf_vec_store(p, v);
    else pf_vec_store_part(p, v, n);
}

static void swiglu(const float *gate, const float *up, int64_t n, float limit, float gain, float *h) {
    const pf_vec most = pf_vec_set1(limit), least = pf_vec_set1(-limit), one = pf_vec_set1(1.0f);
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        /* NaN is the second operand, and so stays. */
        const pf_vec g = pf_vec_min(most, take_some(gate + i, n - i));
        const pf_vec u = pf_vec_min(most, pf_vec_max(least, take_some(up + i, n - i)));
        const pf_vec silu = pf_vec_div(g, pf_vec_add(one, pf_vec_exp(pf_vec_sub(pf_vec_zero(), g))));
        put_some(h + i, pf_vec_mul(pf_vec_mul(silu, u), pf_vec_set1(gain)), n - i);
    }
}

static void norm(const float *x, float scale, const float *gain, int64_t n, float *y) {
    const pf_vec vscale = pf_vec_set1(scale);
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        const pf_vec v = pf_vec_mul(take_some(x + i, n - i), vscale);
        put_some(y + i, gain ? pf_vec_mul(v, take_some(gain + i, n - i)) : v, n - i);
    }
}

static void pool_add(const float *g, const float *a, const float *top, int64_t n, float *sum, float *out) {
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        const pf_vec e = pf_vec_exp(pf_vec_sub(take_some(g + i, n - i), take_some(top + i, n - i)));
        put_some(sum + i, pf_vec_add(take_some(sum + i, n - i), e), n - i);
        put_some(out + i, pf_vec_fma(e, take_some(a + i, n - i), take_some(out + i, n - i)), n - i);
    }
}

/* n_in and n_out are constants where it matters. A vector of every input is read before any output is written. */
PF_INLINE void mix_any(const float *const *in, int n_in, const float *w, int n_out, float *const *out, int64_t n) {
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        pf_vec v[PF_MIX_MAX];
        PF_UNROLL for (int j = 0; j < n_in; ++j) v[j] = take_some(in[j] + i, n - i);
        PF_UNROLL for (int o = 0; o < n_out; ++o) {
            pf_vec sum = pf_vec_mul(pf_vec_set1(w[o * n_in]), v[0]);
            PF_UNROLL for (int j = 1; j < n_in; ++j) sum = pf_vec_fma(pf_vec_set1(w[o * n_in + j]), v[j], sum);
            put_some(out[o] + i, sum, n - i);
        }
    }
}

static void mix(const float *const *in, int n_in, const float *w, int n_out, float *const *out, int64_t n) {
    if (n_in == 5 && n_out == 4) mix_any(in, 5, w, 4, out, n);
    else if (n_in == 4 && n_out == 1) mix_any(in, 4, w, 1, out, n);
    else mix_any(in, n_in, w, n_out, out, n);
}

static int64_t collect(const float *s, int64_t n, float limit, int32_t *index) {
    int64_t have = 0;
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        unsigned found = pf_vec_not_below(take_some(s + i, n - i), limit);
        if (n - i < PF_VEC_LANES) found &= (1u << (n - i)) - 1u;
        for (int32_t at = (int32_t)i; found != 0; found >>= 1, ++at) {
            index[have] = at;
            have += found & 1u;
        }
    }
    return have;
}

#endif
