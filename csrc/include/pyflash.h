/* pyflash.h - the only public header of libpyflash: a local runtime for DeepSeek-V4 models.
 *
 * A pf_model is the loaded weights: immutable after open, shared by any number of threads, reference counted.
 * A pf_session is one mutable token timeline with its cache: one thread at a time, except pf_session_cancel().
 *
 * Rules that hold everywhere:
 *  - A call that can fail returns a pf_status and fills the caller's pf_error, which may be NULL.
 *  - On failure nothing has changed: out-parameters are left alone and the object stays usable. Only buffers for
 *    logits, tokens or text may have been written to.
 *  - Handles and required pointers must be valid; NULL is allowed where a comment says so.
 *  - Parameter structs begin with struct_size; pf_*_params_init() sets it together with the defaults.
 *  - Strings are UTF-8, paths too (also on Windows).
 *  - The library never aborts, exits, prints or reads the environment; messages go to the log callback.
 *  - A forked child may use what it inherited, and close it: a model starts its threads anew there, and a session goes
 *    on as a copy. But a session that another thread was at work on during the fork says UNSUPPORTED, and a model with a
 *    device DEVICE: "open the model after forking". Closing them, or exiting, never waits for the parent's threads.
 *
 * Python reads the part between the two CDEF marks below, so that part keeps to plain C declarations.
 */
#ifndef PYFLASH_H
#define PYFLASH_H

#include <stddef.h>
#include <stdint.h>

#if defined(PF_STATIC)
#  define PF_API
#elif defined(_WIN32)
#  if defined(PF_BUILD)
#    define PF_API __declspec(dllexport)
#  else
#    define PF_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define PF_API __attribute__((visibility("default")))
#else
#  define PF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

/* ---- Status and errors ------------------------------------------------------------------------------------- */

#define PF_ABI_VERSION 1

typedef int32_t pf_status;

#define PF_OK 0
#define PF_ERR_ARGUMENT 1     /* the caller passed something impossible */
#define PF_ERR_FILE 2         /* cannot open, read or write a file */
#define PF_ERR_FORMAT 3       /* a file is damaged, truncated or not what it claims to be */
#define PF_ERR_UNSUPPORTED 4  /* well-formed, but not something this build can run */
#define PF_ERR_MEMORY 5       /* out of memory */
#define PF_ERR_CANCELLED 6    /* pf_session_cancel() was called */
#define PF_ERR_DEVICE 7       /* a device is missing or failed */
#define PF_ERR_CONTEXT_FULL 8 /* the session has no room for more tokens */
#define PF_ERR_REBUILD 9      /* rollback beyond the kept window: reset the session and evaluate again */
#define PF_ERR_INTERNAL 10    /* a bug in this library */

typedef struct pf_error {
    int32_t code;      /* the pf_status returned */
    char message[508]; /* one line, zero-terminated: what is wrong and what to do */
} pf_error;

/* PF_ABI_VERSION of the library that is loaded. */
PF_API int32_t pf_abi_version(void);
/* "0.1.0" and the like. Static storage. */
PF_API const char *pf_version(void);
/* Raised when, and only when, a kernel set computes other bits than before from the same weights and tokens. */
#define PF_ARITHMETIC_VERSION 2

#define PF_LOG_DEBUG 0
#define PF_LOG_INFO 1
#define PF_LOG_WARNING 2

/* Receives one line without newline. May be called from any thread of the library. */
typedef void (*pf_log_fn)(void *user, int32_t level, const char *message);

/* Model files are mapped: when one becomes shorter while it is used, or its disk fails, whoever reads it gets no error but
 * a fault (SIGBUS; Windows: EXCEPTION_IN_PAGE_ERROR), which ends the process without a word. After this call a line on
 * the file descriptor says which file it was, begun with prefix (at most 63 bytes; NULL: ""), and the process exits with
 * status 1, without running anything else; a terminal among the standard streams gets the mode back that it has now.
 * Other faults go to the handler that was there before, or are as deadly as without this one. Never installed unasked;
 * once is enough for a process. fd -1: takes it away again. */
PF_API pf_status pf_catch_file_errors(int32_t fd, const char *prefix, pf_error *err);

/* ---- Model ------------------------------------------------------------------------------------------------- */

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
    const char *mtp_path;   /* NULL, or a GGUF of the MTP block that belongs to the model */
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
 * nothing can be evaluated before where params named the device. *n_total (may be NULL): all of them. At once 0 without a device. */
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
    int32_t reserved;
    int64_t n_ctx_train;       /* longest context the file declares */
    int64_t n_tensors;
    uint64_t file_bytes;       /* all shards */
    uint64_t weight_bytes;     /* tensor payload */
    const char *name;          /* general.name or "", owned by the model */
    const char *profile;       /* "compat" or "native", static */
    const char *cpu_isa;       /* kernel set in use, static */
    uint64_t widened_bytes;    /* of memory beside the weights: vectors and small tables that the file does not have in
                                  float32, as they are computed with */
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

/* ---- Sessions ---------------------------------------------------------------------------------------------- */

/* One turn of a conversation: pf_chat_tokenize() writes the prompt, pf_session_align() and pf_session_reuse() keep what
 * the session has of it, pf_session_eval() evaluates the rest and pf_session_checkpoint() marks its end; then
 * pf_sampler_pick() and pf_session_eval() take turns up to eos_token. */

#define PF_CACHE_AUTO 0      /* F32 in exact, REFERENCE otherwise */
#define PF_CACHE_F16 1       /* half floats: twice the memory of REFERENCE, and closer to exact */
#define PF_CACHE_REFERENCE 2 /* the published reference's precision, which the checkpoint was trained with: FP8 rows
                                with bfloat16 rotary dims (583 bytes in V4-Flash), FP4 indexer rows (68 bytes) */
#define PF_CACHE_F32 3       /* floats, nothing rounded: four times the memory of REFERENCE */

/* What AUTO stands for under a PF_PRECISION_*; any other type is itself. */
PF_API int32_t pf_cache_type_in_use(int32_t precision, int32_t cache_type);

#define PF_SESSION_POISON 1u     /* fill cache memory with NaN patterns first (tests) */
#define PF_SESSION_UNRECORDED 2u /* all of a device's operations one by one, none recorded (measurements) */

typedef struct pf_session_params {
    uint32_t struct_size;
    uint32_t flags;      /* PF_SESSION_* */
    int64_t n_ctx;       /* capacity in tokens; 0: min(65536, the model's) */
    int32_t n_chunk;     /* most tokens one pf_session_eval() evaluates; 0: 512 */
    int32_t cache_type;  /* PF_CACHE_* */
    int32_t n_checkpoint; /* most checkpoints kept at once; default 8 */
    int32_t reserved;
} pf_session_params;

PF_API void pf_session_params_init(pf_session_params *params);
PF_API pf_status pf_session_open(pf_model *model, const pf_session_params *params, pf_session **out, pf_error *err);
PF_API void pf_session_close(pf_session *session); /* NULL is allowed */

/* Tokens evaluated so far; the next token gets this position. */
PF_API int64_t pf_session_position(const pf_session *session);
PF_API int64_t pf_session_capacity(const pf_session *session);
PF_API int32_t pf_session_chunk(const pf_session *session);
/* The tokens evaluated so far, [position]. Valid until the next call that changes the session, to which they may be
 * passed. */
PF_API const int32_t *pf_session_tokens(const pf_session *session);

#define PF_LOGITS_NONE 0
#define PF_LOGITS_LAST 1 /* [vocab], of tokens[n_tokens-1]; written by the call that reaches it */
#define PF_LOGITS_ALL 2  /* [*n_done, vocab] */

/* Evaluates the first min(n_tokens, chunk) tokens: one bounded step. *n_done tells how many; call again with the
 * rest. logits holds logits_capacity floats. Errors: CONTEXT_FULL (nothing evaluated), CANCELLED (position
 * unchanged), ARGUMENT (a token id outside the vocabulary). */
PF_API pf_status pf_session_eval(pf_session *session, const int32_t *tokens, int64_t n_tokens, int32_t logits_mode,
                                 float *logits, int64_t logits_capacity, int64_t *n_done, pf_error *err);

#define PF_STEP_KEEP 1u     /* of pf_step_share.flags: the tokens are kept at once, as pf_session_eval() keeps them */
#define PF_STEP_WAITING 128 /* most tokens of a share that can wait to be kept */

/* What a session brings to a step. Grows at its end only. */
typedef struct pf_step_share {
    uint32_t struct_size;    /* set by the caller to sizeof(pf_step_share) before the call */
    int32_t logits_mode;     /* PF_LOGITS_* */
    pf_session *session;
    const int32_t *tokens;   /* [n_tokens] that follow the session's own */
    int64_t n_tokens;        /* 1 to its chunk, and at most PF_STEP_WAITING without PF_STEP_KEEP: all or none are evaluated */
    float *logits;           /* has room for logits_capacity floats; NULL with PF_LOGITS_NONE */
    int64_t logits_capacity;
    uint32_t flags;          /* PF_STEP_* */
    uint32_t reserved;
    pf_error error;          /* written by the call: what became of this share, code PF_OK for evaluated */
} pf_step_share;

/* Evaluates tokens of several sessions of one model together: one bounded step, in which every weight is read once for all
 * of them. A session's logits and cache are the same bits as of a step that it takes alone.
 *
 * Computing and keeping are two calls. Without PF_STEP_KEEP the session stays where it was, and its tokens wait until
 * pf_session_keep() says how many of them it goes on with: so it can be decided by the logits. Until then the session's
 * other calls that evaluate, move, save, load or checkpoint it are refused (ARGUMENT); those that tell of it tell what it
 * was before, and it may be closed. Other sessions are free.
 *
 * Every share gets its own error, and what one has touches no other: ARGUMENT (also for a session that the step has
 * already, or of another model than the first one), CONTEXT_FULL, CANCELLED, FORMAT, MEMORY: its session is as before, but
 * for what pf_session_rollback() says of failed steps of more than 128 tokens. pf_session_cancel() takes that session's
 * rows out of the step and leaves the others. Returns the first failed share's status, with its error; where shares or a
 * struct_size are missing, ARGUMENT, and nothing was written.
 *
 * For the length of the call it is a call of every session in it: on one thread at a time. Sessions with a collector, and
 * all of a model with a device, are evaluated one after the other within the call, not together. Scratch for all is one of
 * the sessions': it holds more memory from then on where they have more rows than it planned for. */
PF_API pf_status pf_step_eval(pf_step_share *shares, int32_t n_share, pf_error *err);

/* Keeps the first n of the tokens that wait, 0 to all; the others never were. Takes no time. What the session is then is
 * the same bits as after evaluating those n alone, and pf_session_rollback_limit() too. ARGUMENT for more than wait. */
PF_API pf_status pf_session_keep(pf_session *session, int64_t n, pf_error *err);
/* Tokens that wait to be kept; 0: none. */
PF_API int64_t pf_session_waiting(const pf_session *session);

/* Goes on with n more of the tokens that the last pf_session_keep() left out: they are still there, behind those that were
 * kept, until the session is moved in another way (evaluated, rolled back, loaded) or drafts. Takes no time, and the session
 * is then the same bits as if they had been kept at once. So a run of tokens can be gone on with one by one, by the logits,
 * while the session may be saved or checkpointed in between. ARGUMENT for more than there are. */
PF_API pf_status pf_session_advance(pf_session *session, int64_t n, pf_error *err);
/* Tokens that pf_session_advance() can go on with. */
PF_API int64_t pf_session_ahead(const pf_session *session);

/* Drafts with the MTP block: logits [vocab] for position + 1, given the token that will stand at position.
 * Does not move the session. UNSUPPORTED without an MTP block, ARGUMENT on an empty session. */
PF_API pf_status pf_session_draft(pf_session *session, int32_t next_token, float *logits, int64_t logits_capacity,
                                  pf_error *err);

/* Drafts n tokens one after the other, for position + 1 on, given the token that will stand at position: each the likeliest
 * by the MTP block, which goes on from its own streams behind the first one. It is trained to draft one, and is much less
 * often right about later ones. chances [n]: the probabilities that it gives them. n at most the session's chunk. Errors as
 * of pf_session_draft(). */
PF_API pf_status pf_session_draft_tokens(pf_session *session, int32_t next_token, int32_t n, int32_t *tokens,
                                         float *chances, pf_error *err);

/* Drops the last n tokens. The last 256 evaluated can always be dropped, less those dropped already, and so can all
 * (n = position), and whatever leads back to a checkpoint; pf_session_rollback_limit() says how many of the last now. So
 * a chunk of 512 cannot be dropped as a whole where others came before it, and what may have to go again is better left
 * waiting (pf_step_eval()), which takes nothing from the limit.
 * After a failed or cancelled step of more than 128 tokens the limit is 0 until more have been evaluated. REBUILD for
 * any other n, and nothing has changed. */
PF_API pf_status pf_session_rollback(pf_session *session, int64_t n, pf_error *err);
PF_API int64_t pf_session_rollback_limit(const pf_session *session);

/* Writes the cache to a file / replaces this session's cache by a file's. A file fits a session of the same model
 * (directory and a sample of the weights are compared), MTP file, precision and cache type whose capacity holds its
 * tokens.
 *
 * Saving is all or nothing: the bytes go to a file beside, to the disk, and then in the old file's place. A new file is
 * its owner's alone (mode 0600), an old one keeps mode and, where permitted, owner. A symbolic link is followed and stays.
 * Folders, devices, pipes, sockets and write-protected files are refused (PF_ERR_FILE). On Windows a new file has the
 * folder's access rules, an old one keeps its own, and a link that leads nowhere is refused.
 *
 * Where this session has loaded from or saved to the same file before (the latest 16 are remembered), and another
 * session or process has changed it since, saving is refused too: it would lose what that one wrote. A file that this
 * session has not met is replaced, whatever it is. While one saves, and while one holds the file (pf_session_hold), the
 * others wait a second and are then refused. */
PF_API pf_status pf_session_save(pf_session *session, const char *path, pf_error *err);
PF_API pf_status pf_session_load(pf_session *session, const char *path, pf_error *err);

/* Keeps other sessions and processes from saving to a path, from now until the session is closed or holds another one;
 * NULL lets go. They may load it. Nothing need stand there yet, and what does is left alone: but it says now whether a
 * save could begin, with the errors of pf_session_save. Works by a file beside that is locked, ".pyflash-....lock", and
 * gone when the session lets go; on file systems without locks only changes are noticed. */
PF_API pf_status pf_session_hold(pf_session *session, const char *path, pf_error *err);

#define PF_KERNELS_BYTES 32

/* What computed the file that was loaded last. Files name the kernel set and PF_ARITHMETIC_VERSION; where they are not
 * this session's, loading works, and warns by the log callback. Grows at its end only. */
typedef struct pf_session_origin {
    uint32_t struct_size;
    int32_t arithmetic;             /* 0: nothing was loaded, or the file does not say (written before format 3) */
    int64_t n_foreign;              /* tokens at the session's beginning that other kernels, or another version of the
                                       arithmetic, computed: what follows may differ in its last bits from a session that
                                       was never saved. 0: none, as far as the file says */
    char kernels[PF_KERNELS_BYTES]; /* "avx2", and "avx2+cuda" where a device computes layers; "" as above */
} pf_session_origin;
PF_API pf_status pf_session_get_origin(const pf_session *session, pf_session_origin *origin, pf_error *err);

/* A session's cache in parts, for stores that many conversations share. Rows stand for tokens of the past; they are appended
 * and never change, so that conversations which begin alike have the same ones. A tail is what else a position rests on: the
 * latest tokens' window, the compressors' states. The same tokens give the same bytes wherever pf_parts_info is the same.
 * Grows at its end only. */
typedef struct pf_parts_info {
    uint32_t struct_size;
    int32_t version;              /* of the layout of the parts */
    uint64_t model;               /* digest of the directories of the model's files and of some bytes of every tensor */
    int32_t precision;
    int32_t arithmetic;           /* PF_ARITHMETIC_VERSION */
    int32_t kv_format;            /* of the rows, and of the indexer's: numbers that tell formats apart */
    int32_t index_format;
    int32_t first_layer;          /* the layers whose rows and rings these are: first_layer to end_layer - 1 */
    int32_t end_layer;
    int32_t has_mtp;              /* 1: with the MTP block's row ring and streams */
    int32_t n_device_layer;       /* how many of the layers a device computes, */
    int32_t n_device_expert_layer; /* and how many of them with their routed experts */
    int32_t row_tokens;           /* at multiples of so many tokens every layer's last row is complete */
    char kernels[PF_KERNELS_BYTES]; /* as in pf_session_origin */
} pf_parts_info;
PF_API pf_status pf_session_get_parts(const pf_session *session, pf_parts_info *info, pf_error *err);

/* Copies the rows that the tokens begin to end - 1 complete, 0 <= begin <= end <= position. data NULL: only tells their
 * size in bytes. ARGUMENT beyond that, and where capacity (bytes) is too small. */
PF_API pf_status pf_session_export_rows(pf_session *session, int64_t begin, int64_t end, void *data, uint64_t capacity,
                                        uint64_t *n_bytes, pf_error *err);
/* Copies the tail of the current position, or of a checkpoint. It begins with two int64_t: the position, and the lowest one
 * that can be returned to with it, up to 16 less. data NULL and the errors as above. */
PF_API pf_status pf_session_export_tail(pf_session *session, int64_t position, void *data, uint64_t capacity,
                                        uint64_t *n_bytes, pf_error *err);
/* Takes the rows of tokens that follow the session's own, for a tail to come: until then nothing that can be asked of the
 * session has changed, and whatever moves it drops them. begin is at most where the rows so far end (the position at first);
 * rows that the session has are passed over. ARGUMENT for a gap, and for another size than such rows have; CONTEXT_FULL. */
PF_API pf_status pf_session_import_rows(pf_session *session, int64_t begin, int64_t end, const void *data, uint64_t n_bytes,
                                        pf_error *err);
/* Moves the session to a tail's position. tokens [n_tokens]: all before it, beginning with the session's own, which with the
 * rows that were imported must reach up to there (ARGUMENT). FORMAT for what is no tail of that position in this session's
 * sizes. What the bytes say is not checked: whoever keeps them has to notice damage. Checkpoints stay. */
PF_API pf_status pf_session_import_tail(pf_session *session, const int32_t *tokens, int64_t n_tokens, const void *data,
                                        uint64_t n_bytes, pf_error *err);

/* From any thread: the running pf_session_eval, pf_step_eval or pf_session_draft, or else the next one, says
 * PF_ERR_CANCELLED of this session; that consumes the request. */
PF_API void pf_session_cancel(pf_session *session);

/* Remembers the current position, so that rollback can come back to it, or to up to 16 tokens before it (as far as
 * pf_session_rollback_limit() goes now), however much follows. Dropped when the session is rolled back to before it.
 * When there are n_checkpoint of them, one goes, so that those left lie the closer together the nearer they are to the
 * end. Worth it where a prompt ends: the next one often shares all of it, but not the reasoning generated then.
 * UNSUPPORTED when the session was opened with none. */
PF_API pf_status pf_session_checkpoint(pf_session *session, pf_error *err);

/* Writes the same text as tokens, with the session's own tokens at its beginning as far as they spell it: what a model
 * generates is not always what the tokenizer makes of the text, and would have to be evaluated again. Where the session
 * ends within a token, the rest of that is written in other ones; its bytes that are no UTF-8 count as the U+FFFD that
 * decoding makes of them. For prompts that go on with a conversation, before pf_session_reuse.
 * *n_out <= n_tokens + position, for which out must have room (capacity); ARGUMENT otherwise, and for a token id outside
 * the vocabulary. out must not overlap tokens. */
PF_API pf_status pf_session_align(const pf_session *session, const int32_t *tokens, int64_t n_tokens, int32_t *out,
                                  int64_t capacity, int64_t *n_out, pf_error *err);

/* The same for answers of which something was left out. silent [n_silent]: the positions of that, ascending: special
 * tokens that the model wrote out of place, which so spell nothing. */
PF_API pf_status pf_session_align_answers(const pf_session *session, const int64_t *silent, int64_t n_silent,
                                          const int32_t *tokens, int64_t n_tokens, int32_t *out, int64_t capacity,
                                          int64_t *n_out, pf_error *err);

/* Rolls back as little as makes what is left a prefix of tokens, but leaves at least one of them to be evaluated.
 * *n_kept (the new position) tells how many need not be. Never fails for want of a position to return to: then
 * everything is dropped and *n_kept is 0. */
PF_API pf_status pf_session_reuse(pf_session *session, const int32_t *tokens, int64_t n_tokens, int64_t *n_kept,
                                  pf_error *err);

/* What pf_session_reuse() would keep just now, with nothing changed: for choosing one of several sessions. */
PF_API pf_status pf_session_reusable(const pf_session *session, const int32_t *tokens, int64_t n_tokens, int64_t *n_kept,
                                     pf_error *err);

/* Bytes of the caller's own that travel with the session through save and load, a conversation for instance. They are
 * copied; at most 256 MiB. pf_session_note: valid until the next call that sets or loads; NULL when there are none. */
PF_API pf_status pf_session_set_note(pf_session *session, const void *data, size_t len, pf_error *err);
PF_API const void *pf_session_note(const pf_session *session, size_t *len);

/* The session's memory in bytes, at most: it is taken as it is used. Known from the start. */
typedef struct pf_session_memory {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t cache_bytes;      /* for the whole capacity */
    uint64_t buffer_bytes;     /* of evaluating chunks, logits of the last token only, and of drafts */
    uint64_t checkpoint_bytes; /* of n_checkpoint checkpoints */
    uint64_t device_cache_bytes;  /* on the device, taken from the start and not counted above */
    uint64_t device_buffer_bytes;
} pf_session_memory;
PF_API pf_status pf_session_get_memory(const pf_session *session, pf_session_memory *mem, pf_error *err);

/* Debug taps: every named intermediate of the forward pass, as tests/oracle names them. data is float [n] or, for
 * "topk" and "experts", int32 [n]; is_int tells. Called on the evaluating thread, once a token. */
typedef void (*pf_tap_fn)(void *user, const char *name, int32_t layer, int64_t position, const void *data,
                          int64_t n, int32_t is_int);
PF_API void pf_session_set_tap(pf_session *session, pf_tap_fn fn, void *user);

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

/* ---- Text -------------------------------------------------------------------------------------------------- */

#define PF_TOKENIZE_SPECIAL 1u /* text that spells a special token becomes that token; otherwise never */

/* Writes up to capacity ids and sets *n_tokens to the number the whole text needs (capacity 0 to ask). Invalid
 * UTF-8 is taken byte by byte. UNSUPPORTED when the file holds no tokenizer. */
PF_API pf_status pf_tokenize(const pf_model *model, const char *text, size_t len, uint32_t flags, int32_t *tokens,
                             int64_t capacity, int64_t *n_tokens, pf_error *err);

#define PF_DETOKENIZE_SPECIAL 1u /* write control tokens as their text; otherwise they are left out. Tokens of the type
                                    user-defined, such as "<think>", are written always */

/* Bytes of a token sequence: may end within a UTF-8 character. Sets *len to the length the whole result needs. */
PF_API pf_status pf_detokenize(const pf_model *model, const int32_t *tokens, int64_t n_tokens, uint32_t flags,
                               char *out, size_t capacity, size_t *len, pf_error *err);

/* Length of the longest beginning of text that ends with a whole UTF-8 character: what can be shown of an answer so
 * far. Bytes that can no longer become a character count as whole. */
PF_API size_t pf_utf8_complete(const char *text, size_t len);

#define PF_THINK_OFF 0  /* answer at once */
#define PF_THINK_LOW 1  /* release 0731 only */
#define PF_THINK_HIGH 2
#define PF_THINK_MAX 3  /* the preview release asks for a context of 393,216 tokens */

/* Added to the thinking mode: go on with the last message, which is an assistant's and may be empty. */
#define PF_CHAT_CONTINUE 0x100

typedef struct pf_chat_message {
    const char *role;    /* "system", "user" or "assistant" */
    const char *content; /* an assistant's without its reasoning, which later turns never see */
} pf_chat_message;

/* A plain conversation as the model's prompt: text to continue with the assistant's next answer, which begins with its
 * reasoning up to "</think>" unless think is OFF. The last message is a user's. Or, with PF_CHAT_CONTINUE added to think,
 * it is an assistant's behind a user's: the model goes on with its content, and with reasoning only where that is empty.
 * ARGUMENT for other conversations, in which the model would play the user. BOS included; special tokens in the contents
 * stay text. The rules are those of the release that the model was opened with, or else of the file's: its
 * general.version, the one whose words its chat template has, or that of its name; the preview's where nothing tells.
 * Tools and the other roles are the Python side's (pyflash/chat), whose output this equals. Sizes as pf_tokenize. */
PF_API pf_status pf_chat_tokenize(const pf_model *model, const pf_chat_message *messages, int64_t n_messages,
                                  int32_t think, int32_t *tokens, int64_t capacity, int64_t *n_tokens, pf_error *err);

/* Id of the token whose text is exactly `text` (special tokens included), or -1. */
PF_API int32_t pf_token_id(const pf_model *model, const char *text, size_t len);

/* ---- Sampling ---------------------------------------------------------------------------------------------- */

typedef struct pf_sampler pf_sampler;

/* Steps in this order: allowed (of pick), penalties, top_k, top_p, min_p, temperature. temperature 0 takes the highest
 * logit after the penalties (the lowest id among equals). Deterministic for a seed.
 *
 * Penalties look at the last penalty_last_n tokens that were picked or accepted. For a token that is there c times,
 * repetition_penalty divides a positive logit and multiplies a negative one, then c frequency_penalty +
 * presence_penalty is subtracted (llama.cpp's and OpenAI's definitions). */
typedef struct pf_sampler_params {
    uint32_t struct_size;
    int32_t top_k;        /* 0: off */
    float temperature;    /* default 1 */
    float top_p;          /* default 1: off */
    float min_p;          /* default 0: off */
    uint32_t reserved;
    uint64_t seed;
    float repetition_penalty; /* default 1: off */
    float presence_penalty;   /* default 0: off */
    float frequency_penalty;  /* default 0: off */
    int32_t penalty_last_n;   /* default 64; 0: none, -1: all */
} pf_sampler_params;

PF_API void pf_sampler_params_init(pf_sampler_params *params);
/* params may be NULL: the defaults. */
PF_API pf_status pf_sampler_open(const pf_sampler_params *params, pf_sampler **out, pf_error *err);
PF_API void pf_sampler_close(pf_sampler *sampler);
/* Tokens that the penalties should see although they were not picked here, such as the prompt's. */
PF_API pf_status pf_sampler_accept(pf_sampler *sampler, const int32_t *tokens, int64_t n_tokens, pf_error *err);
/* Picks from logits [n_vocab] and accepts what it picked; *logprob (may be NULL) is its log-probability by the logits
 * as given. */
PF_API pf_status pf_sampler_pick(pf_sampler *sampler, const float *logits, int64_t n_vocab, int32_t *token,
                                 float *logprob, pf_error *err);
/* The same among the tokens whose bit in allowed is set: ceil(n_vocab/32) words, the lowest bit first; NULL allows all.
 * ARGUMENT when there are none. For grammars. */
PF_API pf_status pf_sampler_pick_allowed(pf_sampler *sampler, const float *logits, int64_t n_vocab,
                                         const uint32_t *allowed, int32_t *token, float *logprob, pf_error *err);
/* The n <= n_vocab likeliest tokens and their log-probabilities, likeliest first, the lower id first among equals. */
PF_API pf_status pf_top_logprobs(const float *logits, int64_t n_vocab, int32_t n, int32_t *tokens, float *logprobs,
                                 pf_error *err);

/* ---- Machine ----------------------------------------------------------------------------------------------- */

/* One line per kernel set: name, usable or why not. index from 0; NULL past the end. Static storage. */
PF_API const char *pf_cpu_isa_name(int32_t index);
/* NULL when usable on this machine, else the reason. */
PF_API const char *pf_cpu_isa_problem(int32_t index);

/* A device beside the processor. Grows at its end only. */
typedef struct pf_device_info {
    uint32_t struct_size;  /* set by the caller to sizeof(pf_device_info) before the call */
    int32_t major, minor;  /* CUDA: compute capability */
    int32_t n_sm;          /* CUDA: multiprocessors */
    uint64_t total_bytes;  /* of its memory */
    uint64_t free_bytes;
    char name[128];        /* zero-terminated */
    uint64_t weight_types; /* that it has kernels for: bit i is the type at place i of pf_type_get_info() */
} pf_device_info;

/* How many devices of a kind ("cuda") can be used: loads the plugin library of that kind, which lies beside this one.
 * DEVICE, with the reason, when there is none, or when it cannot be used here. */
PF_API pf_status pf_device_count(const char *kind, int32_t *n, pf_error *err);
PF_API pf_status pf_device_describe(const char *kind, int32_t index, pf_device_info *info, pf_error *err);
/* Runs every kind of operation on small inputs on a device and on the processor; takes a fraction of a second, and
 * nothing when the device has passed before in this process. DEVICE says what differs. Models that are put on a device
 * begin with it. */
PF_API pf_status pf_device_test(const char *kind, int32_t index, pf_error *err);

/* How fast the model's threads read memory: the best of three passes over `bytes` bytes of fresh memory, which should
 * be far more than the caches hold; ARGUMENT below 1 MiB. What a benchmark holds the speed of decoding against. */
PF_API pf_status pf_model_read_bandwidth(const pf_model *model, uint64_t bytes, double *bytes_per_second,
                                         pf_error *err);

/* ---- Tensor types ------------------------------------------------------------------------------------------ */

#define PF_TYPE_WEIGHT 1u  /* matrices of this type are computed with */
#define PF_TYPE_INTEGER 2u /* and with integer activations, unless in exact */
#define PF_TYPE_WRITTEN 4u /* the converter writes it */
#define PF_TYPE_OWN 8u     /* this project's own mark: no tensor of a file has the number */
#define PF_TYPE_REMOVED 16u /* ggml has removed it: old files may have it, and nobody reads them */
#define PF_TYPE_FOREIGN 32u /* ik_llama.cpp's own, which llama.cpp does not read either */

/* What the library knows of a tensor element type: all of ggml's, also those that it does not compute with. Grows at its
 * end only. */
typedef struct pf_type_info {
    uint32_t struct_size; /* set by the caller to sizeof(pf_type_info) before the call */
    uint32_t number;      /* as it stands in GGUF files */
    uint32_t block_size;  /* values a block; 0 for removed and foreign types */
    uint32_t block_bytes; /* bytes a block */
    uint32_t uses;        /* PF_TYPE_* */
    uint32_t reserved;
    const char *name;     /* "MXFP4", static */
} pf_type_info;

/* The type at a place of the table, from 0 on. Returns 1; 0 past the end, or where struct_size was not set. */
PF_API int32_t pf_type_get_info(int32_t index, pf_type_info *info);

/* ---- Block codecs, used by the converter -------------------------------------------------------------------- */

/* Every codec works on contiguous memory, touches nothing else and may be called from several threads at once. */

/* Packed FP4 (two e2m1 codes a byte, low nibble first, as checkpoints hold routed experts) with one e8m0 scale per 32
 * values, to and from MXFP4 blocks of 17 bytes (ggml type 39). n_blocks blocks of 32 values; codes and scales unchanged. */
PF_API void pf_codec_fp4_to_mxfp4(const uint8_t *packed, const uint8_t *scales, int64_t n_blocks, uint8_t *out);
PF_API void pf_codec_mxfp4_to_fp4(const uint8_t *blocks, int64_t n_blocks, uint8_t *packed, uint8_t *scales);
/* MXFP4 blocks to float32: exactly e2m1 * 2^(e-127). */
PF_API void pf_codec_mxfp4_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out);

/* Rows [row0, row0 + n_rows) of an e4m3 matrix [*, cols] with one scale per 128 x 128 block; `w` points at row
 * row0, `scales` at the whole scale matrix [*, ceil(cols/128)]: e8m0 bytes or, with scale_f32, floats. */
PF_API void pf_codec_fp8_to_f32(const uint8_t *w, const void *scales, int32_t scale_f32, int64_t row0,
                                int64_t n_rows, int64_t cols, float *out);

/* n values; round to nearest even. */
PF_API void pf_codec_f32_to_bf16(const float *in, int64_t n, uint16_t *out);
PF_API void pf_codec_bf16_to_f32(const uint16_t *in, int64_t n, float *out);
/* n_blocks blocks of 32 values to 34 bytes (ggml type 8), exactly as ggml's reference quantiser rounds. */
PF_API void pf_codec_f32_to_q8_0(const float *in, int64_t n_blocks, uint8_t *out);
PF_API void pf_codec_q8_0_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out);

/* Blocks of any of ggml's quantised types, by its number, to floats; the same bits as ggml's own decoders. UNSUPPORTED for
 * other types. */
PF_API pf_status pf_codec_decode(uint32_t type, const uint8_t *blocks, int64_t n_blocks, float *out, pf_error *err);

#define PF_OBJECTIVE_PLAIN 0 /* sum of importance * error^2 */
#define PF_OBJECTIVE_GGML 1  /* as llama.cpp's quantisers: importance * sqrt(mean square of the super-block + x^2) * error^2 */
#define PF_OBJECTIVE_UNBIASED 2 /* as PLAIN, which makes rows shorter by the share of their energy that is lost; then each row's
                                   scales are multiplied so that sum(importance * x * quantised x) is sum(importance * x^2) */

/* Rows [n_rows, n_cols] of floats to blocks of a type by its number: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, Q2_K, Q3_K, Q4_K,
 * Q5_K or Q6_K; n_cols a multiple of 256. importance [n_cols]: what an error of a column weighs, none negative; NULL: all the
 * same. What is made least is told by the objective. The same bytes on every machine. out holds what the type's blocks take.
 * ARGUMENT for numbers that are not finite; UNSUPPORTED for other types; MEMORY. Some 500 KB of memory are taken meanwhile. */
PF_API pf_status pf_codec_quantize(uint32_t type, int32_t objective, const float *x, const float *importance, int64_t n_rows,
                                   int64_t n_cols, uint8_t *out, pf_error *err);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_H */
