/* Files mapped for reading. Paths are UTF-8. output.h writes them. */
#ifndef PF_BASE_FILE_H
#define PF_BASE_FILE_H

#include "base/status.h"

#include <stdint.h>

/* A whole file, mapped read-only and shared. data is NULL for an empty file. */
typedef struct pf_map {
    const uint8_t *data;
    uint64_t size;
    void *handle; /* Windows mapping object, else NULL */
    int fault;    /* its number in base/faults.h */
} pf_map;

pf_status pf_map_open(const char *path, pf_map *out, pf_error *err);
void pf_map_close(pf_map *map); /* leaves *map zeroed; a zeroed map is allowed */

#endif
