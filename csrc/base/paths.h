/* Paths, which are UTF-8, and what is said of them when the system refuses one. */
#ifndef PF_BASE_PATHS_H
#define PF_BASE_PATHS_H

#include "base/status.h"

/* The end of a path that would crowd the reason out of a message. */
const char *pf_shown_path(const char *path);

/* "cannot DOING 'PATH': " and the reason that the system has just given (errno, GetLastError). Returns PF_ERR_FILE. */
pf_status pf_file_error(pf_error *err, const char *doing, const char *path);

#if defined(_WIN32)
#  include <wchar.h>
/* UTF-16 copy of a path, to be freed by pf_free; NULL with the thread's last error set. */
wchar_t *pf_wide(const char *path);
#endif

#endif
