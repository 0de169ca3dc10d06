#if !defined(_WIN32)
#  define _POSIX_C_SOURCE 200809L
#endif
#include "console.h"

#include <stdlib.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>

#  include <io.h>
#  include <shellapi.h>

static SRWLOCK lock_word = SRWLOCK_INIT;
static void lock(void) { AcquireSRWLockExclusive(&lock_word); }
static void unlock(void) { ReleaseSRWLockExclusive(&lock_word); }
#else
#  include <pthread.h>
#  include <signal.h>
#  include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void lock(void) { (void)pthread_mutex_lock(&mutex); }
static void unlock(void) { (void)pthread_mutex_unlock(&mutex); }
#endif

static pf_session *target; /* under the lock, like what follows */
static bool has_come;

bool console_cancels(pf_session *session) {
    lock();
    const bool came = has_come;
    target = session;
    has_come = false;
    unlock();
    return came;
}

/* False: nothing was running. The lock is held over the cancel, so that the session cannot be closed meanwhile. */
static bool on_interrupt(void) {
    lock();
    const bool is_running = target != NULL;
    if (is_running && !has_come) {
        has_come = true;
        pf_session_cancel(target);
    }
    unlock();
    return is_running;
}

#if defined(_WIN32)

/* Windows calls this on a thread that it makes. */
static BOOL WINAPI on_control(DWORD event) { return event == CTRL_C_EVENT && on_interrupt(); }

static char *to_utf8(const wchar_t *wide) {
    const int size = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = size > 0 ? malloc((size_t)size) : NULL;
    if (text != NULL) (void)WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, size, NULL, NULL);
    return text;
}

bool console_start(int *argc, char ***argv) {
    int n = 0;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    char **texts = calloc((size_t)n + 1, sizeof *texts); /* kept as long as the program runs */
    if (wide == NULL || texts == NULL) return false;
    for (int i = 0; i < n; ++i) {
        texts[i] = to_utf8(wide[i]);
        if (texts[i] == NULL) return false;
    }
    LocalFree(wide);
    *argc = n;
    *argv = texts;
    (void)SetConsoleCP(CP_UTF8);
    (void)SetConsoleOutputCP(CP_UTF8);
    return SetConsoleCtrlHandler(on_control, TRUE) != 0;
}

bool console_is_terminal(FILE *file) {
    const int fd = _fileno(file);
    if (!_isatty(fd)) return false;
    DWORD mode = 0;
    const HANDLE handle = (HANDLE)_get_osfhandle(fd);
    if (file == stdin || !GetConsoleMode(handle, &mode)) return true;
    return SetConsoleMode(handle, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0;
}

#else

/* Waits for Ctrl-C, which no other thread receives. */
static void *watch(void *set) {
    for (;;) {
        int number = 0;
        if (sigwait(set, &number) != 0 || on_interrupt()) continue;
        (void)signal(SIGINT, SIG_DFL); /* as if nobody had waited */
        (void)pthread_sigmask(SIG_UNBLOCK, set, NULL);
        (void)raise(SIGINT);
    }
    return NULL;
}

bool console_start(int *argc, char ***argv) {
    static sigset_t set;
    pthread_t thread;
    (void)argc;
    (void)argv;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) return false; /* threads inherit it */
    return pthread_create(&thread, NULL, watch, &set) == 0 && pthread_detach(thread) == 0;
}

bool console_is_terminal(FILE *file) { return isatty(fileno(file)) != 0; }

#endif
