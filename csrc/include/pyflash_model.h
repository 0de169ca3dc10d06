/* pyflash_model.h - a model: the loaded weights. Part of pyflash.h. */
#ifndef PYFLASH_MODEL_H
#define PYFLASH_MODEL_H

#include "pyflash_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

typedef struct pf_model pf_model;
typedef struct pf_session pf_session;

#define PF_PRECISION_FAST 0  /* 16-bit integer activations where weights are MXFP4 or Q8_0; see PF_CACHE_* */
#define PF_PRECISION_EXACT 1 /* float32 activations, and cache unless asked otherwise; weights dequantised exactly */
#define PF_PRECISION_INT8 2  /* as FAST, with 8-bit integer activations: quicker, and less accurate */

typedef struct pf_model_params {
    uint32_t struct_size;
    int32_t precision;      /* PF_PRECISION_*; default FAST */
    int32_t n_threads;      /* worker threads, 0: one per physical core this process may use */
    int32_t reserved;
    const char *device;     /* "cpu": the processor; "cuda" or "cuda:1": that device too, see pf_model_upload(). NULL or
                               "auto": the first device, if it passes pf_device_test() and has room, else the processor.
                               The first evaluation then sends what pf_model_upload() has not. n_gpu_layers above 0 need
                               a device that is named */
    const char *cpu_isa;    /* NULL: the best this machine has; else "scalar", "avx2", "avxvnni", "avx512", "amx", or "neon",
                               "dotprod", "i8mm" */
    const char *mtp_path;   /* NULL, or a GGUF that drafts for the model, in the place of what its own file has: an MTP block
                               in llama.cpp's layout, or DSpark stages in llama.cpp's or ds4's */
    pf_log_fn log;          /* may be NULL */
    void *log_user;
    int32_t pin_threads;    /* 1: keep each worker thread on a core of its own; UNSUPPORTED where the system does not */
    int32_t reserved2;
    uint64_t expert_budget; /* bytes of routed experts kept in memory, the others being read ahead from disk when they
                               are chosen; 0: the system decides. For files larger than memory */
    int32_t n_gpu_layers;   /* layers on the device, counted from the last one, the head being the first of them: at most
                               layers + 1. PF_GPU_AUTO (the default): as many as fit and have kernels */
    int32_t n_cpu_moe;      /* layers, counted from the first one, whose routed experts stay with the processor.
                               PF_GPU_AUTO (the default): as few as have no room, or no kernels */
    int64_t gpu_ctx;        /* what PF_GPU_AUTO leaves room for on the device: a session of so many tokens (0: as
                               pf_session_params), */
    int32_t gpu_chunk;      /* with this chunk (0: as there) */
    int32_t gpu_cache_type; /* and this PF_CACHE_* */
    uint64_t gpu_budget;    /* bytes of the device that may be used; 0: those that are free, less a reserve */
    int32_t stream_experts; /* PF_STREAM_*: layers on the device whose routed experts stay with the processor */
    int32_t chat_release;   /* PF_CHAT_RELEASE_*: whose rules pf_chat_tokenize() follows */
    uint64_t hot_experts;   /* bytes of the device's memory, at most, for the most used of these experts: PF_HOT_*, or more
                               than the size of one */
    const char *overlay_path; /* NULL, or a GGUF of tensors, perhaps of other types, that take the place of those of their
                               names and shapes: to try some without writing the rest again */
    int32_t first_layer;      /* of the layers that are opened, first_layer to end_layer - 1: a stage of the model, see */
    int32_t end_layer;        /* pf_step_share.streams_in; 0: up to the last one. Default: all layers */
} pf_model_params;

#define PF_CHAT_RELEASE_OF_FILE 0 /* see pf_chat_tokenize() */
#define PF_CHAT_RELEASE_PREVIEW 1
#define PF_CHAT_RELEASE_0731 2

#define PF_GPU_AUTO -1

#define PF_HOT_AUTO 0 /* what the device has left over, less a reserve, holds the experts that short steps use most of late;
                         they are replaced in the background. Results then depend on what was evaluated before, within
                         rounding. Not in exact, and not with an expert_budget */
#define PF_HOT_OFF 1

#define PF_STREAM_AUTO 0 /* send the device a layer's routed experts for a long chunk of tokens when that is quicker than
                            computing them here, which is measured. Splits of a sequence into chunks then give the same
                            results within rounding only. Not in exact, not with an expert_budget, and not where the
                            memory that it takes is missing */
#define PF_STREAM_OFF 1
#define PF_STREAM_ON 2   /* as AUTO, for every chunk of 32 tokens or more */

PF_API void pf_model_params_init(pf_model_params *params);

/* Maps the GGUF at path (its first shard when it is sharded; the others are found by llama.cpp's naming),
 * checks its directory, configuration and every tensor's shape and type. Of the weights it reads those alone that it
 * widens to float32 (pf_model_info.widened_bytes). */
PF_API pf_status pf_model_open(const char *path, const pf_model_params *params, pf_model **out, pf_error *err);
PF_API pf_model *pf_model_retain(pf_model *model);
/* Drops one reference; the last one frees the model. Sessions hold a reference of their own. NULL is allowed. */
PF_API void pf_model_release(pf_model *model);

/* Sends a device the weights that were placed there: one bounded step. Call it until *n_done, the bytes it sent, is 0;
 * nothing can be evaluated before where params named the device. *n_total (may be NULL): all of them. At once 0 without a
 * device. */
PF_API pf_status pf_model_upload(pf_model *model, uint64_t *n_done, uint64_t *n_total, pf_error *err);

/* What of the model a device holds, and what a session of gpu_ctx tokens takes there; zeros without one. */
typedef struct pf_placement_info {
    uint32_t struct_size;
    int32_t n_layer;        /* layers on the device */
    int32_t n_expert_layer; /* layers whose routed experts are there too */
    int32_t head;           /* 1: the head is there */
    uint64_t weight_bytes;  /* taken for weights */
    uint64_t cache_bytes;   /* predicted for the session */
    uint64_t buffer_bytes;
    uint64_t free_bytes;    /* what was free before anything was placed */
    uint64_t total_bytes;   /* of the device's memory */
    char name[128];         /* the device's, zero-terminated */
    uint64_t stream_bytes;  /* taken for sending experts, and as many page-locked ones of the host's; 0: none are sent */
    uint64_t hot_bytes;     /* taken for the most used experts; 0: none are held. A session that finds no memory on the
                               device takes these, from which time on no expert is held */
    char kept[192];         /* what stays with the processor because the device has no kernels for its types, where the
                               numbers of layers and experts were left open: "the output, 2 layers, the routed experts of
                               6: no kernels for Q6_K IQ2_XXS"; else empty. Zero-terminated */
} pf_placement_info;
PF_API pf_status pf_model_get_placement(const pf_model *model, pf_placement_info *info, pf_error *err);

#define PF_PREFAULT_LOCK 1u /* also keep them there (mlock) until the model is freed; MEMORY when that is not allowed */

/* Reads the weights into memory, so that evaluating waits for no disk: one bounded step, from byte `offset` of all
 * weights. *n_done tells how many bytes it read; go on with offset + *n_done, until that is 0. *n_total (may be NULL):
 * all weights. Threads read in parallel, and so spread the weights over the memory of several sockets where the system
 * does not have them yet. */
PF_API pf_status pf_model_prefault(pf_model *model, uint32_t flags, uint64_t offset, uint64_t *n_done,
                                   uint64_t *n_total, pf_error *err);

#define PF_DRAFTS_NONE 0
#define PF_DRAFTS_MTP 1
#define PF_DRAFTS_DSPARK 2

/* Sizes follow the symbols of the model's description (D, L, H, ...). Grows at its end only. */
typedef struct pf_model_info {
    uint32_t struct_size;      /* set by the caller to sizeof(pf_model_info) before the call */
    int32_t precision;
    int32_t n_threads;
    int32_t n_vocab;
    int32_t n_embd;            /* D */
    int32_t n_layer;           /* L, without the MTP block */
    int32_t n_head;            /* H */
    int32_t head_dim;          /* d */
    int32_t rope_dim;          /* r */
    int32_t window;            /* W */
    int32_t n_expert;          /* E */
    int32_t n_expert_used;     /* A */
    int32_t n_ff_expert;       /* F */
    int32_t n_hash_layer;
    int32_t index_topk;
    int32_t n_stream;          /* N */
    int32_t has_mtp;
    int32_t bos_token;         /* -1 when the file names none */
    int32_t eos_token;
    int32_t drafts;            /* PF_DRAFTS_*: what it can draft with */
    int64_t n_ctx_train;       /* longest context the file declares */
    int64_t n_tensors;
    uint64_t file_bytes;       /* all shards */
    uint64_t weight_bytes;     /* tensor payload */
    const char *name;          /* general.name or "", owned by the model */
    const char *profile;       /* "compat" or "native", static */
    const char *cpu_isa;       /* kernel set in use, static */
    uint64_t widened_bytes;    /* of memory beside the weights: vectors and small tables that the file does not have in
                                  float32, as they are computed with */
    uint64_t draft_bytes;      /* of the weights that only drafting reads, */
    uint64_t draft_file_bytes; /* and of these, those in a file beside the model's, which are not in weight_bytes */
    int32_t draft_most;        /* tokens of a draft, at most: MTP chains any number, DSpark has its block */
    int32_t first_layer;       /* the layers that were opened; n_layer is the whole model's, as all sizes are but for */
    int32_t end_layer;         /* weight_bytes, drafts and has_mtp, which are the stage's */
    int32_t reserved;
    uint64_t directory_bytes;  /* of file_bytes, those of no tensor: keys and the directory, which opening reads */
} pf_model_info;

PF_API pf_status pf_model_get_info(const pf_model *model, pf_model_info *info, pf_error *err);

/* How the expert_budget worked out so far. Zeros without one. */
typedef struct pf_expert_reads {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_wanted;     /* experts that steps asked for, counted once a step and layer */
    uint64_t n_read;       /* those of them that had to be read */
    uint64_t bytes_read;
    uint64_t expert_bytes; /* of all routed experts, also without a budget */
} pf_expert_reads;
PF_API pf_status pf_model_get_expert_reads(const pf_model *model, pf_expert_reads *reads, pf_error *err);

/* How stream_experts worked out so far. Zeros where no experts are sent. */
typedef struct pf_expert_uploads {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_sent;     /* layers of chunks that might be sent experts: those that were, */
    uint64_t n_kept;     /* and those that the processor computed */
    uint64_t bytes_sent;
} pf_expert_uploads;
PF_API pf_status pf_model_get_expert_uploads(const pf_model *model, pf_expert_uploads *uploads, pf_error *err);

/* How hot_experts worked out so far. Zeros where none are held. */
typedef struct pf_hot_expert_info {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_slot;     /* experts that there is room for */
    uint64_t n_hit;      /* experts of short steps' tokens, counted once a token and layer: those that the device held, */
    uint64_t n_missed;   /* and those that the processor computed */
    uint64_t n_brought;  /* experts that came to the device, */
    uint64_t n_replaced; /* and those that made room for one */
    uint64_t bytes_sent;
} pf_hot_expert_info;
PF_API pf_status pf_model_get_hot_experts(const pf_model *model, pf_hot_expert_info *info, pf_error *err);

/* Layer kind of layer `layer`: its compression ratio, 0, 4 or 128; -1 when out of range. */
PF_API int32_t pf_model_layer_ratio(const pf_model *model, int32_t layer);

/* A string value of the GGUF by key ("tokenizer.chat_template"), or NULL. Owned by the model, *len bytes long and not
 * zero-terminated. */
PF_API const char *pf_model_meta_string(const pf_model *model, const char *key, size_t *len);

/* A number of the GGUF by key ("general.sampling.temp"), an integer or float of any width, into *out: rounded where a
 * double cannot hold it, NaN and infinity as they are. Returns 1; 0, and *out stays as it was, when there is none. */
PF_API int32_t pf_model_meta_number(const pf_model *model, const char *key, double *out);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_MODEL_H */
