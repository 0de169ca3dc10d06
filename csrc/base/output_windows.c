#if defined(_WIN32)

#  include "base/memory.h"
#  include "base/output_system.h"
#  include "base/paths.h"

#  include <stdio.h>
#  include <string.h>

#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>

struct pf_place {
    char *path;    /* as it was given */
    char *key;     /* full in UTF-8 */
    wchar_t *full; /* without links, and so that it may be long: \\?\C:\... */
};

/* ---- Places ------------------------------------------------------------------------------------------------ */

static HANDLE open_wide(const wchar_t *path, DWORD access) {
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    return CreateFileW(path, access, share, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
}

/* The path behind a handle, with room for `more` units; NULL with the thread's last error set. */
static wchar_t *final_path(HANDLE file, size_t more) {
    const DWORD room = GetFinalPathNameByHandleW(file, NULL, 0, 0);
    wchar_t *path = room > 0 ? pf_alloc((room + more + 1) * sizeof *path) : NULL;
    if (path && GetFinalPathNameByHandleW(file, path, room, 0) >= room) {
        pf_free(path);
        return NULL;
    }
    return path;
}

/* Of a path at which nothing stands: its folder's, and the name. */
static wchar_t *future_path(wchar_t *path) {
    wchar_t *name = path;
    for (wchar_t *at = path; *at; at++) {
        if (*at == L'\\' || *at == L'/' || *at == L':') name = at + 1;
    }
    if (*name == L'\0') {
        SetLastError(ERROR_PATH_NOT_FOUND);
        return NULL;
    }
    wchar_t *folder_name = pf_alloc(((size_t)(name - path) + 2) * sizeof *path);
    if (!folder_name) return NULL;
    const size_t folder_units = (size_t)(name - path);
    memcpy(folder_name, folder_units > 0 ? path : L".", (folder_units > 0 ? folder_units : 1) * sizeof *path);
    folder_name[folder_units > 0 ? folder_units : 1] = L'\0';
    HANDLE folder = open_wide(folder_name, 0);
    pf_free(folder_name);
    if (folder == INVALID_HANDLE_VALUE) return NULL;
    wchar_t *full = final_path(folder, wcslen(name) + 1);
    CloseHandle(folder);
    if (full) {
        size_t len = wcslen(full);
        if (len > 0 && full[len - 1] != L'\\') full[len++] = L'\\';
        memcpy(full + len, name, (wcslen(name) + 1) * sizeof *full);
    }
    return full;
}

static char *narrow(const wchar_t *wide) {
    const int bytes = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = bytes > 0 ? pf_alloc((size_t)bytes) : NULL;
    if (text) WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, bytes, NULL, NULL);
    return text;
}

static pf_status refuse_others(const char *path, HANDLE file, pf_error *err) {
    BY_HANDLE_FILE_INFORMATION info;
    if (GetFileType(file) != FILE_TYPE_DISK) return pf_refuse_kind(path, false, err);
    if (!GetFileInformationByHandle(file, &info)) return pf_file_error(err, "write", path);
    return info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? pf_refuse_kind(path, true, err) : PF_OK;
}

static pf_status find(pf_place *place, wchar_t *wide, pf_error *err) {
    HANDLE file = open_wide(wide, 0);
    if (file != INVALID_HANDLE_VALUE) {
        pf_status status = refuse_others(place->path, file, err);
        if (status == PF_OK) {
            place->full = final_path(file, 0);
            if (!place->full) status = pf_file_error(err, "write", place->path);
        }
        CloseHandle(file);
        PF_TRY(status);
    } else if (GetLastError() != ERROR_FILE_NOT_FOUND || GetFileAttributesW(wide) != INVALID_FILE_ATTRIBUTES) {
        return pf_file_error(err, "write", place->path); /* a link that leads nowhere among them */
    } else {
        place->full = future_path(wide);
        if (!place->full) return pf_file_error(err, "open the folder of", place->path);
    }
    place->key = narrow(place->full);
    return place->key ? PF_OK : pf_file_error(err, "write", place->path);
}

pf_status pf_place_find(const char *path, pf_place **out, pf_error *err) {
    pf_place *place = pf_calloc(1, sizeof *place);
    const size_t len = strlen(path);
    if (place) place->path = pf_alloc(len + 1);
    if (!place || !place->path) {
        pf_free(place);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(path));
    }
    memcpy(place->path, path, len + 1);
    wchar_t *wide = pf_wide(path);
    const pf_status status = wide ? find(place, wide, err) : pf_file_error(err, "write", path);
    pf_free(wide);
    if (status != PF_OK) {
        pf_place_close(place);
        return status;
    }
    *out = place;
    return PF_OK;
}

void pf_place_close(pf_place *place) {
    if (!place) return;
    pf_free(place->path);
    pf_free(place->key);
    pf_free(place->full);
    pf_free(place);
}

const char *pf_place_key(const pf_place *place) { return place->key; }
const char *pf_place_path(const pf_place *place) { return place->path; }

pf_status pf_place_stamp(const pf_place *place, pf_stamp *out, pf_error *err) {
    memset(out, 0, sizeof *out);
    HANDLE file = open_wide(place->full, GENERIC_READ);
    LARGE_INTEGER size, from;
    DWORD part = 0;
    if (file == INVALID_HANDLE_VALUE) {
        return GetLastError() == ERROR_FILE_NOT_FOUND ? PF_OK : pf_file_error(err, "read", place->path);
    }
    bool done = GetFileSizeEx(file, &size) != 0;
    if (done && size.QuadPart >= (LONGLONG)sizeof out->tail) {
        from.QuadPart = size.QuadPart - (LONGLONG)sizeof out->tail;
        done = SetFilePointerEx(file, from, NULL, FILE_BEGIN) &&
               ReadFile(file, out->tail, sizeof out->tail, &part, NULL) && part == sizeof out->tail;
    }
    const pf_status status = done ? PF_OK : pf_file_error(err, "read", place->path);
    CloseHandle(file);
    out->exists = 1;
    out->size = done ? (uint64_t)size.QuadPart : 0;
    return status;
}

/* A file's path beside the place, to be freed by pf_free; NULL when out of memory. */
static wchar_t *beside(const pf_place *place, const char *ending) {
    char name[PF_HELPER_BYTES];
    const char *slash = strrchr(place->key, '\\');
    const wchar_t *wide_slash = wcsrchr(place->full, L'\\');
    pf_helper_name(slash ? slash + 1 : place->key, ending, name);
    const size_t folder = wide_slash ? (size_t)(wide_slash - place->full) + 1 : 0, len = strlen(name);
    wchar_t *path = pf_alloc((folder + len + 1) * sizeof *path);
    if (!path) {
        SetLastError(ERROR_NOT_ENOUGH_MEMORY);
        return NULL;
    }
    memcpy(path, place->full, folder * sizeof *path);
    for (size_t i = 0; i <= len; i++) path[folder + i] = (wchar_t)name[i];
    return path;
}

/* ---- Locks ------------------------------------------------------------------------------------------------- */

/* Nobody else can open the file, which goes with its handle, also when the process dies. */
struct pf_place_lock {
    HANDLE file;
};

pf_status pf_place_lock_take(const pf_place *place, pf_place_lock **out, pf_error *err) {
    const DWORD attributes = GetFileAttributesW(place->full);
    if (attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_READONLY) {
        return pf_refuse_protected(place->path, err);
    }
    wchar_t *path = beside(place, "lock");
    pf_place_lock *lock = pf_calloc(1, sizeof *lock);
    if (!path || !lock) {
        pf_free(path);
        pf_free(lock);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(place->path));
    }
    DWORD code = 0;
    for (int i = 0; i < PF_LOCK_TRIES; i++) {
        lock->file = CreateFileW(path, GENERIC_WRITE, 0, NULL, OPEN_ALWAYS,
                                 FILE_ATTRIBUTE_HIDDEN | FILE_FLAG_DELETE_ON_CLOSE, NULL);
        code = lock->file == INVALID_HANDLE_VALUE ? GetLastError() : 0;
        if (code != ERROR_SHARING_VIOLATION && code != ERROR_DELETE_PENDING) break;
        Sleep(PF_LOCK_PAUSE_MS);
    }
    pf_free(path);
    if (code == 0) {
        *out = lock;
        return PF_OK;
    }
    pf_free(lock);
    SetLastError(code);
    return code == ERROR_SHARING_VIOLATION ? pf_refuse_locked(place->path, err)
                                           : pf_file_error(err, "create a file beside", place->path);
}

bool pf_place_lock_is_own(const pf_place_lock *lock) { return (void)lock, true; }

void pf_place_lock_drop(pf_place_lock *lock) {
    if (!lock) return;
    CloseHandle(lock->file);
    pf_free(lock);
}

/* ---- The file beside --------------------------------------------------------------------------------------- */

struct pf_temp {
    const pf_place *place;
    HANDLE file;
    wchar_t *path;
};

pf_status pf_temp_open(const pf_place *place, pf_temp **out, pf_error *err) {
    pf_temp *temp = pf_calloc(1, sizeof *temp);
    if (!temp) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(place->path));
    temp->place = place;
    temp->path = beside(place, "tmp");
    /* One that is there was left by a process that died while it held the lock. */
    temp->file = temp->path ? CreateFileW(temp->path, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL)
                            : INVALID_HANDLE_VALUE;
    if (temp->file == INVALID_HANDLE_VALUE) {
        const pf_status status = pf_file_error(err, "create a file beside", place->path);
        pf_free(temp->path);
        pf_free(temp);
        return status;
    }
    *out = temp;
    return PF_OK;
}

bool pf_temp_write(pf_temp *temp, const uint8_t *data, uint64_t size) {
    while (size > 0) {
        DWORD part = (DWORD)(size < PF_WRITE_MAX ? size : PF_WRITE_MAX), done = 0;
        if (!WriteFile(temp->file, data, part, &done, NULL) || done == 0) return false;
        data += done;
        size -= done;
    }
    return true;
}

pf_status pf_temp_finish(pf_temp *temp, pf_error *err) {
    return FlushFileBuffers(temp->file) ? PF_OK : pf_file_error(err, "flush", temp->place->path);
}

pf_status pf_temp_rename(pf_temp *temp, pf_error *err) {
    const wchar_t *to = temp->place->full;
    const HANDLE file = temp->file;
    temp->file = INVALID_HANDLE_VALUE;
    if (!CloseHandle(file)) return pf_file_error(err, "close", temp->place->path);
    const BOOL done = GetFileAttributesW(to) != INVALID_FILE_ATTRIBUTES
                          ? ReplaceFileW(to, temp->path, NULL, REPLACEFILE_IGNORE_MERGE_ERRORS, NULL, NULL)
                          : MoveFileExW(temp->path, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
    if (!done) return pf_file_error(err, "replace", temp->place->path);
    pf_free(temp->path);
    pf_free(temp);
    return PF_OK;
}

void pf_temp_remove(pf_temp *temp) {
    if (temp->file != INVALID_HANDLE_VALUE) CloseHandle(temp->file);
    DeleteFileW(temp->path);
    pf_free(temp->path);
    pf_free(temp);
}

#else

typedef int pf_translation_unit_is_not_empty;

#endif
