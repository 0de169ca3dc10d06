/* Integer products of FP4 index rows (backend/cpu/fp4.h): each set equals scalar. */
#include "gate.h"

#include "backend/cpu/ops.h"
#include "format/floats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How far apart the scales of a row or head are: can be levelled; further; anything at all, in rows. */
enum { NEAR, FAR, ANY };

/* Levelled where that must go, scores are those of fp4_dots and weigh_heads of scalar (y0), bit for bit; where it must
 * not, the set says so. */
static void fp4_levelled(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, const uint8_t *const *at, int64_t n_row,
                         int32_t width, const uint8_t *tile, const uint8_t *codes, int64_t n_q, const float *y0,
                         int scales) {
    buffer level = gate_buffer(pf_fp4_level_bytes(width), AT_END), heads = gate_buffer(n_q * width, AT_END);
    buffer head_scales = gate_buffer(n_q * 4, AT_END), w = gate_buffer(n_q * 4, AT_END);
    output y = gate_output(PF_ROW_TILE), want = gate_output(PF_ROW_TILE);
    const pf_fp4_level q = {heads.data, (float *)(void *)head_scales.data};
    float *weights = (float *)(void *)w.data;
    bool fits = true;
    for (int64_t h = 0; h < n_q; ++h) {
        fits &= pf_cpu_fp4_level_query(codes + h * pf_fp4_query_bytes(width), width, q.codes + h * width, q.scales + h);
    }
    gate_floats(weights, n_q, 1.0f);
    CHECK(fits == (scales == NEAR), "heads are levelled, or are not, and should be otherwise");
    fits = k->tiles.fp4_level(at, n_row, width, tile, level.data);
    if (scales != ANY) CHECK(fits == (scales == NEAR), "rows are levelled, or are not, and should be otherwise");
    if (scales == NEAR && fits) {
        k->tiles.fp4_scores(&q, n_q, weights, level.data, width, 0.37f, y.y);
        scalar->weigh_heads(y0, PF_ROW_TILE, PF_ROW_TILE, weights, n_q, 0.37f, want.y);
        CHECK(gate_same(y.y, want.y, PF_ROW_TILE) && gate_output_intact(&y), "not scalar's scores");
    }
    output *outputs[] = {&y, &want};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; ++i) gate_output_free(outputs[i]);
    buffer *buffers[] = {&level, &heads, &head_scales, &w};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; ++i) gate_free(buffers[i]);
}

/* FP4 rows of any codes and scales, some with every product at its largest, against heads that round_fp4 would leave
 * alone: the same floats as scalar's, and near to the products of the values in double. */
static void fp4_products(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, int64_t n_q, int64_t n_row,
                         int32_t width, int scales) {
    const pf_rows rows = {.format = PF_ROW_IDX_FP4, .width = width, .capacity = n_row,
                          .row_bytes = pf_row_bytes(PF_ROW_IDX_FP4, width, 0)};
    const int64_t head = pf_fp4_query_bytes(width), tile_bytes = pf_fp4_tile_bytes(width);
    buffer data = gate_buffer(n_row * rows.row_bytes, ODD), codes = gate_buffer(n_q * head, AT_END);
    buffer q = gate_buffer(n_q * width * 4, AT_END), tile = gate_buffer(tile_bytes, AT_END);
    output y = gate_output(n_q * PF_ROW_TILE), y0 = gate_output(n_q * PF_ROW_TILE), one = gate_output(PF_ROW_TILE);
    const uint8_t *at[PF_ROW_TILE];
    float *heads_at = (float *)(void *)q.data, *row = malloc((size_t)width * sizeof *row);
    if (!row) exit(2);
    gate_bytes(data.data, data.bytes);
    for (int64_t r = 0; r < n_row; ++r) {
        uint8_t *from = data.data + r * rows.row_bytes;
        at[r] = from;
        if (r % 5 == 1) memset(from, r % 2 ? 0x77 : 0xff, (size_t)width / 2); /* 6 and -6 throughout */
        for (int64_t g = 0; g < width / 32 && scales != ANY; ++g) {
            from[width / 2 + g] = (uint8_t)(120 + gate_below(scales == FAR ? 9 : PF_FP4_LEVELS + 1));
        }
        if (scales == FAR) from[width / 2] = (uint8_t)(from[width / 2 + width / 32 - 1] + PF_FP4_LEVELS + 1);
    }
    for (int64_t h = 0; h < n_q; ++h) {
        for (int64_t i = 0; i < width; ++i) {
            const float value = 0.5f * (float)pf_e2m1_doubled[h % 3 == 1 ? 7 + h % 2 * 8 : gate_below(16)];
            const int64_t group = i / 32;
            const int64_t near = (h + group * group) % (PF_FP4_LEVELS + 1), far = (h * 7 + 4 * group) % 11;
            heads_at[h * width + i] = ldexpf(value, (int)(scales == NEAR ? near : far) - 5);
        }
        pf_cpu_fp4_query(heads_at + h * width, width, codes.data + h * head);
    }
    scalar->fp4_tile(at, n_row, width, tile.data);
    scalar->fp4_dots(codes.data, n_q, tile.data, width, y0.y, PF_ROW_TILE);
    gate_poison(&tile);
    k->fp4_tile(at, n_row, width, tile.data);
    k->fp4_dots(codes.data, n_q, tile.data, width, y.y, PF_ROW_TILE);
    CHECK(gate_same(y.y, y0.y, n_q * PF_ROW_TILE) && gate_output_intact(&y), "not scalar's products");
    if (k->tiles.fp4_scores && n_q % PF_TILE_TOKENS == 0 && (width == 64 || width == PF_FP4_LEVEL_WIDTH)) {
        fp4_levelled(k, scalar, at, n_row, width, tile.data, codes.data, n_q, y0.y, scales);
    }
    const int64_t h = gate_below(n_q);
    k->fp4_dots(codes.data + h * head, 1, tile.data, width, one.y, PF_ROW_TILE);
    CHECK(gate_same(one.y, y.y + h * PF_ROW_TILE, PF_ROW_TILE), "head %lld alone differs", (long long)h);
    for (int64_t r = 0; r < n_row && scales != ANY; ++r) {
        double want = 0.0, size = 0.0;
        scalar->load_row(&rows, at[r], row);
        for (int64_t i = 0; i < width; ++i) {
            want += (double)row[i] * (double)heads_at[h * width + i];
            size += fabs((double)row[i] * (double)heads_at[h * width + i]);
        }
        CHECK(fabs((double)one.y[r] - want) <= 3e-7 * size, "row %lld: %g, not %g", (long long)r, (double)one.y[r],
              want);
    }
    free(row);
    output *outputs[] = {&y, &y0, &one};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; ++i) gate_output_free(outputs[i]);
    buffer *buffers[] = {&data, &codes, &q, &tile};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; ++i) gate_free(buffers[i]);
}

void gate_fp4(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const int64_t counts[] = {1, 2, 16, 5, 13, 64}, n_rows[] = {1, 7, 16, 31, 32};
    static const int32_t widths[] = {32, 128, 96, 64};
    for (int turn = 0; turn < 6 * 5 * 4 * 3; ++turn) {
        const int64_t n_q = counts[turn % 6], n_row = n_rows[turn / 6 % 5];
        const int32_t width = widths[turn / 30 % 4];
        gate_context("%s FP4, %lld heads, %lld rows of %d", k->name, (long long)n_q, (long long)n_row, (int)width);
        fp4_products(k, scalar, n_q, n_row, width, turn / 120);
    }
}
