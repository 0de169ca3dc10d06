/* Prompts written with the tokens that a session already has. */
#ifndef PF_TEXT_ALIGN_H
#define PF_TEXT_ALIGN_H

#include "text/tokenizer.h"

/* Tokens that have been evaluated. Those at the positions silent [n_silent], ascending, spell nothing where they are
 * special: a model wrote them into an answer, out of place. */
typedef struct pf_known_tokens {
    const int32_t *tokens; /* [n] */
    int64_t n;
    const int64_t *silent;
    int64_t n_silent;
} pf_known_tokens;

/* Writes wanted [n_wanted] to out, which has room for known->n + n_wanted tokens, but in place of its beginning as much
 * of known as spells the same text. What a model generated is rarely, but sometimes, not what the tokenizer makes of
 * the text. Where known ends within one of the wanted tokens, the rest of that is written in other ones. Bytes of known
 * that are no UTF-8 spell U+FFFD, one for each beginning of a character, as decoders have it. Special tokens equal only
 * themselves. *n_out: the number of tokens. Errors: MEMORY. */
pf_status pf_align_tokens(const pf_tokenizer *tokenizer, const pf_known_tokens *known, const int32_t *wanted,
                          int64_t n_wanted, int32_t *out, int64_t *n_out, pf_error *err);

#endif
