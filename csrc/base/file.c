#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* O_CLOEXEC */
#endif

#include "base/file.h"

#include "base/faults.h"
#include "base/memory.h"
#include "base/paths.h"

#include <errno.h>
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

/* ---- Windows ----------------------------------------------------------------------------------------------- */

#if defined(_WIN32)

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
        if (map.data) map.fault = pf_faults_note(map.data, map.size, path);
        *out = map;
    } else if (map.handle) {
        CloseHandle(map.handle);
    }
    CloseHandle(file); /* the mapping keeps the file open */
    return status;
}

void pf_map_close(pf_map *map) {
    pf_faults_forget(map->fault);
    if (map->data) UnmapViewOfFile(map->data);
    if (map->handle) CloseHandle(map->handle);
    memset(map, 0, sizeof *map);
}

/* ---- POSIX ------------------------------------------------------------------------------------------------- */

#else

pf_status pf_map_open(const char *path, pf_map *out, pf_error *err) {
    int fd;
    do { /* non-blocking: a named pipe must not hang us */
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (fd < 0 && errno == EINTR);
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
    if (status == PF_OK) {
        if (map.data) map.fault = pf_faults_note(map.data, map.size, path);
        *out = map;
    }
    return status;
}

void pf_map_close(pf_map *map) {
    pf_faults_forget(map->fault);
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    memset(map, 0, sizeof *map);
}

#endif
