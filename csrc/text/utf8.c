#include "base/status.h"
#include "text/unicode.h"

size_t pf_utf8_complete(const char *text, size_t len) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t tail = 1; tail <= 3 && tail <= len; tail++) {
        if (pf_utf8_is_begun(bytes + len - tail, tail)) return len - tail;
    }
    return len;
}
