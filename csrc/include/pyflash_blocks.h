/* pyflash_blocks.h - tensor types and the codecs of their blocks. Part of pyflash.h. */
#ifndef PYFLASH_BLOCKS_H
#define PYFLASH_BLOCKS_H

#include "pyflash_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

/* ---- Tensor types ------------------------------------------------------------------------------------------ */

#define PF_TYPE_WEIGHT 1u  /* matrices of this type are computed with */
#define PF_TYPE_INTEGER 2u /* and with integer activations, unless in exact */
#define PF_TYPE_WRITTEN 4u /* the converter writes it */
#define PF_TYPE_OWN 8u     /* this project's own mark: no tensor of a file has the number */
#define PF_TYPE_REMOVED 16u /* ggml has removed it: old files may have it, and nobody reads them */
#define PF_TYPE_FOREIGN 32u /* ik_llama.cpp's own, which llama.cpp does not read either */

/* What the library knows of a tensor element type: all of ggml's, also those that it does not compute with. Grows at its
 * end only. */
typedef struct pf_type_info {
    uint32_t struct_size; /* set by the caller to sizeof(pf_type_info) before the call */
    uint32_t number;      /* as it stands in GGUF files */
    uint32_t block_size;  /* values a block; 0 for removed and foreign types */
    uint32_t block_bytes; /* bytes a block */
    uint32_t uses;        /* PF_TYPE_* */
    uint32_t reserved;
    const char *name;     /* "MXFP4", static */
} pf_type_info;

/* The type at a place of the table, from 0 on. Returns 1; 0 past the end, or where struct_size was not set. */
PF_API int32_t pf_type_get_info(int32_t index, pf_type_info *info);

/* ---- Block codecs, used by the converter -------------------------------------------------------------------- */

/* Every codec works on contiguous memory, touches nothing else and may be called from several threads at once. */

/* Packed FP4 (two e2m1 codes a byte, low nibble first, as checkpoints hold routed experts) with one e8m0 scale per 32
 * values, to and from MXFP4 blocks of 17 bytes (ggml type 39). n_blocks blocks of 32 values; codes and scales unchanged. */
PF_API void pf_codec_fp4_to_mxfp4(const uint8_t *packed, const uint8_t *scales, int64_t n_blocks, uint8_t *out);
PF_API void pf_codec_mxfp4_to_fp4(const uint8_t *blocks, int64_t n_blocks, uint8_t *packed, uint8_t *scales);
/* MXFP4 blocks to float32: exactly e2m1 * 2^(e-127). */
PF_API void pf_codec_mxfp4_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out);

/* Rows [row0, row0 + n_rows) of an e4m3 matrix [*, cols] with one scale per 128 x 128 block; `w` points at row
 * row0, `scales` at the whole scale matrix [*, ceil(cols/128)]: e8m0 bytes or, with scale_f32, floats. */
PF_API void pf_codec_fp8_to_f32(const uint8_t *w, const void *scales, int32_t scale_f32, int64_t row0,
                                int64_t n_rows, int64_t cols, float *out);

/* n values; round to nearest even. */
PF_API void pf_codec_f32_to_bf16(const float *in, int64_t n, uint16_t *out);
PF_API void pf_codec_bf16_to_f32(const uint16_t *in, int64_t n, float *out);
/* n_blocks blocks of 32 values to 34 bytes (ggml type 8), exactly as ggml's reference quantiser rounds. */
PF_API void pf_codec_f32_to_q8_0(const float *in, int64_t n_blocks, uint8_t *out);
PF_API void pf_codec_q8_0_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out);

/* Blocks of any of ggml's quantised types, by its number, to floats; the same bits as ggml's own decoders. UNSUPPORTED for
 * other types. */
PF_API pf_status pf_codec_decode(uint32_t type, const uint8_t *blocks, int64_t n_blocks, float *out, pf_error *err);

#define PF_OBJECTIVE_PLAIN 0 /* sum of importance * error^2 */
#define PF_OBJECTIVE_GGML 1  /* as llama.cpp's quantisers: importance * sqrt(mean square of the super-block + x^2) * error^2 */
#define PF_OBJECTIVE_UNBIASED 2 /* as PLAIN, which makes rows shorter by the share of their energy that is lost; then each row's
                                   scales are multiplied so that sum(importance * x * quantised x) is sum(importance * x^2) */

/* Rows [n_rows, n_cols] of floats to blocks of a type by its number: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, Q2_K, Q3_K, Q4_K,
 * Q5_K or Q6_K; n_cols a multiple of 256. importance [n_cols]: what an error of a column weighs, none negative; NULL: all the
 * same. What is made least is told by the objective. The same bytes on every machine. out holds what the type's blocks take.
 * ARGUMENT for numbers that are not finite; UNSUPPORTED for other types; MEMORY. Some 500 KB of memory are taken meanwhile. */
PF_API pf_status pf_codec_quantize(uint32_t type, int32_t objective, const float *x, const float *importance, int64_t n_rows,
                                   int64_t n_cols, uint8_t *out, pf_error *err);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_BLOCKS_H */
