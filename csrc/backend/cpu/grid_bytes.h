/* The grids of the IQ formats with a byte for each value, as kernels fetch them. */
#ifndef PF_BACKEND_CPU_GRID_BYTES_H
#define PF_BACKEND_CPU_GRID_BYTES_H

#include <stdint.h>

typedef struct pf_grid_bytes {
    uint64_t iq2_xxs[256], iq2_xs[512], iq2_s[1024];
    uint64_t iq1[2048];             /* 8 times the code, and 8: the value is (byte - 16) / 8 */
    uint32_t iq3_xxs[256], iq3_s[512];
} pf_grid_bytes;

extern pf_grid_bytes pf_grids;

/* Called by the init of every kernel set that reads them, of which one runs at a time. */
void pf_grids_fill(void);

#endif
