#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* sigaction, SA_ONSTACK */
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#  define _DARWIN_C_SOURCE
#endif

#include "base/faults.h"

#include "base/memory.h"
#include "base/status.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#  include <io.h>
#else
#  include <signal.h>
#  include <termios.h>
#  include <unistd.h>
#endif

/* ---- Files ------------------------------------------------------------------------------------------------- */

enum { SLOTS = 1024 };
enum { FREE, FILLING, USED };

/* Read by the handler at any moment, so there are no locks. */
static struct {
    atomic_int state;
    _Atomic uintptr_t begin;
    _Atomic uint64_t size;
    char *path;
} slots[SLOTS];

int pf_faults_note(const void *data, uint64_t size, const char *path) {
    const size_t bytes = strlen(path) + 1;
    char *copy = pf_alloc(bytes);
    if (!copy) return 0;
    memcpy(copy, path, bytes);
    for (int i = 0; i < SLOTS; i++) {
        int state = FREE;
        if (!atomic_compare_exchange_strong(&slots[i].state, &state, FILLING)) continue;
        slots[i].path = copy;
        atomic_store(&slots[i].begin, (uintptr_t)data);
        atomic_store(&slots[i].size, size);
        atomic_store(&slots[i].state, USED);
        return i + 1;
    }
    pf_free(copy);
    return 0;
}

void pf_faults_forget(int number) {
    if (number == 0) return;
    atomic_store(&slots[number - 1].state, FILLING);
    pf_free(slots[number - 1].path);
    atomic_store(&slots[number - 1].state, FREE);
}

/* The file that an address lies in, or NULL. */
static const char *file_at(uintptr_t address) {
    for (int i = 0; i < SLOTS; i++) {
        if (atomic_load(&slots[i].state) != USED) continue;
        const uintptr_t begin = atomic_load(&slots[i].begin);
        if (address >= begin && address - begin < atomic_load(&slots[i].size)) return slots[i].path;
    }
    return NULL;
}

/* ---- What is said ------------------------------------------------------------------------------------------ */

enum { PREFIX_BYTES = 64 };

static char prefix[PREFIX_BYTES];
static bool is_terminal; /* where the line goes */
static atomic_flag said = ATOMIC_FLAG_INIT;

static void put(const char *text);

/* Once: threads that read the same file fault together, and their lines would run into each other. */
static bool say_which(const char *path) {
    if (atomic_flag_test_and_set(&said)) return false;
    if (is_terminal) put("\r\x1b[0m\x1b[K"); /* a bar may stand in the line, and colours be on */
    put(prefix);
    put("cannot read '");
    put(path);
    put("': the file has become shorter, or its disk fails, while it was in use: check it, and start again\n");
    return true;
}

/* ---- Windows ----------------------------------------------------------------------------------------------- */

#if defined(_WIN32)

static HANDLE out, chain;

static void put(const char *text) {
    DWORD done;
    (void)WriteFile(out, text, (DWORD)strlen(text), &done, NULL);
}

static LONG CALLBACK on_fault(EXCEPTION_POINTERS *fault) {
    const EXCEPTION_RECORD *record = fault->ExceptionRecord;
    if (record->ExceptionCode != EXCEPTION_IN_PAGE_ERROR || record->NumberParameters < 2) return EXCEPTION_CONTINUE_SEARCH;
    const char *path = file_at((uintptr_t)record->ExceptionInformation[1]);
    if (!path) return EXCEPTION_CONTINUE_SEARCH;
    if (!say_which(path)) Sleep(INFINITE); /* until the thread that speaks ends the process */
    TerminateProcess(GetCurrentProcess(), 1);
    return EXCEPTION_CONTINUE_SEARCH;
}

static bool install(int fd) {
    DWORD mode;
    out = (HANDLE)_get_osfhandle(fd);
    is_terminal = GetConsoleMode(out, &mode) != 0 && (mode & 4) != 0; /* ENABLE_VIRTUAL_TERMINAL_PROCESSING */
    if (!chain) chain = AddVectoredExceptionHandler(1, on_fault);
    return chain != NULL;
}

static void uninstall(void) {
    if (chain) RemoveVectoredExceptionHandler(chain);
    chain = NULL;
}

/* ---- POSIX ------------------------------------------------------------------------------------------------- */

#else

/* macOS reports some of these faults as the other. */
static const int caught[] = {SIGBUS, SIGSEGV};
#  if defined(__APPLE__)
enum { CAUGHT = 2 };
#  else
enum { CAUGHT = 1 };
#  endif

static int out;
static bool is_installed;
static struct sigaction before[CAUGHT];
static struct termios terminal; /* as it was, of the first of the standard streams that is one */
static int terminal_fd = -1;

static void put(const char *text) {
    size_t left = strlen(text);
    while (left > 0) {
        const ssize_t done = write(out, text, left);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return;
        text += done;
        left -= (size_t)done;
    }
}

/* As if this handler were not there. */
static void pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction *next = &before[number == caught[0] ? 0 : CAUGHT - 1];
    if (next->sa_flags & SA_SIGINFO) {
        next->sa_sigaction(number, info, context);
    } else if (next->sa_handler != SIG_DFL && next->sa_handler != SIG_IGN) {
        next->sa_handler(number);
    } else {
        struct sigaction deadly;
        memset(&deadly, 0, sizeof deadly);
        deadly.sa_handler = SIG_DFL;
        sigaction(number, &deadly, NULL);
        if (info->si_code <= 0) raise(number); /* it was sent; a fault comes again by itself */
    }
}

/* Only calls that may stand in a handler. The faulting thread's other locks do not matter: nothing runs on. */
static void on_fault(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    const char *path = info->si_code > 0 ? file_at((uintptr_t)info->si_addr) : NULL;
    if (path) {
        while (!say_which(path)) pause(); /* until the thread that speaks ends the process */
        if (terminal_fd >= 0) tcsetattr(terminal_fd, TCSANOW, &terminal);
        _exit(1);
    }
    pass_on(number, info, context);
    errno = saved;
}

static bool install(int fd) {
    struct termios unused;
    out = fd;
    is_terminal = tcgetattr(fd, &unused) == 0;
    for (terminal_fd = STDERR_FILENO; terminal_fd >= 0; terminal_fd--) {
        if (tcgetattr(terminal_fd, &terminal) == 0) break;
    }
    if (is_installed) return true;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK; /* the host's other stack, where its threads have one */
    sigfillset(&action.sa_mask);               /* SIGTTOU too, else a job in the background would stop at tcsetattr */
    for (int i = 0; i < CAUGHT; i++) {
        if (sigaction(caught[i], &action, &before[i]) != 0) return false;
    }
    is_installed = true;
    return true;
}

/* Not where somebody else's handler now stands before this one. */
static void uninstall(void) {
    for (int i = 0; is_installed && i < CAUGHT; i++) {
        struct sigaction now;
        if (sigaction(caught[i], NULL, &now) != 0 || !(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_fault) return;
    }
    for (int i = 0; is_installed && i < CAUGHT; i++) sigaction(caught[i], &before[i], NULL);
    is_installed = false;
}

#endif

pf_status pf_catch_file_errors(int32_t fd, const char *text, pf_error *err) {
    if (text && strlen(text) >= sizeof prefix) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_catch_file_errors: a prefix of at most %d bytes", PREFIX_BYTES - 1);
    }
    if (fd < 0) {
        uninstall();
        return PF_OK;
    }
    memcpy(prefix, text ? text : "", text ? strlen(text) + 1 : 1);
    return install(fd) ? PF_OK : pf_fail(err, PF_ERR_UNSUPPORTED, "the system does not let faults be caught");
}
