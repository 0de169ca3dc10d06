#include "format/blocks.h"

#include "format/dtypes.h"
#include "pyflash.h"

#include "base/status.h"

#include <stddef.h>

pf_decode_fn pf_block_decoder(uint32_t type) {
    switch (type) {
#define OF_TYPE(type, lower) case PF_##type: return pf_decode_##lower;
        PF_BLOCK_TYPES(OF_TYPE)
#undef OF_TYPE
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
