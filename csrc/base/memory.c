#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE and posix_memalign under -std=c11 */
#endif

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#  include <malloc.h>
#else
#  include <sys/mman.h>
#  if !defined(MAP_NORESERVE)
#    define MAP_NORESERVE 0
#  endif
#endif

/* Under AddressSanitizer the unused part of an arena is poisoned, so that a write past a scratch buffer or a use after
 * the reset is reported like one of the heap. */
#if defined(__SANITIZE_ADDRESS__)
#  define PF_ASAN 1
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define PF_ASAN 1
#  endif
#endif
#if defined(PF_ASAN)
#  include <sanitizer/asan_interface.h>
#  define PF_POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#  define PF_UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#  define PF_POISON(p, n) ((void)(p), (void)(n))
#  define PF_UNPOISON(p, n) ((void)(p), (void)(n))
#endif

/* ---- Heap -------------------------------------------------------------------------------------------------- */

/* Rounds up to whole cache lines, at least one; 0 when that overflows. */
static size_t pf_round_up(size_t bytes) {
    if (bytes == 0) return PF_ALIGN;
    if (bytes > SIZE_MAX - (PF_ALIGN - 1)) return 0;
    return (bytes + PF_ALIGN - 1) & ~(size_t)(PF_ALIGN - 1);
}

void *pf_alloc(size_t bytes) {
    if (pf_round_up(bytes) == 0) return NULL;
    if (bytes == 0) bytes = 1;
#if defined(_WIN32)
    return _aligned_malloc(bytes, PF_ALIGN);
#else
    void *block = NULL;
    return posix_memalign(&block, PF_ALIGN, bytes) == 0 ? block : NULL;
#endif
}

void *pf_calloc(size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) return NULL;
    void *block = pf_alloc(count * size);
    if (block) memset(block, 0, count * size);
    return block;
}

void pf_free(void *block) {
#if defined(_WIN32)
    _aligned_free(block);
#else
    free(block);
#endif
}

/* ---- Regions ----------------------------------------------------------------------------------------------- */

void *pf_region_alloc(size_t bytes) {
    if (bytes == 0) bytes = 1;
#if defined(_WIN32)
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
#else
    void *region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return region == MAP_FAILED ? NULL : region;
#endif
}

void pf_region_free(void *region, size_t bytes) {
    if (!region) return;
    if (bytes == 0) bytes = 1;
#if defined(_WIN32)
    VirtualFree(region, 0, MEM_RELEASE);
#else
    munmap(region, bytes);
#endif
}

/* ---- Arena ------------------------------------------------------------------------------------------------- */

#define PF_ARENA_FIRST ((size_t)64 << 10)   /* smallest block */
#define PF_ARENA_STEP_MAX ((size_t)16 << 20) /* most that is held beyond what was asked for */

typedef struct pf_block {
    struct pf_block *next;
    uint8_t *data;
    size_t start; /* bytes of all blocks before this one: a mark is start + used */
    size_t size;
    size_t used;
} pf_block;

struct pf_arena {
    pf_block_source source; /* alloc NULL: the heap, whose unused parts are poisoned */
    pf_block *first;
    pf_block *current; /* the blocks after it are empty */
    size_t capacity;
    size_t peak;
};

static bool pf_on_heap(const pf_arena *arena) { return arena->source.alloc == NULL; }

static pf_block *pf_block_new(const pf_arena *arena, size_t start, size_t size) {
    pf_block *block = pf_calloc(1, sizeof *block);
    if (!block) return NULL;
    block->data = pf_on_heap(arena) ? pf_alloc(size) : arena->source.alloc(arena->source.user, size);
    if (!block->data) {
        pf_free(block);
        return NULL;
    }
    block->start = start;
    block->size = size;
    if (pf_on_heap(arena)) PF_POISON(block->data, size);
    return block;
}

static void pf_blocks_free(const pf_arena *arena) {
    for (pf_block *block = arena->first; block;) {
        pf_block *next = block->next;
        if (pf_on_heap(arena)) {
            PF_UNPOISON(block->data, block->size);
            pf_free(block->data);
        } else {
            arena->source.free(arena->source.user, block->data);
        }
        pf_free(block);
        block = next;
    }
}

pf_arena *pf_arena_new(void) { return pf_calloc(1, sizeof(pf_arena)); }

pf_arena *pf_arena_new_from(const pf_block_source *source) {
    pf_arena *arena = pf_arena_new();
    if (arena) arena->source = *source;
    return arena;
}

/* Any address will do: nobody looks there. */
static void *alloc_nothing(void *user, size_t bytes) {
    static _Alignas(PF_ALIGN) uint8_t somewhere[PF_ALIGN];
    (void)user, (void)bytes;
    return somewhere;
}

static void free_nothing(void *user, void *block) { (void)user, (void)block; }

pf_arena *pf_arena_new_measuring(void) {
    return pf_arena_new_from(&(pf_block_source){alloc_nothing, free_nothing, NULL});
}

void pf_arena_delete(pf_arena *arena) {
    if (!arena) return;
    pf_blocks_free(arena);
    pf_free(arena);
}

/* A block of `size` bytes behind the current ones. */
static pf_block *pf_arena_append(pf_arena *arena, size_t size) {
    if (size > SIZE_MAX - arena->capacity) return NULL;
    pf_block *block = pf_block_new(arena, arena->capacity, size);
    if (!block) return NULL;
    pf_block **tail = &arena->first;
    while (*tail) tail = &(*tail)->next;
    *tail = block;
    arena->capacity += size;
    return block;
}

/* A block of at least `bytes` behind the current ones. */
static pf_block *pf_arena_grow(pf_arena *arena, size_t bytes) {
    size_t size = arena->capacity < PF_ARENA_STEP_MAX ? arena->capacity : PF_ARENA_STEP_MAX;
    if (size < PF_ARENA_FIRST) size = PF_ARENA_FIRST;
    return pf_arena_append(arena, size < bytes ? bytes : size);
}

void *pf_arena_alloc(pf_arena *arena, size_t bytes) {
    size_t rounded = pf_round_up(bytes);
    if (rounded == 0) return NULL;
    pf_block *block = arena->current;
    while (block && block->size - block->used < rounded) block = block->next;
    if (!block) block = pf_arena_grow(arena, rounded);
    if (!block) return NULL;
    arena->current = block;
    uint8_t *memory = block->data + block->used;
    block->used += rounded;
    if (pf_on_heap(arena)) PF_UNPOISON(memory, bytes);
    if (block->start + block->used > arena->peak) arena->peak = block->start + block->used;
    return memory;
}

size_t pf_arena_mark(const pf_arena *arena) {
    return arena->current ? arena->current->start + arena->current->used : 0;
}

/* One block instead of many. Without the memory for it the many stay, and nothing is lost but speed. */
static void pf_arena_merge(pf_arena *arena) {
    pf_block *merged = pf_block_new(arena, 0, arena->capacity);
    if (!merged) return;
    pf_blocks_free(arena);
    arena->first = merged;
    arena->current = merged;
}

void pf_arena_reset(pf_arena *arena, size_t mark) {
    if (!arena->current || mark > pf_arena_mark(arena)) return;
    pf_block *keep = arena->first;
    while (keep->next && keep->next->start <= mark) keep = keep->next;
    arena->current = keep;
    for (pf_block *block = keep; block; block = block->next) {
        size_t used = block == keep ? mark - block->start : 0;
        if (used < block->used) {
            if (pf_on_heap(arena)) PF_POISON(block->data + used, block->used - used);
            block->used = used;
        }
    }
    if (mark == 0 && arena->first->next) pf_arena_merge(arena);
}

size_t pf_arena_capacity(const pf_arena *arena) { return arena->capacity; }

bool pf_arena_reserve(pf_arena *arena, size_t bytes) {
    const size_t rounded = pf_round_up(bytes);
    if (rounded == 0) return false;
    arena->current = pf_arena_append(arena, rounded);
    return arena->current != NULL;
}

size_t pf_arena_peak(const pf_arena *arena) { return arena->peak; }
void pf_arena_forget_peak(pf_arena *arena) { arena->peak = 0; }
