/* Memory pages: those of a mapped file into memory before they are used, and kept there; large ones for plain
 * memory. */
#ifndef PF_BASE_PAGES_H
#define PF_BASE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* Tells the system that the bytes at data will be read soon: it starts reading them, and the call does not wait. */
void pf_pages_announce(const void *data, uint64_t bytes);
/* Reads them, so that using them will wait for no disk. False when the disk fails. */
bool pf_pages_fetch(const void *data, uint64_t bytes);
/* Reads them and keeps them in memory until they are unmapped. False when the disk fails or the system's limit on
 * locked memory does not allow it. */
bool pf_pages_lock(const void *data, uint64_t bytes);
/* Tells the system to read nothing around what is used: what will be needed is announced. */
void pf_pages_scatter(const void *data, uint64_t bytes);
/* Gives the memory of the whole pages within a range back; using them reads them from the file again. */
void pf_pages_drop(const void *data, uint64_t bytes);

/* Asks for large pages, which cost fewer address translations, behind memory of pf_region_alloc that is still
 * unused. */
void pf_pages_enlarge(void *data, uint64_t bytes);

#endif
