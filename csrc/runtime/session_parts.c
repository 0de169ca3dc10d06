/* A session's cache in parts: rows and tails go out and come in. */
#include "runtime/session.h"

#include "base/arith.h"
#include "base/params.h"

#include <string.h>

enum { LAYOUT_VERSION = 2, SAMPLE_BYTES = 64 };

/* Before a tail's pieces of the rings, and of what drafters keep. */
typedef struct tail_header {
    int64_t position, floor;
    int64_t draft_begin; /* as of pf_cache */
} tail_header;

/* ---- What tells parts apart -------------------------------------------------------------------------------- */

/* Some bytes from the middle of every tensor: a fine-tune has the same directory, and may have changed few of them. */
static uint64_t digest_file(const pf_gguf *gguf, uint64_t sum) {
    const uint64_t fingerprint = pf_gguf_fingerprint(gguf), n = pf_gguf_n_tensors(gguf);
    sum = pf_session_checksum(sum, &fingerprint, sizeof fingerprint);
    for (uint64_t i = 0; i < n; ++i) {
        const pf_gguf_tensor *t = pf_gguf_tensor_at(gguf, i);
        if (t->data == NULL) continue;
        const uint64_t size = t->bytes < SAMPLE_BYTES ? t->bytes : SAMPLE_BYTES;
        sum = pf_session_checksum(sum, (const uint8_t *)t->data + (t->bytes - size) / 2, size);
    }
    return sum;
}

pf_status pf_session_get_parts(const pf_session *session, pf_parts_info *info, pf_error *err) {
    if (session == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_parts: a session is needed");
    const pf_model *model = session->model;
    const pf_cache *cache = &session->cache;
    const pf_layer_cache *last = &cache->layers[cache->n_layer - 1];
    pf_parts_info full = {
        .version = LAYOUT_VERSION, .model = digest_file(model->gguf, 0), .precision = model->precision,
        .arithmetic = PF_ARITHMETIC_VERSION, .kv_format = (int32_t)last->raw.format, .index_format = -1,
        .first_layer = model->net.weights.range.first, .end_layer = model->net.weights.range.end,
        .has_mtp = cache->drafts.n_layer > 0, .row_tokens = PF_COMPRESS_BLOCK,
    };
    if (model->draft_gguf != NULL) full.model = digest_file(model->draft_gguf, full.model);
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        if (cache->layers[l].ratio == PF_RATIO_CSA) full.index_format = (int32_t)cache->layers[l].index_pool.format;
    }
    if (model->link != NULL) {
        full.n_device_layer = full.end_layer - model->placement.first_layer;
        full.n_device_expert_layer = full.end_layer - model->placement.first_experts;
    }
    pf_session_name_kernels(model, full.kernels);
    if (!pf_params_give(info, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_parts: set info->struct_size first");
    }
    return PF_OK;
}

/* ---- Out --------------------------------------------------------------------------------------------------- */

/* Where the pieces of a walk come from or go to. */
typedef struct cursor {
    const pf_cache *cache;
    uint8_t *out;
    const uint8_t *in;
} cursor;

static bool copy_out(void *user, void *piece, uint64_t size) {
    cursor *c = user;
    pf_cache_read(c->cache, c->out, piece, size);
    c->out += size;
    return true;
}

static bool copy_in(void *user, void *piece, uint64_t size) {
    cursor *c = user;
    pf_cache_write(c->cache, piece, c->in, size);
    c->in += size;
    return true;
}

static pf_status check_capacity(uint64_t needed, uint64_t capacity, pf_error *err) {
    if (capacity >= needed) return PF_OK;
    return pf_fail(err, PF_ERR_ARGUMENT, "room for %llu bytes, %llu are written", (unsigned long long)capacity,
                   (unsigned long long)needed);
}

pf_status pf_session_export_rows(pf_session *session, int64_t begin, int64_t end, void *data, uint64_t capacity,
                                 uint64_t *n_bytes, pf_error *err) {
    const pf_cache *cache = &session->cache;
    if (n_bytes == NULL || begin < 0 || end < begin || end > cache->position) {
        return pf_fail(err, PF_ERR_ARGUMENT, "there are no rows of the tokens %lld to %lld: the session has %lld",
                       (long long)begin, (long long)end, (long long)cache->position);
    }
    const uint64_t needed = pf_cache_new_rows_bytes(cache, begin, end);
    if (data != NULL) {
        PF_TRY(check_capacity(needed, capacity, err));
        PF_TRY(pf_session_enter(session, err));
        cursor c = {.cache = cache, .out = data};
        (void)pf_cache_walk_new_rows(cache, begin, end, copy_out, &c);
        PF_TRY(pf_session_leave(session, PF_OK, err));
    }
    *n_bytes = needed;
    return PF_OK;
}

/* What a tail of the position would hold; *kept is the checkpoint where it is one's copy, else NULL. False: there is none. */
static bool find_tail(const pf_cache *cache, int64_t position, tail_header *out, const pf_checkpoint **kept) {
    *kept = NULL;
    if (position == cache->position) {
        *out = (tail_header){position, pf_max_i64(pf_max_i64(0, position - PF_CHECKPOINT_SLACK), cache->floor),
                             cache->draft_begin};
        return true;
    }
    for (int32_t i = 0; i < cache->checkpoints.n; ++i) {
        const pf_checkpoint *c = &cache->checkpoints.items[i];
        if (c->position != position) continue;
        *out = (tail_header){position, c->floor, c->draft_begin};
        *kept = c;
        return true;
    }
    return false;
}

static uint64_t tail_bytes(const pf_cache *cache, const tail_header *header) {
    return sizeof *header + pf_cache_ring_bytes(cache, header->position, header->floor) +
           pf_cache_draft_bytes(cache, header->position, header->floor, header->draft_begin);
}

pf_status pf_session_export_tail(pf_session *session, int64_t position, void *data, uint64_t capacity, uint64_t *n_bytes,
                                 pf_error *err) {
    const pf_cache *cache = &session->cache;
    const pf_checkpoint *kept;
    tail_header header;
    if (n_bytes == NULL || !find_tail(cache, position, &header, &kept)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "there is no tail of position %lld: the session is at %lld, and has no "
                       "checkpoint there", (long long)position, (long long)cache->position);
    }
    const uint64_t needed = tail_bytes(cache, &header);
    if (data != NULL) {
        PF_TRY(check_capacity(needed, capacity, err));
        PF_TRY(pf_session_enter(session, err));
        memcpy(data, &header, sizeof header);
        uint8_t *pieces = (uint8_t *)data + sizeof header;
        cursor c = {.cache = cache, .out = pieces};
        if (kept != NULL) memcpy(pieces, kept->data, (size_t)(needed - sizeof header));
        else {
            (void)pf_cache_walk_rings(cache, header.position, header.floor, copy_out, &c);
            (void)pf_cache_walk_drafts(cache, header.position, header.floor, header.draft_begin, copy_out, &c);
        }
        PF_TRY(pf_session_leave(session, PF_OK, err));
    }
    *n_bytes = needed;
    return PF_OK;
}

/* ---- In ---------------------------------------------------------------------------------------------------- */

/* The rows in the walk's order, those that the session has left alone. */
static void take_rows(pf_cache *cache, int64_t begin, int64_t end, const uint8_t *data) {
    const int64_t live = pf_min_i64(pf_max_i64(begin, cache->position), end);
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        if (layer->ratio == 0) continue;
        const pf_rows *pools[] = {&layer->pool, &layer->index_pool};
        for (int32_t i = 0; i < (layer->ratio == PF_RATIO_CSA ? 2 : 1); ++i) {
            const int64_t first = begin / layer->ratio, own = live / layer->ratio, last = end / layer->ratio;
            const uint64_t row = (uint64_t)pools[i]->row_bytes;
            data += (uint64_t)(own - first) * row;
            if (last > own) pf_cache_write(cache, pf_row_at(pools[i], own), data, (uint64_t)(last - own) * row);
            data += (uint64_t)(last - own) * row;
        }
    }
}

pf_status pf_session_import_rows(pf_session *session, int64_t begin, int64_t end, const void *data, uint64_t n_bytes,
                                 pf_error *err) {
    pf_cache *cache = &session->cache;
    const int64_t reached = pf_max_i64(cache->position, cache->imported);
    if (data == NULL || begin < 0 || end < begin || begin > reached) {
        return pf_fail(err, PF_ERR_ARGUMENT, "rows of the tokens %lld to %lld do not follow the session's own, which end at "
                       "%lld", (long long)begin, (long long)end, (long long)reached);
    }
    if (end > cache->n_ctx) {
        return pf_fail(err, PF_ERR_CONTEXT_FULL, "rows of %lld tokens do not fit: the context holds %lld: open a larger one",
                       (long long)end, (long long)cache->n_ctx);
    }
    const uint64_t needed = pf_cache_new_rows_bytes(cache, begin, end);
    if (n_bytes != needed) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%llu bytes of rows, those of %lld tokens from %lld on have %llu",
                       (unsigned long long)n_bytes, (long long)(end - begin), (long long)begin, (unsigned long long)needed);
    }
    PF_TRY(pf_session_enter(session, err));
    take_rows(cache, begin, end, data);
    PF_TRY(pf_session_leave(session, PF_OK, err));
    cache->imported = pf_max_i64(reached, end);
    return PF_OK;
}

/* Whether the tokens go on with the session's own, and rows of all of them are there. */
static pf_status check_reach(const pf_session *session, const int32_t *tokens, int64_t n_tokens, pf_error *err) {
    const pf_cache *cache = &session->cache;
    if (tokens == NULL || n_tokens < 1) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_import_tail: at least one token is needed");
    }
    PF_TRY(pf_session_check_tokens(session, tokens, n_tokens, err));
    if (n_tokens < cache->position || n_tokens > pf_max_i64(cache->position, cache->imported)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "a tail of %lld tokens: the session has %lld, and rows for %lld",
                       (long long)n_tokens, (long long)cache->position,
                       (long long)pf_max_i64(cache->position, cache->imported));
    }
    if (memcmp(tokens, session->tokens, (size_t)cache->position * sizeof *tokens) != 0) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the tail's tokens do not begin with the session's: roll it back first");
    }
    return PF_OK;
}

pf_status pf_session_import_tail(pf_session *session, const int32_t *tokens, int64_t n_tokens, const void *data,
                                 uint64_t n_bytes, pf_error *err) {
    pf_cache *cache = &session->cache;
    tail_header header;
    PF_TRY(check_reach(session, tokens, n_tokens, err));
    if (data == NULL || n_bytes < sizeof header) return pf_fail(err, PF_ERR_FORMAT, "this is no tail of a session");
    memcpy(&header, data, sizeof header);
    if (header.position != n_tokens || header.floor < 0 || header.floor > header.position ||
        header.position - header.floor > PF_CHECKPOINT_SLACK || header.draft_begin < 0 ||
        header.draft_begin > header.position || n_bytes != tail_bytes(cache, &header)) {
        return pf_fail(err, PF_ERR_FORMAT, "this is no tail of %lld tokens of such a session", (long long)n_tokens);
    }
    PF_TRY(pf_session_enter(session, err));
    cursor c = {.cache = cache, .in = (const uint8_t *)data + sizeof header};
    (void)pf_cache_walk_rings(cache, header.position, header.floor, copy_in, &c);
    (void)pf_cache_walk_drafts(cache, header.position, header.floor, header.draft_begin, copy_in, &c);
    memcpy(session->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    cache->position = header.position;
    cache->floor = header.floor;
    cache->draft_begin = header.draft_begin;
    cache->imported = 0;
    return pf_session_leave(session, PF_OK, err);
}
