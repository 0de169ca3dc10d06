/* The tile kernels of a set (kernels.h) against its own products of any number of tokens: the same bits, for counts of rows,
 * tokens and columns around the sizes of panels, tiles and batches. */
#include "gate.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 131, ACT_ROWS = 7 };

/* gathered: activations and outputs in another order, added to what is there. */
static void check_tiles(const pf_cpu_kernels *k, const test_weight *w, int kind, pf_acts_form form, int64_t n,
                        bool gathered, const buffer *act, int64_t act_stride) {
    const pf_tile_kernels *tiles = &k->tiles;
    const int planes = form == PF_ACTS_Q8 ? PF_Q8_PLANES : PF_Q16_PLANES;
    const int64_t cols = w->w.cols, rows = w->w.rows, ld = rows + 3, n_tile = (n + PF_TILE_TOKENS - 1) / PF_TILE_TOKENS;
    const int64_t tile_bytes = tiles->packed_bytes(planes, cols), begin = rows > 4 ? 1 : 0;
    int32_t in[MOST_TOKENS], to[MOST_TOKENS];
    float gain[MOST_TOKENS];
    for (int64_t i = 0; i < n; ++i) {
        in[i] = (int32_t)gate_below(ACT_ROWS);
        to[i] = (int32_t)(n - 1 - i);
        gain[i] = gate_normal();
    }
    output got = gate_output(n * ld), want = gate_output(n * ld);
    for (int64_t i = 0; gathered && i < n * ld; ++i) got.y[i] = want.y[i] = (float)i;
    buffer scratch = gate_aligned(tiles->scratch_bytes(cols)), packed = gate_aligned(n_tile * tile_bytes);
    float *row = malloc((size_t)cols * sizeof *row);
    if (!row) exit(2);
    pf_gemm g = {.w = &w->w, .matrix = w->w.count - 1, .act = act->data, .act_stride = act_stride, .n = n,
                 .in_rows = in, .out_rows = gathered ? to : NULL, .gain = gathered ? gain : NULL, .ldy = ld};
    g.y = want.y;
    g.scratch = row;
    (form == PF_ACTS_Q8 ? k->gemm_q8 : k->gemm_q16)[kind](k, &g, begin, rows);
    gate_poison(&scratch);
    gate_poison(&packed);
    for (int64_t tile = 0; tile < n_tile; ++tile) {
        const int64_t first = tile * PF_TILE_TOKENS, left = n - first;
        tiles->pack(&g, planes, first, left < PF_TILE_TOKENS ? left : PF_TILE_TOKENS, packed.data + tile * tile_bytes);
    }
    g.y = got.y;
    g.scratch = (float *)(void *)scratch.data;
    g.packed = packed.data;
    g.next = n % 2 ? w->data.data : NULL;
    g.next_bytes = n % 2 ? w->data.bytes : 0;
    (form == PF_ACTS_Q8 ? tiles->gemm_q8 : tiles->gemm_q16)[kind](k, &g, begin, rows);
    bool same = gate_output_intact(&got);
    for (int64_t t = 0; t < n; ++t) {
        const float *a = got.y + t * ld, *b = want.y + t * ld;
        same = same && gate_same(a + begin, b + begin, rows - begin) && memcmp(a, b, (size_t)begin * 4) == 0 &&
               memcmp(a + rows, b + rows, (size_t)(ld - rows) * 4) == 0;
    }
    CHECK(same, "differs from the products of any number of tokens");
    free(row);
    gate_free(&scratch);
    gate_free(&packed);
    gate_output_free(&got);
    gate_output_free(&want);
}

void gate_tiles(const pf_cpu_kernels *k) {
    static const int64_t shapes[][2] = {{1, 32}, {15, 288}, {33, 256}, {64, 96}, {83, 1024 + 160}, {37, 4096}};
    static const int64_t counts[] = {1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 17, 64, 65, MOST_TOKENS};
    const uint64_t random_before = gate_reseed(3);
    for (int item = 0; k->tiles.from > 0 && item < 2 * PF_W_COUNT; ++item) {
        const int kind = item / 2;
        const pf_acts_form form = item % 2 ? PF_ACTS_Q8 : PF_ACTS_Q16;
        if (!(item % 2 ? k->tiles.gemm_q8 : k->tiles.gemm_q16)[kind]) continue;
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
            const int64_t rows = shapes[s][0], cols = gate_whole(gate_types[kind], shapes[s][1]);
            const int64_t stride = pf_acts_stride(form, cols);
            test_weight w = gate_weight(gate_types[kind], rows, cols, 2, false, s % 2 == 0, (place)(s % PLACES));
            buffer act = gate_aligned(ACT_ROWS * stride);
            float *x = malloc((size_t)cols * sizeof *x);
            if (!x) exit(2);
            for (int64_t t = 0; t < ACT_ROWS; ++t) {
                gate_floats(x, cols, 30.0f);
                (item % 2 ? k->quantize_q8 : k->quantize_q16)(x, cols, 0, cols, act.data + t * stride);
            }
            for (size_t c = 0; c < sizeof counts / sizeof *counts; ++c) {
                if (cols >= 4096 && c % 4 != 0) continue;
                gate_context("%s tiles %d of type %d, %lld x %lld, %lld tokens", k->name, item % 2,
                             (int)gate_types[kind], (long long)rows, (long long)cols, (long long)counts[c]);
                check_tiles(k, &w, kind, form, counts[c], (s + c) % 2 == 0, &act, stride);
            }
            free(x);
            gate_free(&act);
            gate_weight_free(&w);
        }
    }
    (void)gate_reseed(random_before);
}
