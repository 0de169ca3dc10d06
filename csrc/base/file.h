/* Files: read-only maps, and writing beside the destination with a rename at the end. Paths are UTF-8. */
#ifndef PF_BASE_FILE_H
#define PF_BASE_FILE_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* A whole file, mapped read-only and shared. data is NULL for an empty file. */
typedef struct pf_map {
    const uint8_t *data;
    uint64_t size;
    void *handle; /* Windows mapping object, else NULL */
} pf_map;

pf_status pf_map_open(const char *path, pf_map *out, pf_error *err);
void pf_map_close(pf_map *map); /* leaves *map zeroed; a zeroed map is allowed */

/* A new file under a temporary name beside `path`; commit flushes it and renames it over `path`, abort removes it.
 * Writes are buffered, so an error may come with a later call. */
typedef struct pf_writer pf_writer;
pf_status pf_writer_open(const char *path, pf_writer **out, pf_error *err);
pf_status pf_writer_write(pf_writer *writer, const void *data, uint64_t size, pf_error *err);
pf_status pf_writer_commit(pf_writer *writer, pf_error *err); /* frees the writer, also on failure */
void pf_writer_abort(pf_writer *writer);                      /* frees the writer; NULL is allowed */

#endif
