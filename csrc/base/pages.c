#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* madvise under -std=c11 */
#endif

#include "base/pages.h"

#include <stddef.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#else
#  include <errno.h>
#  include <sys/mman.h>
#  include <unistd.h>
#  if defined(__linux__) && !defined(MADV_POPULATE_READ)
#    define MADV_POPULATE_READ 22 /* Linux 5.14; the C library's header may be older */
#  endif
#  if defined(__linux__) && !defined(MADV_PAGEOUT)
#    define MADV_PAGEOUT 21 /* Linux 5.4 */
#  endif
#endif

static size_t pf_page_bytes(void) {
#if defined(_WIN32)
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
#else
    const long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
#endif
}

/* The whole pages around a range. */
typedef struct pf_page_range {
    uint8_t *data;
    size_t bytes;
} pf_page_range;

static pf_page_range pf_whole_pages(const void *data, uint64_t bytes) {
    const uintptr_t page = pf_page_bytes(), begin = (uintptr_t)data / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes + page - 1) / page * page;
    return (pf_page_range){(uint8_t *)begin, end - begin};
}

/* The whole pages within a range. */
static pf_page_range pf_inner_pages(const void *data, uint64_t bytes) {
    const uintptr_t page = pf_page_bytes(), begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    return (pf_page_range){(uint8_t *)begin, end > begin ? end - begin : 0};
}

/* One byte of each page. */
static void pf_touch(const void *data, uint64_t bytes) {
    const volatile uint8_t *at = data;
    const size_t page = pf_page_bytes();
    for (uint64_t i = 0; i < bytes; i += page) (void)at[i];
    if (bytes > 0) (void)at[bytes - 1];
}

#if defined(_WIN32)

void pf_pages_announce(const void *data, uint64_t bytes) {
    WIN32_MEMORY_RANGE_ENTRY range = {(void *)(uintptr_t)data, (SIZE_T)bytes};
    (void)PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

void pf_pages_scatter(const void *data, uint64_t bytes) { (void)data, (void)bytes; }

void pf_pages_drop(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_inner_pages(data, bytes);
    /* Unlocking pages that are not locked takes them out of the working set. */
    if (range.bytes > 0) (void)VirtualUnlock(range.data, range.bytes);
}

bool pf_pages_fetch(const void *data, uint64_t bytes) {
    pf_touch(data, bytes);
    return true;
}

bool pf_pages_lock(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_whole_pages(data, bytes);
    SIZE_T least = 0, most = 0;
    if (VirtualLock(range.data, range.bytes)) return true;
    /* Windows locks no more than the smallest working set; that may be raised while there is memory. */
    if (!GetProcessWorkingSetSize(GetCurrentProcess(), &least, &most)) return false;
    least += range.bytes + ((SIZE_T)1 << 20);
    most = most > least ? most : least + ((SIZE_T)1 << 20);
    return SetProcessWorkingSetSize(GetCurrentProcess(), least, most) && VirtualLock(range.data, range.bytes);
}

#else

/* Linux reads no more at one announcement than the device's read-ahead, which is often this much. */
#  define PF_ANNOUNCE_BYTES ((size_t)128 << 10)

void pf_pages_announce(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_whole_pages(data, bytes);
    for (size_t at = 0; at < range.bytes; at += PF_ANNOUNCE_BYTES) {
        const size_t left = range.bytes - at;
        (void)madvise(range.data + at, left < PF_ANNOUNCE_BYTES ? left : PF_ANNOUNCE_BYTES, MADV_WILLNEED);
    }
}

void pf_pages_scatter(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_whole_pages(data, bytes);
    (void)madvise(range.data, range.bytes, MADV_RANDOM);
}

void pf_pages_drop(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_inner_pages(data, bytes);
    if (range.bytes == 0) return;
#  if defined(__linux__)
    if (madvise(range.data, range.bytes, MADV_PAGEOUT) == 0) return;
#  endif
    (void)madvise(range.data, range.bytes, MADV_DONTNEED);
}

bool pf_pages_fetch(const void *data, uint64_t bytes) {
#  if defined(__linux__)
    const pf_page_range range = pf_whole_pages(data, bytes);
    int code = 0;
    do {
        code = madvise(range.data, range.bytes, MADV_POPULATE_READ) == 0 ? 0 : errno;
    } while (code == EINTR || code == EAGAIN);
    if (code != EINVAL) return code == 0;
#  endif
    pf_touch(data, bytes);
    return true;
}

bool pf_pages_lock(const void *data, uint64_t bytes) {
    const pf_page_range range = pf_whole_pages(data, bytes);
    return mlock(range.data, range.bytes) == 0;
}

#endif

void pf_pages_enlarge(void *data, uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const pf_page_range range = pf_whole_pages(data, bytes);
    (void)madvise(range.data, range.bytes, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes; /* others do it unasked, or not at all */
#endif
}
