#include "text/align.h"

#include "text/unicode.h"

#include <stdbool.h>
#include <string.h>

/* A walk through the bytes of ordinary tokens, and over silent ones. */
typedef struct byte_walk {
    const int32_t *tokens;
    int64_t n, next; /* tokens taken so far */
    const int64_t *silent; /* [n_silent] ascending, counted from tokens + offset */
    int64_t n_silent, offset;
    const uint8_t *bytes; /* what is left of the last one taken */
    size_t left;
} byte_walk;

static bool is_ordinary(const pf_vocab *vocab, int32_t id) {
    return id < vocab->n_tokens && vocab->type[id] == PF_TOKEN_NORMAL;
}

/* Whether the token that comes next, of which there is one, spells nothing. */
static bool is_silent(const pf_vocab *vocab, const byte_walk *walk) {
    if (walk->n_silent == 0 || is_ordinary(vocab, walk->tokens[walk->next])) return false;
    const int64_t position = walk->next - walk->offset;
    int64_t low = 0, high = walk->n_silent;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (walk->silent[middle] < position) low = middle + 1;
        else high = middle;
    }
    return low < walk->n_silent && walk->silent[low] == position;
}

/* False at the end and before a special token. */
static bool take_token(const pf_vocab *vocab, byte_walk *walk) {
    while (walk->next < walk->n && is_silent(vocab, walk)) ++walk->next;
    if (walk->next == walk->n || !is_ordinary(vocab, walk->tokens[walk->next])) return false;
    walk->bytes = pf_vocab_bytes(vocab, walk->tokens[walk->next], &walk->left);
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

/* How many ill-formed bytes of known stand where wanted has their U+FFFD; 0 where it has none. */
static size_t replaced_bytes(const pf_vocab *vocab, const byte_walk *known, const byte_walk *wanted) {
    static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD};
    uint8_t next[4];
    if (peek_bytes(vocab, *wanted, next, 3) < 3 || memcmp(next, replacement, 3) != 0) return 0;
    const size_t n = peek_bytes(vocab, *known, next, 4);
    return n > 0 ? ill_formed(next, n) : 0;
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
        const size_t n_replaced = *wanted->bytes == 0xEF ? replaced_bytes(vocab, known, wanted) : 0;
        if (n_replaced == 0 && *known->bytes != *wanted->bytes) return DIFFERENT;
        skip_bytes(vocab, known, n_replaced > 0 ? n_replaced : 1);
        skip_bytes(vocab, wanted, n_replaced > 0 ? 3 : 1);
    } while (known->left > 0 || wanted->left > 0);
    return SAME_TEXT;
}

/* Writes the rest of a wanted token, within which known ends, behind it: *n_rest tokens, or none and *fits false where
 * there is no room for them. */
static pf_status write_rest(const pf_tokenizer *tokenizer, const byte_walk *wanted, int32_t *out, int64_t room,
                            int64_t *n_rest, bool *fits, pf_error *err) {
    int64_t n = 0;
    if (wanted->left > 0) {
        PF_TRY(pf_tokenizer_encode(tokenizer, (const char *)wanted->bytes, wanted->left, 0, out, room, &n, err));
    }
    *fits = n <= room;
    *n_rest = *fits ? n : 0;
    return PF_OK;
}

pf_status pf_align_tokens(const pf_tokenizer *tokenizer, const pf_known_tokens *known, const int32_t *wanted,
                          int64_t n_wanted, int32_t *out, int64_t *n_out, pf_error *err) {
    const pf_vocab *vocab = pf_tokenizer_vocab(tokenizer);
    int64_t i = 0, j = 0, n_rest = 0; /* taken of known and of wanted; tokens that write the rest of the last wanted */
    int64_t n_kept = 0;               /* of known: all that was taken, less silent tokens before something else */
    while (i < known->n && j < n_wanted) {
        byte_walk a = {.tokens = known->tokens + i, .n = known->n - i, .silent = known->silent,
                       .n_silent = known->n_silent, .offset = -i};
        byte_walk b = {.tokens = wanted + j, .n = n_wanted - j};
        if (is_silent(vocab, &a)) {
            if (++i == known->n) n_kept = i;
            continue;
        }
        if (known->tokens[i] == wanted[j] && replaced_bytes(vocab, &a, &b) == 0) {
            a.next = b.next = 1;
        } else {
            const match found = match_text(vocab, &a, &b);
            bool fits = true;
            if (found == KNOWN_ENDS) { /* the rest may take as many tokens as have been taken of wanted */
                PF_TRY(write_rest(tokenizer, &b, out + known->n, j + b.next, &n_rest, &fits, err));
            }
            if (found == DIFFERENT || !fits) break;
        }
        i += a.next;
        j += b.next;
        n_kept = i;
    }
    if (n_kept > 0) memcpy(out, known->tokens, (size_t)n_kept * sizeof *out);
    if (j < n_wanted) memcpy(out + n_kept + n_rest, wanted + j, (size_t)(n_wanted - j) * sizeof *out);
    *n_out = n_kept + n_rest + n_wanted - j;
    return PF_OK;
}
