#include "text/tokenizer.h"

#include "base/memory.h"
#include "text/bpe.h"
#include "text/pretokenize.h"
#include "text/vocab.h"

#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* What is known of a piece that is the text of a token: whether merging leads to that token. Learnt on first use. */
#define WHOLE_UNKNOWN 0
#define WHOLE_YES 1
#define WHOLE_NO 2

struct pf_tokenizer {
    pf_vocab vocab;
    pf_bpe bpe;
    int32_t bos;
    int32_t eos;
    atomic_uchar *whole;     /* [n_tokens] WHOLE_*; any thread may write what every thread would find */
    int32_t *special;        /* [n_special] ids that text may spell, sorted by their bytes */
    int32_t n_special;
    int32_t first[256 + 1];  /* those whose first byte is b are special[first[b] .. first[b + 1]) */
};

/* ---- Opening ----------------------------------------------------------------------------------------------- */

static bool is_text(pf_gguf_string string, const char *text) {
    return string.len == strlen(text) && memcmp(string.data, text, (size_t)string.len) == 0;
}

/* For messages: at most 40 bytes of a string of the file. */
static int shown(pf_gguf_string string) { return string.len < 40 ? (int)string.len : 40; }

/* Whether the file has a tokenizer, and one of the kind written here. */
static pf_status check_kind(const pf_gguf *gguf, bool *present, pf_error *err) {
    pf_gguf_string model;
    pf_gguf_string pre;
    *present = false;
    if (!pf_gguf_get_string(gguf, "tokenizer.ggml.model", &model)) {
        if (!pf_gguf_has(gguf, "tokenizer.ggml.model") && !pf_gguf_has(gguf, "tokenizer.ggml.tokens")) return PF_OK;
        return pf_tokenizer_damaged(err, "tokenizer.ggml.model is missing");
    }
    if (is_text(model, "none") || is_text(model, "no_vocab")) return PF_OK;
    if (!is_text(model, "gpt2")) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "tokenizer model \"%.*s\" is not supported, only \"gpt2\"",
                       shown(model), model.data);
    }
    if (!pf_gguf_get_string(gguf, "tokenizer.ggml.pre", &pre)) {
        return pf_tokenizer_damaged(err, "tokenizer.ggml.pre is missing");
    }
    if (!is_text(pre, "joyai-llm") && !is_text(pre, "deepseek-v3")) {
        return pf_fail(err, PF_ERR_UNSUPPORTED,
                       "pre-tokenizer \"%.*s\" is not supported, only \"joyai-llm\" and \"deepseek-v3\"", shown(pre),
                       pre.data);
    }
    *present = true;
    return PF_OK;
}

static pf_status read_named_token(const pf_tokenizer *t, const pf_gguf *gguf, const char *key, int32_t *out,
                                  pf_error *err) {
    uint32_t id;
    *out = -1;
    if (!pf_gguf_has(gguf, key)) return PF_OK;
    if (!pf_gguf_get_u32(gguf, key, &id) || id >= (uint32_t)t->vocab.n_tokens) {
        return pf_tokenizer_damaged(err, "%s is not a token of the vocabulary", key);
    }
    *out = (int32_t)id;
    return PF_OK;
}

static int32_t find_normal(const pf_vocab *vocab, const uint8_t *bytes, size_t len) {
    int32_t id = pf_vocab_find(vocab, bytes, len);
    return id >= 0 && vocab->type[id] == PF_TOKEN_NORMAL ? id : -1;
}

static pf_status find_byte_tokens(pf_tokenizer *t, pf_error *err) {
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        t->bpe.byte_token[i] = find_normal(&t->vocab, &byte, 1);
        if (t->bpe.byte_token[i] < 0) return pf_tokenizer_damaged(err, "no token for the byte 0x%02X", byte);
    }
    return PF_OK;
}

/* "LEFT RIGHT", both in the byte alphabet, which has no space. bytes has room for text.len. */
static pf_status add_merge(pf_tokenizer *t, int32_t rank, pf_gguf_string text, uint8_t *bytes, pf_error *err) {
    const char *space = text.len ? memchr(text.data, ' ', (size_t)text.len) : NULL;
    size_t left_len = 0;
    size_t right_len = 0;
    if (space) {
        uint64_t at = (uint64_t)(space - text.data);
        left_len = pf_byte_alphabet_decode(text.data, at, bytes);
        right_len = pf_byte_alphabet_decode(space + 1, text.len - at - 1, bytes + left_len);
    }
    if (left_len == 0 || right_len == 0) {
        return pf_tokenizer_damaged(err, "merge %d is not two tokens with a space between", rank);
    }
    int32_t left = find_normal(&t->vocab, bytes, left_len);
    int32_t right = find_normal(&t->vocab, bytes + left_len, right_len);
    int32_t merged = find_normal(&t->vocab, bytes, left_len + right_len);
    if (left < 0 || right < 0 || merged < 0) {
        return pf_tokenizer_damaged(err, "merge %d names or makes a token that the vocabulary has not", rank);
    }
    int32_t earlier = pf_bpe_add(&t->bpe, left, right, rank, merged);
    if (earlier >= 0) return pf_tokenizer_damaged(err, "merge %d repeats merge %d", rank, earlier);
    return PF_OK;
}

static pf_status load_merges(pf_tokenizer *t, const pf_gguf *gguf, pf_error *err) {
    pf_gguf_string *strings;
    uint64_t n;
    pf_status status = pf_read_strings(gguf, "tokenizer.ggml.merges", PF_BPE_MAX_MERGES, &strings, &n, err);
    if (status != PF_OK) return status;
    uint64_t longest = 0;
    for (uint64_t i = 0; i < n; i++) longest = strings[i].len > longest ? strings[i].len : longest;
    uint8_t *bytes = longest < SIZE_MAX ? pf_alloc((size_t)longest) : NULL;
    status = bytes ? pf_bpe_init(&t->bpe, n, err)
                   : pf_fail(err, PF_ERR_MEMORY, "out of memory for the tokenizer's merges");
    for (uint64_t i = 0; status == PF_OK && i < n; i++) {
        status = add_merge(t, (int32_t)i, strings[i], bytes, err);
    }
    pf_free(bytes);
    pf_free(strings);
    return status;
}

/* qsort() has no context argument, so it sorts these. */
typedef struct special_entry {
    const uint8_t *bytes;
    size_t len;
    int32_t id;
} special_entry;

static int compare_special(const void *a, const void *b) {
    const special_entry *x = a;
    const special_entry *y = b;
    int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);
    return order != 0 ? order : (x->len > y->len) - (x->len < y->len);
}

static bool is_special(const pf_tokenizer *t, int32_t id) {
    return t->vocab.type[id] == PF_TOKEN_CONTROL || t->vocab.type[id] == PF_TOKEN_USER_DEFINED;
}

static pf_status index_special(pf_tokenizer *t, pf_error *err) {
    for (int32_t id = 0; id < t->vocab.n_tokens; id++) t->n_special += is_special(t, id);
    special_entry *entries = pf_calloc((size_t)t->n_special, sizeof *entries);
    t->special = pf_calloc((size_t)t->n_special, sizeof *t->special);
    t->whole = pf_calloc((size_t)t->vocab.n_tokens, sizeof *t->whole);
    if (!entries || !t->special || !t->whole) {
        pf_free(entries);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for the tokenizer's special tokens");
    }
    int32_t n = 0;
    for (int32_t id = 0; id < t->vocab.n_tokens; id++) {
        if (!is_special(t, id)) continue;
        entries[n].bytes = pf_vocab_bytes(&t->vocab, id, &entries[n].len);
        entries[n++].id = id;
    }
    qsort(entries, (size_t)n, sizeof *entries, compare_special);
    for (int32_t i = 0; i < n; i++) {
        t->special[i] = entries[i].id;
        t->first[entries[i].bytes[0] + 1] = i + 1;
    }
    for (int i = 0; i < 256; i++) {
        if (t->first[i + 1] < t->first[i]) t->first[i + 1] = t->first[i];
    }
    pf_free(entries);
    return PF_OK;
}

pf_status pf_tokenizer_open(const pf_gguf *gguf, pf_tokenizer **out, pf_error *err) {
    bool present;
    pf_status status = check_kind(gguf, &present, err);
    if (status != PF_OK) return status;
    if (!present) {
        *out = NULL;
        return PF_OK;
    }
    pf_tokenizer *t = pf_calloc(1, sizeof *t);
    if (!t) return pf_fail(err, PF_ERR_MEMORY, "out of memory for the tokenizer");
    status = pf_vocab_load(&t->vocab, gguf, err);
    if (status == PF_OK) status = find_byte_tokens(t, err);
    if (status == PF_OK) status = load_merges(t, gguf, err);
    if (status == PF_OK) status = index_special(t, err);
    if (status == PF_OK) status = read_named_token(t, gguf, "tokenizer.ggml.bos_token_id", &t->bos, err);
    if (status == PF_OK) status = read_named_token(t, gguf, "tokenizer.ggml.eos_token_id", &t->eos, err);
    if (status != PF_OK) {
        pf_tokenizer_close(t);
        return status;
    }
    *out = t;
    return PF_OK;
}

void pf_tokenizer_close(pf_tokenizer *tokenizer) {
    if (!tokenizer) return;
    pf_vocab_free(&tokenizer->vocab);
    pf_bpe_free(&tokenizer->bpe);
    pf_free(tokenizer->whole);
    pf_free(tokenizer->special);
    pf_free(tokenizer);
}

const pf_vocab *pf_tokenizer_vocab(const pf_tokenizer *tokenizer) { return &tokenizer->vocab; }

int32_t pf_tokenizer_n_tokens(const pf_tokenizer *tokenizer) { return tokenizer->vocab.n_tokens; }
int32_t pf_tokenizer_bos(const pf_tokenizer *tokenizer) { return tokenizer->bos; }
int32_t pf_tokenizer_eos(const pf_tokenizer *tokenizer) { return tokenizer->eos; }

/* ---- Encoding ---------------------------------------------------------------------------------------------- */

typedef struct output {
    int32_t *tokens;
    int64_t capacity;
    int64_t n; /* counts on past the capacity */
} output;

static inline void emit(output *out, int32_t id) {
    if (out->n < out->capacity) out->tokens[out->n] = id;
    out->n++;
}

static pf_status encode_piece(const pf_tokenizer *t, const uint8_t *bytes, size_t len, pf_bpe_scratch *scratch,
                              output *out, pf_error *err) {
    int32_t id = find_normal(&t->vocab, bytes, len);
    if (id >= 0 && atomic_load_explicit(&t->whole[id], memory_order_relaxed) == WHOLE_YES) {
        emit(out, id);
        return PF_OK;
    }
    int64_t n;
    pf_status status = pf_bpe_encode(&t->bpe, bytes, len, scratch, &n, err);
    if (status != PF_OK) return status;
    if (id >= 0) {
        bool whole = n == 1 && scratch->tokens[0] == id;
        atomic_store_explicit(&t->whole[id], whole ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
    }
    for (int64_t i = 0; i < n; i++) emit(out, scratch->tokens[i]);
    return PF_OK;
}

/* Text without special tokens. */
static pf_status encode_plain(const pf_tokenizer *t, const uint8_t *text, size_t begin, size_t end,
                              pf_bpe_scratch *scratch, output *out, pf_error *err) {
    while (begin < end) {
        size_t piece_end = pf_pretokenize_next(text, begin, end);
        pf_status status = encode_piece(t, text + begin, piece_end - begin, scratch, out, err);
        if (status != PF_OK) return status;
        begin = piece_end;
    }
    return PF_OK;
}

/* First entry of special[lo .. hi) whose byte at `depth` is at least `byte`; all are longer than depth. */
static int32_t lower_bound(const pf_tokenizer *t, int32_t lo, int32_t hi, size_t depth, int byte) {
    while (lo < hi) {
        int32_t middle = lo + (hi - lo) / 2;
        size_t len;
        if (pf_vocab_bytes(&t->vocab, t->special[middle], &len)[depth] < byte) {
            lo = middle + 1;
        } else {
            hi = middle;
        }
    }
    return lo;
}

/* The longest special token that text[0 .. n), n >= 1, begins with, its length in *len; -1 when there is none. */
static int32_t match_special(const pf_tokenizer *t, const uint8_t *text, size_t n, size_t *len) {
    int32_t lo = t->first[text[0]];
    int32_t hi = t->first[text[0] + 1];
    int32_t found = -1;
    for (size_t depth = 1; lo < hi; depth++) {
        size_t token_len;
        (void)pf_vocab_bytes(&t->vocab, t->special[lo], &token_len);
        if (token_len == depth) {
            found = t->special[lo++];
            *len = depth;
        }
        if (depth == n) break;
        lo = lower_bound(t, lo, hi, depth, text[depth]);
        hi = lower_bound(t, lo, hi, depth, text[depth] + 1);
    }
    return found;
}

static pf_status encode_special(const pf_tokenizer *t, const uint8_t *text, size_t len, pf_bpe_scratch *scratch,
                                output *out, pf_error *err) {
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        size_t special_len;
        int32_t id = match_special(t, text + i, len - i, &special_len);
        if (id < 0) {
            i++;
            continue;
        }
        pf_status status = encode_plain(t, text, begin, i, scratch, out, err);
        if (status != PF_OK) return status;
        emit(out, id);
        i += special_len;
        begin = i;
    }
    return encode_plain(t, text, begin, len, scratch, out, err);
}

pf_status pf_tokenizer_encode(const pf_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
                              int32_t *out, int64_t capacity, int64_t *n, pf_error *err) {
    if (!n || (!text && len > 0) || capacity < 0 || (!out && capacity > 0)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "tokenize: a null pointer or a negative capacity was passed");
    }
    if (flags & ~PF_TOKENIZE_SPECIAL) return pf_fail(err, PF_ERR_ARGUMENT, "tokenize: unknown flags 0x%x", flags);
    if (len > INT32_MAX) {
        return pf_fail(err, PF_ERR_ARGUMENT, "tokenize: the text is longer than 2 GiB; pass it in parts");
    }
    const uint8_t *bytes = (const uint8_t *)text;
    pf_bpe_scratch scratch = {0};
    output result = {out, capacity, 0};
    pf_status status = flags & PF_TOKENIZE_SPECIAL ? encode_special(tokenizer, bytes, len, &scratch, &result, err)
                                                   : encode_plain(tokenizer, bytes, 0, len, &scratch, &result, err);
    pf_bpe_scratch_free(&scratch);
    if (status == PF_OK) *n = result.n;
    return status;
}

/* ---- Decoding ---------------------------------------------------------------------------------------------- */

pf_status pf_tokenizer_decode(const pf_tokenizer *tokenizer, const int32_t *tokens, int64_t n_tokens, uint32_t flags,
                              char *out, size_t capacity, size_t *len, pf_error *err) {
    if (!len || n_tokens < 0 || (!tokens && n_tokens > 0) || (!out && capacity > 0)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "detokenize: a null pointer or a negative count was passed");
    }
    if (flags & ~PF_DETOKENIZE_SPECIAL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "detokenize: unknown flags 0x%x", flags);
    }
    const pf_vocab *vocab = &tokenizer->vocab;
    for (int64_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab->n_tokens) {
            return pf_fail(err, PF_ERR_ARGUMENT,
                           "detokenize: token %" PRId64 " is %d, but the vocabulary has the ids 0 to %d", i, tokens[i],
                           vocab->n_tokens - 1);
        }
    }
    size_t total = 0;
    for (int64_t i = 0; i < n_tokens; i++) {
        uint8_t type = vocab->type[tokens[i]];
        bool is_written = type == PF_TOKEN_NORMAL || type == PF_TOKEN_USER_DEFINED || (flags & PF_DETOKENIZE_SPECIAL);
        if (!is_written) continue;
        size_t token_len;
        const uint8_t *bytes = pf_vocab_bytes(vocab, tokens[i], &token_len);
        size_t room = total < capacity ? capacity - total : 0;
        if (room > 0) memcpy(out + total, bytes, token_len < room ? token_len : room);
        total += token_len;
    }
    *len = total;
    return PF_OK;
}

int32_t pf_tokenizer_token_id(const pf_tokenizer *tokenizer, const char *text, size_t len) {
    return text && len > 0 ? pf_vocab_find(&tokenizer->vocab, (const uint8_t *)text, len) : -1;
}

int32_t pf_tokenizer_special_id(const pf_tokenizer *tokenizer, const char *text, size_t len) {
    int32_t id = pf_tokenizer_token_id(tokenizer, text, len);
    return id >= 0 && is_special(tokenizer, id) ? id : -1;
}
