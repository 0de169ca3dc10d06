/* Mutual exclusion by the system's own lock. */
#ifndef PF_BASE_MUTEX_H
#define PF_BASE_MUTEX_H

#include <stdbool.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>

typedef SRWLOCK pf_mutex;
static inline bool pf_mutex_init(pf_mutex *m) { return InitializeSRWLock(m), true; }
static inline void pf_mutex_destroy(pf_mutex *m) { (void)m; }
static inline void pf_mutex_lock(pf_mutex *m) { AcquireSRWLockExclusive(m); }
static inline void pf_mutex_unlock(pf_mutex *m) { ReleaseSRWLockExclusive(m); }

#else
#  include <pthread.h>

typedef pthread_mutex_t pf_mutex;
static inline bool pf_mutex_init(pf_mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static inline void pf_mutex_destroy(pf_mutex *m) { pthread_mutex_destroy(m); }
static inline void pf_mutex_lock(pf_mutex *m) { pthread_mutex_lock(m); }
static inline void pf_mutex_unlock(pf_mutex *m) { pthread_mutex_unlock(m); }

#endif

#endif
