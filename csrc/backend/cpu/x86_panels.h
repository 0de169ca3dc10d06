/* Rows of Q8_0 and MXFP4 unpacked for gemm_panel.h. The including file defines, beside what that and x86_blocks.h ask for,
 *     pf_ivec rows_16bytes(const uint8_t *const *row, int64_t at): 16 bytes at `at` of every fourth row, row[0] first;
 *     pf_ivec_even_words, _odd_words: the lower, the upper signed byte of every word as a word. */
#ifndef PF_BACKEND_CPU_X86_PANELS_H
#define PF_BACKEND_CPU_X86_PANELS_H

#include "backend/cpu/gemm_panel.h"
#include "backend/cpu/x86_blocks.h"

/* The 16 bytes at `at` of every row: vector k has bytes 4k to 4k + 3 of row l in lane l. */
PF_INLINE void rows_quads(const uint8_t *const *row, int64_t at, pf_ivec *out) {
    pf_ivec v[4];
    PF_UNROLL for (int j = 0; j < 4; ++j) v[j] = rows_16bytes(row + j, at);
    quads_of_16bytes(v, out);
}

/* Columns 4q to 4q + 3 of every row, signed bytes, to their pairs. */
PF_INLINE void put_quad(pf_ivec *pairs, int q, pf_ivec bytes) {
    pairs[2 * q] = pf_ivec_even_words(bytes);
    pairs[2 * q + 1] = pf_ivec_odd_words(bytes);
}

PF_INLINE void unpack_q8_0(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out) {
    PF_KEEP_LOOP for (int b = 0; b < n_block; ++b) {
        const int64_t at = (block + b) * Q8_0_BYTES;
        uint64_t halves[PF_VEC_LANES / 4] = {0};
        PF_UNROLL for (int r = 0; r < PF_VEC_LANES; ++r) {
            halves[r / 4] |= (uint64_t)pf_load_u16(row[r] + at) << 16 * (r % 4);
        }
        PF_UNROLL for (int half = 0; half < 2; ++half) {
            pf_ivec quads[4];
            rows_quads(row, at + 2 + 16 * half, quads);
            PF_UNROLL for (int q = 0; q < 4; ++q) put_quad(out->pairs[b], 4 * half + q, quads[q]);
        }
        out->scale[b] = pf_vec_of_halves(halves);
    }
}

PF_INLINE void unpack_mxfp4(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out) {
    const pf_ivec table = pf_ivec_table(e2m1_table());
    PF_KEEP_LOOP for (int b = 0; b < n_block; ++b) {
        const int64_t at = (block + b) * MXFP4_BYTES;
        uint32_t *scale_bits = (uint32_t *)(void *)&out->scale[b];
        pf_ivec codes[4];
        PF_UNROLL for (int r = 0; r < PF_VEC_LANES; ++r) scale_bits[r] = opaque((uint32_t)row[r][at] << 23);
        rows_quads(row, at + 1, codes);
        PF_UNROLL for (int q = 0; q < 4; ++q) {
            put_quad(out->pairs[b], q, pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[q])));
            put_quad(out->pairs[b], q + 4, pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[q])));
        }
    }
}

PANEL_GEMM(panels_q8_0, unpack_q8_0, 1.0f)
PANEL_GEMM(panels_mxfp4, unpack_mxfp4, PF_INT_MXFP4_UNIT)

/* Overrides the table's tiles. */
static inline void set_panel_entries(pf_cpu_kernels *k) {
    pf_tile_kernels *t = &k->tiles;
    t->from = PANEL_FROM;
    t->rest = 1;
    t->packed_bytes = panel_packed_bytes;
    t->pack = panel_pack;
    t->scratch_bytes = panel_scratch_bytes;
    t->gemm_q16[PF_W_Q8_0] = panels_q8_0;
    t->gemm_q16[PF_W_MXFP4] = panels_mxfp4;
}

#endif
