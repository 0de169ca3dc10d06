/* Weights: GGUF names to typed views, looked up and checked once. Matrices are never copied: every view points into the map, or,
 * once placed on a device (placement.h), into its memory. Vectors and small tables are float32: those that a file has in
 * another type are widened as they are found (widen.h). */
#ifndef PF_ARCH_WEIGHTS_H
#define PF_ARCH_WEIGHTS_H

#include "backend/backend.h"
#include "format/gguf.h"
#include "arch/config.h"
#include "arch/dspark.h"
#include "arch/widen.h"

/* A compressor's weights; width w is head_dim, or index_dim inside the indexer. c = 2 for ratio 4, else 1. */
typedef struct pf_compressor_weights {
    pf_weight kv, gate; /* [c w, D] */
    const float *ape;   /* [ratio, c w] */
    const float *norm;  /* [w] */
} pf_compressor_weights;

typedef struct pf_attention_weights {
    const float *norm;   /* [D] */
    const float *sinks;  /* [H] */
    pf_weight q_a;       /* [Rq, D] */
    const float *q_norm; /* [Rq] */
    pf_weight q_b;       /* [H d, Rq] */
    pf_weight kv;        /* [d, D] */
    const float *kv_norm; /* [d] */
    pf_weight out_a;     /* [G Ro, H d / G] */
    pf_weight out_b;     /* [D, G Ro] */
    pf_compressor_weights compressor; /* ratio 4 and 128 */
    /* ratio 4 */
    pf_weight index_q;       /* [Hi di, Rq] */
    pf_weight index_weights; /* [Hi, D] */
    pf_compressor_weights index_compressor;
} pf_attention_weights;

typedef struct pf_moe_weights {
    const float *norm;          /* [D] */
    pf_weight router;           /* [E, D] */
    const float *router_bias;   /* [E]; NULL on hash layers */
    const int32_t *token_table; /* [vocab, A]; hash layers only */
    pf_weight gate, up, down;   /* E of [F, D], [F, D], [D, F] */
    pf_weight shared_gate, shared_up, shared_down;
} pf_moe_weights;

typedef struct pf_layer_weights {
    int32_t ratio;
    bool hash;
    bool on_device;         /* whether a device computes the layer, with all of its weights but the routed experts and the
                               token table */
    bool experts_on_device; /* and the routed experts too */
    float limit_routed, limit_shared;
    pf_mhc_site hc_attn, hc_ffn;
    pf_attention_weights attn;
    pf_moe_weights moe;
} pf_layer_weights;

/* The multi-token-prediction block: one layer between its own input projections and its own head norm. */
typedef struct pf_mtp_weights {
    bool present;
    bool joined;             /* e_proj and h_proj come as one matrix over [embedding | hidden] */
    pf_weight eh_proj;       /* [D, 2 D] when joined */
    pf_weight e_proj, h_proj; /* [D, D] otherwise */
    const float *e_norm, *h_norm; /* [D] */
    pf_layer_weights layer;
    pf_mhc_site head_mix;
    const float *norm;       /* [D] */
} pf_mtp_weights;

/* DSpark: blocks over what the model's layers put out, and a head that corrects each drafted token by the one before. */
typedef struct pf_dspark_weights {
    pf_dspark_config config;    /* n_stage 0: there are none */
    pf_weight main_proj;        /* [D, n_target D] */
    const float *main_norm;     /* [D] */
    pf_layer_weights stages[PF_MAX_STAGES];
    pf_mhc_site head_mix;
    const float *norm;          /* [D] */
    pf_weight markov_w1, markov_w2; /* [vocab, rank] */
    const float *confidence;    /* [D + rank]; NULL where the file has none */
} pf_dspark_weights;

typedef struct pf_weights {
    pf_layer_range range;   /* whose weights these are; others are zeros */
    pf_weight embed;        /* [vocab, D]; of the first stage, and for what drafts */
    pf_weight head;         /* [vocab, D]; as norm and head_mix of the last stage */
    const float *norm;      /* [D] */
    pf_mhc_site head_mix;
    bool head_on_device;    /* head, norm and head_mix */
    pf_layer_weights *layers; /* n_layer; owned */
    pf_mtp_weights mtp;       /* at most one of the two is there */
    pf_dspark_weights dspark;
    pf_widened widened;     /* owned */
} pf_weights;

/* Whether a tensor of this name is a weight of the range, or of no layer that is known. drafts: with what drafts, which needs
 * the embedding; an MTP block's number is n_layer. */
bool pf_range_has_tensor(const pf_config *config, pf_layer_range range, bool drafts, pf_gguf_string name);

/* Fills *out from the model's GGUF and sets config->n_vocab: the weights of the range. Of a range without the head what drafts
 * is left out. draft_gguf, which may be NULL, is a file that drafts for the model: an MTP block in llama.cpp's layout, with its
 * own configuration mtp_config, or, where that is NULL, DSpark stages. Without it what the model's own file has is taken.
 * FORMAT errors name the tensor that is missing, of another shape, or of a type that does not fit. */
pf_status pf_weights_load(const pf_gguf *gguf, pf_config *config, pf_layer_range range, const pf_gguf *draft_gguf,
                          const pf_config *mtp_config, pf_weights *out, pf_error *err);
void pf_weights_free(pf_weights *weights);

/* What drafting keeps of a timeline. */
pf_draft_shape pf_weights_draft_shape(const pf_weights *weights);
/* Its layers, from 0. */
const pf_layer_weights *pf_weights_draft_layer(const pf_weights *weights, int32_t i);

#endif
