#include "kv/cache.h"

#include "base/arith.h"

#include <string.h>

/* Hands out the parts of one region: first to measure (base NULL), then to place. */
typedef struct layout {
    uint8_t *base;
    uint64_t used;
    bool overflow;
} layout;

static void *place(layout *at, uint64_t count, uint64_t size) {
    uint64_t bytes = 0, end = 0, aligned = 0;
    if (!pf_mul_u64(count, size, &bytes) || !pf_add_u64(at->used, bytes, &end) ||
        !pf_align_u64(end, PF_ALIGN, &aligned) || aligned > SIZE_MAX / 2) {
        at->overflow = true;
        return NULL;
    }
    void *block = at->base != NULL ? at->base + at->used : NULL;
    at->used = aligned;
    return block;
}

static void place_rows(layout *at, pf_row_format format, int64_t width, int64_t rope, int64_t capacity, pf_rows *out) {
    out->format = format;
    out->width = (int32_t)width;
    out->rope = (int32_t)rope;
    out->row_bytes = pf_row_bytes(format, width, rope);
    out->capacity = capacity;
    out->data = place(at, (uint64_t)capacity, (uint64_t)out->row_bytes);
}

static void place_frontier(layout *at, int64_t ratio, bool overlap, int64_t width, pf_frontier *out) {
    const int64_t windows = overlap ? 2 : 1;
    out->channels = windows * width;
    out->need = windows * ratio;
    out->ring = out->need + PF_ROLLBACK + PF_COMPRESS_BLOCK;
    out->a = place(at, (uint64_t)(out->ring * out->channels), sizeof(float));
    out->g = place(at, (uint64_t)(out->ring * out->channels), sizeof(float));
    out->undo = place(at, (uint64_t)(2 * out->need * out->channels), sizeof(float));
}

/* most: rows that are written at once. */
static void place_layer(layout *at, const pf_config *c, const pf_cache *cache, pf_cache_formats formats, int32_t ratio,
                        int64_t most, pf_layer_cache *out) {
    out->ratio = ratio;
    place_rows(at, formats.kv, c->head_dim, c->rope_dim, c->window + PF_ROLLBACK + most, &out->raw);
    if (ratio == 0) return;
    const bool overlap = ratio == PF_RATIO_CSA;
    const int64_t rows = pf_max_i64(1, cache->n_ctx / ratio);
    place_rows(at, formats.kv, c->head_dim, c->rope_dim, rows, &out->pool);
    place_frontier(at, ratio, overlap, c->head_dim, &out->frontier);
    if (!overlap) return;
    place_rows(at, formats.index, c->index_dim, c->rope_dim, rows, &out->index_pool);
    place_frontier(at, ratio, overlap, c->index_dim, &out->index_frontier);
}

/* What is laid out: on the host, and on the device where there is one. */
typedef struct layouts {
    layout host, device;
} layouts;

static int32_t all_layers(const pf_cache *cache) { return cache->n_layer + cache->drafts.n_layer; }

/* With base NULL only measures: at->host.used and at->device.used become the sizes. */
static void place_all(layouts *at, const pf_config *c, pf_cache_formats formats, int32_t first_on_device,
                      pf_cache *cache) {
    const int32_t n_layer = all_layers(cache);
    cache->layers = place(&at->host, (uint64_t)n_layer, sizeof *cache->layers);
    for (int32_t l = 0; l < n_layer; ++l) {
        pf_layer_cache measured = {0};
        pf_layer_cache *layer = at->host.base != NULL ? &cache->layers[l] : &measured;
        const int32_t number = cache->first_layer + l;
        const bool drafts = l >= cache->n_layer;
        const bool on_device = number >= first_on_device && !drafts;
        const int64_t most = drafts ? pf_max_i64(cache->n_chunk, cache->drafts.block) : cache->n_chunk;
        place_layer(on_device ? &at->device : &at->host, c, cache, formats, drafts ? 0 : c->ratio[number], most, layer);
    }
    if (cache->drafts.has_streams) {
        cache->stream_ring = PF_ROLLBACK + 1 + cache->n_chunk;
        cache->stream_floats = (int64_t)c->n_stream * c->n_embd;
        cache->streams = place(&at->host, (uint64_t)cache->stream_ring, (uint64_t)cache->stream_floats * sizeof(float));
    }
}

uint64_t pf_cache_layer_bytes(const pf_config *config, int32_t layer, pf_cache_formats formats, int64_t n_ctx,
                              int32_t n_chunk) {
    const pf_cache cache = {.n_ctx = n_ctx, .n_chunk = n_chunk};
    layout at = {NULL, 0, false};
    pf_layer_cache measured = {0};
    place_layer(&at, config, &cache, formats, config->ratio[layer], n_chunk, &measured);
    return at.overflow ? UINT64_MAX : at.used;
}

uint64_t pf_cache_draft_region(const pf_cache *cache) {
    uint64_t bytes = (uint64_t)(cache->stream_ring * cache->stream_floats) * sizeof(float);
    for (int32_t l = cache->n_layer; l < all_layers(cache); ++l) {
        bytes += (uint64_t)(cache->layers[l].raw.capacity * cache->layers[l].raw.row_bytes);
    }
    return bytes;
}

static pf_status allocate(pf_cache *cache, const layouts *measured, pf_error *err) {
    const bool overflow = measured->host.overflow || measured->device.overflow;
    const double gib = 1073741824.0;
    if (!overflow) cache->region = pf_region_alloc((size_t)measured->host.used);
    if (cache->region == NULL) {
        return pf_fail(err, PF_ERR_MEMORY, "no memory for a cache of %lld tokens (%.1f GiB): ask for a smaller context",
                       (long long)cache->n_ctx, (double)measured->host.used / gib);
    }
    cache->region_bytes = measured->host.used;
    if (measured->device.used == 0) return PF_OK;
    cache->device_region = pf_link_alloc(cache->link, (size_t)measured->device.used);
    if (cache->device_region == NULL) {
        return pf_fail(err, PF_ERR_MEMORY,
                       "no memory on the device for its share of a cache of %lld tokens (%.1f GiB): ask for a smaller "
                       "context, or for fewer layers on the device",
                       (long long)cache->n_ctx, (double)measured->device.used / gib);
    }
    cache->device_bytes = measured->device.used;
    return PF_OK;
}

pf_status pf_cache_open(const pf_config *config, pf_layer_range range, const pf_draft_shape *drafts, pf_cache_formats formats,
                        int64_t n_ctx, int32_t n_chunk, int32_t n_checkpoint, const pf_cache_device *device, pf_cache *out,
                        pf_error *err) {
    pf_cache cache = {.first_layer = range.first, .n_layer = range.end - range.first, .drafts = *drafts,
                      .window = config->window, .n_ctx = n_ctx, .n_chunk = n_chunk,
                      .link = device != NULL ? device->link : NULL};
    const int32_t first_on_device = device != NULL ? device->first_layer : config->n_layer;
    layouts at = {{NULL, 0, false}, {NULL, 0, false}};
    place_all(&at, config, formats, first_on_device, &cache);
    pf_status status = allocate(&cache, &at, err);
    if (status == PF_OK) {
        at = (layouts){{cache.region, 0, false}, {cache.device_region, 0, false}};
        place_all(&at, config, formats, first_on_device, &cache);
        status = pf_checkpoints_open(&cache, n_checkpoint, &cache.checkpoints, err);
    }
    if (status != PF_OK) {
        pf_cache_close(&cache);
        return status;
    }
    *out = cache;
    return PF_OK;
}

void pf_cache_close(pf_cache *cache) {
    pf_checkpoints_close(&cache->checkpoints);
    if (cache->region != NULL) pf_region_free(cache->region, (size_t)cache->region_bytes);
    if (cache->device_region != NULL) pf_link_free(cache->link, cache->device_region);
    memset(cache, 0, sizeof *cache);
}

/* ---- Pieces, wherever they lie ----------------------------------------------------------------------------- */

static bool on_device(const pf_cache *cache, const void *piece) {
    const uintptr_t at = (uintptr_t)piece, begin = (uintptr_t)cache->device_region;
    return cache->device_region != NULL && at >= begin && at - begin < cache->device_bytes;
}

void pf_cache_read(const pf_cache *cache, void *to, const void *piece, uint64_t size) {
    if (on_device(cache, piece)) (void)pf_link_download(cache->link, to, piece, (size_t)size);
    else if (size > 0) memcpy(to, piece, (size_t)size);
}

void pf_cache_write(const pf_cache *cache, void *piece, const void *from, uint64_t size) {
    if (on_device(cache, piece)) (void)pf_link_upload(cache->link, piece, from, (size_t)size);
    else if (size > 0) memcpy(piece, from, (size_t)size);
}

/* Both on the same side. */
static void copy_piece(const pf_cache *cache, void *to, const void *from, uint64_t size) {
    if (on_device(cache, to)) (void)pf_link_copy(cache->link, to, from, (size_t)size);
    else memcpy(to, from, (size_t)size);
}

static void poison(const pf_cache *cache, uint8_t *data, uint64_t bytes) {
    uint8_t garbage[4096]; /* NaN in every row format's floats and scales */
    memset(garbage, 0xff, sizeof garbage);
    while (data != NULL && bytes > 0) {
        const uint64_t n = bytes < sizeof garbage ? bytes : sizeof garbage;
        pf_cache_write(cache, data, garbage, n);
        data += n;
        bytes -= n;
    }
}

static void poison_rows(const pf_cache *cache, const pf_rows *rows) {
    poison(cache, rows->data, (uint64_t)(rows->capacity * rows->row_bytes));
}

static void poison_frontier(const pf_cache *cache, const pf_frontier *f) {
    poison(cache, (uint8_t *)f->a, (uint64_t)(f->ring * f->channels) * sizeof(float));
    poison(cache, (uint8_t *)f->g, (uint64_t)(f->ring * f->channels) * sizeof(float));
}

void pf_cache_poison(pf_cache *cache) {
    for (int32_t l = 0; l < all_layers(cache); ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        poison_rows(cache, &layer->raw);
        poison_rows(cache, &layer->pool);
        poison_rows(cache, &layer->index_pool);
        poison_frontier(cache, &layer->frontier);
        poison_frontier(cache, &layer->index_frontier);
    }
    poison(cache, (uint8_t *)cache->streams, (uint64_t)(cache->stream_ring * cache->stream_floats) * sizeof(float));
}

/* ---- Steps ------------------------------------------------------------------------------------------------- */

/* The open windows' contributions to the undo copy, or back. */
static void copy_open_window(const pf_cache *cache, const pf_frontier *f, bool restore) {
    const size_t bytes = (size_t)f->channels * sizeof(float);
    float *undo = f->undo;
    for (int64_t p = pf_max_i64(0, cache->position - f->need); p < cache->position; ++p, undo += 2 * f->channels) {
        float *a = pf_frontier_a(f, p), *g = pf_frontier_g(f, p);
        copy_piece(cache, restore ? a : undo, restore ? undo : a, bytes);
        copy_piece(cache, restore ? g : undo + f->channels, restore ? undo + f->channels : g, bytes);
    }
}

/* Only a step longer than the frontier's slack overwrites what the current position needs: the other rings have room
 * for a whole chunk beyond the rollback span. */
static void copy_open_windows(const pf_cache *cache, int64_t n, bool restore) {
    if (n <= PF_COMPRESS_BLOCK) return;
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        if (cache->layers[l].frontier.ring > 0) copy_open_window(cache, &cache->layers[l].frontier, restore);
        if (cache->layers[l].index_frontier.ring > 0) {
            copy_open_window(cache, &cache->layers[l].index_frontier, restore);
        }
    }
}

void pf_cache_begin_write(pf_cache *cache, int64_t n) {
    cache->imported = 0; /* will be written over */
    copy_open_windows(cache, n, false);
}

void pf_cache_commit_write(pf_cache *cache, int64_t n) {
    cache->position += n;
    cache->floor = pf_max_i64(cache->floor, cache->position - PF_ROLLBACK);
}

void pf_cache_abort_write(pf_cache *cache, int64_t n) {
    copy_open_windows(cache, n, true);
    /* A longer step has overwritten the frontiers of earlier positions. A shorter one stays within their slack: the
     * floor is never more than PF_ROLLBACK back, and everything from there on is still in its ring. */
    if (n > PF_COMPRESS_BLOCK) cache->floor = cache->position;
}

int64_t pf_cache_rollback_limit(const pf_cache *cache) { return cache->position - cache->floor; }

int64_t pf_cache_nearest(const pf_cache *cache, int64_t target) {
    if (target >= cache->floor) return target;
    int64_t best = 0;
    for (int32_t i = 0; i < cache->checkpoints.n; ++i) {
        const pf_checkpoint *c = &cache->checkpoints.items[i];
        if (c->floor <= target) best = pf_max_i64(best, pf_min_i64(c->position, target));
    }
    return best;
}

bool pf_cache_rollback(pf_cache *cache, int64_t n) {
    const int64_t target = cache->position - n;
    if (pf_cache_nearest(cache, target) != target) return false;
    if (target == 0) { /* nothing older is needed, so the rings start afresh */
        cache->floor = 0;
    } else if (target < cache->floor) {
        const pf_checkpoint *checkpoint = pf_checkpoints_find(&cache->checkpoints, target);
        pf_cache_restore(cache, checkpoint);
        cache->floor = checkpoint->floor;
        cache->draft_begin = checkpoint->draft_begin;
    }
    cache->position = target;
    cache->draft_begin = pf_min_i64(cache->draft_begin, target);
    cache->imported = 0;
    pf_checkpoints_drop_after(&cache->checkpoints, target);
    return true;
}

float *pf_frontier_a(const pf_frontier *frontier, int64_t position) {
    return frontier->a + position % frontier->ring * frontier->channels;
}

float *pf_frontier_g(const pf_frontier *frontier, int64_t position) {
    return frontier->g + position % frontier->ring * frontier->channels;
}
