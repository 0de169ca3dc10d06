/* Layouts: format/blocks_iq.c. */
#include "quantize/grid_formats.h"

#include "format/dtypes.h"
#include "format/iq_grids.h"

#include <stddef.h>

static void store_u16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void store_u32(uint8_t *p, uint32_t value) {
    store_u16(p, value);
    store_u16(p + 2, value >> 16);
}

/* Four times seven bits of signs, and a scale above them. */
static uint32_t signs_and_scale(const uint8_t *signs, int scale) {
    uint32_t word = (uint32_t)scale << 28;
    for (int k = 0; k < 4; ++k) word |= (uint32_t)(signs[k] & 127u) << 7 * k;
    return word;
}

static void pack_iq2_xxs(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block) {
    store_u16(block, d);
    for (int part = 0; part < 8; ++part) {
        for (int k = 0; k < 4; ++k) block[2 + 8 * part + k] = (uint8_t)points[4 * part + k];
        store_u32(block + 2 + 8 * part + 4, signs_and_scale(signs + 4 * part, scales[part]));
    }
}

static void pack_iq2_xs(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block) {
    store_u16(block, d);
    for (int k = 0; k < 32; ++k) store_u16(block + 2 + 2 * k, (uint32_t)points[k] | (signs[k] & 127u) << 9);
    for (int k = 0; k < 8; ++k) block[66 + k] = (uint8_t)(scales[2 * k] | scales[2 * k + 1] << 4);
}

static void pack_iq2_s(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block) {
    store_u16(block, d);
    for (int k = 0; k < 8; ++k) {
        uint32_t high = 0;
        for (int j = 0; j < 4; ++j) {
            block[2 + 4 * k + j] = (uint8_t)points[4 * k + j];
            block[34 + 4 * k + j] = signs[4 * k + j];
            high |= (uint32_t)(points[4 * k + j] >> 8) << 2 * j;
        }
        block[66 + k] = (uint8_t)high;
        block[74 + k] = (uint8_t)(scales[2 * k] | scales[2 * k + 1] << 4);
    }
}

static void pack_iq3_xxs(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block) {
    store_u16(block, d);
    for (int k = 0; k < 64; ++k) block[2 + k] = (uint8_t)points[k];
    for (int part = 0; part < 8; ++part) store_u32(block + 66 + 4 * part, signs_and_scale(signs + 4 * part, scales[part]));
}

static void pack_iq3_s(const int *points, const uint8_t *signs, const int *scales, uint16_t d, uint8_t *block) {
    store_u16(block, d);
    for (int k = 0; k < 8; ++k) {
        uint32_t high = 0;
        for (int j = 0; j < 8; ++j) {
            block[2 + 8 * k + j] = (uint8_t)points[8 * k + j];
            high |= (uint32_t)(points[8 * k + j] >> 8) << j;
        }
        block[66 + k] = (uint8_t)high;
    }
    for (int k = 0; k < 32; ++k) block[74 + k] = signs[k];
    for (int k = 0; k < 4; ++k) block[106 + k] = (uint8_t)(scales[2 * k] | scales[2 * k + 1] << 4);
}

static const float magnitudes_iq2[] = {8, 25, 43};
static const float magnitudes_iq3_xxs[] = {4, 12, 20, 28, 36, 44, 52, 62};
static const float magnitudes_iq3_s[] = {1, 3, 5, 7, 9, 11, 13, 15};

static const pf_grid_format formats[] = {
    {PF_IQ2_XXS, pf_grid_iq2_xxs, 256, 8, 2, 32, true, 0.125f, magnitudes_iq2, pack_iq2_xxs},
    {PF_IQ2_XS, pf_grid_iq2_xs, 512, 8, 2, 16, true, 0.125f, magnitudes_iq2, pack_iq2_xs},
    {PF_IQ2_S, pf_grid_iq2_s, 1024, 8, 2, 16, false, 0.125f, magnitudes_iq2, pack_iq2_s},
    {PF_IQ3_XXS, pf_grid_iq3_xxs, 256, 4, 3, 32, true, 0.25f, magnitudes_iq3_xxs, pack_iq3_xxs},
    {PF_IQ3_S, pf_grid_iq3_s, 512, 4, 3, 32, false, 1.0f, magnitudes_iq3_s, pack_iq3_s},
};

const pf_grid_format *pf_grid_format_of(uint32_t type) {
    for (size_t k = 0; k < sizeof formats / sizeof formats[0]; ++k) {
        if (formats[k].type == type) return &formats[k];
    }
    return NULL;
}
