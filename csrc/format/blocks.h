/* Decoders of ggml's block formats: n_blocks blocks, one after the other, to floats. One function a type; each block
 * holds the number of values that pf_dtype_lookup() says.
 *
 * The order of operations is that of ggml's own decoders, so that the floats are the same to the bit wherever scales are
 * finite. Decoders touch nothing but their arguments, and any bytes are valid input. Names and layouts are ggml's; a
 * layout stands where it is read. */
#ifndef PF_FORMAT_BLOCKS_H
#define PF_FORMAT_BLOCKS_H

#include <stdint.h>

typedef void (*pf_decode_fn)(const uint8_t *blocks, int64_t n_blocks, float *out);

/* The decoder of a type by its number (format/dtypes.h); NULL for types without blocks, and unknown ones. */
pf_decode_fn pf_block_decoder(uint32_t type);

/* blocks_small.c: blocks of 32 to 256 with one scale, or one and a minimum */
void pf_decode_q4_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q4_1(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q5_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q5_1(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q8_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q1_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q2_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_tq1_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_tq2_0(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_mxfp4(const uint8_t *blocks, int64_t n_blocks, float *out); /* scale byte 255: NaN, as in OCP MX */
void pf_decode_nvfp4(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq4_nl(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq4_xs(const uint8_t *blocks, int64_t n_blocks, float *out);

/* blocks_k.c: super-blocks of 256 with a scale for every 16 or 32 values */
void pf_decode_q2_k(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q3_k(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q4_k(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q5_k(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_q6_k(const uint8_t *blocks, int64_t n_blocks, float *out);

/* blocks_iq.c: super-blocks of 256 whose values are points of a grid */
void pf_decode_iq1_s(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq1_m(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq2_xxs(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq2_xs(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq2_s(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq3_xxs(const uint8_t *blocks, int64_t n_blocks, float *out);
void pf_decode_iq3_s(const uint8_t *blocks, int64_t n_blocks, float *out);

#endif
