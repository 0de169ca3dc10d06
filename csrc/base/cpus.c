#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* sched_getaffinity, CPU_ALLOC */
#endif

#include "base/cpus.h"

#include "base/memory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#elif defined(__linux__)
#  include <sched.h>
#elif defined(__APPLE__)
#  include <sys/sysctl.h>
#  include <sys/types.h>
#else
#  include <unistd.h>
#endif

/* ---- Quotas of containers ---------------------------------------------------------------------------------- */

#if defined(__linux__)

enum { PF_PATH_MAX = 1024 };

/* The first numbers of a file ("max" is none); returns how many were there. */
static int pf_read_numbers(const char *path, long long *first, long long *second) {
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    const int found = fscanf(file, "%lld %lld", first, second);
    fclose(file);
    return found > 0 ? found : 0;
}

/* Processors of one control group's limit, 0: none. */
static int pf_group_quota(const char *folder, bool version1) {
    char path[PF_PATH_MAX + 32];
    long long quota = 0, period = 0, none;
    if (version1) {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
        if (pf_read_numbers(path, &quota, &none) < 1) return 0;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (pf_read_numbers(path, &period, &none) < 1) return 0;
    } else {
        snprintf(path, sizeof path, "%s/cpu.max", folder);
        if (pf_read_numbers(path, &quota, &period) < 2) return 0;
    }
    if (quota <= 0 || period <= 0 || quota / period >= PF_MAX_CPUS) return 0;
    return (int)((quota + period - 1) / period);
}

/* The tightest limit of a group and those above it. A container may see its own group as the mount's root while the
 * path is still the host's: the walk ends there too. */
static int pf_groups_quota(const char *mount, const char *group, bool version1) {
    char folder[PF_PATH_MAX];
    int tightest = 0;
    const int length = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (length < 0 || (size_t)length >= sizeof folder) return 0;
    for (size_t end = (size_t)length; end >= strlen(mount); end--) {
        if (folder[end] != '\0' && folder[end] != '/') continue;
        folder[end] = '\0';
        const int quota = pf_group_quota(folder, version1);
        if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
    }
    return tightest;
}

static bool pf_is_listed(const char *name, const char *list) {
    const size_t len = strlen(name);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, len) == 0 && (at[len] == ',' || at[len] == '\0')) return true;
    }
    return false;
}

int pf_cpu_quota(const char *root) {
    char path[PF_PATH_MAX], line[PF_PATH_MAX], mount[PF_PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    int tightest = 0;
    while (file && fgets(line, sizeof line, file)) { /* "4:cpu,cpuacct:/path", or "0::/path" of version 2 */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        controllers++;
        const bool version1 = *controllers != '\0';
        if (version1 && !pf_is_listed("cpu", controllers)) continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, version1 ? "/cpu" : "");
        const int quota = pf_groups_quota(mount, group, version1);
        if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
    }
    if (file) fclose(file);
    return tightest;
}

#else

int pf_cpu_quota(const char *root) {
    (void)root;
    return 0;
}

#endif

/* ---- Processors -------------------------------------------------------------------------------------------- */

#if defined(__linux__)

static int pf_within_quota(int count) {
    const int quota = pf_cpu_quota("");
    if (quota > 0 && quota < count) count = quota;
    return count > 0 ? count : 1;
}

/* CPUs of this process's affinity mask as one byte each; returns how many. */
static int pf_allowed_cpus(uint8_t allowed[PF_MAX_CPUS]) {
    memset(allowed, 0, PF_MAX_CPUS);
    size_t bytes = CPU_ALLOC_SIZE(PF_MAX_CPUS);
    cpu_set_t *set = CPU_ALLOC(PF_MAX_CPUS);
    if (!set) return 0;
    CPU_ZERO_S(bytes, set);
    int count = 0;
    if (sched_getaffinity(0, bytes, set) == 0) {
        for (int cpu = 0; cpu < PF_MAX_CPUS; cpu++) {
            allowed[cpu] = CPU_ISSET_S((size_t)cpu, bytes, set) ? 1 : 0;
            count += allowed[cpu];
        }
    }
    CPU_FREE(set);
    return count;
}

int pf_logical_cpus(void) {
    uint8_t allowed[PF_MAX_CPUS];
    return pf_within_quota(pf_allowed_cpus(allowed));
}

/* The lowest CPU of the core that holds `cpu`, or cpu itself where the kernel does not tell (some containers). */
static int pf_core_of(int cpu) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "re");
    if (!file) return cpu;
    int first = cpu;
    if (fscanf(file, "%d", &first) != 1 || first < 0 || first >= PF_MAX_CPUS) first = cpu;
    fclose(file);
    return first;
}

int pf_cpu_list(int16_t cpus[PF_MAX_CPUS], int *n_cores) {
    uint8_t allowed[PF_MAX_CPUS], seen[PF_MAX_CPUS] = {0};
    const int count = pf_allowed_cpus(allowed);
    *n_cores = 0;
    for (int cpu = 0; cpu < PF_MAX_CPUS; cpu++) {
        const int core = allowed[cpu] ? pf_core_of(cpu) : cpu;
        if (!allowed[cpu] || seen[core]) continue;
        seen[core] = 1;
        allowed[cpu] = 0;
        cpus[(*n_cores)++] = (int16_t)cpu;
    }
    for (int cpu = 0, at = *n_cores; cpu < PF_MAX_CPUS; cpu++) {
        if (allowed[cpu]) cpus[at++] = (int16_t)cpu;
    }
    return count;
}

int pf_cpu_count(void) {
    int16_t cpus[PF_MAX_CPUS];
    int cores = 0;
    (void)pf_cpu_list(cpus, &cores);
    return pf_within_quota(cores);
}

#elif defined(__APPLE__)

static int pf_sysctl_int(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value > 0 ? value : 1;
}

int pf_logical_cpus(void) { return pf_sysctl_int("hw.logicalcpu"); }
int pf_cpu_count(void) { return pf_sysctl_int("hw.physicalcpu"); }

int pf_cpu_list(int16_t cpus[PF_MAX_CPUS], int *n_cores) {
    (void)cpus;
    *n_cores = 0;
    return 0;
}

#elif defined(_WIN32)

/* CPUs of this process within its processor group; 0 where Windows does not tell, as for processes that run in several
 * groups. */
static DWORD_PTR pf_affinity(void) {
    DWORD_PTR process = 0, machine = 0;
    return GetProcessAffinityMask(GetCurrentProcess(), &process, &machine) ? process : 0;
}

int pf_logical_cpus(void) {
    int count = 0;
    for (DWORD_PTR mask = pf_affinity(); mask; mask &= mask - 1) count++;
    if (count == 0) count = (int)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return count > 0 ? count : 1;
}

int pf_cpu_list(int16_t cpus[PF_MAX_CPUS], int *n_cores) {
    DWORD bytes = 0;
    DWORD_PTR rest = pf_affinity();
    GetLogicalProcessorInformation(NULL, &bytes);
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION *info = bytes ? pf_calloc(1, bytes) : NULL;
    int count = 0;
    if (info && GetLogicalProcessorInformation(info, &bytes)) {
        for (DWORD i = 0; i < bytes / sizeof *info; i++) {
            const DWORD_PTR mask = info[i].Relationship == RelationProcessorCore ? info[i].ProcessorMask & rest : 0;
            if (mask == 0) continue;
            int cpu = 0;
            while (!(mask >> cpu & 1)) cpu++;
            cpus[count++] = (int16_t)cpu;
            rest &= ~((DWORD_PTR)1 << cpu);
        }
    }
    pf_free(info);
    *n_cores = count;
    for (int cpu = 0; rest >> cpu; cpu++) {
        if (rest >> cpu & 1) cpus[count++] = (int16_t)cpu;
        if (cpu == 8 * (int)sizeof rest - 1) break;
    }
    return count;
}

int pf_cpu_count(void) {
    int16_t cpus[PF_MAX_CPUS];
    int cores = 0;
    (void)pf_cpu_list(cpus, &cores);
    return cores > 0 ? cores : pf_logical_cpus();
}

#else

int pf_logical_cpus(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int)count : 1;
}

int pf_cpu_count(void) { return pf_logical_cpus(); }

int pf_cpu_list(int16_t cpus[PF_MAX_CPUS], int *n_cores) {
    (void)cpus;
    *n_cores = 0;
    return 0;
}

#endif
