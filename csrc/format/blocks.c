#include "format/blocks.h"

#include "format/dtypes.h"
#include "pyflash.h"

#include "base/status.h"

#include <stddef.h>

pf_decode_fn pf_block_decoder(uint32_t type) {
    switch (type) {
    case PF_Q4_0: return pf_decode_q4_0;
    case PF_Q4_1: return pf_decode_q4_1;
    case PF_Q5_0: return pf_decode_q5_0;
    case PF_Q5_1: return pf_decode_q5_1;
    case PF_Q8_0: return pf_decode_q8_0;
    case PF_Q1_0: return pf_decode_q1_0;
    case PF_Q2_0: return pf_decode_q2_0;
    case PF_TQ1_0: return pf_decode_tq1_0;
    case PF_TQ2_0: return pf_decode_tq2_0;
    case PF_MXFP4: return pf_decode_mxfp4;
    case PF_NVFP4: return pf_decode_nvfp4;
    case PF_IQ4_NL: return pf_decode_iq4_nl;
    case PF_IQ4_XS: return pf_decode_iq4_xs;
    case PF_Q2_K: return pf_decode_q2_k;
    case PF_Q3_K: return pf_decode_q3_k;
    case PF_Q4_K: return pf_decode_q4_k;
    case PF_Q5_K: return pf_decode_q5_k;
    case PF_Q6_K: return pf_decode_q6_k;
    case PF_IQ1_S: return pf_decode_iq1_s;
    case PF_IQ1_M: return pf_decode_iq1_m;
    case PF_IQ2_XXS: return pf_decode_iq2_xxs;
    case PF_IQ2_XS: return pf_decode_iq2_xs;
    case PF_IQ2_S: return pf_decode_iq2_s;
    case PF_IQ3_XXS: return pf_decode_iq3_xxs;
    case PF_IQ3_S: return pf_decode_iq3_s;
    default: return NULL;
    }
}

pf_status pf_codec_decode(uint32_t type, const uint8_t *blocks, int64_t n_blocks, float *out, pf_error *err) {
    const pf_decode_fn decode = pf_block_decoder(type);
    if (decode == NULL) {
        char name[PF_DTYPE_NAME_BYTES];
        return pf_fail(err, PF_ERR_UNSUPPORTED, "blocks of type %s cannot be decoded", pf_dtype_name(type, name));
    }
    if (n_blocks < 0) return pf_fail(err, PF_ERR_ARGUMENT, "%lld blocks cannot be", (long long)n_blocks);
    decode(blocks, n_blocks, out);
    return PF_OK;
}
