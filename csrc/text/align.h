/* Prompts written with the tokens that a session already has. */
#ifndef PF_TEXT_ALIGN_H
#define PF_TEXT_ALIGN_H

#include "text/vocab.h"

/* Writes wanted [n_wanted] to out, which has room for n_known + n_wanted tokens, but in place of its beginning as much
 * of known [n_known] as spells the same text. What a model generated is rarely, but sometimes, not what the tokenizer
 * makes of the text. Special tokens equal only themselves. Returns the number of tokens. */
int64_t pf_align_tokens(const pf_vocab *vocab, const int32_t *known, int64_t n_known, const int32_t *wanted,
                        int64_t n_wanted, int32_t *out);

#endif
