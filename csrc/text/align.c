#include "text/align.h"

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

static void skip_bytes(byte_walk *walk, size_t n) {
    walk->bytes += n;
    walk->left -= n;
}

/* How many tokens of each side spell the same text, up to the first place where tokens end on both; false when there is
 * none before the texts differ. */
static bool same_text(const pf_vocab *vocab, byte_walk *known, byte_walk *wanted) {
    do {
        if (known->left == 0 && !take_token(vocab, known)) return false;
        if (wanted->left == 0 && !take_token(vocab, wanted)) return false;
        const size_t n = known->left < wanted->left ? known->left : wanted->left;
        if (memcmp(known->bytes, wanted->bytes, n) != 0) return false;
        skip_bytes(known, n);
        skip_bytes(wanted, n);
    } while (known->left > 0 || wanted->left > 0);
    return true;
}

int64_t pf_align_tokens(const pf_vocab *vocab, const int32_t *known, int64_t n_known, const int32_t *wanted,
                        int64_t n_wanted, int32_t *out) {
    int64_t i = 0, j = 0;
    while (i < n_known && j < n_wanted) {
        byte_walk a = {.tokens = known + i, .n = n_known - i}, b = {.tokens = wanted + j, .n = n_wanted - j};
        if (known[i] == wanted[j]) {
            a.next = b.next = 1;
        } else if (!same_text(vocab, &a, &b)) {
            break;
        }
        memcpy(out + i, known + i, (size_t)a.next * sizeof *out);
        i += a.next;
        j += b.next;
    }
    if (j < n_wanted) memcpy(out + i, wanted + j, (size_t)(n_wanted - j) * sizeof *out);
    return i + n_wanted - j;
}
