/* The model-shaped operations built on the kernels (norm, rope, compressor, indexer, attention, hyper-connections,
 * routing): each set against scalar within float rounding, and the same bits for 1, 2 and 3 threads and for a batch
 * evaluated token by token. */
#include "gate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 4, SCALAR = 3 };

static float *floats(int64_t n, float spread) {
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) exit(2);
    gate_floats(x, n, spread);
    return x;
}

/* One operation on tokens [first, first + n) of prepared inputs, into out [n, width]. */
typedef void (*op_fn)(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out);

static pf_exec exec_new(const pf_backend *backend, int threads) {
    pf_exec ex = {.backend = backend, .pool = pf_pool_new(threads), .arena = pf_arena_new(), .exact = true};
    if (!ex.pool || !ex.arena) exit(2);
    return ex;
}

static void check_op(const pf_backend *backend, const pf_backend *scalar, op_fn op, void *inputs, int64_t n,
                     int64_t width, double tolerance) {
    pf_exec ex[RUNS] = {exec_new(backend, 1), exec_new(backend, 2), exec_new(backend, 3), exec_new(scalar, 1)};
    output y[RUNS];
    for (int i = 0; i < RUNS; ++i) {
        y[i] = gate_output(n * width);
        const size_t mark = pf_arena_mark(ex[i].arena);
        op(&ex[i], inputs, 0, n, y[i].y);
        CHECK(gate_output_intact(&y[i]), "wrote outside");
        CHECK(pf_arena_mark(ex[i].arena) == mark, "the arena's mark moved");
    }
    CHECK(gate_same(y[0].y, y[1].y, n * width) && gate_same(y[0].y, y[2].y, n * width), "threads change the result");
    double largest = 0.0;
    for (int64_t i = 0; i < n * width; ++i) {
        if (!gate_poisoned(&y[SCALAR].y[i], 4)) largest = fmax(largest, fabs((double)y[SCALAR].y[i]));
    }
    const double d = gate_distance(y[0].y, y[SCALAR].y, n * width, largest);
    CHECK(d <= tolerance, "differs from scalar by %g of the largest value", d);
    for (int64_t t = 0, step = 1; t < n; t += step, step = 1 + gate_below(3)) {
        step = step < n - t ? step : n - t;
        output part = gate_output(step * width);
        op(&ex[t % 3], inputs, t, step, part.y);
        CHECK(gate_same(part.y, y[0].y + t * width, step * width), "tokens %lld and on differ when cut off",
              (long long)t);
        CHECK(gate_output_intact(&part), "wrote outside");
        gate_output_free(&part);
    }
    for (int i = 0; i < RUNS; ++i) {
        gate_output_free(&y[i]);
        pf_pool_delete(ex[i].pool);
        pf_arena_delete(ex[i].arena);
    }
}

/* ---- Norm and rope ----------------------------------------------------------------------------------------- */

typedef struct norm_inputs {
    float *x, *gain;
    int64_t width;
} norm_inputs;

static void norm_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const norm_inputs *in = inputs;
    const pf_status status = ex->backend->rms_norm(ex, in->x + first * in->width, n, in->width, in->gain, 1e-6f, out);
    CHECK(status == PF_OK, "rms_norm returned %d", status);
}

enum { ROPE_HEADS = 3, ROPE_WIDTH = 96, ROPE_HALF = 16 };
typedef struct rope_inputs {
    float *x, *cosine, *sine;
    bool inverse;
} rope_inputs;

static void rope_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const rope_inputs *in = inputs;
    const pf_rope_table table = {in->cosine + first * ROPE_HALF, in->sine + first * ROPE_HALF, ROPE_HALF};
    memcpy(out, in->x + first * ROPE_HEADS * ROPE_WIDTH, (size_t)(n * ROPE_HEADS * ROPE_WIDTH) * sizeof(float));
    CHECK(ex->backend->rope_tail(ex, out, n, ROPE_HEADS, ROPE_WIDTH, &table, in->inverse) == PF_OK, "rope_tail");
}

static void norm_and_rope(const pf_backend *backend, const pf_backend *scalar) {
    for (int64_t width = 32; width <= 4128; width = width < 100 ? width + 33 : width * 32 + 960) {
        norm_inputs in = {floats(17 * width, 100.0f), floats(width, 3.0f), width};
        gate_context("%s rms_norm of %lld", backend->name, (long long)width);
        check_op(backend, scalar, norm_op, &in, 17, width, 2e-6);
        free(in.gain);
        in.gain = NULL;
        check_op(backend, scalar, norm_op, &in, 17, width, 2e-6);
        free(in.x);
    }
    rope_inputs in = {floats(9 * ROPE_HEADS * ROPE_WIDTH, 10.0f), floats(9 * ROPE_HALF, 1.0f),
                      floats(9 * ROPE_HALF, 1.0f), false};
    gate_context("%s rope_tail", backend->name);
    check_op(backend, scalar, rope_op, &in, 9, ROPE_HEADS * ROPE_WIDTH, 2e-6);
    in.inverse = true;
    check_op(backend, scalar, rope_op, &in, 9, ROPE_HEADS * ROPE_WIDTH, 2e-6);
    free(in.x);
    free(in.cosine);
    free(in.sine);
}

/* ---- Compressor -------------------------------------------------------------------------------------------- */

typedef struct compress_inputs {
    float *a, *g, *ape, *norm, *cosine, *sine;
    int32_t ratio;
    int64_t width, channels, tokens;
} compress_inputs;

enum { COMPRESS_RING = 600, COMPRESS_HALF = 16 };

/* Rows [first, first + n): the contributions enter the rings first, then the rows are made. */
static void compress_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const compress_inputs *in = inputs;
    const size_t ring = (size_t)(COMPRESS_RING * in->channels);
    float *ring_a = malloc(ring * sizeof *ring_a), *ring_g = malloc(ring * sizeof *ring_g);
    if (!ring_a || !ring_g) exit(2);
    memset(ring_a, 0xff, ring * sizeof *ring_a); /* NaN where nothing was pushed */
    memset(ring_g, 0xff, ring * sizeof *ring_g);
    for (int64_t position = 0; position < in->tokens;) {
        const int64_t rest = in->tokens - position, step = rest < 37 ? rest : 37;
        const pf_frontier_args push = {
            .a = in->a + position * in->channels, .g = in->g + position * in->channels, .ape = in->ape, .n = step,
            .position = position, .channels = in->channels, .ratio = in->ratio, .ring_a = ring_a, .ring_g = ring_g,
            .ring = COMPRESS_RING,
        };
        CHECK(ex->backend->push_frontier(ex, &push) == PF_OK, "push_frontier");
        position += step;
    }
    const pf_compress_args args = {
        .a = ring_a, .g = ring_g, .ring = COMPRESS_RING, .ratio = in->ratio, .overlap = in->channels > in->width,
        .width = in->width, .first = first, .n = n, .norm = in->norm, .eps = 1e-6f,
        .rope = {in->cosine + first * COMPRESS_HALF, in->sine + first * COMPRESS_HALF, COMPRESS_HALF}, .out = out,
    };
    CHECK(ex->backend->compress(ex, &args) == PF_OK, "compress");
    free(ring_a);
    free(ring_g);
}

static void compressors(const pf_backend *backend, const pf_backend *scalar) {
    for (int form = 0; form < 2; ++form) {
        compress_inputs in = {.ratio = form ? 128 : 4, .width = form ? 96 : 64};
        in.channels = form ? in.width : 2 * in.width;
        in.tokens = form ? 512 : 52;
        const int64_t rows = in.tokens / in.ratio;
        in.a = floats(in.tokens * in.channels, 10.0f);
        in.g = floats(in.tokens * in.channels, 3.0f);
        in.ape = floats(in.ratio * in.channels, 1.0f);
        in.norm = floats(in.width, 1.0f);
        in.cosine = floats(rows * COMPRESS_HALF, 1.0f);
        in.sine = floats(rows * COMPRESS_HALF, 1.0f);
        gate_context("%s compress ratio %d", backend->name, in.ratio);
        check_op(backend, scalar, compress_op, &in, rows, in.width, 1e-5);
        float *all[] = {in.a, in.g, in.ape, in.norm, in.cosine, in.sine};
        for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
    }
}

/* ---- Indexer and attention --------------------------------------------------------------------------------- */

enum { HEADS = 5, INDEX_HEADS = 16, WIDTH = 128, ROPE = 32, N_ROW = 80, TOKENS = 39, POSITION = 280, RATIO = 4 };
enum { WINDOW = 40, TOPK = 19 };

typedef struct attend_inputs {
    float *q, *w, *sinks;
    int64_t index_heads;
    pf_rows raw, pool;
    bool selected, window_only, fast; /* fast: not exact */
    int32_t *select, *select_n; /* [TOKENS, TOPK] */
} attend_inputs;

static pf_rows filled_rows(const pf_backend *scalar, pf_row_format format, int32_t width, int32_t rope,
                           int64_t capacity, int64_t first, int64_t n) {
    pf_rows rows = {.format = format, .width = width, .rope = rope, .capacity = capacity};
    rows.row_bytes = pf_row_bytes(format, width, rope);
    rows.data = malloc((size_t)(capacity * rows.row_bytes));
    if (!rows.data) exit(2);
    memset(rows.data, 0xff, (size_t)(capacity * rows.row_bytes)); /* NaN in rows that nobody may see */
    pf_exec ex = exec_new(scalar, 1);
    float *x = floats(n * width, 3.0f);
    scalar->store_rows(&ex, &rows, first, n, x);
    free(x);
    pf_pool_delete(ex.pool);
    pf_arena_delete(ex.arena);
    return rows;
}

/* A few tokens have one value that is much larger. */
static void spread_queries(float *q, float factor) {
    for (int64_t i = 0; i < TOKENS * INDEX_HEADS; i += 100) q[i * WIDTH] *= factor;
}

/* As the model does before it scores FP4 rows. */
static void round_queries(const pf_backend *scalar, float *q) {
    pf_exec ex = exec_new(scalar, 1);
    CHECK(scalar->round_fp4(&ex, q, TOKENS * INDEX_HEADS, WIDTH) == PF_OK, "round_fp4");
    pf_pool_delete(ex.pool);
    pf_arena_delete(ex.arena);
}

static void score_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const attend_inputs *in = inputs;
    const pf_index_args args = {
        .q = in->q + first * in->index_heads * WIDTH, .w = in->w + first * in->index_heads, .scale = 0.3f,
        .n_token = n, .position = POSITION + first, .n_head = in->index_heads, .ratio = RATIO, .rows = &in->pool,
        .scores = out, .ld = N_ROW + 3,
    };
    CHECK(ex->backend->index_scores(ex, &args) == PF_OK, "index_scores");
    for (int64_t t = 0; t < n; ++t) {
        const int64_t seen = (POSITION + first + t + 1) / RATIO;
        CHECK(gate_poisoned(out + t * args.ld + seen, (args.ld - seen) * 4), "wrote scores of rows not visible");
    }
}

static void attend_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const attend_inputs *in = inputs;
    const pf_attn_args args = {
        .q = in->q + first * HEADS * WIDTH, .out = out, .n_token = n, .position = POSITION + first, .n_head = HEADS,
        .head_dim = WIDTH, .window = WINDOW, .sinks = in->sinks, .scale = 0.09f, .raw = &in->raw,
        .pool = in->window_only ? NULL : &in->pool, .ratio = in->window_only ? 0 : RATIO,
        .select = in->selected ? in->select + first * TOPK : NULL, .select_n = in->select_n + first,
        .select_ld = TOPK,
    };
    ex->exact = !in->fast;
    CHECK(ex->backend->sparse_attn(ex, &args) == PF_OK, "sparse_attn");
}

/* The k best in ascending order, the lower index first among equals, by plain counting. */
static void check_topk(const pf_backend *backend, const float *scores, int64_t ld, attend_inputs *in) {
    pf_exec ex = exec_new(backend, 2);
    gate_context("%s topk", backend->name);
    CHECK(backend->topk(&ex, scores, ld, TOKENS, POSITION, RATIO, TOPK, in->select, in->select_n) == PF_OK, "failed");
    for (int64_t t = 0; t < TOKENS; ++t) {
        const int64_t seen = (POSITION + t + 1) / RATIO;
        const float *s = scores + t * ld;
        int64_t n = 0;
        bool same = true;
        for (int64_t j = 0; j < seen; ++j) {
            int64_t better = 0;
            for (int64_t i = 0; i < seen; ++i) better += s[i] > s[j] || (s[i] == s[j] && i < j);
            if (better < TOPK) same = same && n < in->select_n[t] && in->select[t * TOPK + n++] == j;
        }
        CHECK(same && n == in->select_n[t], "token %lld", (long long)t);
    }
    pf_pool_delete(ex.pool);
    pf_arena_delete(ex.arena);
}

static void attention(const pf_backend *backend, const pf_backend *scalar) {
    static const pf_row_format kv[] = {PF_ROW_F32, PF_ROW_F16, PF_ROW_KV_FP8};
    int32_t select[TOKENS * TOPK], select_n[TOKENS];
    attend_inputs in = {.q = floats(TOKENS * INDEX_HEADS * WIDTH, 3.0f), .w = floats(TOKENS * INDEX_HEADS, 3.0f),
                        .sinks = floats(HEADS, 2.0f), .select = select, .select_n = select_n};
    float *scores = floats(TOKENS * N_ROW, 1.0f);
    for (int i = 0; i < TOKENS * N_ROW; ++i) scores[i] = roundf(scores[i] * 4.0f); /* many ties */
    check_topk(backend, scores, N_ROW, &in);
    for (int format = PF_ROW_F32; format <= PF_ROW_IDX_FP4; ++format) {
        in.pool = filled_rows(scalar, (pf_row_format)format, WIDTH, ROPE, N_ROW + 5, 0, N_ROW);
        const bool integers = format == PF_ROW_IDX_FP4;
        if (integers) {
            spread_queries(in.q, 1024.0f); /* so that these heads' scales are too far apart to be levelled */
            round_queries(scalar, in.q);
        }
        for (in.index_heads = HEADS; in.index_heads <= INDEX_HEADS; in.index_heads += INDEX_HEADS - HEADS) {
            gate_context("%s index_scores, row format %d, %d heads", backend->name, format, (int)in.index_heads);
            check_op(backend, scalar, score_op, &in, TOKENS, N_ROW + 3, integers ? 0.0 : 1e-5);
        }
        free(in.pool.data);
    }
    spread_queries(in.q, 1.0f / 1024.0f); /* attention's softmax would be all one row's */
    for (size_t i = 0; i < sizeof kv / sizeof *kv; ++i) {
        in.raw = filled_rows(scalar, kv[i], WIDTH, ROPE, WINDOW + TOKENS + 9, POSITION - WINDOW + 1,
                             WINDOW + TOKENS - 1);
        in.pool = filled_rows(scalar, kv[i], WIDTH, ROPE, N_ROW + 5, 0, N_ROW);
        for (int form = 0; form < 6; ++form) {
            in.window_only = form % 3 == 0;
            in.selected = form % 3 == 2;
            in.fast = form >= 3;
            gate_context("%s sparse_attn, row format %d, form %d", backend->name, (int)kv[i], form);
            const uint64_t state = in.fast ? gate_reseed((uint64_t)form) : 0;
            check_op(backend, scalar, attend_op, &in, TOKENS, HEADS * WIDTH, 1e-5);
            if (in.fast) gate_reseed(state);
        }
        free(in.raw.data);
        free(in.pool.data);
    }
    free(scores);
    free(in.q);
    free(in.w);
    free(in.sinks);
}

/* Attention of other shapes: the model's own; heads and columns that fill nothing up; the first tokens, which see fewer
 * rows than the window; more rows than there are splits for tiles; and plain ones whose tile takes just below 48 KiB of
 * a device's shared memory, more, and as much as every device has. */
typedef struct attend_shape {
    int64_t heads, tokens, position, window, most;
    int32_t width, rope, ratio; /* ratio 0: window only */
    bool plain;                 /* half floats, which are not for tensor cores */
} attend_shape;

typedef struct shape_inputs {
    attend_shape of;
    float *q, *sinks;
    pf_rows raw, pool;
    int32_t *select, *select_n; /* NULL: all rows */
    bool fast, in_place;
} shape_inputs;

static void shape_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const shape_inputs *in = inputs;
    const int64_t token = in->of.heads * in->of.width;
    if (in->in_place) memcpy(out, in->q + first * token, (size_t)(n * token) * sizeof *out);
    const pf_attn_args args = {
        .q = in->in_place ? out : in->q + first * token, .out = out, .n_token = n, .position = in->of.position + first,
        .n_head = in->of.heads, .head_dim = in->of.width, .window = in->of.window, .sinks = in->sinks,
        .scale = 1.0f / sqrtf((float)in->of.width), .raw = &in->raw, .pool = in->of.ratio ? &in->pool : NULL,
        .ratio = in->of.ratio, .select = in->select ? in->select + first * in->of.most : NULL,
        .select_n = in->select ? in->select_n + first : NULL, .select_ld = in->of.most,
    };
    ex->exact = !in->fast;
    CHECK(ex->backend->sparse_attn(ex, &args) == PF_OK, "sparse_attn");
}

/* Up to most of the rows that each token sees, ascending. */
static void choose_rows(shape_inputs *in) {
    for (int64_t t = 0; t < in->of.tokens; ++t) {
        const int64_t seen = (in->of.position + t + 1) / in->of.ratio;
        int32_t n = 0;
        for (int64_t j = 0; j < seen && n < in->of.most - t % 2; ++j) {
            if (gate_below(seen) < in->of.most) in->select[t * in->of.most + n++] = (int32_t)j;
        }
        in->select_n[t] = n;
    }
}

static void attention_shapes(const pf_backend *backend, const pf_backend *scalar) {
    static const attend_shape shapes[] = {
        {64, 3, 700, 128, 30, 512, 64, 4, 0},  {33, 5, 90, 32, 0, 304, 40, 0, 0}, {17, 4, 401, 31, 25, 200, 24, 4, 0},
        {16, 9, 0, 6, 2, 136, 64, 4, 0},       {3, 4, 8190, 40, 2100, 64, 16, 4, 0}, {2, 3, 130, 20, 9, 512, 64, 4, 0},
        {40, 2, 9000, 33, 0, 96, 0, 4, 0},     {9, 2, 70, 33, 0, 298, 2, 0, 1},   {9, 3, 260, 40, 9, 512, 64, 4, 1},
        {3, 2, 40, 20, 0, 620, 4, 0, 1},
    };
    const uint64_t state = gate_reseed(7);
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; ++i) {
        shape_inputs in = {.of = shapes[i / 2], .fast = true, .in_place = i % 2};
        const attend_shape *of = &in.of;
        const int64_t first = of->position < of->window ? 0 : of->position - of->window + 1;
        const int64_t last = of->position + of->tokens, rows = of->ratio ? last / of->ratio : 0;
        if (i % 2 && of->position > 4000) continue; /* takes long */
        in.q = floats(of->tokens * of->heads * of->width, 3.0f);
        in.sinks = floats(of->heads, 2.0f);
        const pf_row_format format = of->plain ? PF_ROW_F16 : PF_ROW_KV_FP8;
        in.raw = filled_rows(scalar, format, of->width, of->rope, of->window + of->tokens, first, last - first);
        if (rows) in.pool = filled_rows(scalar, format, of->width, of->rope, rows + 3, 0, rows);
        if (of->ratio && of->most) {
            in.select = malloc((size_t)(of->tokens * of->most) * sizeof *in.select);
            in.select_n = malloc((size_t)of->tokens * sizeof *in.select_n);
            if (!in.select || !in.select_n) exit(2);
            choose_rows(&in);
        }
        gate_context("%s sparse_attn, %lld heads of %d, position %lld", backend->name, (long long)of->heads, of->width,
                     (long long)of->position);
        check_op(backend, scalar, shape_op, &in, of->tokens, of->heads * of->width, 1e-5);
        void *all[] = {in.q, in.sinks, in.raw.data, in.pool.data, in.select, in.select_n};
        for (size_t k = 0; k < sizeof all / sizeof *all; ++k) free(all[k]);
    }
    gate_reseed(state);
}

/* Index rows of FP4 of other shapes than those above. Scales and weights are such as come, or they are, here and there,
 * the furthest apart, the smallest and the largest with which sums of integers do (cuda/indexer_tiles.cu); or one of
 * these goes further; or some are anything. */
enum { AS_THEY_COME, AT_LIMITS, TOO_FAR_APART, TOO_SMALL, TOO_LARGE, WEIGHTS_TOO_SMALL, WEIGHTS_TOO_LARGE, ANYTHING };

typedef struct index_shape {
    int64_t heads, tokens, position, missing; /* missing: rows that the ring has no place for */
    int32_t width, ratio;
    int rows, queries; /* kinds */
} index_shape;

typedef struct index_inputs {
    index_shape of;
    float *q, *w;
    pf_rows rows;
    int64_t ld;
} index_inputs;

static void index_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const index_inputs *in = inputs;
    const index_shape *of = &in->of;
    const pf_index_args args = {
        .q = in->q + first * of->heads * of->width, .w = in->w + first * of->heads, .scale = 0.3f, .n_token = n,
        .position = of->position + first, .n_head = of->heads, .ratio = of->ratio, .rows = &in->rows, .scores = out,
        .ld = in->ld,
    };
    CHECK(ex->backend->index_scores(ex, &args) == PF_OK, "index_scores");
    for (int64_t t = 0; t < n; ++t) {
        const int64_t seen = (of->position + first + t + 1) / of->ratio;
        CHECK(gate_poisoned(out + t * args.ld + seen, (args.ld - seen) * 4), "wrote scores of rows not visible");
    }
}

/* The biased exponent of group g's scale, of a row or head that is one of four. */
static int exponent_of(int kind, int64_t one, int32_t g) {
    const int second = g % 2 != 0;
    switch (one) {
    case 0: return second ? 123 + (kind == TOO_FAR_APART) : 120;
    case 1: return (kind == TOO_SMALL ? 65 : 95) + second;
    case 2: return (kind == TOO_LARGE ? 190 : 150) - second;
    default: return 118 + (int)gate_below(4);
    }
}

static void spread_rows(const index_shape *of, pf_rows *rows) {
    const int32_t groups = of->width / 32;
    for (int64_t r = 0; r < rows->capacity; ++r) {
        uint8_t *row = rows->data + r * rows->row_bytes, *scale = row + of->width / 2;
        if (r % 7 == 3) memset(row, r % 2 ? 0x77 : 0xff, (size_t)of->width / 2); /* 6 and -6 throughout */
        for (int32_t g = 0; g < groups && of->rows != AS_THEY_COME; ++g) {
            scale[g] = (uint8_t)exponent_of(of->rows, r % 4, g);
            if (of->rows == ANYTHING && r % 3 == 0) scale[g] = (uint8_t)gate_below(256);
        }
        if (of->rows == ANYTHING && r % 16 == 5) scale[groups - 1] = 255; /* NaN */
        if (of->rows == ANYTHING && r % 16 == 6) scale[0] = 0;
    }
}

/* All heads of a token are small, or large, and its weights with them, or they are mixed. */
static void spread_heads(const index_shape *of, float *q, float *w) {
    static const float odd[] = {NAN, INFINITY, 0.0f, -INFINITY, -0.0f, 1e-41f, 3e38f, 1.3f};
    for (int64_t h = 0; h < of->tokens * of->heads; ++h) {
        const int64_t t = h / of->heads, one = t % 4 == 1 || t % 4 == 2 ? t % 4 : h % 4;
        for (int64_t i = 0; i < of->width; ++i) {
            const int exponent = exponent_of(of->queries, one, (int32_t)i / 32);
            const float size = h % 5 == 2 || i % 32 == 7 ? 6.0f : 0.5f * (float)(1 + gate_below(12));
            q[h * of->width + i] = ldexpf(h % 10 != 2 && gate_below(2) ? -size : size, exponent - 127);
        }
        w[h] = 1.0f + (float)gate_below(1 << 20) * 0x1p-20f;
        if (one == 1) w[h] = ldexpf(w[h], of->queries == WEIGHTS_TOO_SMALL ? -90 : -60);
        if (one == 2) w[h] = ldexpf(w[h], of->queries == WEIGHTS_TOO_LARGE ? 77 : 40);
        if (gate_below(2)) w[h] = -w[h];
        if (of->queries == ANYTHING && (h % 3 == 0 || t % 8 == 5)) w[h] = odd[t % 8];
    }
}

static void index_shapes(const pf_backend *backend, const pf_backend *scalar) {
    static const index_shape shapes[] = {
        {64, 25, 290, 0, 128, 4, AS_THEY_COME, AS_THEY_COME},   {64, 13, 140, 0, 128, 4, AT_LIMITS, AT_LIMITS},
        {64, 9, 140, 0, 128, 4, TOO_FAR_APART, AT_LIMITS},      {64, 9, 140, 0, 128, 4, AT_LIMITS, TOO_FAR_APART},
        {64, 9, 140, 0, 128, 4, TOO_SMALL, AT_LIMITS},          {64, 9, 140, 0, 128, 4, AT_LIMITS, TOO_SMALL},
        {64, 9, 140, 0, 128, 4, TOO_LARGE, AT_LIMITS},          {64, 9, 140, 0, 128, 4, AT_LIMITS, TOO_LARGE},
        {64, 9, 140, 0, 128, 4, AT_LIMITS, WEIGHTS_TOO_SMALL},  {64, 9, 140, 0, 128, 4, AT_LIMITS, WEIGHTS_TOO_LARGE},
        {64, 12, 140, 0, 128, 4, ANYTHING, AT_LIMITS},          {64, 16, 140, 0, 128, 4, AT_LIMITS, ANYTHING},
        {61, 9, 131, 19, 128, 4, AS_THEY_COME, AT_LIMITS},      {17, 10, 3, 0, 96, 1, AT_LIMITS, AS_THEY_COME},
        {3, 9, 0, 0, 32, 4, AT_LIMITS, AT_LIMITS},              {33, 8, 200, 0, 64, 4, ANYTHING, ANYTHING},
        {65, 2, 40, 0, 128, 4, AT_LIMITS, TOO_SMALL},           {3, 4, 60, 7, 160, 4, ANYTHING, AT_LIMITS},
        {64, 9, 9000, 0, 64, 128, ANYTHING, AS_THEY_COME},      {2, 9, 1600, 0, 64, 1, AS_THEY_COME, AS_THEY_COME},
    };
    const uint64_t state = gate_reseed(11);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        index_inputs in = {.of = shapes[i]};
        const index_shape *of = &in.of;
        const int64_t n_row = (of->position + of->tokens) / of->ratio, n_head = of->tokens * of->heads;
        pf_exec ex = exec_new(scalar, 1);
        in.ld = n_row + 3;
        in.q = floats(n_head * of->width, 3.0f);
        in.w = floats(n_head, 1.0f);
        if (of->queries == AS_THEY_COME) { /* so that no weight is too small to be levelled */
            for (int64_t h = 0; h < n_head; ++h) in.w[h] = fabsf(in.w[h]) < 1e-30f ? 0.0f : in.w[h];
        } else {
            spread_heads(of, in.q, in.w);
        }
        CHECK(scalar->round_fp4(&ex, in.q, n_head, of->width) == PF_OK, "round_fp4");
        in.rows = filled_rows(scalar, PF_ROW_IDX_FP4, of->width, 0, n_row - of->missing, 0, n_row - of->missing);
        spread_rows(of, &in.rows);
        buffer data = gate_buffer(in.rows.capacity * in.rows.row_bytes, i % 3 == 2 ? ODD : AT_END);
        memcpy(data.data, in.rows.data, (size_t)data.bytes);
        free(in.rows.data);
        in.rows.data = data.data;
        gate_context("%s index_scores, %lld heads of %d, rows of kind %d, queries of kind %d", backend->name,
                     (long long)of->heads, of->width, of->rows, of->queries);
        check_op(backend, scalar, index_op, &in, of->tokens, in.ld, 0.0);
        free(in.q);
        free(in.w);
        gate_free(&data);
        pf_pool_delete(ex.pool);
        pf_arena_delete(ex.arena);
    }
    gate_reseed(state);
}

/* ---- Hyper-connections and routing ------------------------------------------------------------------------- */

enum { STREAMS = 4, EMBD = 100, MIX = (2 + STREAMS) * STREAMS, FLAT = STREAMS * EMBD };
typedef struct mhc_inputs {
    float *streams, *fn, *base, *scale, *y;
    pf_mhc_shape shape;
} mhc_inputs;

/* x, post and comb of a token after one another. */
static void mhc_pre_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    enum { ALL = EMBD + STREAMS + STREAMS * STREAMS };
    const mhc_inputs *in = inputs;
    const pf_mhc_site site = {in->fn, in->base, in->scale};
    float x[32 * EMBD], post[32 * STREAMS], comb[32 * STREAMS * STREAMS];
    CHECK(ex->backend->mhc_pre(ex, &in->shape, &site, in->streams + first * FLAT, n, x, post, comb) == PF_OK,
          "mhc_pre");
    for (int64_t t = 0; t < n; ++t) {
        memcpy(out + t * ALL, x + t * EMBD, EMBD * sizeof *x);
        memcpy(out + t * ALL + EMBD, post + t * STREAMS, STREAMS * sizeof *x);
        memcpy(out + t * ALL + EMBD + STREAMS, comb + t * STREAMS * STREAMS, STREAMS * STREAMS * sizeof *x);
    }
}

static void mhc_post_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const mhc_inputs *in = inputs;
    memcpy(out, in->streams + first * FLAT, (size_t)(n * FLAT) * sizeof *out);
    /* any numbers will do for post and comb */
    CHECK(ex->backend->mhc_post(ex, &in->shape, in->y + first * EMBD, in->fn + first * STREAMS,
                                in->fn + 500 + first * STREAMS * STREAMS, n, out) == PF_OK, "mhc_post");
}

static void mhc_head_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    const mhc_inputs *in = inputs;
    const pf_mhc_site site = {in->fn, in->base, in->scale};
    CHECK(ex->backend->mhc_head(ex, &in->shape, &site, in->streams + first * FLAT, n, out) == PF_OK, "mhc_head");
}

typedef struct route_inputs {
    float *logits, *bias;
    int32_t *table;
} route_inputs;

enum { N_EXPERT = 37, N_USED = 6 };

/* Scores, weights and (exact as floats) the chosen ids. */
static void route_op(pf_exec *ex, void *inputs, int64_t first, int64_t n, float *out) {
    enum { ALL = N_EXPERT + 2 * N_USED };
    const route_inputs *in = inputs;
    float scores[32 * N_EXPERT], weight[32 * N_USED];
    int32_t chosen[32 * N_USED];
    const pf_route_args args = {
        .logits = in->logits + first * N_EXPERT, .bias = in->table ? NULL : in->bias,
        .table = in->table ? in->table + first * N_USED : NULL, .n_token = n, .n_expert = N_EXPERT, .n_used = N_USED,
        .scale = 1.5f, .scores = scores, .chosen = chosen, .weight = weight,
    };
    CHECK(ex->backend->route(ex, &args) == PF_OK, "route");
    for (int64_t t = 0; t < n; ++t) {
        memcpy(out + t * ALL, scores + t * N_EXPERT, N_EXPERT * sizeof *scores);
        memcpy(out + t * ALL + N_EXPERT, weight + t * N_USED, N_USED * sizeof *weight);
        for (int i = 0; i < N_USED; ++i) out[t * ALL + N_EXPERT + N_USED + i] = (float)chosen[t * N_USED + i];
    }
}

static void mixing(const pf_backend *backend, const pf_backend *scalar) {
    mhc_inputs in = {floats(19 * FLAT, 10.0f), floats(MIX * FLAT, 0.1f), floats(MIX, 1.0f), floats(3, 1.0f),
                     floats(19 * EMBD, 10.0f), {STREAMS, 20, EMBD, 1e-6f, 1e-6f}};
    for (int64_t i = 0; i < MIX * FLAT; ++i) in.fn[i] *= 0.1f;
    gate_context("%s mhc_pre", backend->name);
    check_op(backend, scalar, mhc_pre_op, &in, 19, EMBD + STREAMS + STREAMS * STREAMS, 1e-5);
    gate_context("%s mhc_post", backend->name);
    check_op(backend, scalar, mhc_post_op, &in, 19, FLAT, 1e-5);
    gate_context("%s mhc_head", backend->name);
    check_op(backend, scalar, mhc_head_op, &in, 19, EMBD, 1e-5);

    int32_t table[19 * N_USED];
    for (int i = 0; i < 19 * N_USED; ++i) table[i] = (int32_t)gate_below(N_EXPERT);
    route_inputs route = {floats(19 * N_EXPERT, 10.0f), floats(N_EXPERT, 1.0f), NULL};
    for (int e = 0; e < N_EXPERT; ++e) route.logits[7 * N_EXPERT + e] = NAN; /* a token that came out wrong */
    gate_context("%s route", backend->name);
    check_op(backend, scalar, route_op, &route, 19, N_EXPERT + 2 * N_USED, 1e-6);
    route.table = table;
    check_op(backend, scalar, route_op, &route, 19, N_EXPERT + 2 * N_USED, 1e-6);
    float *all[] = {in.streams, in.fn, in.base, in.scale, in.y, route.logits, route.bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

void gate_model_ops(const pf_backend *backend, const pf_backend *scalar) {
    norm_and_rope(backend, scalar);
    compressors(backend, scalar);
    attention(backend, scalar);
    attention_shapes(backend, scalar);
    index_shapes(backend, scalar);
    mixing(backend, scalar);
}
