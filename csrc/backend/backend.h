/* The backend contract: a table of model-shaped operations.
 *
 * The model above (csrc/model) is written once against this table and computes nothing itself. Operations work on
 * T >= 1 tokens at once; decoding is T = 1. All activations are float32, row-major, contiguous unless a stride (ld*, in
 * floats) is given. Sizes have been validated when the model was opened, so the only failures are PF_ERR_MEMORY,
 * PF_ERR_CANCELLED, on devices PF_ERR_DEVICE, and PF_ERR_INTERNAL for what only a bug can pass.
 *
 * Determinism: what an operation computes for one token depends on that token's inputs only, never on T, on the split
 * of the work over threads, or on its neighbours in the batch. This is what makes any split of a sequence into calls
 * give the same bits.
 *
 * Symbols in shapes are those of the model's description: D width, H heads of d, r rotary dims, W window, N streams,
 * E experts of width F, A active. */
#ifndef PF_BACKEND_H
#define PF_BACKEND_H

#include "base/memory.h"
#include "base/pool.h"
#include "format/dtypes.h"
#include "pyflash.h"

#if defined(__cplusplus) /* device plugins are C++ */
#  include <atomic>
using std::atomic_int;
#else
#  include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stdint.h>

/* A weight matrix (or `count` of equal shape, for experts) where it lies in the file: y = W x, W [rows, cols]. */
typedef struct pf_weight {
    const uint8_t *data;
    const uint8_t *scale;   /* PF_FP8 only: [count, ceil(rows/128), ceil(cols/128)], e8m0 bytes or floats */
    pf_dtype type;
    bool scale_f32;
    int64_t cols, rows, count;
    int64_t row_bytes;      /* from one row to the next */
    int64_t row0;           /* PF_FP8 slices: row of the whole matrix that `data` starts at, for its scale block */
    int64_t scale_cols;     /* PF_FP8: ceil(cols/128) */
    int64_t scale_rows;     /* PF_FP8: ceil(whole matrix rows/128) */
} pf_weight;

/* Rows [first, first + n) of a single matrix. */
pf_weight pf_weight_rows(const pf_weight *w, int64_t first, int64_t n);

/* How a cache row is stored. */
typedef enum pf_row_format {
    PF_ROW_F32,     /* width floats */
    PF_ROW_F16,     /* width half floats, saturating */
    PF_ROW_KV_FP8,  /* first width-rope dims: e4m3, then one e8m0 scale per 64 of them, then rope bfloat16 */
    PF_ROW_IDX_FP4, /* width/2 bytes of e2m1 pairs (low nibble first), then one e8m0 scale per 32 values */
} pf_row_format;

/* Cache rows addressed by an absolute index: slot = index mod capacity (a ring), or index itself in a pool that is
 * never overrun. */
typedef struct pf_rows {
    uint8_t *data;
    pf_row_format format;
    int32_t width, rope;
    int64_t row_bytes;
    int64_t capacity;
} pf_rows;

int64_t pf_row_bytes(pf_row_format format, int64_t width, int64_t rope);
static inline uint8_t *pf_row_at(const pf_rows *rows, int64_t index) {
    return rows->data + (index % rows->capacity) * rows->row_bytes;
}

/* cos and sin [n, r/2] of consecutive positions. */
typedef struct pf_rope_table {
    const float *cos, *sin;
    int64_t half; /* r/2 */
} pf_rope_table;

struct pf_backend;

/* What an operation runs with. */
typedef struct pf_exec {
    const struct pf_backend *backend;
    pf_pool *pool;
    pf_arena *arena;         /* scratch; operations restore its mark */
    const atomic_int *cancel; /* non-zero: stop soon and return PF_ERR_CANCELLED; may be NULL */
    bool dry;                /* operations take their scratch and compute nothing, to learn how much that is */
    bool exact;              /* float32 activations; otherwise quantised weights get integer ones */
    bool int8;               /* these have 8 bits instead of 16, where the backend has such products */
} pf_exec;

#if !defined(__cplusplus)
static inline bool pf_cancelled(const pf_exec *ex) {
    return ex->cancel != NULL && atomic_load_explicit(ex->cancel, memory_order_relaxed) != 0;
}
#endif

/* mHC parameters of one site; float32. */
typedef struct pf_mhc_site {
    const float *fn;    /* [(2+N)N, N D] */
    const float *base;  /* [(2+N)N] */
    const float *scale; /* [3] */
} pf_mhc_site;

typedef struct pf_mhc_shape {
    int32_t n_stream, sinkhorn_iters;
    int64_t n_embd;
    float norm_eps, hc_eps;
} pf_mhc_shape;

/* Compressor contributions of n tokens into the frontier rings, ape added to g. */
typedef struct pf_frontier_args {
    const float *a, *g;   /* [n, channels] */
    const float *ape;     /* [ratio, channels] */
    int64_t n, position;  /* first token's absolute position */
    int64_t channels;
    int32_t ratio;
    float *ring_a, *ring_g; /* [ring, channels], keyed by absolute position */
    int64_t ring;
} pf_frontier_args;

/* Compressor: rows [first, first + n) from the frontier of per-token contributions.
 * Ratio 4 (overlap): slots are window j-1 with the first half of a and g, and window j with the second half.
 * Otherwise: the ratio tokens of window j. */
typedef struct pf_compress_args {
    const float *a, *g;   /* rings [ring, c width], keyed by absolute token position; g includes ape */
    int64_t ring;
    int32_t ratio;
    bool overlap;         /* c = 2 */
    int64_t width;
    int64_t first, n;
    const float *norm;    /* [width] */
    float eps;
    pf_rope_table rope;   /* entry i: position (first + i) * ratio */
    float *out;           /* [n, width] after norm and rope */
} pf_compress_args;

typedef struct pf_index_args {
    const float *q;       /* [T, n_head, width]; for PF_ROW_IDX_FP4 rows as round_fp4 leaves it */
    const float *w;       /* [T, n_head] */
    float scale;          /* of w */
    int64_t n_token, position; /* first token's absolute position */
    int64_t n_head;
    int32_t ratio;        /* token at p sees rows j < (p+1)/ratio */
    const pf_rows *rows;
    float *scores;        /* [T, ld]; entries beyond a token's visible rows are not written */
    int64_t ld;
} pf_index_args;

typedef struct pf_attn_args {
    const float *q;       /* [T, H, d] after rope */
    float *out;           /* [T, H, d]; may be q itself */
    int64_t n_token, position;
    int64_t n_head, head_dim;
    int64_t window;
    const float *sinks;   /* [H] */
    float scale;
    const pf_rows *raw;   /* window rows keyed by position */
    const pf_rows *pool;  /* compressed rows; NULL on window-only layers */
    int32_t ratio;
    const int32_t *select; /* [T, select_ld] ascending row indices; NULL: all visible rows */
    const int32_t *select_n; /* [T] */
    int64_t select_ld;
} pf_attn_args;

typedef struct pf_route_args {
    const float *logits;  /* [T, E] */
    const float *bias;    /* [E]; NULL on hash layers */
    const int32_t *table; /* [T, A] ids already looked up by token on hash layers, else NULL */
    int64_t n_token, n_expert, n_used;
    float scale;
    float *scores;        /* [T, E] sqrt(softplus(logits)) */
    int32_t *chosen;      /* [T, A], best first (table order on hash layers) */
    float *weight;        /* [T, A] */
} pf_route_args;

struct pf_experts_args;

/* What experts computes on the way, for who gathers statistics: pairs of a token and an expert that it chose, by expert. */
typedef struct pf_expert_pairs {
    int64_t n_active;
    const int32_t *expert; /* [n_active] ascending */
    const int64_t *start;  /* [n_active + 1] where each one's pairs begin */
    const int32_t *token;  /* [n_pair], ascending within an expert */
    const float *weight;   /* [n_pair] the route's */
    const float *h;        /* [n_pair, F] weight * SwiGLU, before it is made integers */
} pf_expert_pairs;
typedef void (*pf_watch_experts_fn)(void *user, pf_exec *ex, const struct pf_experts_args *args,
                                    const pf_expert_pairs *pairs);

typedef struct pf_experts_args {
    const pf_weight *gate, *up, *down; /* count = E */
    const float *x;        /* [T, D] */
    const int32_t *chosen; /* [T, A] */
    const float *weight;   /* [T, A] */
    int64_t n_token, n_used;
    int32_t expert_begin, expert_end; /* only these experts are used. Calls over ascending ranges give the same bits as
                                         one over all */
    float limit;           /* SwiGLU clamp */
    float *out;            /* [T, D]; the routed sum is ADDED to it */
    int32_t held_first;    /* matrix 0 of gate, up and down is this expert's: not all of a layer's need be there. Their
                              count stays E */
    const int32_t *held_at; /* [E] which matrix is an expert's, negative where it is not there: then it is not used.
                               NULL: they follow each other from held_first on */
    pf_watch_experts_fn watch; /* NULL, or called before down, on parts of the range one after the other; the processor
                                  only */
    void *watch_user;
} pf_experts_args;

typedef struct pf_backend {
    const char *name; /* the kernel set: "avx2" */
    uint64_t weight_kinds; /* bits PF_W_*: the types of matrices that embed, linear and experts take; a processor's sets
                              take all. What a device lacks is refused when a model is placed there */

    /* x[t, k] = row tokens[t] of w, for every one of n_stream streams: [T, n_stream, D]. */
    pf_status (*embed)(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n_token, int64_t n_stream,
                       float *x);
    /* y[t, :rows] = W x[t, :cols]. x and y must not overlap. */
    pf_status (*linear)(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                        int64_t ldy);
    /* y = x / rms(x) * gain over rows of n; gain may be NULL; y may be x. */
    pf_status (*rms_norm)(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                          float *y);
    /* Rotates the last 2*half dims of each of n_head vectors of width d per position, in place. */
    pf_status (*rope_tail)(pf_exec *ex, float *x, int64_t n_token, int64_t n_head, int64_t d,
                           const pf_rope_table *table, bool inverse);
    /* Encodes rows x [n, width] into indices first .. first+n-1; n <= capacity. */
    pf_status (*store_rows)(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x);
    pf_status (*push_frontier)(pf_exec *ex, const pf_frontier_args *args);
    pf_status (*compress)(pf_exec *ex, const pf_compress_args *args);
    /* Normalised Hadamard transform (Sylvester order, times n^-1/2) of each row, in place; n a power of two. */
    pf_status (*hadamard)(pf_exec *ex, float *x, int64_t n_row, int64_t n);
    /* Rounds each row to e2m1 per 32 values with a power-of-two scale, in place: the indexer query's precision. */
    pf_status (*round_fp4)(pf_exec *ex, float *x, int64_t n_row, int64_t n);
    /* scores[t, j] = scale sum_h w[t,h] max(0, q[t,h] . row_j). */
    pf_status (*index_scores)(pf_exec *ex, const pf_index_args *args);
    /* The k highest of scores[t, : (position+t+1)/ratio] (all when fewer), lower index first among equals, written in
     * ascending index order: select [T, k], select_n [T]. scores may be NULL when no token sees more than k rows. */
    pf_status (*topk)(pf_exec *ex, const float *scores, int64_t ld, int64_t n_token, int64_t position, int32_t ratio,
                      int64_t k, int32_t *select, int32_t *select_n);
    pf_status (*sparse_attn)(pf_exec *ex, const pf_attn_args *args);
    /* x [T, D] = sum_k pre[k] X[k]; post [T, N]; comb [T, N, N]. */
    pf_status (*mhc_pre)(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                         int64_t n_token, float *x, float *post, float *comb);
    /* X'[k] = post[k] y + sum_j comb[j][k] X[j], in place. */
    pf_status (*mhc_post)(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post, const float *comb,
                          int64_t n_token, float *streams);
    /* Collapses the streams before the head: site->fn [N, N D], base [N], scale [1]. */
    pf_status (*mhc_head)(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x);
    pf_status (*route)(pf_exec *ex, const pf_route_args *args);
    pf_status (*experts)(pf_exec *ex, const pf_experts_args *args);
    /* y += x over n values. */
    pf_status (*add)(pf_exec *ex, float *y, const float *x, int64_t n);
    /* h = silu(min(gate, limit)) * clamp(up, -limit, limit), over n values; h may be gate. */
    pf_status (*swiglu)(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h);

    const void *kernels; /* the backend's own: cpu/kernels.h */
} pf_backend;

static inline bool pf_backend_takes(const pf_backend *backend, pf_dtype type) {
    const int kind = pf_weight_kind(type);
    return kind >= 0 && (backend->weight_kinds >> kind & 1) != 0;
}

/* The CPU backend with the named kernel set, or the best usable one for NULL. UNSUPPORTED says why a set cannot run. */
pf_status pf_cpu_backend(const char *isa, const pf_backend **out, pf_error *err);

#endif
