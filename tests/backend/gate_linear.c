/* embed, linear, experts, swiglu, cache rows and the indexer's roundings, through the backend table: against scalar,
 * with 1, 2 and 3 threads, and one token at a time. */
#include "gate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct runner {
    pf_exec ex;
    atomic_int cancel;
} runner;

/* Squared, of float32 sums: some results are much smaller than what was added up, or behind a clamp. */
#define FLOAT_ERROR 1e-10

/* Activations of a run. */
typedef enum form { FAST, EXACT, INT8, FORMS } form;
static const char *const form_names[] = {[FAST] = "fast", [EXACT] = "exact", [INT8] = "int8"};

static runner *runner_new(const pf_backend *backend, int threads, form acts) {
    runner *r = calloc(1, sizeof *r);
    if (!r) exit(2);
    r->ex = (pf_exec){.backend = backend, .pool = pf_pool_new(threads), .arena = pf_arena_new(), .cancel = &r->cancel,
                      .exact = acts == EXACT, .int8 = acts == INT8};
    if (!r->ex.pool || !r->ex.arena) exit(2);
    return r;
}

static void runner_free(runner *r) {
    pf_pool_delete(r->ex.pool);
    pf_arena_delete(r->ex.arena);
    free(r);
}

/* The same computation at 1, 2 and 3 threads and on the scalar table. */
enum { RUNNERS = 4, SCALAR = 3 };
static void runners_new(runner **r, const pf_backend *backend, const pf_backend *scalar, form acts) {
    for (int i = 0; i < SCALAR; ++i) r[i] = runner_new(backend, i + 1, acts);
    r[SCALAR] = runner_new(scalar, 1, acts);
}
static void runners_free(runner **r) {
    for (int i = 0; i < RUNNERS; ++i) runner_free(r[i]);
}

static float *floats(int64_t n, float spread) {
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) exit(2);
    gate_floats(x, n, spread);
    return x;
}

/* ---- linear ------------------------------------------------------------------------------------------------ */

static void check_linear(runner **r, const test_weight *w, int64_t n) {
    const int64_t cols = w->w.cols, rows = w->w.rows, ldx = cols + 8, ldy = rows + 5;
    float *x = floats(n * ldx, 10.0f);
    output y[RUNNERS];
    for (int i = 0; i < RUNNERS; ++i) {
        y[i] = gate_output(n * ldy);
        const size_t mark = pf_arena_mark(r[i]->ex.arena);
        const pf_status status = r[i]->ex.backend->linear(&r[i]->ex, &w->w, x, ldx, n, y[i].y, ldy);
        CHECK(status == PF_OK, "linear returned %d", status);
        CHECK(pf_arena_mark(r[i]->ex.arena) == mark, "the arena's mark moved");
        bool clean = gate_output_intact(&y[i]);
        for (int64_t t = 0; t < n; ++t) clean = clean && gate_poisoned(y[i].y + t * ldy + rows, (ldy - rows) * 4);
        CHECK(clean, "wrote outside");
    }
    CHECK(gate_same(y[0].y, y[1].y, n * ldy) && gate_same(y[0].y, y[2].y, n * ldy), "threads change the result");
    double norm = 0.0, difference = 0.0;
    for (int64_t i = 0; i < n * ldy; ++i) {
        if (i % ldy >= rows) continue;
        norm += (double)y[SCALAR].y[i] * (double)y[SCALAR].y[i];
        difference += pow((double)y[0].y[i] - (double)y[SCALAR].y[i], 2);
    }
    CHECK(difference <= FLOAT_ERROR * norm, "differs from scalar by %g", sqrt(difference / norm));
    for (int64_t t = 0; t < n; t += 1 + n / 4) {
        output one = gate_output(ldy);
        r[0]->ex.backend->linear(&r[0]->ex, &w->w, x + t * ldx, ldx, 1, one.y, ldy);
        CHECK(gate_same(one.y, y[0].y + t * ldy, rows), "token %lld alone differs", (long long)t);
        gate_output_free(&one);
    }
    /* A slice of the rows is the slice of the result, also of FP8 with its scales per 128 rows. */
    const int64_t first = rows / 3, count = rows - first > 9 ? rows - first - 5 : rows - first;
    const pf_weight slice = pf_weight_rows(&w->w, first, count);
    output part = gate_output(n * count);
    r[1]->ex.backend->linear(&r[1]->ex, &slice, x, ldx, n, part.y, count);
    bool same = gate_output_intact(&part);
    for (int64_t t = 0; t < n; ++t) same = same && gate_same(part.y + t * count, y[0].y + t * ldy + first, count);
    CHECK(same, "rows %lld and on differ", (long long)first);
    gate_output_free(&part);
    for (int i = 0; i < RUNNERS; ++i) gate_output_free(&y[i]);
    free(x);
}

static void linears(const pf_backend *backend, const pf_backend *scalar) {
    static const int64_t shapes[][2] = {{1, 32}, {37, 96}, {301, 160}, {77, 1184}, {131, 4096 + 32}};
    for (int acts = 0; acts < FORMS; ++acts) {
        runner *r[RUNNERS];
        runners_new(r, backend, scalar, (form)acts);
        for (int kind = 0; kind < PF_W_COUNT; ++kind) {
            if (!pf_backend_takes(backend, gate_types[kind])) continue;
            /* A device has its own kernels for all that it takes. */
            const bool is_generic = backend->weight_kinds == scalar->weight_kinds &&
                                    gate_is_generic(backend->kernels, scalar->kernels, kind);
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
                const int64_t rows = shapes[s][0], cols = gate_whole(gate_types[kind], shapes[s][1]);
                for (int64_t n = 1; n <= 33; n = n == 3 ? 9 : n == 9 ? 33 : n + 1) {
                    if (cols > 4096 && n > 3) continue;
                    if (is_generic && (acts == EXACT || s % 2 == 0 || n % 8 != 1)) continue;
                    gate_context("linear type %d %s, %lld x %lld, %lld tokens", (int)gate_types[kind],
                                 form_names[acts], (long long)rows, (long long)cols, (long long)n);
                    test_weight w = gate_weight(gate_types[kind], rows, cols, 1, n % 2, false, (place)(n % PLACES));
                    check_linear(r, &w, n);
                    gate_weight_free(&w);
                }
            }
        }
        runners_free(r);
    }
}

/* Rows that end anywhere, aligned and not; more tokens than any tile has; longer rows than are summed at once. */
static void odd_linears(const pf_backend *backend, const pf_backend *scalar) {
    static const int64_t shapes[][3] = {{19, 7, 1},    {260, 83, 70},  {37, 144, 5},   {131, 656, 10},
                                        {790, 272, 2}, {780, 139, 8}, {40, 4233, 2}, {17, 4480, 9},
                                        {131, 136, 131}};
    for (int acts = 0; acts < INT8; ++acts) {
        runner *r[RUNNERS];
        runners_new(r, backend, scalar, (form)acts);
        for (int kind = 0; kind < 2 * PF_W_COUNT; ++kind) {
            const pf_dtype type = gate_types[kind / 2];
            if (!gate_fits(type, 1) || !pf_backend_takes(backend, type) || (type != PF_FP8 && kind % 2 != 0)) continue;
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
                const int64_t rows = shapes[s][0], cols = shapes[s][1], n = shapes[s][2];
                gate_context("linear type %d %s, %lld x %lld, %lld tokens, scales %d", (int)type, form_names[acts],
                             (long long)rows, (long long)cols, (long long)n, kind % 2);
                test_weight w = gate_weight(type, rows, cols, 1, kind % 2, false, (place)((s + (size_t)kind) % PLACES));
                check_linear(r, &w, n);
                gate_weight_free(&w);
            }
        }
        runners_free(r);
    }
}

static void embeds(const pf_backend *backend, const pf_backend *scalar) {
    enum { N = 5, STREAMS = 3, MOST_COLS = 256 };
    runner *r = runner_new(backend, 2, FAST);
    for (int kind = 0; kind < PF_W_COUNT; ++kind) {
        if (!pf_backend_takes(backend, gate_types[kind])) continue;
        const int64_t cols = gate_whole(gate_types[kind], 160);
        gate_context("embed type %d", (int)gate_types[kind]);
        test_weight w = gate_weight(gate_types[kind], 50, cols, 1, false, false, AT_END);
        const int32_t tokens[N] = {0, 49, 7, 7, 31};
        output x = gate_output(N * STREAMS * cols);
        CHECK(backend->embed(&r->ex, &w.w, tokens, N, STREAMS, x.y) == PF_OK, "failed");
        bool same = gate_output_intact(&x);
        for (int i = 0; i < N * STREAMS; ++i) {
            float row[MOST_COLS];
            ((const pf_cpu_kernels *)scalar->kernels)->dequant[kind](&w.w, 0, tokens[i / STREAMS], row);
            for (int64_t c = 0; c < cols; ++c) same = same && row[c] == x.y[i * cols + c];
        }
        CHECK(same, "rows differ");
        gate_output_free(&x);
        gate_weight_free(&w);
    }
    runner_free(r);
}

/* ---- experts ----------------------------------------------------------------------------------------------- */

enum { E = 7, A = 3, D = 160, F = 96, LIMIT = 2 };

typedef struct experts_case {
    test_weight gate, up, down;
    int64_t n;
    float *x, *weight, *before;
    int32_t *chosen;
} experts_case;

/* Values, and how far from them a run may be: their variance. */
typedef struct expected {
    double *value, *variance;
} expected;

static expected expected_new(int64_t n) {
    const expected e = {calloc((size_t)n, sizeof(double)), calloc((size_t)n, sizeof(double))};
    if (!e.value || !e.variance) exit(2);
    return e;
}

static void expected_free(expected e) {
    free(e.value);
    free(e.variance);
}

/* What orders of sums cost, beside the magnitudes that are added up, and exponentials beside a SwiGLU's value. */
#define SUM_STEP 0x1p-22
#define SWIGLU_STEP 0x1p-20

/* Adds what rounding x to integers costs: to so many steps of the largest value of every 32, evenly distributed. */
static void add_rounding(form acts, const double *x, int64_t n, double *variance) {
    const double most = acts == FAST ? PF_Q16_MAX : PF_Q8_MAX;
    for (int64_t i = 0; i < n && acts != EXACT; ++i) {
        double top = 0.0;
        for (int64_t j = i / 32 * 32; j < n && j < i / 32 * 32 + 32; ++j) top = fmax(top, fabs(x[j]));
        variance[i] += top / most * (top / most) / 12.0;
    }
}

static void reference_product(const pf_cpu_kernels *k, const pf_weight *w, int32_t matrix, expected x, expected y) {
    float *row = malloc((size_t)w->cols * sizeof *row);
    if (!row) exit(2);
    for (int64_t r = 0; r < w->rows; ++r) {
        k->dequant[pf_weight_kind(w->type)](w, matrix, r, row);
        double magnitude = 0.0;
        y.value[r] = y.variance[r] = 0.0;
        for (int64_t c = 0; c < w->cols; ++c) {
            y.value[r] += (double)row[c] * x.value[c];
            y.variance[r] += (double)row[c] * (double)row[c] * x.variance[c];
            magnitude += fabs((double)row[c] * x.value[c]);
        }
        y.variance[r] += SUM_STEP * magnitude * SUM_STEP * magnitude;
    }
    free(row);
}

/* h = weight * silu(min(gate, limit)) * clamp(up, -limit, limit), into gate. */
static void reference_swiglu(double weight, expected gate, expected up) {
    for (int i = 0; i < F; ++i) {
        const double g = fmin(gate.value[i], LIMIT), u = fmax(-LIMIT, fmin(up.value[i], LIMIT));
        const double sigmoid = 1.0 / (1.0 + exp(-g)), h = weight * g * sigmoid * u;
        const double by_gate = weight * u * sigmoid * (1.0 + g * (1.0 - sigmoid)), by_up = weight * g * sigmoid;
        gate.variance[i] = by_gate * by_gate * gate.variance[i] + by_up * by_up * up.variance[i];
        gate.variance[i] += SWIGLU_STEP * h * SWIGLU_STEP * h;
        gate.value[i] = h;
    }
}

/* The definition, in double: out += sum_e w2 (weight * silu(min(w1 x, limit)) * clamp(w3 x, limit)). */
static void reference_experts(const pf_cpu_kernels *k, const experts_case *c, form acts, expected out) {
    const expected gate = expected_new(F), up = expected_new(F), y = expected_new(D);
    for (int64_t t = 0; t < c->n; ++t) {
        const expected x = expected_new(D);
        for (int i = 0; i < D; ++i) {
            x.value[i] = (double)c->x[t * D + i];
            out.value[t * D + i] = (double)c->before[t * D + i];
        }
        add_rounding(acts, x.value, D, x.variance);
        for (int a = 0; a < A; ++a) {
            const int32_t e = c->chosen[t * A + a];
            reference_product(k, &c->gate.w, e, x, gate);
            reference_product(k, &c->up.w, e, x, up);
            reference_swiglu((double)c->weight[t * A + a], gate, up);
            add_rounding(acts, gate.value, F, gate.variance);
            reference_product(k, &c->down.w, e, gate, y);
            for (int i = 0; i < D; ++i) {
                double *sum = &out.value[t * D + i];
                *sum += y.value[i];
                out.variance[t * D + i] += y.variance[i] + SUM_STEP * *sum * SUM_STEP * *sum;
            }
        }
        expected_free(x);
    }
    expected_free(gate);
    expected_free(up);
    expected_free(y);
}

/* What is left of the weights without the experts before `first`. */
static pf_weight held_from(const pf_weight *w, int32_t first) {
    pf_weight held = *w;
    held.data += first * w->rows * w->row_bytes;
    if (w->scale) held.scale += first * w->scale_rows * w->scale_cols * (w->scale_f32 ? (int64_t)sizeof(float) : 1);
    return held;
}

/* All experts at once, or first those before `split`. */
static void run_experts(runner *r, const experts_case *c, int64_t first, int64_t n, int32_t split, output *out) {
    pf_experts_args args = {
        .x = c->x + first * D, .chosen = c->chosen + first * A, .weight = c->weight + first * A, .n_token = n,
        .n_used = A, .expert_end = split, .limit = LIMIT, .out = out->y,
    };
    memcpy(out->y, c->before + first * D, (size_t)(n * D) * sizeof(float));
    const size_t mark = pf_arena_mark(r->ex.arena);
    const int32_t cut = n == 1 ? E / 2 : E; /* in two ranges or in one: the same bits */
    for (args.expert_begin = 0; args.expert_begin < E; args.expert_begin += cut) {
        const int32_t held = args.held_first = args.expert_begin; /* nor are earlier experts there */
        const pf_weight gate = held_from(&c->gate.w, held), up = held_from(&c->up.w, held);
        const pf_weight down = held_from(&c->down.w, held);
        args.gate = &gate;
        args.up = &up;
        args.down = &down;
        args.expert_end = args.expert_begin + cut;
        const pf_status status = r->ex.backend->experts(&r->ex, &args);
        CHECK(status == PF_OK && pf_arena_mark(r->ex.arena) == mark, "experts returned %d", status);
    }
    CHECK(gate_output_intact(out), "wrote outside");
}

/* The matrices of experts [begin, end) alone, the last one first. */
static test_weight gathered(const test_weight *from, int32_t begin, int32_t end) {
    const pf_weight *w = &from->w;
    const int64_t bytes = w->rows * w->row_bytes, n = end - begin;
    const int64_t scales = w->scale_rows * w->scale_cols * (w->scale_f32 ? (int64_t)sizeof(float) : 1);
    test_weight to = {.w = *w, .data = gate_buffer(n * bytes, AT_END)};
    if (w->scale) to.scale = gate_buffer(n * scales, AT_END);
    for (int64_t i = 0; i < n; ++i) {
        memcpy(to.data.data + i * bytes, w->data + (end - 1 - i) * bytes, (size_t)bytes);
        if (w->scale) memcpy(to.scale.data + i * scales, w->scale + (end - 1 - i) * scales, (size_t)scales);
    }
    to.w.data = to.data.data;
    if (w->scale) to.w.scale = to.scale.data;
    return to;
}

/* Those of experts before `split`, and then the others: each time nothing else is there, and nothing else is used. */
static void run_held_experts(runner *r, const experts_case *c, int32_t split, output *out) {
    memcpy(out->y, c->before, (size_t)(c->n * D) * sizeof(float));
    for (int32_t begin = 0, end = split; begin < E; begin = end, end = E) {
        test_weight gate = gathered(&c->gate, begin, end), up = gathered(&c->up, begin, end);
        test_weight down = gathered(&c->down, begin, end);
        int32_t held_at[E];
        for (int32_t e = 0; e < E; ++e) held_at[e] = begin <= e && e < end ? end - 1 - e : -1 - e;
        const pf_experts_args args = {
            .gate = &gate.w, .up = &up.w, .down = &down.w, .x = c->x, .chosen = c->chosen, .weight = c->weight,
            .n_token = c->n, .n_used = A, .expert_end = E, .limit = LIMIT, .out = out->y, .held_at = held_at,
        };
        const pf_status status = r->ex.backend->experts(&r->ex, &args);
        CHECK(status == PF_OK, "experts that are held returned %d", status);
        gate_weight_free(&gate);
        gate_weight_free(&up);
        gate_weight_free(&down);
    }
    CHECK(gate_output_intact(out), "wrote outside");
}

static void check_experts(runner **r, const experts_case *c, form acts) {
    output y[RUNNERS];
    for (int i = 0; i < RUNNERS; ++i) {
        y[i] = gate_output(c->n * D);
        run_experts(r[i], c, 0, c->n, E, &y[i]);
    }
    CHECK(gate_same(y[0].y, y[1].y, c->n * D) && gate_same(y[0].y, y[2].y, c->n * D), "threads change the result");
    const expected want = expected_new(c->n * D);
    reference_experts(r[SCALAR]->ex.backend->kernels, c, acts, want);
    double variance = 0.0, error = 0.0, scalar_error = 0.0, difference = 0.0;
    for (int64_t i = 0; i < c->n * D; ++i) {
        variance += want.variance[i];
        error += pow(want.value[i] - (double)y[0].y[i], 2);
        scalar_error += pow(want.value[i] - (double)y[SCALAR].y[i], 2);
        difference += pow((double)y[0].y[i] - (double)y[SCALAR].y[i], 2);
    }
    expected_free(want);
    /* 1.3 times the error expected was seen: few roundings, as those of one token, are no mean. */
    CHECK(error <= 9.0 * variance, "error %g of what is expected", sqrt(error / variance));
    CHECK(scalar_error <= 9.0 * variance, "scalar error %g of what is expected", sqrt(scalar_error / variance));
    CHECK(difference <= 9.0 * variance, "differs from scalar by %g of the error expected", sqrt(difference / variance));
    for (int64_t t = 0; t < c->n; ++t) {
        output one = gate_output(D);
        run_experts(r[t % 3], c, t, 1, E, &one);
        CHECK(gate_same(one.y, y[0].y + t * D, D), "token %lld alone differs", (long long)t);
        gate_output_free(&one);
    }
    output halves = gate_output(c->n * D);
    run_experts(r[1], c, 0, c->n, 3, &halves);
    CHECK(gate_same(halves.y, y[0].y, c->n * D), "two ranges of experts differ from all at once");
    for (int i = 0; i < RUNNERS; ++i) {
        run_held_experts(r[i], c, 3, &halves);
        CHECK(gate_same(halves.y, y[i].y, c->n * D), "experts that are held elsewhere differ from all at once");
    }
    gate_output_free(&halves);
    for (int i = 0; i < RUNNERS; ++i) gate_output_free(&y[i]);
}

static void experts(const pf_backend *backend, const pf_backend *scalar) {
    static const pf_dtype types[][3] = {
        {PF_MXFP4, PF_MXFP4, PF_MXFP4}, {PF_Q8_0, PF_Q8_0, PF_Q8_0}, {PF_BF16, PF_F16, PF_F32},
        {PF_FP8, PF_FP8, PF_FP8},       {PF_MXFP4, PF_BF16, PF_Q8_0}, {PF_Q8_0, PF_MXFP4, PF_BF16},
        {PF_Q5_1, PF_Q8_0, PF_IQ4_NL}, {PF_MXFP4, PF_MXFP4, PF_Q4_1},
    };
    for (int acts = 0; acts < FORMS; ++acts) {
        runner *r[RUNNERS];
        runners_new(r, backend, scalar, (form)acts);
        for (size_t i = 0; i < sizeof types / sizeof *types; ++i) {
            static const int64_t counts[] = {1, 4, 33, 35, 90};
            if (!pf_backend_takes(backend, types[i][0]) || !pf_backend_takes(backend, types[i][1]) ||
                !pf_backend_takes(backend, types[i][2])) {
                continue;
            }
            for (size_t k = 0; k < sizeof counts / sizeof *counts; ++k) {
                const int64_t n = counts[k];
                if (n == 90 && (types[i][0] != PF_FP8 || acts != FAST)) continue;
                gate_context("experts types %zu %s, %lld tokens", i, form_names[acts], (long long)n);
                experts_case c = {
                    .gate = gate_weight(types[i][0], F, D, E, false, false, AT_END),
                    .up = gate_weight(types[i][1], F, D, E, true, false, ODD),
                    .down = gate_weight(types[i][2], D, F, E, false, false, AT_END),
                    .n = n, .x = floats(n * D, 2.0f), .weight = floats(n * A, 2.0f), .before = floats(n * D, 2.0f),
                    .chosen = malloc((size_t)(n * A) * sizeof(int32_t)),
                };
                /* Some experts unused; one token names an expert twice. Of 35 tokens five experts have 21 each: a tile
                 * and five more, for all of which packed tiles have no room at once. Of 90 an expert has about 45. */
                for (int64_t p = 0; p < n * A; ++p) {
                    c.chosen[p] = (int32_t)(n == 35 ? p % 5 : p % A * 2 + (int64_t)gate_below(2));
                }
                if (n == 4 || n == 33) c.chosen[2 * A] = c.chosen[2 * A + 1];
                check_experts(r, &c, (form)acts);
                gate_weight_free(&c.gate);
                gate_weight_free(&c.up);
                gate_weight_free(&c.down);
                free(c.x);
                free(c.weight);
                free(c.before);
                free(c.chosen);
            }
        }
        runners_free(r);
    }
}

static void cancelling(const pf_backend *backend) {
    runner *r = runner_new(backend, 2, FAST);
    test_weight w = gate_weight(PF_MXFP4, D, D, E, false, false, AT_END);
    float *x = floats(D, 1.0f), out[D] = {0};
    const int32_t chosen[1] = {3}, outside[1] = {E};
    const float one = 1.0f;
    pf_experts_args args = {.gate = &w.w, .up = &w.w, .down = &w.w, .x = x, .chosen = chosen, .weight = &one,
                            .n_token = 1, .n_used = 1, .expert_end = E, .limit = 1.0f, .out = out};
    gate_context("cancel");
    atomic_store(&r->cancel, 1);
    const size_t mark = pf_arena_mark(r->ex.arena);
    CHECK(backend->linear(&r->ex, &w.w, x, D, 1, out, D) == PF_ERR_CANCELLED, "linear went on");
    CHECK(backend->experts(&r->ex, &args) == PF_ERR_CANCELLED, "experts went on");
    CHECK(pf_arena_mark(r->ex.arena) == mark, "the arena's mark moved");
    atomic_store(&r->cancel, 0);
    args.chosen = outside;
    CHECK(backend->experts(&r->ex, &args) == PF_ERR_INTERNAL, "an expert that does not exist was taken");
    free(x);
    gate_weight_free(&w);
    runner_free(r);
}

/* ---- Elementwise and rows ---------------------------------------------------------------------------------- */

static void rows_and_roundings(const pf_backend *backend, const pf_backend *scalar) {
    runner *r[RUNNERS];
    runners_new(r, backend, scalar, false);
    for (int64_t n = 1; n <= 300; n = n * 3 + 1) {
        const int64_t width = 128;
        float *x = floats(n * width, 1e4f);
        output y[RUNNERS], h[RUNNERS], s[RUNNERS];
        gate_context("hadamard, round_fp4, swiglu, add of %lld rows", (long long)n);
        for (int i = 0; i < RUNNERS; ++i) {
            y[i] = gate_output(n * width);
            h[i] = gate_output(n * width);
            s[i] = gate_output(n * width);
            memcpy(h[i].y, x, (size_t)(n * width) * 4);
            memcpy(y[i].y, x, (size_t)(n * width) * 4);
            const pf_backend *b = r[i]->ex.backend;
            CHECK(b->hadamard(&r[i]->ex, h[i].y, n, width) == PF_OK, "failed");
            CHECK(b->round_fp4(&r[i]->ex, y[i].y, n, width) == PF_OK, "failed");
            CHECK(b->swiglu(&r[i]->ex, x, h[i].y, n * width, 10.0f, s[i].y) == PF_OK, "failed");
            CHECK(gate_output_intact(&y[i]) && gate_output_intact(&h[i]) && gate_output_intact(&s[i]), "guards");
            CHECK(gate_same(y[0].y, y[i].y, n * width), "round_fp4 differs, run %d", i);
            CHECK(gate_same(h[0].y, h[i].y, n * width), "hadamard differs, run %d", i);
            bool near = true; /* exp is the set's own */
            for (int64_t v = 0; v < n * width; ++v) {
                near = near && fabsf(s[0].y[v] - s[i].y[v]) <= 1e-6f * fabsf(s[i].y[v]) + 1e-35f; /* where exp overflows */
            }
            CHECK(i == SCALAR ? near : gate_same(s[0].y, s[i].y, n * width), "swiglu differs, run %d", i);
        }
        /* One rounding a sum, so that every set gives the same. */
        const int64_t odd = n * width - 3;
        output sum = gate_output(odd);
        memcpy(sum.y, x, (size_t)odd * 4);
        CHECK(backend->add(&r[0]->ex, sum.y, h[0].y, odd) == PF_OK, "failed");
        bool exact = gate_output_intact(&sum);
        for (int64_t i = 0; i < odd; ++i) {
            const float want = x[i] + h[0].y[i];
            exact = exact && gate_same(&sum.y[i], &want, 1);
        }
        CHECK(exact, "sums are wrong, or written past");
        gate_output_free(&sum);
        /* In place, over the gate. */
        memcpy(y[0].y, x, (size_t)(n * width) * 4);
        backend->swiglu(&r[1]->ex, y[0].y, h[0].y, n * width, 10.0f, y[0].y);
        CHECK(gate_same(y[0].y, s[0].y, n * width), "swiglu in place differs");
        for (int i = 0; i < RUNNERS; ++i) {
            gate_output_free(&y[i]);
            gate_output_free(&h[i]);
            gate_output_free(&s[i]);
        }
        free(x);
    }
    runners_free(r);
}

/* A ring written over more than twice, as many rows a call as it has slots and row by row; neighbours untouched. */
static void stores(const pf_backend *backend) {
    enum { WIDTH = 192, ROPE = 32, SLOTS = 11, N = 29, FIRST = 7 };
    for (int f = PF_ROW_F32; f <= PF_ROW_IDX_FP4; ++f) {
        gate_context("store_rows format %d", f);
        pf_rows rows = {.format = (pf_row_format)f, .width = WIDTH, .rope = ROPE, .capacity = SLOTS};
        rows.row_bytes = pf_row_bytes(rows.format, WIDTH, ROPE);
        buffer whole = gate_buffer(SLOTS * rows.row_bytes, AT_END), pieces = gate_buffer(whole.bytes, ODD);
        float *x = floats(N * WIDTH, 1e3f);
        runner *r = runner_new(backend, 3, FAST);
        gate_poison(&whole);
        gate_poison(&pieces);
        rows.data = whole.data;
        for (int64_t i = 0; i < N; i += SLOTS) {
            const int64_t n = N - i < SLOTS ? N - i : SLOTS;
            CHECK(backend->store_rows(&r->ex, &rows, FIRST + i, n, x + i * WIDTH) == PF_OK, "failed");
        }
        rows.data = pieces.data;
        for (int64_t i = 0; i < N; ++i) backend->store_rows(&r->ex, &rows, FIRST + i, 1, x + i * WIDTH);
        CHECK(memcmp(whole.data, pieces.data, (size_t)whole.bytes) == 0, "long calls and short ones differ");
        gate_poison(&pieces);
        backend->store_rows(&r->ex, &rows, 2 * SLOTS + 3, 2, x);
        CHECK(gate_poisoned(pieces.data, 3 * rows.row_bytes) && !gate_poisoned(pieces.data + 3 * rows.row_bytes, 8) &&
                  gate_poisoned(pieces.data + 5 * rows.row_bytes, (SLOTS - 5) * rows.row_bytes),
              "wrote other rows than 3 and 4");
        runner_free(r);
        free(x);
        gate_free(&whole);
        gate_free(&pieces);
    }
}

void gate_linear_ops(const pf_backend *backend, const pf_backend *scalar) {
    linears(backend, scalar);
    odd_linears(backend, scalar);
    embeds(backend, scalar);
    experts(backend, scalar);
    cancelling(backend);
    rows_and_roundings(backend, scalar);
    stores(backend);
}
