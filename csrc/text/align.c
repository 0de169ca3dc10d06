#include "text/align.h"

#include "text/unicode.h"

#include <stdbool.h>
#include <string.h>

/* A walk through the bytes of ordinary tokens. */
typedef struct byte_walk {
    const int32_t *tokens;
    int64_t n, next; /* tokens taken so far */
    const uint8_t *bytes; /* what is left of the last one taken */
    size_t left;
} byte_walk;

/* False at the end and before a special token. */
static bool take_token(const pf_vocab *vocab, byte_walk *walk) {
    if (walk->next == walk->n) return false;
    const int32_t id = walk->tokens[walk->next];
    if (id >= vocab->n_tokens || vocab->type[id] != PF_TOKEN_NORMAL) return false;
    walk->bytes = pf_vocab_bytes(vocab, id, &walk->left);
    ++walk->next;
    return true;
}

static void skip_bytes(const pf_vocab *vocab, byte_walk *walk, size_t n) {
    while (n > 0 && (walk->left > 0 || take_token(vocab, walk))) {
        const size_t taken = n < walk->left ? n : walk->left;
        walk->bytes += taken;
        walk->left -= taken;
        n -= taken;
    }
}

/* Up to n of the bytes that come next; how many there are before the end or a special token. */
static size_t peek_bytes(const pf_vocab *vocab, byte_walk walk, uint8_t *out, size_t n) {
    size_t have = 0;
    while (have < n && (walk.left > 0 || take_token(vocab, &walk))) {
        if (walk.left == 0) continue;
        out[have++] = *walk.bytes++;
        --walk.left;
    }
    return have;
}

/* How many bytes of p[0 .. n), n >= 1, decode to one U+FFFD; 0 where a character begins. */
static size_t ill_formed(const uint8_t *p, size_t n) {
    uint32_t cp;
    if (pf_utf8_decode(p, n, &cp) > 0) return 0;
    size_t length = 1;
    for (size_t more = 2; more <= n && more <= 3; more++) {
        if (pf_utf8_is_begun(p, more)) length = more;
    }
    return length;
}

/* Takes a U+FFFD from wanted, where one comes next, and from known the ill-formed bytes that it stands for. */
static bool take_replaced(const pf_vocab *vocab, byte_walk *known, byte_walk *wanted) {
    static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD};
    uint8_t next[4];
    if (peek_bytes(vocab, *wanted, next, 3) < 3 || memcmp(next, replacement, 3) != 0) return false;
    const size_t n = ill_formed(next, peek_bytes(vocab, *known, next, 4));
    if (n == 0) return false;
    skip_bytes(vocab, known, n);
    skip_bytes(vocab, wanted, 3);
    return true;
}

typedef enum match {
    DIFFERENT,
    SAME_TEXT,  /* both end with a token there */
    KNOWN_ENDS, /* all of known has been taken, and the last wanted token in part */
} match;

/* How many tokens of each side spell the same text, up to the first place where tokens end on both. */
static match match_text(const pf_vocab *vocab, byte_walk *known, byte_walk *wanted) {
    do {
        if (known->left == 0 && !take_token(vocab, known)) return known->next == known->n ? KNOWN_ENDS : DIFFERENT;
        if (wanted->left == 0 && !take_token(vocab, wanted)) return DIFFERENT;
        if (known->left == 0 || wanted->left == 0) continue; /* a token of no bytes */
        if (*wanted->bytes == 0xEF && take_replaced(vocab, known, wanted)) continue;
        if (*known->bytes != *wanted->bytes) return DIFFERENT;
        skip_bytes(vocab, known, 1);
        skip_bytes(vocab, wanted, 1);
    } while (known->left > 0 || wanted->left > 0);
    return SAME_TEXT;
}

pf_status pf_align_tokens(const pf_tokenizer *tokenizer, const int32_t *known, int64_t n_known, const int32_t *wanted,
                          int64_t n_wanted, int32_t *out, int64_t *n_out, pf_error *err) {
    const pf_vocab *vocab = pf_tokenizer_vocab(tokenizer);
    int64_t i = 0, j = 0, n_rest = 0; /* taken of known and of wanted; tokens that write the rest of the last wanted */
    while (i < n_known && j < n_wanted) {
        byte_walk a = {.tokens = known + i, .n = n_known - i}, b = {.tokens = wanted + j, .n = n_wanted - j};
        if (known[i] == wanted[j]) {
            a.next = b.next = 1;
        } else {
            const match found = match_text(vocab, &a, &b);
            if (found == DIFFERENT) break;
            if (found == KNOWN_ENDS) {
                const int64_t room = j + b.next; /* so that all of wanted still fits */
                PF_TRY(pf_tokenizer_encode(tokenizer, (const char *)b.bytes, b.left, 0, out + n_known, room, &n_rest,
                                           err));
                if (n_rest > room) {
                    n_rest = 0;
                    break;
                }
            }
        }
        memcpy(out + i, known + i, (size_t)a.next * sizeof *out);
        i += a.next;
        j += b.next;
    }
    i += n_rest;
    if (j < n_wanted) memcpy(out + i, wanted + j, (size_t)(n_wanted - j) * sizeof *out);
    *n_out = i + n_wanted - j;
    return PF_OK;
}
