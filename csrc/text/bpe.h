/* Byte-pair merging: the merge table, and the encoding of one pre-tokenized piece. */
#ifndef PF_TEXT_BPE_H
#define PF_TEXT_BPE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

/* Limits of the packed table entries below. */
#define PF_BPE_MAX_TOKENS ((1 << 21) - 1)
#define PF_BPE_MAX_MERGES ((1 << 22) - 1)

/* Immutable once filled; shared by threads. */
typedef struct pf_bpe {
    uint64_t *slots;        /* hash table of left << 43 | right << 22 | rank; UINT64_MAX: empty */
    uint32_t shift;         /* the table has 2^(64 - shift) slots */
    int32_t *merged;        /* [n_merges] token that merge `rank` makes */
    int32_t byte_token[256];
} pf_bpe;

/* Working memory of one encoding thread; a zeroed one is ready. */
typedef struct pf_bpe_scratch {
    void *block;
    size_t capacity; /* piece length that `block` has room for */
    int32_t *tokens; /* result of the last pf_bpe_encode() */
} pf_bpe_scratch;

pf_status pf_bpe_init(pf_bpe *bpe, uint64_t n_merges, pf_error *err);
void pf_bpe_free(pf_bpe *bpe); /* a zeroed one is allowed */
/* Adds merge `rank`; returns the rank of an earlier merge of the same pair, or -1 when there was none. */
int32_t pf_bpe_add(pf_bpe *bpe, int32_t left, int32_t right, int32_t rank, int32_t merged);

/* Encodes bytes[0 .. n), n >= 1: the merge of the lowest rank first, the leftmost among equals, until none applies.
 * The tokens are scratch->tokens[0 .. *n_tokens). O(n log n). Errors: MEMORY. */
pf_status pf_bpe_encode(const pf_bpe *bpe, const uint8_t *bytes, size_t n, pf_bpe_scratch *scratch, int64_t *n_tokens,
                        pf_error *err);
void pf_bpe_scratch_free(pf_bpe_scratch *scratch);

#endif
