/* The cache of one session. Everything in it is derived from the absolute position: window rows, compressor frontiers
 * and what drafters keep live in rings keyed by position, compressed rows in append-only pools keyed by index, and a pool's
 * count is position / ratio, never stored. Rolling back is moving the position; what lies beyond it is overwritten when
 * the tokens come again.
 *
 * Rings remember PF_ROLLBACK tokens more than the model needs, so any position down to `floor` can be returned to.
 *
 * The rows of layers that a device computes lie in its memory, where only operations, pf_cache_read() and
 * pf_cache_write() reach. Whoever calls anything here then holds the link, and asks it at the end whether the device
 * still works (pf_link_check()): nothing here reports that it does not. */
#ifndef PF_KV_CACHE_H
#define PF_KV_CACHE_H

#include "backend/backend.h"
#include "backend/link.h"
#include "arch/config.h"

enum {
    PF_ROLLBACK = 256,       /* tokens that can always be dropped */
    PF_COMPRESS_BLOCK = 128, /* tokens that a compressor's frontier takes at once */
    PF_CHECKPOINT_SLACK = 16, /* tokens before a checkpoint that it leads back to as well */
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
    int32_t ratio;
    pf_rows raw;          /* window rows keyed by position */
    pf_rows pool;         /* compressed rows; capacity 0 on window-only layers */
    pf_frontier frontier;
    pf_rows index_pool;   /* ratio 4: the indexer's rows and frontier */
    pf_frontier index_frontier;
} pf_layer_cache;

/* Copies of the rings as they were at some positions. The pools need none: rolling back to a position leaves the rows
 * of the tokens before it alone. */
typedef struct pf_checkpoint {
    int64_t position, floor;
    int64_t draft_begin; /* as of pf_cache */
    uint8_t *data; /* its slot: the pieces of pf_cache_walk_rings(position, floor), then of pf_cache_walk_drafts() */
} pf_checkpoint;

typedef struct pf_checkpoints {
    pf_checkpoint *items; /* [capacity], the first n of them live, positions ascending */
    int32_t n, capacity;
    uint8_t *region;      /* [capacity, slot_bytes] */
    uint64_t slot_bytes;
} pf_checkpoints;

typedef struct pf_cache {
    int32_t first_layer;      /* of the model, whose cache is layers[0] */
    int32_t n_layer;          /* of the model's from there on, without those that draft */
    pf_draft_shape drafts;
    pf_layer_cache *layers;   /* [n_layer + drafts.n_layer] */
    float *streams;           /* [stream_ring, N D]: final streams of recent tokens, for the MTP block; or NULL */
    int64_t stream_ring, stream_floats;
    int64_t window;           /* tokens that attention sees uncompressed */
    int64_t n_ctx;
    int32_t n_chunk;
    int64_t position;         /* tokens in the cache */
    int64_t floor;            /* lowest position that the rings can return to, besides 0 */
    int64_t draft_begin;      /* what drafters keep is there of the tokens from here on; the position: of none. More than 0
                                 where the cache came from elsewhere, without it */
    int64_t imported;         /* tokens whose rows the pools hold beyond the position, from elsewhere; 0: none */
    pf_checkpoints checkpoints;
    uint8_t *region;          /* one allocation that holds all of the above, but for layers on a device */
    uint64_t region_bytes;
    pf_link *link;            /* NULL without a device */
    uint8_t *device_region;   /* the device's memory: the rows and frontiers of its layers */
    uint64_t device_bytes;
} pf_cache;

/* Layers first_layer .. n_layer - 1 are kept in the memory of a device; what drafts never is. */
typedef struct pf_cache_device {
    pf_link *link;
    int32_t first_layer;
} pf_cache_device;

/* How rows are kept. */
typedef struct pf_cache_formats {
    pf_row_format kv, index;
} pf_cache_formats;

/* Lays out and allocates a cache of the range's layers for n_ctx tokens, evaluated at most n_chunk at once. device may be
 * NULL. */
pf_status pf_cache_open(const pf_config *config, pf_layer_range range, const pf_draft_shape *drafts, pf_cache_formats formats,
                        int64_t n_ctx, int32_t n_chunk, int32_t n_checkpoint, const pf_cache_device *device, pf_cache *out,
                        pf_error *err);
void pf_cache_close(pf_cache *cache);
/* By the layer's number in the model; those that draft go on from the model's number of layers. */
static inline const pf_layer_cache *pf_cache_layer(const pf_cache *cache, int32_t layer) {
    return &cache->layers[layer - cache->first_layer];
}
/* Bytes of one layer's rows and frontiers. */
uint64_t pf_cache_layer_bytes(const pf_config *config, int32_t layer, pf_cache_formats formats, int64_t n_ctx,
                              int32_t n_chunk);
/* Bytes of what drafting keeps. */
uint64_t pf_cache_draft_region(const pf_cache *cache);
/* Copies a piece of the cache, wherever it lies, to the host's memory, or back. */
void pf_cache_read(const pf_cache *cache, void *to, const void *piece, uint64_t size);
void pf_cache_write(const pf_cache *cache, void *piece, const void *from, uint64_t size);
/* Fills all memory with NaN patterns, so that reading a row that was never written shows. */
void pf_cache_poison(pf_cache *cache);

/* A step of n <= n_chunk tokens: begin, write at positions position .. position+n-1, then commit, which moves the
 * position, or abort, after which the cache is as before, but for the floor: an aborted step of more than
 * PF_COMPRESS_BLOCK tokens brings it up to the position. */
void pf_cache_begin_write(pf_cache *cache, int64_t n);
void pf_cache_commit_write(pf_cache *cache, int64_t n);
void pf_cache_abort_write(pf_cache *cache, int64_t n);

/* How many of the last tokens the rings can drop now. */
int64_t pf_cache_rollback_limit(const pf_cache *cache);
/* The highest position <= target that can be returned to; target <= position. */
int64_t pf_cache_nearest(const pf_cache *cache, int64_t target);
/* False, with nothing changed, when position - n is not one that can be returned to. */
bool pf_cache_rollback(pf_cache *cache, int64_t n);

/* checkpoint.c */

/* Slots for n checkpoints, which take memory only once used. */
pf_status pf_checkpoints_open(const pf_cache *cache, int32_t n, pf_checkpoints *out, pf_error *err);
void pf_checkpoints_close(pf_checkpoints *list);
/* Copies what it takes to return to the current position; in place of the least useful one when all slots are taken. */
void pf_cache_checkpoint(pf_cache *cache);
/* A new last checkpoint whose data the caller fills in. */
pf_checkpoint *pf_checkpoints_add(pf_checkpoints *list, int64_t position, int64_t floor, int64_t draft_begin);
void pf_checkpoints_drop_after(pf_checkpoints *list, int64_t position);
/* The checkpoint that leads back to position; NULL when none does. */
const pf_checkpoint *pf_checkpoints_find(const pf_checkpoints *list, int64_t position);
/* Puts its copy back into the rings. */
void pf_cache_restore(pf_cache *cache, const pf_checkpoint *checkpoint);

/* walk.c: every piece of memory that a position rests on, in a fixed order. False from the visitor ends the walk. */

typedef bool (*pf_visit_fn)(void *user, void *piece, uint64_t size);
/* The rings' share, with which one can also go back to floor; without what drafters keep. */
bool pf_cache_walk_rings(const pf_cache *cache, int64_t position, int64_t floor, pf_visit_fn visit, void *user);
/* What drafters keep for that, of the tokens from draft_begin on. */
bool pf_cache_walk_drafts(const pf_cache *cache, int64_t position, int64_t floor, int64_t draft_begin, pf_visit_fn visit,
                          void *user);
bool pf_cache_walk_pools(const pf_cache *cache, int64_t position, pf_visit_fn visit, void *user);
/* The pools' rows that the tokens begin .. end-1 complete, a pool's all in one piece. */
bool pf_cache_walk_new_rows(const pf_cache *cache, int64_t begin, int64_t end, pf_visit_fn visit, void *user);
uint64_t pf_cache_new_rows_bytes(const pf_cache *cache, int64_t begin, int64_t end);
/* Bytes of the rings' share, and of the drafters'. */
uint64_t pf_cache_ring_bytes(const pf_cache *cache, int64_t position, int64_t floor);
uint64_t pf_cache_draft_bytes(const pf_cache *cache, int64_t position, int64_t floor, int64_t draft_begin);

/* The contributions of the token at a position, [channels]. */
float *pf_frontier_a(const pf_frontier *frontier, int64_t position);
float *pf_frontier_g(const pf_frontier *frontier, int64_t position);

#endif
