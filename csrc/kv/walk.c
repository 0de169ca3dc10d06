#include "kv/cache.h"

#include "base/arith.h"

static bool walk_rows(const pf_rows *rows, int64_t first, int64_t end, pf_visit_fn visit, void *user) {
    for (int64_t i = first; i < end; ++i) {
        if (!visit(user, pf_row_at(rows, i), (uint64_t)rows->row_bytes)) return false;
    }
    return true;
}

static bool walk_frontier(const pf_frontier *f, int64_t position, int64_t floor, pf_visit_fn visit, void *user) {
    const uint64_t size = (uint64_t)f->channels * sizeof(float);
    for (int64_t p = pf_max_i64(0, floor - f->need); p < position; ++p) {
        if (!visit(user, pf_frontier_a(f, p), size) || !visit(user, pf_frontier_g(f, p), size)) return false;
    }
    return true;
}

bool pf_cache_walk_rings(const pf_cache *cache, int64_t position, int64_t floor, pf_visit_fn visit, void *user) {
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        if (!walk_rows(&layer->raw, pf_max_i64(0, floor - cache->window), position, visit, user)) return false;
        if (layer->ratio != 0 && !walk_frontier(&layer->frontier, position, floor, visit, user)) return false;
        if (layer->ratio != PF_RATIO_CSA) continue;
        if (!walk_frontier(&layer->index_frontier, position, floor, visit, user)) return false;
    }
    return true;
}

bool pf_cache_walk_drafts(const pf_cache *cache, int64_t position, int64_t floor, int64_t draft_begin, pf_visit_fn visit,
                          void *user) {
    for (int32_t l = 0; l < cache->drafts.n_layer; ++l) {
        const pf_rows *rows = &cache->layers[cache->n_layer + l].raw;
        if (!walk_rows(rows, pf_max_i64(draft_begin, floor - cache->window), position, visit, user)) return false;
    }
    if (cache->streams == NULL) return true;
    for (int64_t p = pf_max_i64(draft_begin, floor - 1); p < position; ++p) {
        float *row = cache->streams + p % cache->stream_ring * cache->stream_floats;
        if (!visit(user, row, (uint64_t)cache->stream_floats * sizeof(float))) return false;
    }
    return true;
}

bool pf_cache_walk_pools(const pf_cache *cache, int64_t position, pf_visit_fn visit, void *user) {
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        if (layer->ratio == 0) continue;
        if (!walk_rows(&layer->pool, 0, position / layer->ratio, visit, user)) return false;
        if (layer->ratio != PF_RATIO_CSA) continue;
        if (!walk_rows(&layer->index_pool, 0, position / layer->ratio, visit, user)) return false;
    }
    return true;
}

static bool visit_new(const pf_rows *pool, int64_t begin, int64_t end, pf_visit_fn visit, void *user) {
    return begin == end || visit(user, pf_row_at(pool, begin), (uint64_t)(end - begin) * (uint64_t)pool->row_bytes);
}

bool pf_cache_walk_new_rows(const pf_cache *cache, int64_t begin, int64_t end, pf_visit_fn visit, void *user) {
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        if (layer->ratio == 0) continue;
        const int64_t first = begin / layer->ratio, last = end / layer->ratio;
        if (!visit_new(&layer->pool, first, last, visit, user)) return false;
        if (layer->ratio == PF_RATIO_CSA && !visit_new(&layer->index_pool, first, last, visit, user)) return false;
    }
    return true;
}

static bool add_size(void *user, void *piece, uint64_t size) {
    (void)piece;
    *(uint64_t *)user += size;
    return true;
}

uint64_t pf_cache_ring_bytes(const pf_cache *cache, int64_t position, int64_t floor) {
    uint64_t bytes = 0;
    (void)pf_cache_walk_rings(cache, position, floor, add_size, &bytes);
    return bytes;
}

uint64_t pf_cache_draft_bytes(const pf_cache *cache, int64_t position, int64_t floor, int64_t draft_begin) {
    uint64_t bytes = 0;
    (void)pf_cache_walk_drafts(cache, position, floor, draft_begin, add_size, &bytes);
    return bytes;
}

uint64_t pf_cache_new_rows_bytes(const pf_cache *cache, int64_t begin, int64_t end) {
    uint64_t bytes = 0;
    (void)pf_cache_walk_new_rows(cache, begin, end, add_size, &bytes);
    return bytes;
}
