#include "backend/cpu/grid_bytes.h"

#include "format/iq_grids.h"

pf_grid_bytes pf_grids;

static uint64_t bytes_of(uint32_t entry, const uint8_t *values, int n, int bits) {
    uint64_t bytes = 0;
    for (int j = 0; j < n; ++j) bytes |= (uint64_t)values[entry >> bits * j & ((1u << bits) - 1)] << 8 * j;
    return bytes;
}

void pf_grids_fill(void) {
    static const uint8_t iq1[4] = {8, 16, 24, 0}, iq2[4] = {8, 25, 43, 0}; /* no entry has the code 3 */
    static const uint8_t iq3_xxs[8] = {4, 12, 20, 28, 36, 44, 52, 62}, iq3_s[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    for (int i = 0; i < 256; ++i) pf_grids.iq2_xxs[i] = bytes_of(pf_grid_iq2_xxs[i], iq2, 8, 2);
    for (int i = 0; i < 512; ++i) pf_grids.iq2_xs[i] = bytes_of(pf_grid_iq2_xs[i], iq2, 8, 2);
    for (int i = 0; i < 1024; ++i) pf_grids.iq2_s[i] = bytes_of(pf_grid_iq2_s[i], iq2, 8, 2);
    for (int i = 0; i < 2048; ++i) pf_grids.iq1[i] = bytes_of(pf_grid_iq1[i], iq1, 8, 2);
    for (int i = 0; i < 256; ++i) pf_grids.iq3_xxs[i] = (uint32_t)bytes_of(pf_grid_iq3_xxs[i], iq3_xxs, 4, 3);
    for (int i = 0; i < 512; ++i) pf_grids.iq3_s[i] = (uint32_t)bytes_of(pf_grid_iq3_s[i], iq3_s, 4, 3);
#define FILL_CODES(grid, entries, values)                                      \
    for (int i = 0; i < (entries); ++i) {                                      \
        pf_grids.grid##_codes[0][i] = (uint8_t)pf_grid_##grid[i];              \
        pf_grids.grid##_codes[1][i] = (uint8_t)(pf_grid_##grid[i] >> 8);       \
    }
    PF_GRIDS(FILL_CODES)
#undef FILL_CODES
}
