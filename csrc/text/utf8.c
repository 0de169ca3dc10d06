#include "base/status.h"

#include <stdbool.h>

/* Whether p[0 .. n), n >= 1, can become a well-formed character by bytes that follow, and is none yet. */
static bool is_character_begun(const uint8_t *p, size_t n) {
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

size_t pf_utf8_complete(const char *text, size_t len) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t tail = 1; tail <= 3 && tail <= len; tail++) {
        if (is_character_begun(bytes + len - tail, tail)) return len - tail;
    }
    return len;
}
