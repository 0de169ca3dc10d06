#if !defined(_WIN32)

#  if !defined(_GNU_SOURCE)
#    define _GNU_SOURCE /* O_CLOEXEC, O_PATH, flock, nanosleep */
#  endif
#  if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#    define _DARWIN_C_SOURCE
#  endif

#  include "base/fork.h"
#  include "base/memory.h"
#  include "base/output_system.h"
#  include "base/paths.h"

#  include <errno.h>
#  include <fcntl.h>
#  include <stdio.h>
#  include <string.h>
#  include <sys/file.h>
#  include <sys/stat.h>
#  include <time.h>
#  include <unistd.h>

enum { MOST_LINKS = 40 };

struct pf_place {
    char *path; /* as it was given */
    char *key;
    char *name; /* in the folder; "" never */
    int folder;
};

static int open_at(int folder, const char *path, int flags) {
    int fd;
    do {
        fd = openat(folder, path, flags | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* ---- Places ------------------------------------------------------------------------------------------------ */

static char *copy_of(const char *text, size_t len) {
    char *copy = pf_alloc(len + 1);
    if (copy) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

/* Bytes of a path that name its folder, the last slash included. */
static size_t folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* Where a symbolic link leads, in place of *path. False with errno. */
static bool follow(char **path, const struct stat *link) {
    const size_t room = link->st_size > 0 ? (size_t)link->st_size + 1 : 4096; /* some systems' own links say 0 */
    const size_t folder = folder_length(*path);
    char *next = pf_alloc(folder + room);
    if (!next) {
        errno = ENOMEM;
        return false;
    }
    const ssize_t len = readlink(*path, next + folder, room);
    if (len < 0 || (size_t)len >= room) {
        if (len >= 0) errno = EAGAIN; /* it has just become another */
        pf_free(next);
        return false;
    }
    next[folder + (size_t)len] = '\0';
    if (next[folder] == '/') {
        memmove(next, next + folder, (size_t)len + 1);
    } else {
        memcpy(next, *path, folder);
    }
    pf_free(*path);
    *path = next;
    return true;
}

/* Follows the links of *path until a file, or nothing, stands there. */
static pf_status follow_links(const char *given, char **path, pf_error *err) {
    struct stat target, at;
    const bool exists = stat(*path, &target) == 0; /* the system's own answer, for links that only it can follow */
    if (!exists && errno != ENOENT) return pf_file_error(err, "write", given);
    if (exists && !S_ISREG(target.st_mode)) return pf_refuse_kind(given, S_ISDIR(target.st_mode), err);
    for (int links = 0; links <= MOST_LINKS; links++) {
        if (lstat(*path, &at) != 0) {
            if (errno != ENOENT) return pf_file_error(err, "write", given);
            if (!exists) return PF_OK;
            return pf_fail(err, PF_ERR_FILE, "cannot write '%s': the file there has no name any more: name a file",
                           pf_shown_path(given));
        }
        if (!S_ISLNK(at.st_mode)) return S_ISREG(at.st_mode) ? PF_OK : pf_refuse_kind(given, S_ISDIR(at.st_mode), err);
        if (!follow(path, &at)) return pf_file_error(err, "write", given);
    }
    errno = ELOOP;
    return pf_file_error(err, "write", given);
}

static pf_status open_folder(pf_place *place, const char *path, pf_error *err) {
    const size_t len = folder_length(path);
    char *folder = len > 0 ? copy_of(path, len) : copy_of(".", 1);
    struct stat info;
    place->name = copy_of(path + len, strlen(path + len));
    const size_t room = place->name ? strlen(place->name) + 64 : 64;
    place->key = pf_alloc(room);
    if (!folder || !place->name || !place->key) {
        pf_free(folder);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(place->path));
    }
    place->folder = open_at(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY);
#  if defined(O_PATH)
    if (place->folder < 0 && errno == EACCES) place->folder = open_at(AT_FDCWD, folder, O_PATH | O_DIRECTORY);
#  elif defined(O_SEARCH)
    if (place->folder < 0 && errno == EACCES) place->folder = open_at(AT_FDCWD, folder, O_SEARCH | O_DIRECTORY);
#  endif
    pf_free(folder);
    if (place->folder < 0 || fstat(place->folder, &info) != 0) {
        return pf_file_error(err, "open the folder of", place->path);
    }
    if (place->name[0] == '\0') return pf_refuse_kind(place->path, true, err); /* it ends with a slash */
    snprintf(place->key, room, "%llx:%llx/%s", (unsigned long long)info.st_dev, (unsigned long long)info.st_ino,
             place->name);
    return PF_OK;
}

pf_status pf_place_find(const char *path, pf_place **out, pf_error *err) {
    pf_place *place = pf_calloc(1, sizeof *place);
    char *at = copy_of(path, strlen(path));
    if (place) {
        place->folder = -1;
        place->path = copy_of(path, strlen(path));
    }
    pf_status status;
    if (!place || !at || !place->path) {
        status = pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(path));
    } else {
        status = follow_links(path, &at, err);
        if (status == PF_OK) status = open_folder(place, at, err);
    }
    pf_free(at);
    if (status != PF_OK) {
        pf_place_close(place);
        return status;
    }
    *out = place;
    return PF_OK;
}

void pf_place_close(pf_place *place) {
    if (!place) return;
    if (place->folder >= 0) close(place->folder);
    pf_free(place->path);
    pf_free(place->key);
    pf_free(place->name);
    pf_free(place);
}

const char *pf_place_key(const pf_place *place) { return place->key; }
const char *pf_place_path(const pf_place *place) { return place->path; }

/* What stands there now; *exists false for nothing. */
static pf_status look(const pf_place *place, struct stat *out, bool *exists, pf_error *err) {
    *exists = fstatat(place->folder, place->name, out, AT_SYMLINK_NOFOLLOW) == 0;
    if (!*exists) return errno == ENOENT ? PF_OK : pf_file_error(err, "write", place->path);
    return S_ISREG(out->st_mode) ? PF_OK : pf_refuse_kind(place->path, S_ISDIR(out->st_mode), err);
}

pf_status pf_place_stamp(const pf_place *place, pf_stamp *out, pf_error *err) {
    struct stat info;
    bool exists;
    memset(out, 0, sizeof *out);
    PF_TRY(look(place, &info, &exists, err));
    if (!exists) return PF_OK;
    const int fd = open_at(place->folder, place->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return pf_file_error(err, "read", place->path);
    bool done = fstat(fd, &info) == 0;
    const bool has_tail = done && info.st_size >= (off_t)sizeof out->tail;
    for (size_t n = 0; has_tail && done && n < sizeof out->tail;) {
        const off_t from = info.st_size - (off_t)(sizeof out->tail - n);
        const ssize_t part = pread(fd, out->tail + n, sizeof out->tail - n, from);
        if (part < 0 && errno == EINTR) continue;
        done = part > 0;
        if (part > 0) n += (size_t)part;
    }
    const pf_status status = done ? PF_OK : pf_file_error(err, "read", place->path);
    close(fd);
    out->exists = 1;
    out->size = (uint64_t)info.st_size;
    return status;
}

/* ---- Locks ------------------------------------------------------------------------------------------------- */

struct pf_place_lock {
    int folder, fd;
    char name[PF_HELPER_BYTES];
    uint32_t generation; /* of forks */
};

enum { TAKEN, HELD_ELSEWHERE, GONE, FAILED };

/* GONE: what was locked is no longer what stands there, because its last holder has removed it. */
static int try_lock(pf_place_lock *lock) {
    struct stat locked, there;
    lock->fd = open_at(lock->folder, lock->name, O_RDWR | O_CREAT | O_NOFOLLOW);
    if (lock->fd < 0) {
        const int why = errno;
        if (why == EACCES && fstatat(lock->folder, lock->name, &there, AT_SYMLINK_NOFOLLOW) == 0) return HELD_ELSEWHERE;
        errno = why;
        return FAILED;
    }
    int done;
    do {
        done = flock(lock->fd, LOCK_EX | LOCK_NB);
    } while (done != 0 && errno == EINTR);
    int result = TAKEN; /* also where the file system has no locks */
    if (done != 0 && errno == EWOULDBLOCK) {
        result = HELD_ELSEWHERE;
    } else if (fstat(lock->fd, &locked) != 0 || fstatat(lock->folder, lock->name, &there, AT_SYMLINK_NOFOLLOW) != 0 ||
               locked.st_ino != there.st_ino || locked.st_dev != there.st_dev) {
        result = GONE;
    }
    if (result != TAKEN) {
        close(lock->fd);
        lock->fd = -1;
    }
    return result;
}

static pf_status take(const pf_place *place, pf_place_lock *lock, pf_error *err) {
    const struct timespec pause = {0, PF_LOCK_PAUSE_MS * 1000000L};
    for (int i = 0; i < PF_LOCK_TRIES; i++) {
        const int result = try_lock(lock);
        if (result == TAKEN) return PF_OK;
        if (result == FAILED) return pf_file_error(err, "create a file beside", place->path);
        if (result == HELD_ELSEWHERE) nanosleep(&pause, NULL);
    }
    return pf_refuse_locked(place->path, err);
}

pf_status pf_place_lock_take(const pf_place *place, pf_place_lock **out, pf_error *err) {
    struct stat info;
    bool exists;
    PF_TRY(look(place, &info, &exists, err));
    if (exists && faccessat(place->folder, place->name, W_OK, AT_EACCESS) != 0) {
        return errno == EACCES ? pf_refuse_protected(place->path, err) : pf_file_error(err, "write", place->path);
    }
    pf_place_lock *lock = pf_calloc(1, sizeof *lock);
    if (!lock) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(place->path));
    pf_helper_name(place->name, "lock", lock->name);
    lock->generation = pf_fork_generation();
    lock->fd = -1;
    lock->folder = fcntl(place->folder, F_DUPFD_CLOEXEC, 0); /* it may outlive the place */
    const pf_status status =
        lock->folder < 0 ? pf_file_error(err, "open the folder of", place->path) : take(place, lock, err);
    if (status != PF_OK) {
        pf_place_lock_drop(lock);
        return status;
    }
    *out = lock;
    return PF_OK;
}

bool pf_place_lock_is_own(const pf_place_lock *lock) { return lock->generation == pf_fork_generation(); }

void pf_place_lock_drop(pf_place_lock *lock) {
    if (!lock) return;
    if (lock->fd >= 0) {
        if (pf_place_lock_is_own(lock)) unlinkat(lock->folder, lock->name, 0);
        close(lock->fd);
    }
    if (lock->folder >= 0) close(lock->folder);
    pf_free(lock);
}

/* ---- The file beside --------------------------------------------------------------------------------------- */

struct pf_temp {
    const pf_place *place;
    int fd;
    char name[PF_HELPER_BYTES];
};

pf_status pf_temp_open(const pf_place *place, pf_temp **out, pf_error *err) {
    pf_temp *temp = pf_calloc(1, sizeof *temp);
    if (!temp) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(place->path));
    temp->place = place;
    pf_helper_name(place->name, "tmp", temp->name);
    unlinkat(place->folder, temp->name, 0); /* left by a process that died while it held the lock */
    temp->fd = open_at(place->folder, temp->name, O_WRONLY | O_CREAT | O_EXCL);
    if (temp->fd < 0) {
        const pf_status status = pf_file_error(err, "create a file beside", place->path);
        pf_free(temp);
        return status;
    }
    *out = temp;
    return PF_OK;
}

bool pf_temp_write(pf_temp *temp, const uint8_t *data, uint64_t size) {
    while (size > 0) {
        ssize_t done = write(temp->fd, data, (size_t)(size < PF_WRITE_MAX ? size : PF_WRITE_MAX));
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = ENOSPC;
        if (done <= 0) return false;
        data += done;
        size -= (uint64_t)done;
    }
    return true;
}

/* Some file systems (pipes of FUSE, some network mounts) know no flush; that is no failure to write. */
static bool flush(int fd) {
    int done;
#  if defined(F_FULLFSYNC) /* fsync only hands the bytes to the disk's own memory there */
    if (fcntl(fd, F_FULLFSYNC) == 0) return true;
#  endif
    do {
        done = fsync(fd);
    } while (done != 0 && errno == EINTR);
    return done == 0 || errno == EINVAL || errno == ENOTSUP;
}

static bool keep_permissions(int fd, const struct stat *old) {
    struct stat own;
    if (fstat(fd, &own) != 0) return false;
    mode_t mode = old->st_mode & 0777;
    if (own.st_uid != old->st_uid || own.st_gid != old->st_gid) {
        const bool kept = fchown(fd, old->st_uid, old->st_gid) == 0 || fchown(fd, (uid_t)-1, old->st_gid) == 0;
        if (!kept && own.st_gid != old->st_gid) mode &= (mode_t)~070; /* they were meant for others */
    }
    return fchmod(fd, mode) == 0 || errno == EPERM || errno == ENOTSUP; /* of file systems that have none */
}

pf_status pf_temp_finish(pf_temp *temp, pf_error *err) {
    struct stat old;
    bool exists;
    PF_TRY(look(temp->place, &old, &exists, err));
    if (exists && !keep_permissions(temp->fd, &old)) {
        return pf_file_error(err, "keep the permissions of", temp->place->path);
    }
    return flush(temp->fd) ? PF_OK : pf_file_error(err, "flush", temp->place->path);
}

pf_status pf_temp_rename(pf_temp *temp, pf_error *err) {
    const pf_place *place = temp->place;
    struct stat own, there;
    /* Without locks another writer may have put its own file there. */
    if (fstat(temp->fd, &own) != 0 || fstatat(place->folder, temp->name, &there, AT_SYMLINK_NOFOLLOW) != 0 ||
        own.st_ino != there.st_ino) {
        return pf_refuse_locked(place->path, err);
    }
    const int fd = temp->fd;
    temp->fd = -1;
    if (close(fd) != 0 && errno != EINTR) return pf_file_error(err, "close", place->path);
    if (renameat(place->folder, temp->name, place->folder, place->name) != 0) {
        return pf_file_error(err, "replace", place->path);
    }
    (void)flush(place->folder); /* as far as the file system lets us */
    pf_free(temp);
    return PF_OK;
}

void pf_temp_remove(pf_temp *temp) {
    if (temp->fd >= 0) close(temp->fd);
    unlinkat(temp->place->folder, temp->name, 0);
    pf_free(temp);
}

#else

typedef int pf_translation_unit_is_not_empty;

#endif
