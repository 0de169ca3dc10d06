/* Byte-level BPE tokenizer of DeepSeek-V3/V4, from the tokenizer keys of a GGUF.
 *
 * A tokenizer is shared by any number of threads without locks. Special tokens are those of the types CONTROL and
 * USER_DEFINED: they come out of text only when asked for, the longest that starts first. No token is ever added
 * by itself (no BOS). */
#ifndef PF_TEXT_TOKENIZER_H
#define PF_TEXT_TOKENIZER_H

#include "base/status.h"
#include "format/gguf.h"
#include "text/vocab.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pf_tokenizer pf_tokenizer;

/* Copies what it needs, so the GGUF may be closed afterwards. *out is NULL, and the call successful, when the file
 * holds no tokenizer. Errors: FORMAT (damaged), UNSUPPORTED (another tokenizer or pre-tokenizer), MEMORY. */
pf_status pf_tokenizer_open(const pf_gguf *gguf, pf_tokenizer **out, pf_error *err);
void pf_tokenizer_close(pf_tokenizer *tokenizer); /* NULL is allowed */

const pf_vocab *pf_tokenizer_vocab(const pf_tokenizer *tokenizer);
int32_t pf_tokenizer_n_tokens(const pf_tokenizer *tokenizer);
int32_t pf_tokenizer_bos(const pf_tokenizer *tokenizer); /* -1 when the file names none */
int32_t pf_tokenizer_eos(const pf_tokenizer *tokenizer);

/* As pf_tokenize(), flags PF_TOKENIZE_*. Without PF_TOKENIZE_SPECIAL, and for any bytes, decoding the result gives
 * the text again. Errors: ARGUMENT (more than 2 GiB, unknown flags), MEMORY; then *n is left alone. */
pf_status pf_tokenizer_encode(const pf_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
                              int32_t *out, int64_t capacity, int64_t *n, pf_error *err);

/* As pf_detokenize(), flags PF_DETOKENIZE_*; placeholders (UNUSED) are left out like control tokens. Errors: ARGUMENT
 * (an id outside the vocabulary, unknown flags); then nothing has been written. */
pf_status pf_tokenizer_decode(const pf_tokenizer *tokenizer, const int32_t *tokens, int64_t n_tokens, uint32_t flags,
                              char *out, size_t capacity, size_t *len, pf_error *err);

/* Id of the token that decodes to exactly this text, special ones included, or -1. */
int32_t pf_tokenizer_token_id(const pf_tokenizer *tokenizer, const char *text, size_t len);
/* The same of special tokens only. */
int32_t pf_tokenizer_special_id(const pf_tokenizer *tokenizer, const char *text, size_t len);

#endif
