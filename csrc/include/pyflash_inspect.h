/* pyflash_inspect.h - looking into an evaluation: its choices, sums for quantisers, where its time goes. Part of pyflash.h. */
#ifndef PYFLASH_INSPECT_H
#define PYFLASH_INSPECT_H

#include "pyflash_base.h"
#include "pyflash_model.h"
#include "pyflash_session.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

/* ---- Choices ----------------------------------------------------------------------------------------------- */

#define PF_CHOICES_NOTE 0 /* steps write down what they choose, */
#define PF_CHOICES_HOLD 1 /* or take what is written instead of choosing */

/* What was chosen for the tokens at positions 0 to n_position - 1: in the caller's memory, which must stay until it is no
 * longer the session's. A and index_topk as pf_model_info has them. Grows at its end only. */
typedef struct pf_choices {
    uint32_t struct_size; /* set by the caller to sizeof(pf_choices) */
    int32_t mode;         /* PF_CHOICES_* */
    int64_t n_position;
    int32_t *experts;     /* [n_layer, n_position, A] ids, best first. Held ones are weighted by the model's own scores, and
                             hash layers look theirs up as ever */
    int32_t *rows;        /* [layers of ratio 4, n_position, index_topk] compressed rows, ascending: of the token at p the
                             first min(index_topk, (p + 1) / 4) count; NULL: the indexer's choices are left alone */
} pf_choices;

/* From now on pf_session_eval() notes or holds choices, whatever the chunks; NULL: no longer. Noting changes no bit, and
 * neither does holding what the same model noted with the same precision and cache. To compare models whose scores differ
 * a little without what a choice that flips does. Steps return ARGUMENT, and nothing has changed, where n_position has no
 * room for them, or where what is held cannot have been chosen. UNSUPPORTED for a model with a device. */
PF_API pf_status pf_session_set_choices(pf_session *session, const pf_choices *choices, pf_error *err);

/* ---- Importance -------------------------------------------------------------------------------------------- */

/* Which input of matrix products a sum is of. Weights that take the same one are not told apart. */
#define PF_INPUT_ATTENTION 0     /* [1, D] of the queries' and the rows' first projections, compressors, indexer's weights */
#define PF_INPUT_QUERY 1         /* [1, Rq] of the queries' second one, and the indexer's */
#define PF_INPUT_OUT_GROUPS 2    /* [G, H d / G] of the first output projection, each group's */
#define PF_INPUT_OUT 3           /* [1, G Ro] of the second one */
#define PF_INPUT_FFN 4           /* [1, D] of the router and of the shared expert's gate and up */
#define PF_INPUT_SHARED_HIDDEN 5 /* [1, F] of the shared expert's down */
#define PF_INPUT_EXPERTS 6       /* [E, D] of the routed experts' gate and up */
#define PF_INPUT_EXPERT_HIDDEN 7 /* [E, F] of their down, without the weight of the route, */
#define PF_INPUT_EXPERT_HIDDEN_WEIGHTED 8 /* and times that weight, as it counts in the output */
#define PF_INPUT_ATTENTION_MIX 9 /* [1, N D] of the attention's hc fn: the streams, normalised, */
#define PF_INPUT_FFN_MIX 10      /* and the experts' */
#define PF_INPUT_HEAD 11         /* layer -1, for tokens whose logits are asked for: [1, D] of the output matrix, */
#define PF_INPUT_HEAD_MIX 12     /* and [1, N D] of the hc fn before it */

/* Sums of squares of what matrix products take, which tell quantisers what columns matter. */
typedef struct pf_collector pf_collector;

/* Grows at its end only. */
typedef struct pf_input_sums {
    uint32_t struct_size; /* set by the caller to sizeof(pf_input_sums) before the call */
    uint32_t reserved;
    int64_t n_matrices;
    int64_t n_columns;
    double *sums;    /* [n_matrices, n_columns] over all tokens that a matrix was used for, in their order: the same bits
                        for any number of threads and any split into steps */
    int64_t *counts; /* [n_matrices] of them */
} pf_input_sums;

/* Eight bytes a value; pages that nothing is added to take no memory. UNSUPPORTED for a model with a device. */
PF_API pf_status pf_collector_open(pf_model *model, pf_collector **out, pf_error *err);
PF_API void pf_collector_close(pf_collector *collector); /* once no session has it; NULL is allowed */
/* From now on pf_session_eval() adds to it; NULL: no longer. Results are the same bits as without. One session may have
 * it at a time. The MTP block's are not collected. ARGUMENT for another model's. */
PF_API pf_status pf_session_set_collector(pf_session *session, pf_collector *collector, pf_error *err);
/* Where the sums of a PF_INPUT_* lie; layer from 0. Valid until the collector is closed, and may be set between steps, to
 * go on with earlier ones. ARGUMENT also after a step that failed or was cancelled, since part of it may be in them. */
PF_API pf_status pf_collector_sums(const pf_collector *collector, int32_t input, int32_t layer, pf_input_sums *out,
                                   pf_error *err);

/* Where the time of evaluating goes: a clock around every operation of the processor's. */
typedef struct pf_profiler pf_profiler;

/* One operation, or one weight's products, over all layers. Grows at its end only. */
typedef struct pf_profile_row {
    uint32_t struct_size; /* set by the caller to sizeof(pf_profile_row) before the call */
    uint32_t reserved;
    const char *operation; /* "linear", "experts", "sparse_attn", ... static */
    const char *weight;    /* for products the tensor's name without its layer; else "" */
    int64_t calls;
    int64_t tokens;       /* rows that went through it */
    int64_t matrices;     /* linear: calls; experts: different ones that were used, a call after the other */
    int64_t weight_bytes; /* of these */
    double products;      /* multiplications with a weight */
    double seconds;
} pf_profile_row;

/* UNSUPPORTED for a model with a device. */
PF_API pf_status pf_profiler_open(pf_model *model, pf_profiler **out, pf_error *err);
PF_API void pf_profiler_close(pf_profiler *profiler); /* once no session has it; NULL is allowed */
/* From now on pf_session_eval() adds to it; NULL: no longer. Results are the same bits as without. One session may have
 * it at a time, and not together with a collector; of a step of several sessions all is timed. ARGUMENT for another
 * model's. */
PF_API pf_status pf_session_set_profiler(pf_session *session, pf_profiler *profiler, pf_error *err);
PF_API int32_t pf_profiler_rows(void); /* how many there are */
PF_API pf_status pf_profiler_row(const pf_profiler *profiler, int32_t index, pf_profile_row *out, pf_error *err);
PF_API void pf_profiler_reset(pf_profiler *profiler); /* all to zero */

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_INSPECT_H */
