/* The pre-tokenizer is three patterns, each applied to the pieces of the one before, every match and every stretch
 * between matches becoming a piece:
 *
 *   (1) \p{N}{1,3}
 *   (2) [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+
 *   (3) A  [ASCII punctuation][A-Za-z]+
 *       B  [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
 *       C  ' '?[\p{P}\p{S}]+[\r\n]*
 *       D  \s*[\r\n]+
 *       E  \s+(?!\S)
 *       F  \s+
 *
 * None of them looks back, and (3) finds nothing inside a match of (1). So one scan does all three: the first
 * character of a piece tells whether it lies in a number, in a stretch of (2) or between those, and the scan of (3)
 * treats the border of that stretch as the end of the text, which is what it is to the third pattern. */
#include "text/pretokenize.h"

#include "text/unicode.h"

#include <stdbool.h>

#define CLASS_END 128u /* beyond the stretch */
#define WORD (PF_CLASS_LETTER | PF_CLASS_MARK)

/* Characters of one stretch of text. */
typedef struct scan {
    const uint8_t *text;
    size_t end;
    bool cjk; /* the stretch consists of PF_CLASS_CJK; otherwise it has neither those nor numbers */
} scan;

/* Class bits of the character at i, its length in *len; an ill-formed byte has no class. */
static inline uint32_t class_at(const uint8_t *text, size_t i, size_t end, uint32_t *len) {
    uint32_t cp;
    *len = pf_utf8_decode(text + i, end - i, &cp);
    if (*len == 0) {
        *len = 1;
        return 0;
    }
    return pf_unicode_class(cp);
}

/* Class bits but PF_CLASS_CJK of the character at i, or CLASS_END. */
static inline uint32_t peek(const scan *s, size_t i, uint32_t *len) {
    *len = 0;
    if (i >= s->end) return CLASS_END;
    uint32_t class = class_at(s->text, i, s->end, len);
    bool inside = s->cjk ? (class & PF_CLASS_CJK) != 0 : (class & (PF_CLASS_CJK | PF_CLASS_NUMBER)) == 0;
    return inside ? class & ~PF_CLASS_CJK : CLASS_END;
}

/* End of the run of characters with any of the class bits, from i on. */
static inline size_t skip(const scan *s, size_t i, uint32_t classes) {
    uint32_t len;
    while (peek(s, i, &len) & classes) i += len;
    return i;
}

static inline bool ascii_letter(uint8_t c) { return (uint8_t)((c | 0x20) - 'a') < 26; }

/* Alternatives D, E and F, for whitespace at i. */
static size_t space_end(const scan *s, size_t i) {
    size_t at = i;
    size_t last = i;    /* start of the last character of the run */
    size_t newline = i; /* end of the last newline of the run */
    uint32_t len;
    uint32_t class;
    while ((class = peek(s, at, &len)) & PF_CLASS_SPACE) {
        last = at;
        at += len;
        if (class & PF_CLASS_NEWLINE) newline = at;
    }
    if (newline > i) return newline;
    /* \s+(?!\S) gives back one character when something follows, but cannot give back its only one. */
    return class == CLASS_END || last == i ? at : last;
}

static size_t number_end(const uint8_t *text, size_t i, size_t end) {
    uint32_t len;
    for (int n = 0; n < 3 && i < end && (class_at(text, i, end, &len) & PF_CLASS_NUMBER); n++) i += len;
    return i;
}

size_t pf_pretokenize_next(const uint8_t *text, size_t begin, size_t end) {
    uint32_t len;
    uint32_t class = class_at(text, begin, end, &len);
    if (class & PF_CLASS_NUMBER) return number_end(text, begin, end);

    const scan s = {text, end, (class & PF_CLASS_CJK) != 0};
    size_t i = begin + len;
    if (class & WORD) return skip(&s, i, WORD); /* B; a leading mark taken as the optional character ends alike */

    uint32_t next_len;
    uint32_t next = peek(&s, i, &next_len);
    if (class & PF_CLASS_PUNCT) {
        if (len == 1 && next != CLASS_END && ascii_letter(text[i])) { /* A */
            while (i < end && ascii_letter(text[i])) i++;
            return i;
        }
        return skip(&s, skip(&s, i, PF_CLASS_PUNCT), PF_CLASS_NEWLINE); /* C */
    }
    if (!(class & PF_CLASS_NEWLINE) && (next & WORD)) return skip(&s, i + next_len, WORD); /* B after one character */
    if (class & PF_CLASS_SPACE) {
        if (text[begin] == ' ' && (next & PF_CLASS_PUNCT)) {
            return skip(&s, skip(&s, i, PF_CLASS_PUNCT), PF_CLASS_NEWLINE); /* C */
        }
        return space_end(&s, begin);
    }
    /* Characters without a class match nothing and stay together, but the last one before a word belongs to it. */
    while (next == 0) {
        size_t at = i;
        i += next_len;
        next = peek(&s, i, &next_len);
        if (next & WORD) return at;
    }
    return i;
}
