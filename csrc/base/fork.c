#include "base/fork.h"

#include "base/mutex.h"

#include <stddef.h>

#if defined(_WIN32)

uint32_t pf_fork_generation(void) { return 0; }

void pf_fork_watch_begin(pf_fork_watch *watch, void (*in_child)(void *object), void *object) {
    (void)watch, (void)in_child, (void)object;
}

void pf_fork_watch_end(pf_fork_watch *watch) { (void)watch; }

#else

#  include <stdatomic.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; whoever forks holds it meanwhile */
static pf_fork_watch *first;
static atomic_uint generation;

static void before_fork(void) { pf_mutex_lock(&lock); }
static void in_parent(void) { pf_mutex_unlock(&lock); }

static void in_child(void) {
    atomic_fetch_add(&generation, 1);
    for (pf_fork_watch *watch = first; watch != NULL; watch = watch->next) watch->in_child(watch->object);
    pf_mutex_unlock(&lock);
}

/* As the library is loaded: a lock or a flag for doing it once later could itself be held by a thread that a child
 * does not have. */
__attribute__((constructor)) static void watch_forks(void) { (void)pthread_atfork(before_fork, in_parent, in_child); }

uint32_t pf_fork_generation(void) { return atomic_load_explicit(&generation, memory_order_relaxed); }

void pf_fork_watch_begin(pf_fork_watch *watch, void (*when_forked)(void *object), void *object) {
    watch->in_child = when_forked;
    watch->object = object;
    pf_mutex_lock(&lock);
    watch->previous = NULL;
    watch->next = first;
    if (first != NULL) first->previous = watch;
    first = watch;
    pf_mutex_unlock(&lock);
}

void pf_fork_watch_end(pf_fork_watch *watch) {
    if (watch->in_child == NULL) return;
    pf_mutex_lock(&lock);
    *(watch->previous != NULL ? &watch->previous->next : &first) = watch->next;
    if (watch->next != NULL) watch->next->previous = watch->previous;
    pf_mutex_unlock(&lock);
    watch->in_child = NULL;
}

#endif
