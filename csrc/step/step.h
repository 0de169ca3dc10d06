/* One evaluation step: rows of one or more sessions through the network together, each a token. The parts of the forward
 * pass (csrc/model) share it.
 *
 * Scratch memory comes from the step's arena; whoever calls a part resets the arena to the mark it took before. */
#ifndef PF_STEP_STEP_H
#define PF_STEP_STEP_H

#include "arch/config.h"
#include "arch/weights.h"
#include "backend/backend.h"
#include "kv/cache.h"
#include "offload/expert_stream.h"
#include "offload/expert_upload.h"
#include "offload/hot_experts.h"

/* What a loaded model computes with: immutable, shared by all its sessions. */
typedef struct pf_network {
    pf_config config;
    pf_weights weights;
    double *rope_freq;            /* [r/2] of layers with ratio 0; owned */
    double *rope_freq_compressed; /* [r/2] of the others; owned */
    pf_expert_stream *experts;    /* NULL when all experts may stay in memory; owned */
    pf_expert_upload *upload;     /* NULL where no experts are sent to a device for long chunks; owned */
    pf_hot_experts *hot;          /* NULL where a device holds none of the experts that the host has; owned */
} pf_network;

struct pf_draft_head;
struct pf_frame;    /* recording.h */
struct pf_recorder; /* recording.h */

/* What a session brings to a step: n consecutive tokens of its timeline, rows first .. first + n - 1 of the step. What
 * knows only rows computes all of a step's at once; what depends on a timeline goes from share to share. */
typedef struct pf_share {
    pf_cache *cache;
    int64_t first, n;
    int64_t position;         /* the first token's absolute position */
    int64_t n_out;            /* logits are asked for of so many of its last tokens */
    float *logits;            /* [n_out, vocab], the host's */
    const float *streams_in;  /* [n, N D] from the stage before; NULL in the first one */
    float *streams_out;       /* [n, N D] for the next stage; NULL in the last one */
    const atomic_int *cancel; /* may be NULL where nothing is computed */
    pf_tap_fn tap;            /* may be NULL */
    void *tap_user;
    /* Of drafts: */
    int64_t context;          /* at most so many tokens before a row are seen, and the row; 0: the model's window */
    bool is_block;            /* every row sees all of the share's rows, and the `context` tokens before the first */
    float *features;          /* [n_feature, n_target D] of the last n_feature tokens, for DSpark; the host's */
    int64_t n_feature;
} pf_share;

/* Layers are computed on the host or on a device; the embedding and the MTP block always on the host. Each side has a
 * pf_step of its own, and a part of the pass runs on the side of the step that it is given: that step's scratch, its
 * cache rows and weights are all there. Only pf_step_carry() leads across. */
typedef struct pf_step {
    const pf_network *net;
    pf_exec *ex;           /* of this side */
    pf_link *link;         /* the device whose side it is; NULL on the host's */
    const struct pf_step *host;   /* the host's side, perhaps this one itself */
    const struct pf_step *device; /* the device's; NULL without one */
    pf_error *err;         /* may be NULL */
    pf_share *shares;      /* [n_share], ascending; one where a device computes. Those without rows are passed over */
    int64_t n_share;
    const int32_t *tokens; /* [n]; ids have been checked */
    int64_t n;             /* rows of all shares */
    pf_rope_table rope, rope_compressed; /* [n] of the rows' positions */
    const struct pf_frame *frame;  /* positions are read from the device's memory; NULL: operations are given them */
    struct pf_recorder *recorder;  /* the session's, of the device's side; NULL: nothing is recorded */
    const pf_choices *choices;     /* choices.h; NULL: neither noted nor held. Never with a device */
    const struct pf_draft_head *draft_head; /* model/draft_head.h: a draft's logits come from it; NULL: from the head */
} pf_step;

/* The share that comes after `share`, or the first one after NULL, that has rows; NULL: there is none. */
static inline const pf_share *pf_step_next(const pf_step *s, const pf_share *share) {
    const pf_share *end = s->shares + s->n_share;
    share = share == NULL ? s->shares : share + 1;
    while (share < end && share->n == 0) ++share;
    return share < end ? share : NULL;
}
#define PF_EACH_SHARE(step, share) \
    const pf_share *share = pf_step_next(step, NULL); share != NULL; share = pf_step_next(step, share)

/* The `position` that operations are given for a share: beside it they add the frame's. */
static inline int64_t pf_step_place(const pf_step *s, const pf_share *share) {
    return s->frame != NULL ? 0 : share->position;
}

/* The side that a layer or the head is computed on. */
static inline const pf_step *pf_step_side(const pf_step *s, bool on_device) { return on_device ? s->device : s->host; }

/* bytes of x from one side's memory in scratch of the other; x itself when both are the same side. To the device it
 * returns when x has been read, to the host when *out has been written. */
pf_status pf_step_carry(const pf_step *from, const pf_step *to, const void *x, size_t bytes, void **out);

/* The scratch of both sides, for giving back what was taken since. */
typedef struct pf_step_mark {
    size_t own, host;
} pf_step_mark;
pf_step_mark pf_step_set_mark(const pf_step *s);
void pf_step_reset(const pf_step *s, pf_step_mark mark);

/* count elements of scratch, or PF_ERR_MEMORY out of the calling function. */
#define PF_SCRATCH(type, name, step, count) \
    type *name = pf_arena_alloc((step)->ex->arena, (size_t)(count) * sizeof(type)); \
    if (name == NULL) return PF_ERR_MEMORY

/* cos and sin [n, half] of positions first, first + stride, ... Angles are computed in double: positions reach a
 * million. */
void pf_rope_fill(const double *freq, int64_t half, int64_t first, int64_t stride, int64_t n, float *cosines,
                  float *sines);
/* These of the model's rotary dimensions, into scratch. */
pf_status pf_step_rope(const pf_step *s, const double *freq, int64_t first, int64_t stride, int64_t n,
                       pf_rope_table *out);
/* Fills rope and rope_compressed for the rows' positions. */
pf_status pf_step_prepare(pf_step *s);
/* Takes the rows of cancelled sessions out of a step of several: out of streams [n, width], and out of the step, which is
 * prepared anew. Such a share has no rows from then on. CANCELLED when none are left. On the host's side. */
pf_status pf_step_drop_cancelled(pf_step *s, float *streams, int64_t width);

static inline const pf_rope_table *pf_step_rope_of(const pf_step *s, int32_t ratio) {
    return ratio == 0 ? &s->rope : &s->rope_compressed;
}

/* Reports data [n, width], which is on the step's side, to the taps, token by token. */
void pf_step_tap(const pf_step *s, const char *name, int32_t layer, const float *data, int64_t width);
/* Reports n rows of a share, at absolute positions from `position` on. */
void pf_share_tap(const pf_step *s, const pf_share *share, const char *name, int32_t layer, int64_t position,
                  const float *data, int64_t n, int64_t width);
void pf_share_tap_ints(const pf_step *s, const pf_share *share, const char *name, int32_t layer, int64_t position,
                       const int32_t *data, int64_t width);

/* Hash layers look their experts up by token id: chosen [n, A], the host's memory. */
void pf_step_hash_experts(const pf_step *s, const pf_moe_weights *w, int32_t *chosen);
/* The tables come from the file: checks what they have for n tokens, before a step of these begins. */
pf_status pf_check_hash_experts(const pf_network *net, const int32_t *tokens, int64_t n, pf_error *err);

#endif
