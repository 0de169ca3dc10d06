/* schedule MODEL.gguf THREADS [TOKENS [SLOWNESS]]: how the work of one step of TOKENS tokens (1) would be shared among so many
 * threads, half of them on either of two memory nodes, one as fast as the other but for the first one, whose items take
 * SLOWNESS times (1) as long. Counted, not timed: the loops are those that the
 * operations ask the pool for, with this many threads, and a piece goes to the thread that is done first if time is as the
 * number of items. One thread then computes the pieces, so the machine needs no such cores.
 *
 * Linked with --wrap of the pool's loops and of the operations (Linux): a tool of the developers', in no package. */
#include "backend/cpu/ops.h"
#include "base/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 1024, MOST_OPS = 16 };

typedef struct op_count {
    const char *name;
    int64_t loops, waits, pieces; /* waits: loops that more than one thread takes part in */
    /* Of weights: all; what the first node's threads read; what all could read until the last one ends; the same with even
     * pieces. */
    double bytes, node_bytes, longest, longest_even;
} op_count;

static int n_threads = 1;
static double slowness = 1.0; /* of the first thread */
static bool is_counting;
static op_count ops[MOST_OPS], *now = ops;
static const pf_weight *product;              /* of linear */
static const pf_experts_args *experts;

/* Bytes of weights that an item of a loop reads. */
static double item_bytes(int64_t n, bool is_shared) {
    enum { BLOCK_ROWS = 32 }; /* an item of the experts' first loop, experts.c */
    static int64_t n_active;
    if (product) return is_shared && n == product->rows ? (double)product->row_bytes : 0.0;
    if (!experts || !is_shared) return 0.0;
    if (n == experts->down->rows) return (double)(n_active * experts->down->row_bytes);
    n_active = n * BLOCK_ROWS / experts->gate->rows;
    return (double)(BLOCK_ROWS * (experts->gate->row_bytes + experts->up->row_bytes));
}

/* Who gets which pieces of a loop. */
typedef struct sharing {
    int64_t first_node, pieces;
    double longest; /* until the last thread ends; an item takes 1, of the slow thread `slowness` */
} sharing;

/* even: all pieces as large as the first ones. fn: NULL, or what does the pieces. */
static sharing share(int64_t n, int64_t least, int64_t most, bool even, pf_pool_fn fn, void *arg) {
    double until[MOST_THREADS] = {0.0};
    sharing out = {0};
    if (least < 1) least = 1;
    const int64_t units = n / least + (n % least != 0), most_units = most > least ? most / least : 1;
    for (int64_t begin = 0, end; begin < units; begin = end, ++out.pieces) {
        int thread = 0;
        for (int t = 1; t < n_threads; ++t) {
            if (until[t] < until[thread]) thread = t;
        }
        end = begin + (even ? most_units : pf_pool_piece(n_threads, units - begin, most_units));
        const int64_t last = end < units ? end * least : n, items = last - begin * least;
        if (fn) fn(arg, begin * least, last, thread);
        until[thread] += (double)items * (thread == 0 ? slowness : 1.0);
        if (thread < n_threads / 2) out.first_node += items;
        if (until[thread] > out.longest) out.longest = until[thread];
    }
    return out;
}

static void run(int64_t n, int64_t least, int64_t most, bool is_shared, pf_pool_fn fn, void *arg) {
    const sharing own = share(n, least, most, false, fn, arg);
    if (!is_counting || n <= 0) return;
    const double each = item_bytes(n, is_shared), speed = n_threads - 1 + 1.0 / slowness;
    now->loops += 1;
    now->waits += own.pieces > 1;
    now->pieces += own.pieces;
    now->bytes += each * (double)n;
    now->node_bytes += each * (double)own.first_node;
    now->longest += each * own.longest * speed;
    now->longest_even += each * share(n, least, most, true, NULL, NULL).longest * speed;
}

int __wrap_pf_pool_threads(const pf_pool *pool);
int __wrap_pf_pool_threads(const pf_pool *pool) { return (void)pool, n_threads; }
void __wrap_pf_pool_run(pf_pool *pool, int64_t n, int64_t grain, pf_pool_fn fn, void *arg);
void __wrap_pf_pool_run(pf_pool *pool, int64_t n, int64_t grain, pf_pool_fn fn, void *arg) {
    (void)pool;
    run(n, grain, grain, false, fn, arg);
}
void __wrap_pf_pool_share(pf_pool *pool, int64_t n, int64_t least, int64_t most, pf_pool_fn fn, void *arg);
void __wrap_pf_pool_share(pf_pool *pool, int64_t n, int64_t least, int64_t most, pf_pool_fn fn, void *arg) {
    (void)pool;
    run(n, least, most, true, fn, arg);
}

static op_count *op_of(const char *name) {
    op_count *op = ops + 1; /* the first one is for what has no name here */
    while (op->name && strcmp(op->name, name) != 0) ++op;
    op->name = name;
    return op;
}

#define OPERATION(op, parameters, ...)                            \
    pf_status __real_pf_cpu_##op parameters;                      \
    pf_status __wrap_pf_cpu_##op parameters;                      \
    pf_status __wrap_pf_cpu_##op parameters {                     \
        op_count *before = now;                                   \
        now = op_of(#op);                                         \
        const pf_status status = __real_pf_cpu_##op(__VA_ARGS__); \
        now = before;                                             \
        return status;                                            \
    }

pf_status __real_pf_cpu_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                               int64_t ldy);
pf_status __wrap_pf_cpu_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                               int64_t ldy);
pf_status __wrap_pf_cpu_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                               int64_t ldy) {
    now = op_of("linear");
    product = w;
    const pf_status status = __real_pf_cpu_linear(ex, w, x, ldx, n_token, y, ldy);
    product = NULL;
    now = ops;
    return status;
}
pf_status __real_pf_cpu_experts(pf_exec *ex, const pf_experts_args *args);
pf_status __wrap_pf_cpu_experts(pf_exec *ex, const pf_experts_args *args);
pf_status __wrap_pf_cpu_experts(pf_exec *ex, const pf_experts_args *args) {
    now = op_of("experts");
    experts = args;
    const pf_status status = __real_pf_cpu_experts(ex, args);
    experts = NULL;
    now = ops;
    return status;
}
OPERATION(sparse_attn, (pf_exec *ex, const pf_attn_args *args), ex, args)
OPERATION(index_scores, (pf_exec *ex, const pf_index_args *args), ex, args)
OPERATION(compress, (pf_exec *ex, const pf_compress_args *args), ex, args)
OPERATION(mhc_pre, (pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams, int64_t n,
                    float *x, float *post, float *comb), ex, shape, site, streams, n, x, post, comb)
OPERATION(mhc_post, (pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post, const float *comb, int64_t n,
                     float *streams), ex, shape, y, post, comb, n, streams)

static void print_op(const char *name, const op_count *op) {
    printf("%-14s %7lld %7lld %8lld %9.1f", name, (long long)op->loops, (long long)op->waits, (long long)op->pieces,
           1e-6 * op->bytes);
    if (op->bytes > 0) {
        printf(" %10.1f%% %7.1f%% %7.1f%%", 100 * op->node_bytes / op->bytes, 100 * op->bytes / op->longest,
               100 * op->bytes / op->longest_even);
    }
    printf("\n");
}

static void report(int64_t n_token) {
    op_count all = {0};
    printf("%d threads, %lld tokens\n%-14s %7s %7s %8s %9s %11s %8s %8s\n", n_threads, (long long)n_token, "operation", "loops",
           "waits", "pieces", "MB", "first node", "busy", "if even");
    for (int i = 0; i < MOST_OPS && (i == 0 || ops[i].name); ++i) {
        print_op(i ? ops[i].name : "others", &ops[i]);
        all.loops += ops[i].loops, all.waits += ops[i].waits, all.pieces += ops[i].pieces;
        all.bytes += ops[i].bytes, all.node_bytes += ops[i].node_bytes, all.longest += ops[i].longest;
        all.longest_even += ops[i].longest_even;
    }
    print_op("all", &all);
}

/* One step of n_token tokens after a few others. */
static pf_status count_step(pf_session *session, int64_t n_token, int64_t n_vocab, pf_error *err) {
    enum { BEFORE = 4 };
    int64_t done = 0;
    int32_t *tokens = malloc((size_t)(n_token + BEFORE) * sizeof *tokens);
    float *logits = malloc((size_t)n_vocab * sizeof *logits);
    pf_status status = PF_ERR_MEMORY;
    if (tokens && logits) {
        for (int64_t i = 0; i < n_token + BEFORE; ++i) tokens[i] = (int32_t)((100 + i * 7919) % n_vocab);
        status = pf_session_eval(session, tokens, BEFORE, PF_LOGITS_NONE, NULL, 0, &done, err);
        is_counting = true;
        if (status == PF_OK) {
            status = pf_session_eval(session, tokens + BEFORE, n_token, PF_LOGITS_LAST, logits, n_vocab, &done, err);
        }
    }
    free(tokens);
    free(logits);
    return status;
}

int main(int argc, char **argv) {
    enum { MOST_TOKENS = 2048 };
    pf_error err = {0};
    pf_model *model = NULL;
    pf_session *session = NULL;
    pf_model_params params;
    pf_session_params of_session;
    pf_model_info info = {.struct_size = sizeof info};
    const int64_t n_token = argc > 3 ? atoll(argv[3]) : 1;
    n_threads = argc > 2 ? atoi(argv[2]) : 0;
    slowness = argc > 4 ? atof(argv[4]) : 1.0;
    if (argc > 5 || !(slowness >= 1.0) || n_threads < 1 || n_threads > MOST_THREADS || n_token < 1 || n_token > MOST_TOKENS) {
        fputs("usage: schedule MODEL.gguf THREADS [TOKENS [SLOWNESS]]\n", stderr);
        return 2;
    }
    pf_model_params_init(&params);
    params.n_threads = 1;
    params.device = "cpu";
    pf_session_params_init(&of_session);
    of_session.n_ctx = 2 * MOST_TOKENS;
    of_session.n_chunk = MOST_TOKENS;
    pf_status status = pf_model_open(argv[1], &params, &model, &err);
    if (status == PF_OK) status = pf_session_open(model, &of_session, &session, &err);
    if (status == PF_OK) status = pf_model_get_info(model, &info, &err);
    if (status == PF_OK) status = count_step(session, n_token, info.n_vocab, &err);
    if (status == PF_OK) report(n_token);
    else fprintf(stderr, "%s\n", err.message[0] ? err.message : "out of memory");
    pf_session_close(session);
    pf_model_release(model);
    return status == PF_OK ? 0 : 1;
}
