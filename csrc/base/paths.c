#include "base/paths.h"

#include "base/memory.h"

#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#else
#  include <errno.h>
#endif

const char *pf_shown_path(const char *path) {
    size_t len = strlen(path), most = 300;
    if (len <= most) return path;
    const char *tail = path + (len - most);
    while (((unsigned char)*tail & 0xC0) == 0x80) tail++;
    return tail;
}

#if defined(_WIN32)

static const char *pf_hint(DWORD code) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND: return "there is no such file or folder: check the path";
    case ERROR_ACCESS_DENIED: return "access denied (or it is a folder): check the path and its permissions";
    case ERROR_SHARING_VIOLATION:
    case ERROR_USER_MAPPED_FILE: return "another program has it open: close that program and try again";
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL: return "the disk is full: free some space or choose another disk";
    case ERROR_NOT_ENOUGH_MEMORY: return "not enough memory or address space";
    case ERROR_NO_UNICODE_TRANSLATION: return "the path is not valid UTF-8";
    default: return "the system refused it: check the path and the disk";
    }
}

pf_status pf_file_error(pf_error *err, const char *doing, const char *path) {
    DWORD code = GetLastError();
    return pf_fail(err, PF_ERR_FILE, "cannot %s '%s': %s (Windows error %lu)", doing, pf_shown_path(path),
                   pf_hint(code), (unsigned long)code);
}

wchar_t *pf_wide(const char *path) {
    int units = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    if (units <= 0) return NULL;
    wchar_t *wide = pf_alloc((size_t)units * sizeof *wide);
    if (!wide) {
        SetLastError(ERROR_NOT_ENOUGH_MEMORY);
        return NULL;
    }
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, units);
    return wide;
}

#else

static const char *pf_hint(int code) {
    switch (code) {
    case ENOENT: return "there is no such file or folder: check the path";
    case EACCES:
    case EPERM: return "permission denied: check the permissions of the file and its folder";
    case EISDIR: return "it is a folder: name a file";
    case ENOTDIR: return "a part of the path is not a folder: check the path";
    case ENAMETOOLONG: return "the name is too long: choose a shorter one";
    case EROFS: return "the disk is read-only: choose another folder";
    case ELOOP: return "its symbolic links lead in a circle: check them";
    case ENOSPC: return "the disk is full: free some space or choose another disk";
    case EFBIG: return "the file would be larger than is allowed: check ulimit -f and the file system";
    case EDQUOT: return "the disk quota is used up: free some space or choose another disk";
    case ENOMEM: return "not enough memory or address space: check ulimit -v";
    case EMFILE:
    case ENFILE: return "too many open files: close some or raise ulimit -n";
    case EIO: return "the disk reports an error: check the disk";
    default: return "the system refused it: check the path and the disk";
    }
}

pf_status pf_file_error(pf_error *err, const char *doing, const char *path) {
    int code = errno;
    return pf_fail(err, PF_ERR_FILE, "cannot %s '%s': %s (errno %d)", doing, pf_shown_path(path), pf_hint(code), code);
}

#endif
