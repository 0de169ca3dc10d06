/* Errors and logging inside the library. */
#ifndef PF_BASE_STATUS_H
#define PF_BASE_STATUS_H

#include "pyflash.h"

#if defined(__GNUC__)
#  define PF_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#  define PF_PRINTF(fmt, args)
#endif

/* Fills err (which may be NULL) with code and one formatted line, and returns code: `return pf_fail(err, ...)`. */
pf_status pf_fail(pf_error *err, pf_status code, const char *format, ...) PF_PRINTF(3, 4);

/* Hands a failure on to the caller. */
#define PF_TRY(call) \
    do { \
        const pf_status status_ = (call); \
        if (status_ != PF_OK) return status_; \
    } while (0)

typedef struct pf_log {
    pf_log_fn fn; /* may be NULL */
    void *user;
} pf_log;

void pf_log_line(const pf_log *log, int32_t level, const char *format, ...) PF_PRINTF(3, 4);

#endif
