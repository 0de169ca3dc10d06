/* The cache of one session. Everything in it is derived from the absolute position: window rows, compressor frontiers
 * and MTP streams live in rings keyed by position, compressed rows in append-only pools keyed by index, and a pool's
 * count is position / ratio, never stored. Rolling back is moving the position; what lies beyond it is overwritten when
 * the tokens come again.
 *
 * Rings remember PF_ROLLBACK tokens more than the model needs, so any position down to `floor` can be returned to. */
#ifndef PF_KV_CACHE_H
#define PF_KV_CACHE_H

#include "backend/backend.h"
#include "model/config.h"

enum {
    PF_ROLLBACK = 256,       /* tokens that can always be dropped */
    PF_COMPRESS_BLOCK = 128, /* tokens that a compressor's frontier takes at once */
};

/* Contributions a, g of the tokens a compressor may still need: the open window, for ratio 4 the one before it, the
 * rollback span, and one block being written. */
typedef struct pf_frontier {
    float *a, *g;     /* [ring, channels] each */
    int64_t ring;     /* tokens */
    int64_t channels; /* c width */
    int64_t need;     /* tokens before the next one that its window may reach: c ratio */
    float *undo;      /* [2, need, channels]: what pf_cache_abort_write() puts back */
} pf_frontier;

typedef struct pf_layer_cache {
    pf_rows raw;          /* window rows keyed by position */
    pf_rows pool;         /* compressed rows; capacity 0 on window-only layers */
    pf_frontier frontier;
    pf_rows index_pool;   /* ratio 4: the indexer's rows and frontier */
    pf_frontier index_frontier;
} pf_layer_cache;

typedef struct pf_cache {
    int32_t n_layer;          /* with the MTP block last when it is present */
    pf_layer_cache *layers;
    float *streams;           /* [stream_ring, N D]: final streams of recent tokens, for the MTP block; or NULL */
    int64_t stream_ring, stream_floats;
    int64_t n_ctx;
    int32_t n_chunk;
    int64_t position;         /* tokens in the cache */
    int64_t floor;            /* lowest position that can be returned to, besides 0 */
    uint8_t *region;          /* one allocation that holds all of the above */
    uint64_t region_bytes;
} pf_cache;

/* How rows are kept. */
typedef struct pf_cache_formats {
    pf_row_format kv, index;
} pf_cache_formats;

/* Lays out and allocates a cache for n_ctx tokens, evaluated at most n_chunk at once. */
pf_status pf_cache_open(const pf_config *config, bool mtp, pf_cache_formats formats, int64_t n_ctx, int32_t n_chunk,
                        pf_cache *out, pf_error *err);
void pf_cache_close(pf_cache *cache);
/* Fills all memory with NaN patterns, so that reading a row that was never written shows. */
void pf_cache_poison(pf_cache *cache);

/* A step of n <= n_chunk tokens: begin, write at positions position .. position+n-1, then commit, which moves the
 * position, or abort, after which the cache is as before, but for the floor: an aborted step of more than
 * PF_COMPRESS_BLOCK tokens brings it up to the position. */
void pf_cache_begin_write(pf_cache *cache, int64_t n);
void pf_cache_commit_write(pf_cache *cache, int64_t n);
void pf_cache_abort_write(pf_cache *cache, int64_t n);

/* How many of the last tokens can be dropped now; everything (n = position) always can. */
int64_t pf_cache_rollback_limit(const pf_cache *cache);
/* False, with nothing changed, when n is more than the limit and not everything. */
bool pf_cache_rollback(pf_cache *cache, int64_t n);

/* The contributions of the token at a position, [channels]. */
float *pf_frontier_a(const pf_frontier *frontier, int64_t position);
float *pf_frontier_g(const pf_frontier *frontier, int64_t position);

#endif
