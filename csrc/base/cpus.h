/* The processors that this process may use. */
#ifndef PF_BASE_CPUS_H
#define PF_BASE_CPUS_H

#include <stdint.h>

enum { PF_MAX_CPUS = 8192 };

/* Threads that compute at full speed at once: physical cores (not hardware threads) that this process may run on, and
 * no more than a container's quota of processor time keeps busy. At least 1. */
int pf_cpu_count(void);
/* The same in hardware threads. */
int pf_logical_cpus(void);

/* Numbers of the processors this process may run on: first one of each core, *n_cores of them in ascending order, then
 * the others. Returns how many; 0 where the system does not tell. */
int pf_cpu_list(int16_t cpus[PF_MAX_CPUS], int *n_cores);

/* Processors that the control groups of `root` ("" for the system's own; tests pass a folder) let this process keep
 * busy, rounded up; 0: no limit. Linux only, elsewhere always 0. */
int pf_cpu_quota(const char *root);

#endif
