/* Memory: aligned heap blocks, lazily committed regions, and a growing arena. */
#ifndef PF_BASE_MEMORY_H
#define PF_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PF_ALIGN 64 /* every block below starts on a cache line */

void *pf_alloc(size_t bytes);  /* NULL when out of memory; contents undefined */
void *pf_calloc(size_t count, size_t size); /* zeroed; NULL on overflow too; same alignment, freed by pf_free */
void pf_free(void *block);     /* of pf_alloc or pf_calloc; NULL is allowed */

/* A zero-filled region whose pages take memory only once touched (mmap / VirtualAlloc). NULL when refused.
 * For caches sized by a context that may never fill. */
void *pf_region_alloc(size_t bytes);
void pf_region_free(void *region, size_t bytes);

/* Scratch memory for one forward step: pointers stay valid until the arena is reset to an earlier mark. Grows by
 * adding blocks, and merges them into one at the next pf_arena_reset(.., 0), so a steady state allocates nothing. */
typedef struct pf_arena pf_arena;
pf_arena *pf_arena_new(void);

/* Where an arena's blocks come from, which need not be memory that this process can touch. */
typedef struct pf_block_source {
    void *(*alloc)(void *user, size_t bytes); /* PF_ALIGN aligned; NULL when out of memory */
    void (*free)(void *user, void *block);
    void *user;
} pf_block_source;
pf_arena *pf_arena_new_from(const pf_block_source *source); /* copied */
/* An arena whose memory does not exist: for learning how much of it some work would take. */
pf_arena *pf_arena_new_measuring(void);
void pf_arena_delete(pf_arena *arena);
void *pf_arena_alloc(pf_arena *arena, size_t bytes); /* NULL when out of memory; PF_ALIGN aligned */
size_t pf_arena_mark(const pf_arena *arena);
void pf_arena_reset(pf_arena *arena, size_t mark);
size_t pf_arena_capacity(const pf_arena *arena); /* bytes held */
bool pf_arena_reserve(pf_arena *arena, size_t bytes); /* of a new arena: one block; false when out of memory */
size_t pf_arena_peak(const pf_arena *arena);     /* highest mark yet, or since it was forgotten */
void pf_arena_forget_peak(pf_arena *arena);

#endif
