/* pyflash_base.h - status, errors, the log, faults of mapped files. Part of pyflash.h. */
#ifndef PYFLASH_BASE_H
#define PYFLASH_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(PF_STATIC)
#  define PF_API
#elif defined(_WIN32)
#  if defined(PF_BUILD)
#    define PF_API __declspec(dllexport)
#  else
#    define PF_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define PF_API __attribute__((visibility("default")))
#else
#  define PF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

#define PF_ABI_VERSION 1

typedef int32_t pf_status;

#define PF_OK 0
#define PF_ERR_ARGUMENT 1     /* the caller passed something impossible */
#define PF_ERR_FILE 2         /* cannot open, read or write a file */
#define PF_ERR_FORMAT 3       /* a file is damaged, truncated or not what it claims to be */
#define PF_ERR_UNSUPPORTED 4  /* well-formed, but not something this build can run */
#define PF_ERR_MEMORY 5       /* out of memory */
#define PF_ERR_CANCELLED 6    /* pf_session_cancel() was called */
#define PF_ERR_DEVICE 7       /* a device is missing or failed */
#define PF_ERR_CONTEXT_FULL 8 /* the session has no room for more tokens */
#define PF_ERR_REBUILD 9      /* rollback beyond the kept window: reset the session and evaluate again */
#define PF_ERR_INTERNAL 10    /* a bug in this library */

typedef struct pf_error {
    int32_t code;      /* the pf_status returned */
    char message[508]; /* one line, zero-terminated: what is wrong and what to do */
} pf_error;

/* PF_ABI_VERSION of the library that is loaded. */
PF_API int32_t pf_abi_version(void);
/* "0.1.0" and the like. Static storage. */
PF_API const char *pf_version(void);
/* Raised when, and only when, a kernel set computes other bits than before from the same weights and tokens. */
#define PF_ARITHMETIC_VERSION 2

#define PF_LOG_DEBUG 0
#define PF_LOG_INFO 1
#define PF_LOG_WARNING 2

/* Receives one line without newline. May be called from any thread of the library. */
typedef void (*pf_log_fn)(void *user, int32_t level, const char *message);

/* Model files are mapped: when one becomes shorter while it is used, or its disk fails, whoever reads it gets no error but
 * a fault (SIGBUS; Windows: EXCEPTION_IN_PAGE_ERROR), which ends the process without a word. After this call a line on
 * the file descriptor says which file it was, begun with prefix (at most 63 bytes; NULL: ""), and the process exits with
 * status 1, without running anything else; a terminal among the standard streams gets the mode back that it has now.
 * Other faults go to the handler that was there before, or are as deadly as without this one. Never installed unasked;
 * once is enough for a process. fd -1: takes it away again. */
PF_API pf_status pf_catch_file_errors(int32_t fd, const char *prefix, pf_error *err);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_BASE_H */
