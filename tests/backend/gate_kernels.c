/* Every entry of a kernel table against the scalar one. */
#include "gate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Float sums in another order: the difference against the sum of magnitudes. */
#define SUM_TOLERANCE 2e-6

static void vectors(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    for (int64_t n = 0; n < 4200; n = n < 140 ? n + 1 : n < 4096 ? 4096 : n + 37) {
        gate_context("%s vectors of %lld", k->name, (long long)n);
        buffer a = gate_buffer(n * 4, AT_END), b = gate_buffer(n * 4, n % 2 ? AT_END : AT_START);
        float *x = (float *)(void *)a.data, *z = (float *)(void *)b.data;
        gate_floats(x, n, 100.0f);
        gate_floats(z, n, 100.0f);
        double magnitude = 0.0;
        for (int64_t i = 0; i < n; ++i) magnitude += fabs((double)x[i] * (double)z[i]);
        const float want = scalar->dot(x, z, n), got = k->dot(x, z, n);
        CHECK(gate_distance(&got, &want, 1, magnitude) <= SUM_TOLERANCE, "dot %g, not %g", (double)got, (double)want);

        output y = gate_output(n), y0 = gate_output(n);
        memcpy(y.y, z, (size_t)n * 4);
        memcpy(y0.y, z, (size_t)n * 4);
        k->axpy(y.y, 0.75f, x, n);
        scalar->axpy(y0.y, 0.75f, x, n);
        /* with and without a fused multiplication */
        bool near = true;
        for (int64_t i = 0; i < n; ++i) {
            near = near && fabsf(y.y[i] - y0.y[i]) <= 1e-6f * (fabsf(x[i]) + fabsf(z[i])) + 1e-44f;
        }
        CHECK(near && gate_output_intact(&y), "axpy");
        gate_output_free(&y);
        gate_output_free(&y0);
        gate_free(&a);
        gate_free(&b);
    }
}

static void dequant(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const int64_t widths[] = {32, 64, 96, 256, 288, 4096 + 32, 1, 7, 33, 131, 300};
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        for (size_t i = 0; i < sizeof widths / sizeof *widths; ++i) {
            const int64_t cols = widths[i], rows = 131, count = 2;
            if (!gate_fits(gate_types[kind], cols)) continue;
            if (gate_is_generic(k, scalar, kind) && cols != 256) continue;
            for (int form = 0; form < (gate_types[kind] == PF_FP8 ? 2 : 1) * PLACES; ++form) {
                gate_context("%s dequant of type %d, %lld columns, form %d", k->name, (int)gate_types[kind],
                             (long long)cols, form);
                const int64_t used = cols > 4096 ? 5 : rows;
                const place where = (place)(form % PLACES);
                test_weight w = gate_weight(gate_types[kind], used, cols, count, form >= PLACES, true, where);
                output y = gate_output(cols), y0 = gate_output(cols);
                bool same = true;
                for (int64_t m = 0; m < count; ++m) {
                    for (int64_t row = 0; row < used; ++row) {
                        k->dequant[kind](&w.w, m, row, y.y);
                        scalar->dequant[kind](&w.w, m, row, y0.y);
                        for (int64_t c = 0; c < cols; ++c) {
                            same = same && (y.y[c] == y0.y[c] || (isnan(y.y[c]) && isnan(y0.y[c])));
                        }
                    }
                }
                CHECK(same, "values differ");
                CHECK(gate_output_intact(&y), "wrote outside");
                gate_output_free(&y);
                gate_output_free(&y0);
                gate_weight_free(&w);
            }
        }
    }
}

/* ---- Matrix products --------------------------------------------------------------------------------------- */

typedef struct product {
    const pf_cpu_kernels *k;
    const test_weight *w;
    const float *magnitude; /* [n, rows] */
    pf_acts_form form;
    int kind;
} product;

static const pf_gemm_fn *gemm_of(const pf_cpu_kernels *k, pf_acts_form form) {
    return form == PF_ACTS_Q8 ? k->gemm_q8 : form == PF_ACTS_Q16 ? k->gemm_q16 : k->gemm_f32;
}
static pf_quantize_fn quantizer_of(const pf_cpu_kernels *k, pf_acts_form form) {
    return form == PF_ACTS_Q8 ? k->quantize_q8 : k->quantize_q16;
}
static const char *const form_names[] = {[PF_ACTS_F32] = "f32", [PF_ACTS_Q16] = "q16", [PF_ACTS_Q8] = "q8"};

static void run_product(const product *p, const pf_cpu_kernels *k, pf_gemm *g, int64_t begin, int64_t end) {
    float *scratch = malloc((size_t)g->w->cols * sizeof *scratch);
    if (!scratch) exit(2);
    g->scratch = scratch;
    gemm_of(k, p->form)[p->kind](k, g, begin, end);
    free(scratch);
}

/* Same lanes, same order: one token or one row alone gives the bits it has in the whole. */
static void check_invariance(const product *p, const pf_gemm *whole, const float *y, int64_t begin, int64_t end) {
    for (int trial = 0; trial < 4; ++trial) {
        const int64_t rows = end - begin, first = begin + gate_below(rows), last = first + 1 + gate_below(end - first);
        const int64_t token = gate_below(whole->n), n = 1 + gate_below(whole->n - token);
        output part = gate_output(n * whole->ldy);
        pf_gemm g = *whole;
        g.act += token * g.act_stride;
        g.n = n;
        g.y = part.y;
        run_product(p, p->k, &g, first, last);
        bool same = true, clean = true;
        for (int64_t t = 0; t < n; ++t) {
            const float *got = part.y + t * g.ldy;
            same = same && gate_same(got + first, y + (token + t) * g.ldy + first, last - first);
            clean = clean && gate_poisoned(got, first * 4) && gate_poisoned(got + last, (g.ldy - last) * 4);
        }
        CHECK(same, "rows %lld..%lld of tokens %lld..%lld differ from the whole", (long long)first, (long long)last,
              (long long)token, (long long)(token + n));
        CHECK(clean && gate_output_intact(&part), "wrote outside its rows");
        gate_output_free(&part);
    }
}

/* in_rows, out_rows (repeated) and gain: what the experts use. */
static void check_gather(const product *p, const pf_gemm *whole, const float *y, int64_t begin, int64_t end) {
    enum { N = 6 };
    int32_t in[N], to[N];
    float gain[N];
    for (int i = 0; i < N; ++i) {
        in[i] = (int32_t)gate_below(whole->n);
        to[i] = i == 4 ? to[0] : i;
        gain[i] = gate_normal();
    }
    const int64_t ld = whole->ldy;
    output got = gate_output(N * ld);
    float *want = calloc((size_t)(N * ld), sizeof *want);
    if (!want) exit(2);
    for (int64_t i = 0; i < N * ld; ++i) got.y[i] = want[i] = (float)i;
    for (int i = 0; i < N; ++i) {
        for (int64_t r = begin; r < end; ++r) want[to[i] * ld + r] += gain[i] * y[in[i] * ld + r];
    }
    pf_gemm g = *whole;
    g.n = N;
    g.in_rows = in;
    g.out_rows = to;
    g.gain = gain;
    g.y = got.y;
    run_product(p, p->k, &g, begin, end);
    CHECK(gate_same(got.y, want, N * ld) && gate_output_intact(&got), "gathered rows with gain");
    free(want);
    gate_output_free(&got);
}

static void check_product(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, const test_weight *w, int kind,
                          pf_acts_form form, const float *x, int64_t n) {
    const bool quantised = form != PF_ACTS_F32;
    const int64_t cols = w->w.cols, rows = w->w.rows, ld = rows + 3, matrix = w->w.count - 1;
    const int64_t stride = quantised ? pf_acts_stride(form, cols) : cols * 4;
    const int64_t row_bytes = quantised ? pf_int_row_bytes(pf_acts_planes(form), cols) : stride;
    buffer act = quantised ? gate_aligned((n - 1) * stride + row_bytes) : gate_buffer(n * stride, AT_END);
    buffer act0 = gate_aligned((n - 1) * stride + row_bytes); /* scalar's: a set may order the integers in its own way */
    float *plain = malloc((size_t)cols * sizeof *plain), *magnitude = calloc((size_t)(n * ld), sizeof *magnitude);
    if (!plain || !magnitude) exit(2);
    for (int64_t t = 0; t < n; ++t) {
        if (quantised) quantizer_of(k, form)(x + t * cols, cols, 0, cols, act.data + t * stride);
        else memcpy(act.data + t * stride, x + t * cols, (size_t)stride);
        if (quantised) quantizer_of(scalar, form)(x + t * cols, cols, 0, cols, act0.data + t * stride);
        else memcpy(act0.data + t * stride, x + t * cols, (size_t)stride);
    }
    for (int64_t r = 0; !quantised && r < rows; ++r) {
        scalar->dequant[kind](&w->w, matrix, r, plain);
        for (int64_t t = 0; t < n; ++t) {
            double sum = 0.0;
            for (int64_t c = 0; c < cols; ++c) sum += fabs((double)plain[c] * (double)x[t * cols + c]);
            magnitude[t * ld + r] = (float)sum;
        }
    }
    const product p = {k, w, magnitude, form, kind};
    const int64_t begin = rows > 4 ? 1 : 0, end = rows > 4 ? rows - 1 : rows;
    output y = gate_output(n * ld), y0 = gate_output(n * ld);
    pf_gemm g = {.w = &w->w, .matrix = matrix, .act = act.data, .act_stride = stride, .n = n, .y = y.y, .ldy = ld};
    run_product(&p, k, &g, begin, end);
    pf_gemm g0 = g;
    g0.y = y0.y;
    g0.act = act0.data;
    run_product(&p, scalar, &g0, begin, end);
    bool clean = gate_output_intact(&y);
    double worst = 0.0;
    for (int64_t t = 0; t < n; ++t) {
        const float *row = y.y + t * ld, *row0 = y0.y + t * ld;
        clean = clean && gate_poisoned(row, begin * 4) && gate_poisoned(row + end, (ld - end) * 4);
        for (int64_t r = begin; r < end; ++r) {
            if (quantised) {
                if (!gate_same(row + r, row0 + r, 1)) worst = INFINITY;
            } else {
                worst = fmax(worst, gate_distance(row + r, row0 + r, 1, (double)magnitude[t * ld + r] + 1e-37));
            }
        }
    }
    CHECK(worst <= SUM_TOLERANCE, "differs from scalar by %g of the magnitudes", worst);
    CHECK(clean, "wrote outside its rows");
    check_invariance(&p, &g, y.y, begin, end);
    check_gather(&p, &g, y.y, begin, end);
    gate_output_free(&y);
    gate_output_free(&y0);
    gate_free(&act);
    gate_free(&act0);
    free(plain);
    free(magnitude);
}

static void products(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, pf_acts_form form) {
    static const int64_t widths[] = {32, 96, 256, 416, 512, 1024 + 288, 4096 + 32, 1, 19, 300, 1024 + 256};
    static const int64_t heights[] = {1, 7, 19, 133, 37};
    static const int64_t batches[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 33};
    int turn = 0;
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        const bool is_generic = gate_is_generic(k, scalar, kind);
        CHECK(!gemm_of(k, form)[kind] == !gemm_of(scalar, form)[kind], "type %d is missing", kind);
        if (!gemm_of(k, form)[kind]) continue;
        for (size_t i = 0; i < sizeof widths / sizeof *widths; ++i) {
            const int64_t cols = widths[i];
            if (!gate_fits(gate_types[kind], cols)) continue;
            for (size_t j = 0; j < sizeof batches / sizeof *batches; ++j, ++turn) {
                const int64_t n = batches[j], rows = cols > 4096 ? 19 : heights[turn % 5];
                if (is_generic && (cols != 256 || (n != 1 && n != 7))) continue;
                gate_context("%s gemm_%s of type %d, %lld x %lld, %lld tokens", k->name, form_names[form],
                             (int)gate_types[kind], (long long)rows, (long long)cols, (long long)n);
                /* Integer products equal scalar's whatever the scales, so they get any bytes. */
                const bool extreme = form != PF_ACTS_F32 && turn % 3 == 1;
                test_weight w = gate_weight(gate_types[kind], rows, cols, 2, turn % 2, extreme, (place)(turn % PLACES));
                float *x = malloc((size_t)(n * cols) * sizeof *x);
                if (!x) exit(2);
                gate_floats(x, n * cols, extreme ? 1e30f : 30.0f);
                if (turn % 4 == 2) memset(x, 0, (size_t)cols * sizeof *x);
                pf_cpu_kernels own = *k; /* the bits are the same in any number of streams */
                own.streams = (turn + (int)i) % 2 == 0 ? 2 : PF_STREAMS;
                check_product(&own, scalar, &w, kind, form, x, n);
                free(x);
                gate_weight_free(&w);
            }
        }
    }
}

/* The largest products there are: every weight -128 or 12, every activation at +-127, of q16 with a plane
 * there. */
static void saturation(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, pf_acts_form acts) {
    enum { COLS = 1024, ROWS = 33, N = 8 };
    const float low_plane = (float)(PF_INT_BASE * 126 + 127) / (float)PF_Q16_MAX;
    for (int form = 0; form < 4; ++form) {
        const int kind = form < 2 ? PF_W_Q8_0 : PF_W_MXFP4;
        gate_context("%s gemm_%s, largest products, form %d", k->name, form_names[acts], form);
        test_weight w = gate_weight(gate_types[kind], ROWS, COLS, 1, false, false, AT_END);
        const int64_t block = kind == PF_W_Q8_0 ? PF_Q8_0_BYTES : PF_MXFP4_BYTES;
        const uint8_t byte = kind == PF_W_Q8_0 ? (form ? 0x7f : 0x80) : (form == 2 ? 0x77 : 0xff);
        for (int64_t b = 0; b < w.data.bytes / block; ++b) {
            uint8_t *at = w.data.data + b * block;
            const int64_t head = kind == PF_W_Q8_0 ? 2 : 1;
            memset(at + head, byte, (size_t)(block - head));
        }
        float x[N * COLS];
        for (int i = 0; i < N * COLS; ++i) {
            const int pattern = i / COLS % 4;
            x[i] = pattern == 0 ? 1.0f : pattern == 1 ? -1.0f : i / (pattern - 1) % 2 ? 1.0f : -1.0f;
            /* The block's first keeps its scale. */
            if (acts == PF_ACTS_Q16 && i / COLS >= 4 && i % 32 != 0) x[i] *= low_plane;
        }
        check_product(k, scalar, &w, kind, acts, x, N);
        gate_weight_free(&w);
    }
}

/* Super-blocks of equal bytes, the smallest and largest codes and scales, with every activation at its bounds: sums of more
 * than 32 bits would show. */
static void super_saturation(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    enum { COLS = 768, ROWS = 19, N = 4, SCALES_OF_Q6_K = 192 };
    static const uint8_t bytes[] = {0x00, 0xff, 0x7f, 0x80, 0x88, 0x55};
    float x[N * COLS];
    for (int i = 0; i < N * COLS; ++i) {
        const int pattern = i / COLS;
        x[i] = pattern == 0 || (pattern > 1 && i / (pattern - 1) % 2) ? 1.0f : -1.0f;
    }
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        const pf_dtype_info *type = pf_dtype_lookup((uint32_t)gate_types[kind]);
        if (type->block_size != 256 || !k->gemm_q16[kind]) continue;
        for (size_t i = 0; i < sizeof bytes; ++i) {
            gate_context("%s gemm_q16, largest products, type %s of bytes %02x", k->name, type->name, (unsigned)bytes[i]);
            test_weight w = gate_weight(gate_types[kind], ROWS, COLS, 1, false, false, AT_END);
            memset(w.data.data, bytes[i], (size_t)w.data.bytes);
            for (int64_t at = 0; gate_types[kind] == PF_Q6_K && at < w.data.bytes; at += PF_Q6_K_BYTES) {
                memset(w.data.data + at + SCALES_OF_Q6_K, i % 2 ? 0x7f : 0x80, 16);
            }
            gate_moderate(gate_types[kind], w.data.data, w.data.bytes);
            check_product(k, scalar, &w, kind, PF_ACTS_Q16, x, N);
            gate_weight_free(&w);
        }
    }
}

/* One scale for every block, at the ends of its range, where no other block hides it. */
static void scale_range(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, pf_acts_form acts) {
    enum { COLS = 96, ROWS = 9, N = 2 };
    static const uint16_t scales[2][6] = {{0x0001, 0x0000, 0x8400, 0x7bff, 0x7c00, 0x7e00}, {0, 1, 2, 253, 254, 255}};
    for (int form = 0; form < 12; ++form) {
        const int kind = form < 6 ? PF_W_Q8_0 : PF_W_MXFP4;
        const uint16_t scale = scales[form / 6][form % 6];
        gate_context("%s gemm_%s, scale %x of type %d", k->name, form_names[acts], (unsigned)scale,
                     (int)gate_types[kind]);
        test_weight w = gate_weight(gate_types[kind], ROWS, COLS, 1, false, false, AT_END);
        for (int64_t at = 0; at < w.data.bytes; at += kind == PF_W_Q8_0 ? PF_Q8_0_BYTES : PF_MXFP4_BYTES) {
            if (kind == PF_W_Q8_0) memcpy(w.data.data + at, &scale, 2);
            else w.data.data[at] = (uint8_t)scale;
        }
        float x[N * COLS];
        gate_floats(x, N * COLS, 1.0f);
        for (int i = 0; i < N * COLS; ++i) x[i] *= form % 6 < 3 ? 1e6f : 1.0f;
        check_product(k, scalar, &w, kind, acts, x, N);
        gate_weight_free(&w);
    }
}

/* ---- The table --------------------------------------------------------------------------------------------- */

/* No entry is missing, for any type: operations call them without asking. */
static void complete(const pf_cpu_kernels *k) {
    gate_context("%s table", k->name);
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        const pf_dtype_info *type = pf_dtype_lookup((uint32_t)gate_types[kind]);
        const bool has_integers = (type->uses & PF_TYPE_INTEGER) != 0;
        CHECK(k->dequant[kind] && k->gemm_f32[kind], "nothing computes with %s", type->name);
        CHECK(!k->gemm_q16[kind] == !has_integers, "gemm_q16 of %s is not as the types' table says", type->name);
        CHECK(!k->gemm_q8[kind] == (!has_integers || type->block_size > 32), "gemm_q8 of %s is not as the types' table says",
              type->name);
    }
    CHECK(k->dot && k->axpy && k->quantize_q16 && k->quantize_q8 && k->load_row && k->row_dots && k->softmax_part &&
              k->row_sums && k->weigh_heads && k->fp4_tile && k->fp4_dots && k->swiglu && k->norm && k->pool_add && k->mix &&
              k->collect,
          "an entry is missing");
    const pf_tile_kernels *t = &k->tiles;
    CHECK(t->from == 0 || (t->packed_bytes && t->pack && t->scratch_bytes), "an entry of the tiles is missing");
}

/* An init overrides entries and empties none: what it leaves is what the table had, which here is no address at all. */
static void check_init(const char *name, pf_kernels_init_fn init) {
    enum { LEFT = 0x5a };
    pf_cpu_kernels k;
    uintptr_t word;
    bool emptied = false;
    long left = 0;
    memset(&k, LEFT, sizeof k);
    init(&k);
    for (size_t at = 0; at + sizeof word <= sizeof k; at += sizeof word) {
        memcpy(&word, (const uint8_t *)&k + at, sizeof word);
        emptied = emptied || word == 0;
        left += gate_poisoned_by((const uint8_t *)&k + at, sizeof word, LEFT) ? 1 : 0;
    }
    gate_context("%s init", name);
    CHECK(!emptied && left > 0, "it empties entries that it does not list, instead of leaving those of the set below");
}

static void inits(const pf_cpu_kernels *k) {
#if defined(__x86_64__)
    const bool is_avx512 = strcmp(k->name, "avx512") == 0, is_amx = strcmp(k->name, "amx") == 0;
    if (strcmp(k->name, "avx2") == 0) check_init("avx2", pf_kernels_avx2_init);
#  if defined(PF_HAS_AVX_VNNI)
    if (strcmp(k->name, "avxvnni") == 0) check_init("avxvnni", pf_kernels_avxvnni_init);
#  endif
    if (is_avx512) check_init("avx512", pf_kernels_avx512_init);
#  if defined(PF_AMX)
    if (is_amx) check_init("amx", pf_kernels_amx_init);
#  else
    (void)is_amx;
#  endif
#elif defined(__aarch64__)
    if (strcmp(k->name, "neon") == 0) check_init("neon", pf_kernels_neon_init);
    if (strcmp(k->name, "dotprod") == 0) check_init("dotprod", pf_kernels_dotprod_init);
#  if defined(PF_HAS_I8MM)
    if (strcmp(k->name, "i8mm") == 0) check_init("i8mm", pf_kernels_i8mm_init);
#  endif
#else
    (void)k;
#endif
}

static void leave(pf_cpu_kernels *k) { (void)k; }
static void turn_words(pf_cpu_kernels *k) { k->q16_words = !k->q16_words; }

/* A set that lists neither decoders nor products: it has the scalar ones, which take its own activations. */
static void inherited(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    enum { ROWS = 19, COLS = 1024 + 256, N = 3 };
    pf_cpu_kernels bare = *k;
    memcpy(bare.dequant, scalar->dequant, sizeof bare.dequant);
    memcpy(bare.gemm_f32, scalar->gemm_f32, sizeof bare.gemm_f32);
    memcpy(bare.gemm_q16, scalar->gemm_q16, sizeof bare.gemm_q16);
    memcpy(bare.gemm_q8, scalar->gemm_q8, sizeof bare.gemm_q8);
    const uint64_t random_before = gate_reseed(1);
    float *x = malloc((size_t)(N * COLS) * sizeof *x);
    if (!x) exit(2);
    gate_floats(x, N * COLS, 30.0f);
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        for (int form = PF_ACTS_F32; form <= PF_ACTS_Q8; ++form) {
            if (!gemm_of(&bare, (pf_acts_form)form)[kind]) continue;
            gate_context("%s without gemm_%s of type %d", k->name, form_names[form], (int)gate_types[kind]);
            test_weight w = gate_weight(gate_types[kind], ROWS, COLS, 2, false, false, AT_END);
            check_product(&bare, scalar, &w, kind, (pf_acts_form)form, x, N);
            gate_weight_free(&w);
        }
    }
    free(x);
    (void)gate_reseed(random_before);
    /* Over a set that keeps q16 in the other way, its products would read nonsense: the scalar ones stand in. */
    gate_context("%s extended", k->name);
    bare = *k;
    pf_kernels_extend(&bare, leave, scalar);
    CHECK(memcmp(&bare, k, sizeof bare) == 0, "a set that lists nothing differs from the one that it extends");
    pf_kernels_extend(&bare, turn_words, scalar);
    CHECK(memcmp(bare.gemm_q16, scalar->gemm_q16, sizeof bare.gemm_q16) == 0 &&
              memcmp(bare.gemm_q8, k->gemm_q8, sizeof bare.gemm_q8) == 0,
          "products of another layout were inherited");
}

static void quantize(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, pf_acts_form acts) {
    static const float special[] = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-38f, 3e38f, -3e38f, INFINITY, NAN, 0.5f, 127.0f,
                                    63.5f, -63.5f, 1e-44f, 2.5e-43f, 1e30f};
    const int planes = pf_acts_planes(acts);
    const int32_t most = acts == PF_ACTS_Q8 ? PF_Q8_MAX : PF_Q16_MAX;
    const pf_quantize_fn fn = quantizer_of(k, acts);
    for (int64_t n = 32; n <= 4128; n = n < 160 ? n + 32 : n == 160 ? 4096 : n + 32) {
        for (int form = 0; form < 6; ++form) {
            gate_context("%s quantize_%s of %lld, form %d", k->name, form_names[acts], (long long)n, form);
            buffer in = gate_buffer(n * 4, AT_END);
            const int64_t bytes = pf_int_row_bytes(planes, n), padded = pf_int_padded(n);
            buffer out = gate_aligned(bytes), want = gate_aligned(bytes);
            float *x = (float *)(void *)in.data;
            gate_floats(x, n, form == 0 ? 1.0f : form == 1 ? 1e35f : 10.0f);
            for (int64_t i = 0; i < n; ++i) {
                if (form == 2) x[i] = special[gate_below(7)];
                if (form == 3 && gate_below(40) == 0) x[i] = special[gate_below(16)];
                if (form == 4) x[i] *= 1e-41f;
                /* ties: a block with the largest magnitude `most` has scale 1 */
                if (form == 5) x[i] = i % 32 == 0 ? (float)most : (float)(gate_below(4 * PF_Q8_MAX) - 254) * 0.5f;
            }
            gate_poison(&out);
            gate_poison(&want);
            fn(x, n, 0, n, out.data);
            quantizer_of(scalar, acts)(x, n, 0, n, want.data);
            const int64_t n_scale = padded / 32, rest = planes * padded + 4 * n_scale;
            const bool words = acts == PF_ACTS_Q16 && k->q16_words;
            bool codes = true;
            for (int64_t i = 0; i < padded; ++i) {
                const int32_t v = words ? pf_int_get_word(out.data, n, i) : pf_int_get(out.data, planes, n, i);
                codes = codes && v == pf_int_get(want.data, planes, n, i);
            }
            CHECK(codes, "codes");
            CHECK(gate_same(pf_int_scales(out.data, planes, n), pf_int_scales(want.data, planes, n), n_scale), "scales");
            const int64_t halves = pf_int_halves_at(n);
            CHECK(acts == PF_ACTS_Q8 || memcmp(out.data + halves, want.data + halves, (size_t)(8 * n_scale)) == 0,
                  "sums of halves");
            CHECK(words || memcmp(out.data + rest, want.data + rest, (size_t)(bytes - rest)) == 0, "sums");
            bool range = true, sums_right = true;
            for (int64_t i = 0; i < padded; ++i) {
                const int32_t v = pf_int_get(want.data, planes, n, i);
                range = range && (i < n ? v >= -most && v <= most : v == 0);
            }
            for (int64_t each = 0; each < planes * padded / 32; ++each) {
                const int64_t plane = each / (padded / 32), block = each % (padded / 32);
                const int8_t *values = (const int8_t *)want.data + plane * padded + pf_int_place(block);
                int32_t sums[2] = {0, 0};
                int16_t stored[2];
                for (int i = 0; i < 32; ++i) sums[i % 4 / 2] += values[i / 4 * PF_INT_QUADS + i % 4];
                memcpy(stored, pf_int_sums(want.data, planes, n, (int)plane) + 4 * block, sizeof stored);
                for (int i = 0; i < 2; ++i) sums_right = sums_right && stored[i] == -PF_INT_BIAS * sums[i];
            }
            CHECK(range, "a value out of range, or not zero behind the last");
            CHECK(sums_right, "the sums are not those of the values");
            /* In two parts, the later one first. */
            const int64_t cut = gate_below(n / 32 + 1) * 32;
            gate_poison(&want);
            fn(x, n, cut, n, want.data);
            if (cut > 0) fn(x, n, 0, cut, want.data);
            CHECK(memcmp(out.data, want.data, (size_t)bytes) == 0, "two parts differ from the whole");
            gate_free(&in);
            gate_free(&out);
            gate_free(&want);
        }
    }
}

static void cache_rows(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const int32_t shapes[][2] = {{512, 64}, {64, 32}, {128, 64}, {256, 64},
                                        {160, 32}, {96, 0},  {100, 36}, {48, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
        for (int f = PF_ROW_F32; f <= PF_ROW_IDX_FP4; ++f) {
            pf_rows rows = {.format = (pf_row_format)f, .width = shapes[s][0], .rope = shapes[s][1], .capacity = 1};
            rows.row_bytes = pf_row_bytes(rows.format, rows.width, rows.rope);
            for (int place_of = 0; place_of < PLACES; ++place_of) {
                gate_context("%s load_row format %d, width %d", k->name, f, rows.width);
                buffer row = gate_buffer(rows.row_bytes, (place)place_of);
                gate_bytes(row.data, row.bytes);
                output y = gate_output(rows.width), y0 = gate_output(rows.width);
                k->load_row(&rows, row.data, y.y);
                scalar->load_row(&rows, row.data, y0.y);
                bool same = true;
                for (int32_t i = 0; i < rows.width; ++i) {
                    same = same && (y.y[i] == y0.y[i] || (isnan(y.y[i]) && isnan(y0.y[i])));
                }
                CHECK(same && gate_output_intact(&y), "values differ");
                gate_output_free(&y);
                gate_output_free(&y0);
                gate_free(&row);
            }
        }
    }
}

/* ---- Heads against rows ------------------------------------------------------------------------------------ */

/* Weights like softmax_part's, scores with NaN and infinities where `special`. */
static void softmaxes(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, int64_t n) {
    for (int form = 0; form < 4; ++form) {
        float s[PF_ROW_TILE], s0[PF_ROW_TILE], top = -INFINITY, top0 = top, sum = 0.0f, sum0 = sum;
        if (form % 2) top = top0 = 1.5f, sum = sum0 = 2.5f;
        gate_floats(s, PF_ROW_TILE, form < 2 ? 3.0f : 100.0f);
        if (form == 3) s[gate_below(n)] = -INFINITY;
        memcpy(s0, s, sizeof s);
        const float shrink = k->softmax_part(s, n, 0.7f, &top, &sum);
        const float want = scalar->softmax_part(s0, n, 0.7f, &top0, &sum0);
        CHECK(top == top0 && fabsf(shrink - want) <= 1e-6f * want, "top %g, not %g", (double)top, (double)top0);
        CHECK(gate_distance(&sum, &sum0, 1, (double)sum0) <= 1e-6, "sum %g, not %g", (double)sum, (double)sum0);
        bool near = true; /* to the value, where that is no denormal */
        for (int64_t i = 0; i < n; ++i) near = near && fabsf(s[i] - s0[i]) <= 4e-7f * s0[i] + 2e-38f;
        CHECK(near, "weights of form %d", form);
    }
    float s[PF_ROW_TILE] = {0}, top = 0.0f, sum = 0.0f;
    s[gate_below(n)] = NAN;
    k->softmax_part(s, n, 1.0f, &top, &sum);
    CHECK(isnan(sum), "a NaN was lost");
}

static void head_products(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, int64_t n_q, int64_t n_row, int64_t d) {
    enum { LD = PF_ROW_TILE };
    buffer q = gate_buffer(n_q * d * 4, AT_END), rows = gate_buffer(n_row * d * 4, AT_END);
    float *fq = (float *)(void *)q.data, *fr = (float *)(void *)rows.data;
    output s = gate_output(n_q * LD), s0 = gate_output(n_q * LD), one = gate_output(LD);
    output acc = gate_output(n_q * d), acc0 = gate_output(n_q * d), out = gate_output(n_row), out0 = gate_output(n_row);
    float *shrink = malloc((size_t)n_q * sizeof *shrink), *w = malloc((size_t)n_q * sizeof *w);
    if (!shrink || !w) exit(2);
    gate_floats(fq, n_q * d, 3.0f);
    gate_floats(fr, n_row * d, 3.0f);
    gate_floats(shrink, n_q, 2.0f);
    gate_floats(w, n_q, 2.0f);
    k->row_dots(fq, n_q, fr, n_row, d, s.y, LD);
    scalar->row_dots(fq, n_q, fr, n_row, d, s0.y, LD);
    bool clean = gate_output_intact(&s);
    double worst = 0.0;
    for (int64_t h = 0; h < n_q; ++h) {
        clean = clean && gate_poisoned(s.y + h * LD + n_row, (LD - n_row) * 4);
        worst = fmax(worst, gate_distance(s.y + h * LD, s0.y + h * LD, n_row, 30.0 * sqrt((double)d)));
        for (int64_t i = n_row; i < LD; ++i) s.y[h * LD + i] = s0.y[h * LD + i] = 0.0f;
    }
    CHECK(worst <= 2e-6 && clean, "row_dots differs by %g", worst);
    /* one head and some of the rows alone */
    const int64_t h = gate_below(n_q), first = gate_below(n_row), n = 1 + gate_below(n_row - first);
    k->row_dots(fq + h * d, 1, fr + first * d, n, d, one.y, LD);
    CHECK(gate_same(one.y, s.y + h * LD + first, n), "head %lld alone differs", (long long)h);

    k->weigh_heads(s.y, LD, n_row, w, n_q, 0.3f, out.y);
    scalar->weigh_heads(s.y, LD, n_row, w, n_q, 0.3f, out0.y);
    CHECK(gate_same(out.y, out0.y, n_row) && gate_output_intact(&out), "weigh_heads");

    gate_floats(acc.y, n_q * d, 3.0f);
    memcpy(acc0.y, acc.y, (size_t)(n_q * d) * 4);
    float *before = malloc((size_t)d * sizeof *before);
    if (!before) exit(2);
    memcpy(before, acc.y + h * d, (size_t)d * 4);
    k->row_sums(s.y, LD, shrink, n_q, fr, n_row, d, acc.y);
    scalar->row_sums(s.y, LD, shrink, n_q, fr, n_row, d, acc0.y);
    const double distance = gate_distance(acc.y, acc0.y, n_q * d, 100.0 * sqrt((double)(d * n_row)));
    CHECK(distance <= 2e-6 && gate_output_intact(&acc), "row_sums differs by %g", distance);
    k->row_sums(s.y + h * LD, LD, shrink + h, 1, fr, n_row, d, before);
    CHECK(gate_same(before, acc.y + h * d, d), "sums of head %lld alone differ", (long long)h);
    free(before);
    free(shrink);
    free(w);
    output *all[] = {&s, &s0, &one, &acc, &acc0, &out, &out0};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) gate_output_free(all[i]);
    gate_free(&q);
    gate_free(&rows);
}

static void heads(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const int64_t widths[] = {512, 128, 64, 100, 7}, counts[] = {1, 2, 5, 7, 12, 64};
    for (int64_t n_row = 1; n_row <= PF_ROW_TILE; n_row += n_row < 6 ? 1 : 13) {
        gate_context("%s softmax_part of %lld", k->name, (long long)n_row);
        softmaxes(k, scalar, n_row);
        for (size_t i = 0; i < sizeof widths / sizeof *widths; ++i) {
            for (size_t j = 0; j < sizeof counts / sizeof *counts; ++j) {
                gate_context("%s %lld heads, %lld rows of %lld", k->name, (long long)counts[j], (long long)n_row,
                             (long long)widths[i]);
                head_products(k, scalar, counts[j], n_row, widths[i]);
            }
        }
    }
}

/* ---- A token's vectors ------------------------------------------------------------------------------------- */

/* In place, as the hyper-connections do it, in widths with and without a rest. */
static void mixes(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const int shapes[][2] = {{5, 4}, {4, 1}, {3, 2}, {1, 1}, {17, 16}};
    for (int i = 0; i < 10; ++i) {
        const int n_in = shapes[i / 2][0], n_out = shapes[i / 2][1];
        const int64_t n = i % 2 ? 96 : 75;
        float w[17 * 16], *out[17], *out0[17];
        const float *in[17], *in0[17];
        output data = gate_output(17 * n), data0 = gate_output(17 * n);
        gate_context("%s mix %d to %d", k->name, n_in, n_out);
        gate_floats(w, 17 * 16, 2.0f);
        gate_floats(data.y, 17 * n, 3.0f);
        memcpy(data0.y, data.y, (size_t)(17 * n) * 4);
        for (int j = 0; j < 17; ++j) {
            in[j] = data.y + j * n;
            in0[j] = data0.y + j * n;
            out[j] = data.y + (j + 1) % 17 * n;
            out0[j] = data0.y + (j + 1) % 17 * n;
        }
        k->mix(in, n_in, w, n_out, out, n);
        scalar->mix(in0, n_in, w, n_out, out0, n);
        CHECK(gate_distance(data.y, data0.y, 17 * n, 100.0) <= 1e-6 && gate_output_intact(&data), "sums differ");
        gate_output_free(&data);
        gate_output_free(&data0);
    }
}

static void collects(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    static const float limits[] = {0.0f, 1.5f, -2.0f, INFINITY, -INFINITY, NAN};
    for (int64_t n = 1; n < 400; n += 1 + n / 3) {
        for (int i = 0; i < 6; ++i) {
            int32_t index[400], index0[400];
            buffer b = gate_buffer(n * 4, AT_END);
            float *s = (float *)(void *)b.data;
            gate_context("%s collect from %lld", k->name, (long long)n);
            gate_floats(s, n, 3.0f);
            for (int64_t j = gate_below(9); j < n; j += 9) s[j] = limits[gate_below(6)];
            const int64_t have = k->collect(s, n, limits[i], index), want = scalar->collect(s, n, limits[i], index0);
            CHECK(have == want && memcmp(index, index0, (size_t)want * 4) == 0, "limit %g", (double)limits[i]);
            gate_free(&b);
        }
    }
}

void gate_kernels(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar) {
    const long failures = gate_failures;
    complete(k);
    inits(k);
    if (gate_failures > failures) return; /* what is missing would be called */
    inherited(k, scalar);
    vectors(k, scalar);
    dequant(k, scalar);
    products(k, scalar, PF_ACTS_F32);
    for (int form = PF_ACTS_Q16; form <= PF_ACTS_Q8; ++form) {
        products(k, scalar, (pf_acts_form)form);
        saturation(k, scalar, (pf_acts_form)form);
        scale_range(k, scalar, (pf_acts_form)form);
        quantize(k, scalar, (pf_acts_form)form);
    }
    super_saturation(k, scalar);
    cache_rows(k, scalar);
    heads(k, scalar);
    mixes(k, scalar);
    collects(k, scalar);
}
