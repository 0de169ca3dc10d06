#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* O_CLOEXEC, fsync, strerror_r */
#endif

#include "base/file.h"

#include "base/memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#else
#  include <fcntl.h>
#  include <sys/mman.h>
#  include <sys/stat.h>
#  include <unistd.h>
#endif

#define PF_WRITE_MAX ((uint64_t)1 << 30) /* one system call; some systems refuse 2 GiB and more */

/* The end of a path that would crowd the reason out of the message. */
static const char *pf_shown_path(const char *path) {
    size_t len = strlen(path), most = 300;
    if (len <= most) return path;
    const char *tail = path + (len - most);
    while (((unsigned char)*tail & 0xC0) == 0x80) tail++;
    return tail;
}

/* ---- Windows ----------------------------------------------------------------------------------------------- */

#if defined(_WIN32)

typedef HANDLE pf_fd;
#  define PF_NO_FD INVALID_HANDLE_VALUE

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

static pf_status pf_file_error(pf_error *err, const char *doing, const char *path) {
    DWORD code = GetLastError();
    return pf_fail(err, PF_ERR_FILE, "cannot %s '%s': %s (Windows error %lu)", doing, pf_shown_path(path),
                   pf_hint(code), (unsigned long)code);
}

/* UTF-16 copy of a path, to be freed by pf_free; NULL with the thread's last error set. */
static wchar_t *pf_wide(const char *path) {
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

static HANDLE pf_create_file(const char *path, DWORD access, DWORD share, DWORD how) {
    wchar_t *wide = pf_wide(path);
    if (!wide) return INVALID_HANDLE_VALUE;
    HANDLE file = CreateFileW(wide, access, share, NULL, how, FILE_ATTRIBUTE_NORMAL, NULL);
    DWORD code = GetLastError();
    pf_free(wide);
    SetLastError(code);
    return file;
}

pf_status pf_map_open(const char *path, pf_map *out, pf_error *err) {
    HANDLE file = pf_create_file(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, OPEN_EXISTING);
    if (file == INVALID_HANDLE_VALUE) return pf_file_error(err, "open", path);
    pf_map map = {0};
    LARGE_INTEGER size;
    pf_status status = PF_OK;
    if (!GetFileSizeEx(file, &size)) {
        status = pf_file_error(err, "read the size of", path);
    } else if ((uint64_t)size.QuadPart > SIZE_MAX) {
        status = pf_fail(err, PF_ERR_UNSUPPORTED, "'%s' is too large for a 32-bit program", pf_shown_path(path));
    } else if (size.QuadPart > 0) {
        map.size = (uint64_t)size.QuadPart;
        map.handle = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
        if (map.handle) map.data = MapViewOfFile(map.handle, FILE_MAP_READ, 0, 0, 0);
        if (!map.data) status = pf_file_error(err, "map", path);
    }
    if (status == PF_OK) {
        *out = map;
    } else if (map.handle) {
        CloseHandle(map.handle);
    }
    CloseHandle(file); /* the mapping keeps the file open */
    return status;
}

void pf_map_close(pf_map *map) {
    if (map->data) UnmapViewOfFile(map->data);
    if (map->handle) CloseHandle(map->handle);
    memset(map, 0, sizeof *map);
}

static pf_fd pf_fd_create(const char *path, bool *exists) {
    pf_fd fd = pf_create_file(path, GENERIC_WRITE, 0, CREATE_NEW);
    *exists = fd == PF_NO_FD && GetLastError() == ERROR_FILE_EXISTS;
    return fd;
}

static bool pf_fd_write(pf_fd fd, const uint8_t *data, uint64_t size) {
    while (size > 0) {
        DWORD part = (DWORD)(size < PF_WRITE_MAX ? size : PF_WRITE_MAX), done = 0;
        if (!WriteFile(fd, data, part, &done, NULL) || done == 0) return false;
        data += done;
        size -= done;
    }
    return true;
}

static bool pf_fd_flush(pf_fd fd) { return FlushFileBuffers(fd) != 0; }
static bool pf_fd_close(pf_fd fd) { return CloseHandle(fd) != 0; }

static bool pf_path_rename(const char *from, const char *to) {
    wchar_t *wide_from = pf_wide(from), *wide_to = pf_wide(to);
    BOOL done = wide_from && wide_to &&
                MoveFileExW(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
    DWORD code = GetLastError();
    pf_free(wide_from);
    pf_free(wide_to);
    SetLastError(code);
    return done != 0;
}

static void pf_path_remove(const char *path) {
    wchar_t *wide = pf_wide(path);
    if (wide) DeleteFileW(wide);
    pf_free(wide);
}

static void pf_folder_flush(const char *path) { (void)path; /* MOVEFILE_WRITE_THROUGH did it */ }
static unsigned long pf_process_id(void) { return GetCurrentProcessId(); }

/* ---- POSIX ------------------------------------------------------------------------------------------------- */

#else

typedef int pf_fd;
#  define PF_NO_FD (-1)

static const char *pf_hint(int code) {
    switch (code) {
    case ENOENT: return "there is no such file or folder: check the path";
    case EACCES:
    case EPERM: return "permission denied: check the permissions of the file and its folder";
    case EISDIR: return "it is a folder: name a file";
    case ENOTDIR: return "a part of the path is not a folder: check the path";
    case ENAMETOOLONG: return "the name is too long: choose a shorter one";
    case EROFS: return "the disk is read-only: choose another folder";
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

static pf_status pf_file_error(pf_error *err, const char *doing, const char *path) {
    int code = errno;
    return pf_fail(err, PF_ERR_FILE, "cannot %s '%s': %s (errno %d)", doing, pf_shown_path(path), pf_hint(code), code);
}

pf_status pf_map_open(const char *path, pf_map *out, pf_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* non-blocking: a named pipe must not hang us */
    if (fd < 0) return pf_file_error(err, "open", path);
    pf_map map = {0};
    struct stat info;
    pf_status status = PF_OK;
    if (fstat(fd, &info) != 0) {
        status = pf_file_error(err, "read the size of", path);
    } else if (!S_ISREG(info.st_mode)) {
        const char *what = S_ISDIR(info.st_mode) ? "a folder: name a file (pyflash convert makes one of a checkpoint)"
                                                 : "not a regular file: name one that is";
        status = pf_fail(err, PF_ERR_FILE, "cannot open '%s': it is %s", pf_shown_path(path), what);
    } else if ((uint64_t)info.st_size > SIZE_MAX) {
        status = pf_fail(err, PF_ERR_UNSUPPORTED, "'%s' is too large for a 32-bit program", pf_shown_path(path));
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            status = pf_file_error(err, "map", path);
        } else {
            map.data = data;
            map.size = (uint64_t)info.st_size;
        }
    }
    close(fd);
    if (status == PF_OK) *out = map;
    return status;
}

void pf_map_close(pf_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    memset(map, 0, sizeof *map);
}

static pf_fd pf_fd_create(const char *path, bool *exists) {
    pf_fd fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    *exists = fd < 0 && errno == EEXIST;
    return fd;
}

static bool pf_fd_write(pf_fd fd, const uint8_t *data, uint64_t size) {
    while (size > 0) {
        ssize_t done = write(fd, data, (size_t)(size < PF_WRITE_MAX ? size : PF_WRITE_MAX));
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = ENOSPC;
        if (done <= 0) return false;
        data += done;
        size -= (uint64_t)done;
    }
    return true;
}

/* Some file systems (pipes of FUSE, some network mounts) know no flush; that is no failure to write. */
static bool pf_fd_flush(pf_fd fd) { return fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP; }
static bool pf_fd_close(pf_fd fd) { return close(fd) == 0; }
static bool pf_path_rename(const char *from, const char *to) { return rename(from, to) == 0; }
static void pf_path_remove(const char *path) { unlink(path); }

/* Makes the rename itself last through a power cut, as far as the file system lets us. */
static void pf_folder_flush(const char *path) {
    size_t len = strlen(path);
    while (len > 0 && path[len - 1] != '/') len--;
    char *folder = pf_alloc(len + 2);
    if (!folder) return;
    memcpy(folder, len > 0 ? path : ".", len > 0 ? len : 1);
    folder[len > 0 ? len : 1] = '\0';
    int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    pf_free(folder);
}

static unsigned long pf_process_id(void) { return (unsigned long)getpid(); }

#endif

/* ---- Writer ------------------------------------------------------------------------------------------------ */

enum { PF_WRITE_BUFFER = 1 << 16 }; /* small pieces are gathered to this size */

struct pf_writer {
    pf_fd fd;
    uint8_t *buffer;
    size_t buffered;
    bool failed; /* a write was lost: what follows cannot be committed */
    char *path;
    char *temp;
};

static void pf_writer_free(pf_writer *writer) {
    pf_free(writer->buffer);
    pf_free(writer->path);
    pf_free(writer->temp);
    pf_free(writer);
}

pf_status pf_writer_open(const char *path, pf_writer **out, pf_error *err) {
    static atomic_uint counter;
    size_t len = strlen(path), suffix = 48;
    pf_writer *writer = pf_calloc(1, sizeof *writer);
    if (writer) {
        writer->buffer = pf_alloc(PF_WRITE_BUFFER);
        writer->path = pf_alloc(len + 1);
        writer->temp = pf_alloc(len + suffix);
    }
    if (!writer || !writer->buffer || !writer->path || !writer->temp) {
        if (writer) pf_writer_free(writer);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(path));
    }
    memcpy(writer->path, path, len + 1);
    bool exists = true;
    writer->fd = PF_NO_FD;
    for (int attempt = 0; exists && attempt < 1000; attempt++) { /* left over from a process with the same id */
        memcpy(writer->temp, path, len);
        snprintf(writer->temp + len, suffix, ".%lu-%u.tmp", pf_process_id(), atomic_fetch_add(&counter, 1));
        writer->fd = pf_fd_create(writer->temp, &exists);
    }
    if (writer->fd == PF_NO_FD) {
        pf_status status = pf_file_error(err, "create a file beside", path);
        pf_writer_free(writer);
        return status;
    }
    *out = writer;
    return PF_OK;
}

static pf_status pf_writer_send(pf_writer *writer, const uint8_t *data, uint64_t size, pf_error *err) {
    if (pf_fd_write(writer->fd, data, size)) return PF_OK;
    writer->failed = true;
    return pf_file_error(err, "write", writer->path);
}

static pf_status pf_writer_empty(pf_writer *writer, pf_error *err) {
    const size_t n = writer->buffered;
    writer->buffered = 0;
    return n > 0 ? pf_writer_send(writer, writer->buffer, n, err) : PF_OK;
}

pf_status pf_writer_write(pf_writer *writer, const void *data, uint64_t size, pf_error *err) {
    if (writer->failed) {
        return pf_fail(err, PF_ERR_FILE, "cannot write '%s': an earlier write failed", pf_shown_path(writer->path));
    }
    if (size > PF_WRITE_BUFFER - writer->buffered) PF_TRY(pf_writer_empty(writer, err));
    if (size >= PF_WRITE_BUFFER) return pf_writer_send(writer, data, size, err);
    if (size > 0) memcpy(writer->buffer + writer->buffered, data, (size_t)size);
    writer->buffered += (size_t)size;
    return PF_OK;
}

pf_status pf_writer_commit(pf_writer *writer, pf_error *err) {
    pf_status status = PF_OK;
    if (writer->failed) {
        status = pf_fail(err, PF_ERR_FILE, "cannot finish '%s': an earlier write failed", pf_shown_path(writer->path));
    } else {
        status = pf_writer_empty(writer, err);
    }
    if (status == PF_OK && !pf_fd_flush(writer->fd)) {
        status = pf_file_error(err, "flush", writer->path);
    }
    bool closed = pf_fd_close(writer->fd);
    if (status == PF_OK && !closed) status = pf_file_error(err, "close", writer->path);
    if (status == PF_OK && !pf_path_rename(writer->temp, writer->path)) {
        status = pf_file_error(err, "replace", writer->path);
    }
    if (status == PF_OK) {
        pf_folder_flush(writer->path);
    } else {
        pf_path_remove(writer->temp);
    }
    pf_writer_free(writer);
    return status;
}

void pf_writer_abort(pf_writer *writer) {
    if (!writer) return;
    pf_fd_close(writer->fd);
    pf_path_remove(writer->temp);
    pf_writer_free(writer);
}
