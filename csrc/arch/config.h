/* The configuration of a model, read from a GGUF's keys and held against what this library can run. */
#ifndef PF_ARCH_CONFIG_H
#define PF_ARCH_CONFIG_H

#include "format/gguf.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    PF_MAX_LAYERS = 512,
    PF_RATIO_CSA = 4,   /* compressed sparse attention: overlapping windows, indexer */
    PF_RATIO_HCA = 128, /* heavily compressed attention: every row is seen */
};

typedef struct pf_rope_config {
    double theta;
    /* YaRN; factor 1 means none. */
    double factor, original_length, beta_fast, beta_slow;
} pf_rope_config;

/* Symbols as in the model's description; every size is positive unless said otherwise. */
typedef struct pf_config {
    int32_t n_vocab;
    int32_t n_embd;          /* D */
    int32_t n_layer;         /* L, the MTP block not counted */
    int32_t n_nextn;         /* MTP blocks in this file that are used, 0 or 1 */
    bool native;             /* the file follows the native profile */
    int32_t n_head;          /* H */
    int32_t head_dim;        /* d */
    int32_t rope_dim;        /* r, even, <= d */
    int32_t q_rank;          /* Rq */
    int32_t o_groups;        /* G, divides H */
    int32_t o_rank;          /* Ro */
    int32_t window;          /* W */
    int32_t index_heads;     /* Hi, 0 when no layer has ratio 4 */
    int32_t index_dim;       /* di, a power of two >= 32 */
    int32_t index_topk;
    int32_t n_expert;        /* E */
    int32_t n_expert_used;   /* A <= E */
    int32_t n_ff;            /* F */
    int32_t n_hash_layer;    /* 0 .. L */
    int32_t n_stream;        /* N */
    int32_t sinkhorn_iters;
    int64_t n_ctx_train;
    float norm_eps, hc_eps;
    float expert_scale;
    pf_rope_config rope;            /* layers of ratio 0 */
    pf_rope_config rope_compressed; /* layers of ratio 4 and 128 */
    int32_t ratio[PF_MAX_LAYERS];      /* n_layer + n_nextn entries */
    float limit_routed[PF_MAX_LAYERS]; /* SwiGLU clamps; FLT_MAX: none */
    float limit_shared[PF_MAX_LAYERS];
} pf_config;

/* The layers first .. end - 1 that a model computes: all of them, or a stage's. The stage with layer 0 embeds the tokens, the
 * one with layer n_layer - 1 has the head, and what drafts. */
typedef struct pf_layer_range {
    int32_t first, end;
} pf_layer_range;

static inline bool pf_range_is_whole(const pf_config *config, pf_layer_range range) {
    return range.end - range.first == config->n_layer;
}
static inline bool pf_range_has_head(const pf_config *config, pf_layer_range range) { return range.end == config->n_layer; }

/* What a drafter keeps of a timeline, beside the layers' caches. */
typedef struct pf_draft_shape {
    int32_t n_layer;  /* of window rows; 0: nothing drafts */
    int32_t block;    /* rows that a draft writes behind the timeline's end */
    bool has_streams; /* MTP: the final streams of recent tokens too */
} pf_draft_shape;

/* Reads and checks, in any program's dialect of keys. FORMAT: a key is missing or of the wrong kind; UNSUPPORTED: a
 * well-formed model of another architecture or outside the supported set, or no model (arch/file_kind.h). Messages name
 * the key, or what the file is. */
pf_status pf_config_read(const pf_gguf *gguf, pf_config *out, pf_error *err);

/* Frequencies f_i, i < rope_dim/2, in radians a position. */
void pf_rope_frequencies(const pf_rope_config *rope, int32_t rope_dim, double *out);

#endif
