/* What stands behind the opaque pf_model. */
#ifndef PF_RUNTIME_MODEL_H
#define PF_RUNTIME_MODEL_H

#include "base/mutex.h"
#include "base/pool.h"
#include "base/status.h"
#include "format/gguf.h"
#include "offload/placement.h"
#include "step/step.h"
#include "text/tokenizer.h"

#include <stdatomic.h>

struct pf_model {
    atomic_int references;
    int32_t precision;
    int32_t chat_release; /* PF_CHAT_RELEASE_* */
    pf_log log;
    pf_gguf *gguf;
    pf_gguf *draft_gguf;     /* a file beside that drafts; NULL without one */
    pf_network net;
    const pf_backend *backend;
    pf_pool *pool;           /* serves one session at a time, operation by operation */
    pf_link *link;           /* the device that computes some layers; NULL without one */
    pf_placement placement;  /* what of the weights is there */
    pf_transfer *transfer;   /* NULL without a device */
    atomic_bool is_sent;     /* all of it is there */
    bool chose_device;       /* which nobody named: the first evaluation sends what has not been sent */
    char kept_home[192];     /* pf_placement_info.kept */
    uint64_t placed_bytes;   /* of the device's memory, for weights */
    uint64_t stream_bytes;   /* there, for sending experts (net.upload) */
    uint64_t hot_bytes;      /* there, for the most used ones (net.hot) */
    uint64_t predicted_cache, predicted_buffers; /* there, of the session that was planned for */
    pf_tokenizer *tokenizer; /* NULL when the file holds none */
    char *name;              /* general.name or "" */
    uint64_t directory_bytes; /* of the file: all but tensors */
    bool has_draft_lock;
    pf_mutex draft_lock;     /* of making what follows */
    atomic_uintptr_t draft_head; /* a pf_draft_head that sessions draft with from then on; 0: none */
};

/* 0 where the head itself is to be drafted with. */
static inline const struct pf_draft_head *pf_model_draft_head(pf_model *model) {
    return (const struct pf_draft_head *)atomic_load(&model->draft_head);
}

/* device_plan.c: opens the device that the parameters name, decides what goes there, and lets the weights point there.
 * Leaves model->link NULL when they name none. */
pf_status pf_model_place(pf_model *model, const pf_model_params *params, pf_error *err);
/* session.c: how rows are kept under a precision and PF_CACHE_*. */
pf_cache_formats pf_choose_formats(int32_t precision, int32_t cache_type);

#endif
