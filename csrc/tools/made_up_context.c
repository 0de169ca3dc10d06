/* made_up_context MODEL.gguf DEPTH FILE: a session file of DEPTH random tokens that nobody evaluated. All rows of its
 * cache are random ones in the default precision, so that the indexer chooses among them as widely as it may.
 *
 * For measuring speed and memory at depths that take hours to fill (scripts/compare_at_depth.py); the logits mean
 * nothing. A tool of the developers', in no package. */
#include "runtime/session.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROWS_AT_ONCE = 1024 };
static const int64_t AFTER = 1024; /* the context that the file is made in: a few tokens more than DEPTH */

static uint64_t random_state = 88172645463325252u;

static uint32_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static void fill_floats(float *x, int64_t n) { /* about as wide as normalised rows are */
    for (int64_t i = 0; i < n; ++i) x[i] = 1.7f * ((float)next_random() / 2147483648.0f - 1.0f);
}

/* Rows [end - n, end), those that `rows` still holds of them. */
static pf_status fill_rows(pf_exec *ex, const pf_rows *rows, int64_t end, float *scratch) {
    int64_t first = end > rows->capacity ? end - rows->capacity : 0;
    while (first < end) {
        const int64_t n = end - first < ROWS_AT_ONCE ? end - first : ROWS_AT_ONCE;
        fill_floats(scratch, n * rows->width);
        const pf_status status = ex->backend->store_rows(ex, rows, first, n, scratch);
        if (status != PF_OK) return status;
        first += n;
    }
    return PF_OK;
}

static void fill_frontier(pf_frontier *frontier) {
    fill_floats(frontier->a, frontier->ring * frontier->channels);
    fill_floats(frontier->g, frontier->ring * frontier->channels);
}

static pf_status fill_session(pf_session *session, int64_t depth, pf_error *err) {
    pf_cache *cache = &session->cache;
    pf_evaluation run;
    pf_share share = {.cache = cache};
    pf_evaluation_init(&run, session->model, session->arenas, &share, 1, NULL, err);
    const pf_config *config = &session->model->net.config;
    const int64_t widest = config->head_dim > config->index_dim ? config->head_dim : config->index_dim;
    float *scratch = malloc((size_t)(ROWS_AT_ONCE * widest) * sizeof(float));
    if (scratch == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory");
    pf_status status = PF_OK;
    for (int32_t l = 0; l < cache->n_layer && status == PF_OK; ++l) {
        pf_layer_cache *layer = &cache->layers[l];
        status = fill_rows(&run.host_exec, &layer->raw, depth, scratch);
        if (layer->ratio == 0) continue;
        if (status == PF_OK) status = fill_rows(&run.host_exec, &layer->pool, depth / layer->ratio, scratch);
        fill_frontier(&layer->frontier);
        if (layer->index_pool.data == NULL) continue;
        if (status == PF_OK) status = fill_rows(&run.host_exec, &layer->index_pool, depth / layer->ratio, scratch);
        fill_frontier(&layer->index_frontier);
    }
    free(scratch);
    for (int64_t i = 0; i < depth; ++i) {
        session->tokens[i] = (int32_t)(next_random() % (uint32_t)config->n_vocab);
    }
    cache->position = depth;
    cache->floor = depth > PF_ROLLBACK ? depth - PF_ROLLBACK : 0;
    return status;
}

int main(int argc, char **argv) {
    pf_error err = {0};
    pf_model *model = NULL;
    pf_session *session = NULL;
    pf_session_params params;
    const int64_t depth = argc == 4 ? atoll(argv[2]) : 0;
    if (depth < 1) {
        fputs("usage: made_up_context MODEL.gguf DEPTH FILE\n", stderr);
        return 2;
    }
    pf_session_params_init(&params);
    params.n_ctx = depth + AFTER;
    pf_status status = pf_model_open(argv[1], NULL, &model, &err);
    if (status == PF_OK) status = pf_session_open(model, &params, &session, &err);
    if (status == PF_OK) status = fill_session(session, depth, &err);
    if (status == PF_OK) status = pf_session_save(session, argv[3], &err);
    if (status != PF_OK) fprintf(stderr, "%s\n", err.message);
    pf_session_close(session);
    pf_model_release(model);
    return status == PF_OK ? 0 : 1;
}
