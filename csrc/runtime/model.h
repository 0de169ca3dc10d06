/* What stands behind the opaque pf_model. */
#ifndef PF_RUNTIME_MODEL_H
#define PF_RUNTIME_MODEL_H

#include "base/pool.h"
#include "base/status.h"
#include "format/gguf.h"
#include "model/step.h"
#include "text/tokenizer.h"

#include <stdatomic.h>

struct pf_model {
    atomic_int references;
    int32_t precision;
    pf_log log;
    pf_gguf *gguf;
    pf_gguf *mtp_gguf;       /* NULL without an MTP file */
    pf_network net;
    const pf_backend *backend;
    pf_pool *pool;           /* serves one session at a time, operation by operation */
    pf_tokenizer *tokenizer; /* NULL when the file holds none */
    char *name;              /* general.name or "" */
};

#endif
