/* Character classes, for the pre-tokenizer, and strict UTF-8 decoding. */
#ifndef PF_TEXT_UNICODE_H
#define PF_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Class bits of a code point: general categories of Unicode 16.0 and the property White_Space. */
#define PF_CLASS_LETTER 1u   /* L* */
#define PF_CLASS_MARK 2u     /* M* */
#define PF_CLASS_NUMBER 4u   /* N* */
#define PF_CLASS_PUNCT 8u    /* P* and S* */
#define PF_CLASS_SPACE 16u   /* \s, newlines too */
#define PF_CLASS_NEWLINE 32u /* CR and LF */
#define PF_CLASS_CJK 64u     /* U+4E00..U+9FA5, U+3040..U+30FF; beside its category's bit */

/* 0x110000 code points in leaves of 32, in blocks of 64 leaves; equal leaves and equal blocks are stored once. */
extern const uint8_t pf_unicode_top[];
extern const uint16_t pf_unicode_middle[];
extern const uint8_t pf_unicode_leaf[];

/* Class bits of a code point below 0x110000. */
static inline uint32_t pf_unicode_class(uint32_t cp) {
    uint32_t block = pf_unicode_top[cp >> 11];
    uint32_t leaf = pf_unicode_middle[block << 6 | (cp >> 5 & 63u)];
    return pf_unicode_leaf[leaf << 5 | (cp & 31u)];
}

/* Length in bytes of the well-formed UTF-8 sequence that starts p[0 .. n), n >= 1, with its code point in *cp; 0 when
 * there is none (stray or missing continuation, overlong form, surrogate, beyond U+10FFFF). */
static inline uint32_t pf_utf8_decode(const uint8_t *p, size_t n, uint32_t *cp) {
    uint32_t a = p[0];
    if (a < 0x80) {
        *cp = a;
        return 1;
    }
    if (a < 0xC2 || a > 0xF4 || n < 2 || (p[1] & 0xC0) != 0x80) return 0;
    uint32_t b = p[1] & 0x3Fu;
    if (a < 0xE0) {
        *cp = (a & 0x1Fu) << 6 | b;
        return 2;
    }
    if (n < 3 || (p[2] & 0xC0) != 0x80) return 0;
    uint32_t c = p[2] & 0x3Fu;
    if (a < 0xF0) {
        uint32_t value = (a & 0x0Fu) << 12 | b << 6 | c;
        if (value < 0x800 || (value >= 0xD800 && value < 0xE000)) return 0;
        *cp = value;
        return 3;
    }
    if (n < 4 || (p[3] & 0xC0) != 0x80) return 0;
    uint32_t value = (a & 0x07u) << 18 | b << 12 | c << 6 | (p[3] & 0x3Fu);
    if (value < 0x10000 || value > 0x10FFFF) return 0;
    *cp = value;
    return 4;
}

/* Whether p[0 .. n), n >= 1, can become a well-formed character by bytes that follow, and is none yet. */
static inline bool pf_utf8_is_begun(const uint8_t *p, size_t n) {
    uint8_t lead = p[0];
    if (lead < 0xC2 || lead > 0xF4) return false;
    size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (n >= length) return false;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return false;
    }
    if (n < 2) return true;
    switch (lead) { /* the second byte tells overlong forms, surrogates and what is beyond U+10FFFF */
    case 0xE0: return p[1] >= 0xA0;
    case 0xED: return p[1] < 0xA0;
    case 0xF0: return p[1] >= 0x90;
    case 0xF4: return p[1] < 0x90;
    default: return true;
    }
}

#endif
