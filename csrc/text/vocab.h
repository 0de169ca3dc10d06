/* The token list of a GGUF: bytes and kind of every token, and the way back from bytes to the id. */
#ifndef PF_TEXT_VOCAB_H
#define PF_TEXT_VOCAB_H

#include "base/status.h"
#include "format/gguf.h"

#include <stddef.h>
#include <stdint.h>

/* Values of tokenizer.ggml.token_type. */
#define PF_TOKEN_NORMAL 1       /* written in the byte alphabet, made by merges */
#define PF_TOKEN_CONTROL 3      /* plain text; special, and no part of an answer's text */
#define PF_TOKEN_USER_DEFINED 4 /* plain text; special */
#define PF_TOKEN_UNUSED 5       /* a placeholder: never produced */

/* Immutable once loaded. All tokens have at least one byte, and no two have the same bytes. */
typedef struct pf_vocab {
    int32_t n_tokens;
    uint8_t *type;    /* [n_tokens] PF_TOKEN_* */
    uint8_t *bytes;   /* of all tokens, one after the other */
    uint32_t *offset; /* [n_tokens + 1] into bytes */
    uint64_t *slots;  /* hash table of hash high bits << 32 | id + 1; 0: empty */
    uint32_t shift;   /* the table has 2^(64 - shift) slots */
} pf_vocab;

/* Reads tokenizer.ggml.tokens and .token_type. On failure the vocabulary still needs pf_vocab_free(). */
pf_status pf_vocab_load(pf_vocab *vocab, const pf_gguf *gguf, pf_error *err);
void pf_vocab_free(pf_vocab *vocab); /* a zeroed one is allowed */

int32_t pf_vocab_find(const pf_vocab *vocab, const uint8_t *bytes, size_t len); /* -1: no token */

static inline const uint8_t *pf_vocab_bytes(const pf_vocab *vocab, int32_t id, size_t *len) {
    *len = vocab->offset[id + 1] - vocab->offset[id];
    return vocab->bytes + vocab->offset[id];
}

/* Turns text in the byte alphabet (GPT-2's: each byte stands for itself when printable in Latin-1, else for one of
 * U+0100..U+0143) into the bytes meant; out has room for len. Returns how many, or 0 when it is not written so. */
size_t pf_byte_alphabet_decode(const char *text, uint64_t len, uint8_t *out);

/* The strings of an array that must be there, to be freed with pf_free(). Errors: FORMAT, MEMORY. */
pf_status pf_read_strings(const pf_gguf *gguf, const char *key, uint64_t max_count, pf_gguf_string **out,
                          uint64_t *count, pf_error *err);

/* "damaged tokenizer: ...; convert the model again" with PF_ERR_FORMAT. */
pf_status pf_tokenizer_damaged(pf_error *err, const char *format, ...) PF_PRINTF(2, 3);

#endif
