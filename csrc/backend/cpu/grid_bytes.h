/* The grids of the IQ formats as kernels fetch them: with a byte for each value, or as codes whose bytes lie apart. */
#ifndef PF_BACKEND_CPU_GRID_BYTES_H
#define PF_BACKEND_CPU_GRID_BYTES_H

#include <stdint.h>

/* X(grid, entries, number of values of an entry) */
#define PF_GRIDS(X) \
    X(iq2_xxs, 256, 8) X(iq2_xs, 512, 8) X(iq2_s, 1024, 8) X(iq1, 2048, 8) X(iq3_xxs, 256, 4) X(iq3_s, 512, 4)

typedef struct pf_grid_bytes {
    uint64_t iq2_xxs[256], iq2_xs[512], iq2_s[1024];
    uint64_t iq1[2048];             /* 8 times the code, and 8: the value is (byte - 16) / 8 */
    uint32_t iq3_xxs[256], iq3_s[512];
    /* The lower bytes of pf_grid_<grid>'s entries (format/iq_grids.h), then the upper ones. */
#define PF_GRID_CODES(grid, entries, values) uint8_t grid##_codes[2][entries];
    PF_GRIDS(PF_GRID_CODES)
#undef PF_GRID_CODES
} pf_grid_bytes;

extern pf_grid_bytes pf_grids;

/* Called by the init of every kernel set that reads them, of which one runs at a time. */
void pf_grids_fill(void);

#endif
