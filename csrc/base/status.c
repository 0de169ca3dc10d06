#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One line of valid length: no line breaks, and no UTF-8 character cut in two where the buffer ended. */
static void pf_tidy_line(char *text, size_t capacity, int wanted) {
    size_t len = strlen(text);
    if (wanted >= 0 && (size_t)wanted >= capacity) {
        size_t start = len;
        while (start > 0 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) start--;
        if (start > 0 && (unsigned char)text[start - 1] >= 0xC0) {
            unsigned char lead = (unsigned char)text[start - 1];
            size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
            if (len - (start - 1) < need) len = start - 1;
        }
        text[len] = '\0';
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\n' || text[i] == '\r') text[i] = ' ';
    }
}

static void pf_format_line(char *out, size_t capacity, const char *format, va_list args) PF_PRINTF(3, 0);

static void pf_format_line(char *out, size_t capacity, const char *format, va_list args) {
    out[0] = '\0';
    int wanted = vsnprintf(out, capacity, format, args);
    pf_tidy_line(out, capacity, wanted);
}

pf_status pf_fail(pf_error *err, pf_status code, const char *format, ...) {
    if (err) {
        /* By way of a local buffer: the arguments may point into err->message itself. */
        char line[sizeof err->message];
        va_list args;
        va_start(args, format);
        pf_format_line(line, sizeof line, format, args);
        va_end(args);
        err->code = code;
        memcpy(err->message, line, sizeof line);
    }
    return code;
}

void pf_log_line(const pf_log *log, int32_t level, const char *format, ...) {
    if (!log || !log->fn) return;
    char line[1024];
    va_list args;
    va_start(args, format);
    pf_format_line(line, sizeof line, format, args);
    va_end(args);
    log->fn(log->user, level, line);
}
