#include "runtime/collector.h"

#include "base/arith.h"
#include "base/memory.h"
#include "runtime/model.h"

enum { N_LAYER_INPUT = PF_INPUT_HEAD }; /* what comes after is the head's */
enum { LEAST_GRAIN = 256, SMALL_WORK = 32768 }; /* columns; squares that take less time than waking the workers */

/* Sums over the rows that one product took; with several matrices, over each one's. */
typedef struct input_sums {
    int64_t n_matrix, n_column;
    double *sums;    /* [n_matrix, n_column] */
    int64_t *counts; /* [n_matrix] */
} input_sums;

struct pf_collector {
    pf_backend table; /* first: operations find the collector by the backend that they run with */
    const pf_backend *inner;
    pf_model *model; /* one reference */
    bool is_torn;
    input_sums *layers; /* [n_layer, N_LAYER_INPUT] */
    input_sums head, head_mix;
};

static pf_collector *collector_of(const pf_exec *ex) { return (pf_collector *)(uintptr_t)ex->backend; }

static input_sums *layer_input(const pf_collector *c, int64_t layer, int32_t input) {
    return &c->layers[layer * N_LAYER_INPUT + input];
}

/* ---- Adding ------------------------------------------------------------------------------------------------ */

/* Rows go to the sums in their order, and threads share out columns: the same bits for any number of them, and however a
 * text is split into steps. */
typedef struct add_job {
    const input_sums *to;
    int64_t matrix, n_row, ld;
    const float *x;
} add_job;

static void add_squares(double *restrict sums, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sums[i] += (double)x[i] * (double)x[i];
}

static void add_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const add_job *job = arg;
    double *sums = job->to->sums + job->matrix * job->to->n_column;
    (void)worker;
    for (int64_t r = 0; r < job->n_row; ++r) add_squares(sums + begin, job->x + r * job->ld + begin, end - begin);
}

/* Columns a piece. */
static int64_t grain_of(const pf_exec *ex, int64_t n_row, int64_t n_column) {
    if (n_row * n_column <= SMALL_WORK) return n_column;
    return pf_max_i64(LEAST_GRAIN, n_column / (4 * pf_pool_threads(ex->pool)));
}

static void add_rows(pf_exec *ex, const input_sums *to, int64_t matrix, const float *x, int64_t ldx, int64_t n_row) {
    add_job job = {to, matrix, n_row, ldx, x};
    pf_pool_run(ex->pool, to->n_column, grain_of(ex, n_row, to->n_column), add_piece, &job);
    to->counts[matrix] += n_row;
}

/* Which matrix of w, or group of its rows, this is; negative: none. */
static int64_t place_in(const pf_weight *w, const pf_weight *used, int64_t n_group) {
    if (w->data == NULL || used->data < w->data || used->data >= w->data + w->rows * w->row_bytes) return -1;
    return (used->data - w->data) / (w->rows / n_group * w->row_bytes);
}

/* Weights that take the same input are represented by one of them. */
static pf_status collecting_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                                   int64_t ldy) {
    pf_collector *c = collector_of(ex);
    const pf_network *net = &c->model->net;
    if (!ex->dry && place_in(&net->weights.head, w, 1) == 0) add_rows(ex, &c->head, 0, x, ldx, n_token);
    for (int32_t l = 0; l < net->config.n_layer && !ex->dry; ++l) {
        const pf_layer_weights *lw = &net->weights.layers[l];
        const pf_weight *first[] = {
            [PF_INPUT_ATTENTION] = &lw->attn.q_a, [PF_INPUT_QUERY] = &lw->attn.q_b, [PF_INPUT_OUT_GROUPS] = &lw->attn.out_a,
            [PF_INPUT_OUT] = &lw->attn.out_b, [PF_INPUT_FFN] = &lw->moe.shared_gate,
            [PF_INPUT_SHARED_HIDDEN] = &lw->moe.shared_down,
        };
        for (int32_t i = 0; i < (int32_t)(sizeof first / sizeof *first); ++i) {
            const input_sums *to = layer_input(c, l, i);
            const int64_t matrix = place_in(first[i], w, to->n_matrix);
            if (matrix >= 0) add_rows(ex, to, matrix, x, ldx, n_token);
        }
    }
    return c->inner->linear(ex, w, x, ldx, n_token, y, ldy);
}

/* ---- Streams ----------------------------------------------------------------------------------------------- */

enum { ROWS_AT_ONCE = 64 };

typedef struct streams_job {
    const input_sums *to;
    const float *x; /* [n_row, n_column] */
    int64_t n_row;
    float eps;
    double *scale;  /* [n_row] 1 / (mean square + eps) */
} streams_job;

static void find_scales(void *arg, int64_t begin, int64_t end, int worker) {
    const streams_job *job = arg;
    const int64_t n = job->to->n_column;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; ++i) sum += (double)job->x[r * n + i] * (double)job->x[r * n + i];
        job->scale[r] = 1.0 / (sum / (double)n + (double)job->eps);
    }
}

static void add_streams_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const streams_job *job = arg;
    double *sums = job->to->sums;
    (void)worker;
    for (int64_t r = 0; r < job->n_row; ++r) {
        const float *x = job->x + r * job->to->n_column;
        for (int64_t i = begin; i < end; ++i) sums[i] += (double)x[i] * (double)x[i] * job->scale[r];
    }
}

/* Rows divided by their root mean square, which the operation does after its product. */
static void add_streams(pf_exec *ex, const input_sums *to, const float *x, int64_t n_row, float eps) {
    double scale[ROWS_AT_ONCE];
    for (int64_t r = 0; r < n_row; r += ROWS_AT_ONCE) {
        streams_job job = {to, x + r * to->n_column, pf_min_i64(ROWS_AT_ONCE, n_row - r), eps, scale};
        pf_pool_run(ex->pool, job.n_row, 4, find_scales, &job);
        pf_pool_run(ex->pool, to->n_column, grain_of(ex, job.n_row, to->n_column), add_streams_piece, &job);
    }
    to->counts[0] += n_row;
}

static pf_status collecting_mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                                    int64_t n_token, float *x, float *post, float *comb) {
    const pf_collector *c = collector_of(ex);
    const pf_network *net = &c->model->net;
    for (int32_t l = 0; l < net->config.n_layer && !ex->dry; ++l) {
        const pf_layer_weights *lw = &net->weights.layers[l];
        const int32_t input = site->fn == lw->hc_attn.fn  ? PF_INPUT_ATTENTION_MIX
                              : site->fn == lw->hc_ffn.fn ? PF_INPUT_FFN_MIX
                                                          : -1;
        if (input >= 0) add_streams(ex, layer_input(c, l, input), streams, n_token, shape->norm_eps);
    }
    return c->inner->mhc_pre(ex, shape, site, streams, n_token, x, post, comb);
}

static pf_status collecting_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                                     int64_t n_token, float *x) {
    const pf_collector *c = collector_of(ex);
    if (!ex->dry && site->fn == c->model->net.weights.head_mix.fn) {
        add_streams(ex, &c->head_mix, streams, n_token, shape->norm_eps);
    }
    return c->inner->mhc_head(ex, shape, site, streams, n_token, x);
}

/* ---- Routed experts ---------------------------------------------------------------------------------------- */

typedef struct pairs_job {
    const pf_expert_pairs *pairs;
    const float *x;     /* [T, D] */
    int64_t n_embd, n_ff;
    double *inputs, *hidden, *weighted;
} pairs_job;

static void add_inputs_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const pairs_job *job = arg;
    const pf_expert_pairs *pairs = job->pairs;
    (void)worker;
    for (int64_t a = 0; a < pairs->n_active; ++a) {
        double *sums = job->inputs + pairs->expert[a] * job->n_embd + begin;
        for (int64_t p = pairs->start[a]; p < pairs->start[a + 1]; ++p) {
            add_squares(sums, job->x + pairs->token[p] * job->n_embd + begin, end - begin);
        }
    }
}

static void add_hidden_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const pairs_job *job = arg;
    const pf_expert_pairs *pairs = job->pairs;
    (void)worker;
    for (int64_t a = 0; a < pairs->n_active; ++a) {
        double *hidden = job->hidden + pairs->expert[a] * job->n_ff, *weighted = job->weighted + pairs->expert[a] * job->n_ff;
        for (int64_t p = pairs->start[a]; p < pairs->start[a + 1]; ++p) {
            const float *h = pairs->h + p * job->n_ff; /* holds the route's weight already */
            const double weight = (double)pairs->weight[p], without = weight != 0.0 ? 1.0 / (weight * weight) : 0.0;
            for (int64_t i = begin; i < end; ++i) {
                const double square = (double)h[i] * (double)h[i];
                weighted[i] += square;
                hidden[i] += square * without;
            }
        }
    }
}

static void add_pairs(void *user, pf_exec *ex, const pf_experts_args *args, const pf_expert_pairs *pairs) {
    const input_sums *sums = user; /* the layer's */
    const input_sums *inputs = &sums[PF_INPUT_EXPERTS], *hidden = &sums[PF_INPUT_EXPERT_HIDDEN];
    const int64_t n_pair = pairs->start[pairs->n_active];
    pairs_job job = {pairs, args->x, inputs->n_column, hidden->n_column, inputs->sums, hidden->sums,
                     sums[PF_INPUT_EXPERT_HIDDEN_WEIGHTED].sums};
    pf_pool_run(ex->pool, job.n_embd, grain_of(ex, n_pair, job.n_embd), add_inputs_piece, &job);
    pf_pool_run(ex->pool, job.n_ff, grain_of(ex, n_pair, job.n_ff), add_hidden_piece, &job);
    for (int64_t a = 0; a < pairs->n_active; ++a) {
        for (int32_t input = PF_INPUT_EXPERTS; input <= PF_INPUT_EXPERT_HIDDEN_WEIGHTED; ++input) {
            sums[input].counts[pairs->expert[a]] += pairs->start[a + 1] - pairs->start[a];
        }
    }
}

static pf_status collecting_experts(pf_exec *ex, const pf_experts_args *args) {
    const pf_collector *c = collector_of(ex);
    const pf_network *net = &c->model->net;
    pf_experts_args watched = *args;
    for (int32_t l = 0; l < net->config.n_layer; ++l) {
        if (args->gate->data != net->weights.layers[l].moe.gate.data) continue;
        watched.watch = add_pairs;
        watched.watch_user = layer_input(c, l, 0);
    }
    return c->inner->experts(ex, &watched);
}

/* ---- The collector ----------------------------------------------------------------------------------------- */

const pf_backend *pf_collector_backend(const pf_collector *collector) { return &collector->table; }
void pf_collector_note_failure(pf_collector *collector) { collector->is_torn = true; }
bool pf_collector_fits(const pf_collector *collector, const pf_model *model) { return collector->model == model; }

static bool take_sums(input_sums *out, int64_t n_matrix, int64_t n_column) {
    *out = (input_sums){n_matrix, n_column, pf_calloc((size_t)(n_matrix * n_column), sizeof(double)),
                        pf_calloc((size_t)n_matrix, sizeof(int64_t))};
    return out->sums != NULL && out->counts != NULL;
}

static bool take_layers(pf_collector *c, const pf_config *config) {
    const int64_t n_ff = config->n_ff, n_embd = config->n_embd, groups = config->o_groups, n_expert = config->n_expert;
    const int64_t heads = (int64_t)config->n_head * config->head_dim, low = groups * config->o_rank;
    const int64_t streams = config->n_stream * n_embd;
    const int64_t shapes[N_LAYER_INPUT][2] = {
        [PF_INPUT_ATTENTION] = {1, n_embd}, [PF_INPUT_QUERY] = {1, config->q_rank},
        [PF_INPUT_OUT_GROUPS] = {groups, heads / groups}, [PF_INPUT_OUT] = {1, low}, [PF_INPUT_FFN] = {1, n_embd},
        [PF_INPUT_SHARED_HIDDEN] = {1, n_ff}, [PF_INPUT_EXPERTS] = {n_expert, n_embd},
        [PF_INPUT_EXPERT_HIDDEN] = {n_expert, n_ff}, [PF_INPUT_EXPERT_HIDDEN_WEIGHTED] = {n_expert, n_ff},
        [PF_INPUT_ATTENTION_MIX] = {1, streams}, [PF_INPUT_FFN_MIX] = {1, streams},
    };
    c->layers = pf_calloc((size_t)config->n_layer * N_LAYER_INPUT, sizeof *c->layers);
    if (c->layers == NULL || !take_sums(&c->head, 1, n_embd) || !take_sums(&c->head_mix, 1, streams)) return false;
    for (int32_t l = 0; l < config->n_layer; ++l) {
        for (int32_t i = 0; i < N_LAYER_INPUT; ++i) {
            if (!take_sums(layer_input(c, l, i), shapes[i][0], shapes[i][1])) return false;
        }
    }
    return true;
}

pf_status pf_collector_open(pf_model *model, pf_collector **out, pf_error *err) {
    if (model == NULL || out == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_collector_open: model and out are needed");
    }
    if (model->link != NULL) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "importance is collected on the processor: open the model with device "
                                                "\"cpu\"");
    }
    pf_collector *c = pf_calloc(1, sizeof *c);
    if (c == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory for a collector");
    c->model = pf_model_retain(model);
    c->inner = model->backend;
    c->table = *model->backend;
    c->table.linear = collecting_linear;
    c->table.experts = collecting_experts;
    c->table.mhc_pre = collecting_mhc_pre;
    c->table.mhc_head = collecting_mhc_head;
    if (!take_layers(c, &model->net.config)) {
        pf_collector_close(c);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for the sums of every input");
    }
    *out = c;
    return PF_OK;
}

static void free_sums(input_sums *sums) {
    pf_free(sums->sums);
    pf_free(sums->counts);
}

void pf_collector_close(pf_collector *collector) {
    if (collector == NULL) return;
    for (int64_t i = 0; collector->layers != NULL && i < (int64_t)collector->model->net.config.n_layer * N_LAYER_INPUT; ++i) {
        free_sums(&collector->layers[i]);
    }
    free_sums(&collector->head);
    free_sums(&collector->head_mix);
    pf_free(collector->layers);
    pf_model_release(collector->model);
    pf_free(collector);
}

pf_status pf_collector_sums(const pf_collector *collector, int32_t input, int32_t layer, pf_input_sums *out,
                            pf_error *err) {
    if (collector == NULL || out == NULL || out->struct_size < sizeof *out) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_collector_sums: a collector, and out with its struct_size, are needed");
    }
    const bool is_layers = input >= 0 && input < N_LAYER_INPUT && layer >= 0 && layer < collector->model->net.config.n_layer;
    if (!is_layers && (layer != -1 || (input != PF_INPUT_HEAD && input != PF_INPUT_HEAD_MIX))) {
        return pf_fail(err, PF_ERR_ARGUMENT, "input %d of layer %d is unknown", input, layer);
    }
    if (collector->is_torn) {
        return pf_fail(err, PF_ERR_ARGUMENT, "a step failed while it was collected, and is in the sums in part: open a new "
                                             "collector");
    }
    const input_sums *found = is_layers                ? layer_input(collector, layer, input)
                              : input == PF_INPUT_HEAD ? &collector->head
                                                       : &collector->head_mix;
    out->n_matrices = found->n_matrix;
    out->n_columns = found->n_column;
    out->sums = found->sums;
    out->counts = found->counts;
    return PF_OK;
}
