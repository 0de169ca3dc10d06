/* DSpark, the drafter of release 0731, in files: where its tensors and numbers stand, in each program's words.
 *
 * Its stages are blocks like the model's last layers. A file holds them beside the model's own tensors, or alone: then the
 * sizes are the model's, against which the tensors are held. */
#ifndef PF_ARCH_DSPARK_H
#define PF_ARCH_DSPARK_H

#include "arch/config.h"

enum { PF_MAX_STAGES = 8, PF_MAX_TARGETS = 16, PF_MAX_DRAFT_BLOCK = 64 };

typedef struct pf_dspark_config {
    int32_t n_stage;       /* 0: the file has none */
    int32_t block;         /* tokens that a draft computes, the anchor being the first */
    int32_t noise_token;   /* what stands for those that are not known yet */
    int32_t n_target;
    int32_t target[PF_MAX_TARGETS]; /* layers whose outputs it sees, in the order of main_proj's columns */
    int32_t rank;          /* of the Markov head */
    bool has_confidence;
    const struct pf_dspark_words *words;
} pf_dspark_config;

/* What a tensor stands for, beside the stages' blocks. */
typedef enum pf_dspark_part {
    PF_DSPARK_MAIN_PROJ,
    PF_DSPARK_MAIN_NORM,
    PF_DSPARK_NORM,
    PF_DSPARK_HEAD_MIX, /* the beginning of three names */
    PF_DSPARK_MARKOV_W1,
    PF_DSPARK_MARKOV_W2,
    PF_DSPARK_CONFIDENCE,
    PF_DSPARK_N_PART,
} pf_dspark_part;

enum { PF_DSPARK_NAME_BYTES = 48 };

/* Whether the file has DSpark stages that can be run. */
bool pf_dspark_is_in(const pf_gguf *gguf);
/* Its numbers, checked against the model's configuration c (n_vocab included); n_stage 0 where the file has none. FORMAT: a
 * key is missing or not possible. UNSUPPORTED: a well-formed drafter of another kind. */
pf_status pf_dspark_read(const pf_gguf *gguf, const pf_config *c, pf_dspark_config *out, pf_error *err);
/* A part's name without ".weight", and what a stage's block begins with ("blk.0."). */
const char *pf_dspark_name(const pf_dspark_config *d, pf_dspark_part part, char out[PF_DSPARK_NAME_BYTES]);
const char *pf_dspark_stage(const pf_dspark_config *d, int32_t stage, char out[PF_DSPARK_NAME_BYTES]);

#endif
