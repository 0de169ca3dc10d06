/* What a forked child does with the parent's objects.
 *
 * A child has the thread that forked and no other, and every lock as it was at that moment: one that another thread
 * held stays locked for ever. Objects with threads or locks are therefore watched: in the child, before fork() returns
 * there, each is told to begin anew. Where that is impossible, as for a device, it compares generations and refuses.
 * On Windows, where nothing forks, all of this does nothing. */
#ifndef PF_BASE_FORK_H
#define PF_BASE_FORK_H

#include <stdint.h>

/* How many forks lie between the process that loaded the library and this one. An object whose own number differs was
 * inherited. */
uint32_t pf_fork_generation(void);

/* Part of a watched object. */
typedef struct pf_fork_watch {
    struct pf_fork_watch *next, *previous;
    void (*in_child)(void *object); /* may take no lock and allocate nothing */
    void *object;
} pf_fork_watch;

void pf_fork_watch_begin(pf_fork_watch *watch, void (*in_child)(void *object), void *object);
void pf_fork_watch_end(pf_fork_watch *watch); /* one that never began is allowed: all zeros */

#endif
