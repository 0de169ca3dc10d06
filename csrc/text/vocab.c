#include "text/vocab.h"

#include "base/memory.h"
#include "text/bpe.h"
#include "text/unicode.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

pf_status pf_tokenizer_damaged(pf_error *err, const char *format, ...) {
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return pf_fail(err, PF_ERR_FORMAT, "damaged tokenizer: %s; convert the model again", what);
}

/* ---- Byte alphabet ----------------------------------------------------------------------------------------- */

static bool stands_for_itself(uint32_t byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
}

/* The byte that a character of the alphabet means, or -1. The other bytes, in order, are U+0100 and up: first
 * 0..32, then 127..160, then 173. */
static int32_t alphabet_byte(uint32_t cp) {
    if (cp < 256) return stands_for_itself(cp) ? (int32_t)cp : -1;
    uint32_t n = cp - 256;
    if (n <= 32) return (int32_t)n;
    n -= 33;
    if (n <= 33) return (int32_t)(n + 127);
    return n == 34 ? 173 : -1;
}

size_t pf_byte_alphabet_decode(const char *text, uint64_t len, uint8_t *out) {
    const uint8_t *p = (const uint8_t *)text;
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        uint32_t char_len = pf_utf8_decode(p + i, (size_t)len - i, &cp);
        int32_t byte = char_len ? alphabet_byte(cp) : -1;
        if (byte < 0) return 0;
        out[n++] = (uint8_t)byte;
        i += char_len;
    }
    return n;
}

/* ---- Bytes to id ------------------------------------------------------------------------------------------- */

#define MIX UINT64_C(0x9E3779B97F4A7C15)

static inline uint64_t load64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t hash_bytes(const uint8_t *p, size_t len) {
    uint64_t hash = len * MIX;
    for (; len >= 8; p += 8, len -= 8) {
        hash = (hash ^ load64(p)) * MIX;
        hash ^= hash >> 29;
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < len; i++) tail = tail << 8 | p[i];
    hash = (hash ^ tail) * MIX;
    hash ^= hash >> 32;
    return hash * MIX;
}

/* The slot of these bytes, or the empty one where they would stand. */
static inline uint64_t *find_slot(const pf_vocab *vocab, const uint8_t *bytes, size_t len, uint64_t hash) {
    uint64_t mask = (UINT64_C(1) << (64 - vocab->shift)) - 1;
    for (uint64_t at = hash >> vocab->shift;; at = (at + 1) & mask) {
        uint64_t slot = vocab->slots[at];
        if (slot == 0) return &vocab->slots[at];
        if ((uint32_t)(slot >> 32) != (uint32_t)hash) continue;
        size_t token_len;
        const uint8_t *token = pf_vocab_bytes(vocab, (int32_t)(uint32_t)slot - 1, &token_len);
        if (token_len == len && memcmp(token, bytes, len) == 0) return &vocab->slots[at];
    }
}

int32_t pf_vocab_find(const pf_vocab *vocab, const uint8_t *bytes, size_t len) {
    return (int32_t)(uint32_t)*find_slot(vocab, bytes, len, hash_bytes(bytes, len)) - 1;
}

/* ---- Loading ----------------------------------------------------------------------------------------------- */

pf_status pf_read_strings(const pf_gguf *gguf, const char *key, uint64_t max_count, pf_gguf_string **out,
                          uint64_t *count, pf_error *err) {
    uint64_t n;
    if (!pf_gguf_array_len(gguf, key, &n)) return pf_tokenizer_damaged(err, "the array %s is missing", key);
    if (n > max_count) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "%s has %" PRIu64 " entries; at most %" PRIu64 " can be used", key, n,
                       max_count);
    }
    pf_gguf_string *strings = pf_calloc((size_t)n + 1, sizeof *strings);
    if (!strings) return pf_fail(err, PF_ERR_MEMORY, "out of memory for %s", key);
    if (n > 0 && !pf_gguf_array_strings(gguf, key, strings, n)) {
        pf_free(strings);
        return pf_tokenizer_damaged(err, "%s is not an array of strings", key);
    }
    *out = strings;
    *count = n;
    return PF_OK;
}

static pf_status allocate(pf_vocab *vocab, const pf_gguf_string *strings, uint64_t n, pf_error *err) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < n; i++) total += strings[i].len;
    if (total > INT32_MAX) return pf_tokenizer_damaged(err, "tokens of %" PRIu64 " bytes", total);
    uint32_t bits = 4;
    while ((UINT64_C(1) << bits) < 2 * n) bits++;
    vocab->shift = 64 - bits;
    vocab->n_tokens = (int32_t)n;
    vocab->type = pf_calloc((size_t)n, sizeof *vocab->type);
    vocab->bytes = pf_alloc((size_t)total);
    vocab->offset = pf_calloc((size_t)n + 1, sizeof *vocab->offset);
    vocab->slots = pf_calloc((size_t)1 << bits, sizeof *vocab->slots);
    if (vocab->type && vocab->bytes && vocab->offset && vocab->slots) return PF_OK;
    return pf_fail(err, PF_ERR_MEMORY, "out of memory for the tokenizer's vocabulary");
}

/* Takes the bytes of token `id`, whose type is known and whose predecessors are in place. */
static pf_status add_token(pf_vocab *vocab, int32_t id, pf_gguf_string text, pf_error *err) {
    uint8_t *bytes = vocab->bytes + vocab->offset[id];
    size_t len = (size_t)text.len;
    if (len == 0) return pf_tokenizer_damaged(err, "token %d is empty", id);
    if (vocab->type[id] == PF_TOKEN_NORMAL) {
        len = pf_byte_alphabet_decode(text.data, text.len, bytes);
        if (len == 0) return pf_tokenizer_damaged(err, "token %d is not written in the byte alphabet", id);
    } else {
        memcpy(bytes, text.data, len);
    }
    vocab->offset[id + 1] = vocab->offset[id] + (uint32_t)len;
    uint64_t hash = hash_bytes(bytes, len);
    uint64_t *slot = find_slot(vocab, bytes, len, hash);
    if (*slot != 0) return pf_tokenizer_damaged(err, "token %d repeats token %d", id, (int)(uint32_t)*slot - 1);
    *slot = hash << 32 | (uint32_t)(id + 1);
    return PF_OK;
}

static pf_status read_types(pf_vocab *vocab, const pf_gguf *gguf, pf_error *err) {
    const char *key = "tokenizer.ggml.token_type";
    uint64_t n;
    if (!pf_gguf_array_len(gguf, key, &n)) return pf_tokenizer_damaged(err, "the array %s is missing", key);
    if (n != (uint64_t)vocab->n_tokens) {
        return pf_tokenizer_damaged(err, "%d tokens, but %" PRIu64 " entries in %s", vocab->n_tokens, n, key);
    }
    for (int32_t id = 0; id < vocab->n_tokens; id++) {
        int64_t type;
        if (!pf_gguf_array_i64(gguf, key, (uint64_t)id, &type)) {
            return pf_tokenizer_damaged(err, "%s is not an array of integers", key);
        }
        if (type != PF_TOKEN_NORMAL && type != PF_TOKEN_CONTROL && type != PF_TOKEN_USER_DEFINED &&
            type != PF_TOKEN_UNUSED) {
            return pf_tokenizer_damaged(err, "token %d has type %" PRId64 ", which a byte-level tokenizer has not", id,
                                        type);
        }
        vocab->type[id] = (uint8_t)type;
    }
    return PF_OK;
}

pf_status pf_vocab_load(pf_vocab *vocab, const pf_gguf *gguf, pf_error *err) {
    pf_gguf_string *strings;
    uint64_t n;
    pf_status status = pf_read_strings(gguf, "tokenizer.ggml.tokens", PF_BPE_MAX_TOKENS, &strings, &n, err);
    if (status != PF_OK) return status;
    status = allocate(vocab, strings, n, err);
    if (status == PF_OK) status = read_types(vocab, gguf, err);
    for (int32_t id = 0; status == PF_OK && id < vocab->n_tokens; id++) {
        status = add_token(vocab, id, strings[id], err);
    }
    pf_free(strings);
    return status;
}

void pf_vocab_free(pf_vocab *vocab) {
    pf_free(vocab->type);
    pf_free(vocab->bytes);
    pf_free(vocab->offset);
    pf_free(vocab->slots);
}
