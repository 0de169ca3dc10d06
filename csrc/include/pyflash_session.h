/* pyflash_session.h - a session: one sequence of tokens with its cache. Part of pyflash.h. */
#ifndef PYFLASH_SESSION_H
#define PYFLASH_SESSION_H

#include "pyflash_base.h"
#include "pyflash_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

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
#define PF_STEP_WHOLE 2u    /* or they wait to be kept all or none, as many as a chunk */
#define PF_STEP_WAITING 128 /* most tokens of a share that can wait to be kept */

/* What a session brings to a step. Grows at its end only. */
typedef struct pf_step_share {
    uint32_t struct_size;    /* set by the caller to sizeof(pf_step_share) before the call */
    int32_t logits_mode;     /* PF_LOGITS_* */
    pf_session *session;
    const int32_t *tokens;   /* [n_tokens] that follow the session's own */
    int64_t n_tokens;        /* 1 to its chunk, and at most PF_STEP_WAITING without flags: all or none are evaluated */
    float *logits;           /* has room for logits_capacity floats; NULL with PF_LOGITS_NONE */
    int64_t logits_capacity;
    uint32_t flags;          /* PF_STEP_* */
    uint32_t reserved;
    pf_error error;          /* written by the call: what became of this share, code PF_OK for evaluated */
    const float *streams_in; /* [n_tokens, N, D] where the model's first layer is not 0: the streams_out of the stage with the
                                layer before; else NULL */
    int64_t n_streams_in;    /* floats of it */
    float *streams_out;      /* [n_tokens, N, D] where the last layer is another stage's; else NULL */
    int64_t streams_capacity; /* floats that it has room for */
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

/* A model may be cut into stages of consecutive layers, each opened by itself (pf_model_params.first_layer), perhaps on another
 * machine. A step goes through the stages one after the other: each is given the same tokens, and the streams that the stage
 * before wrote; the last one writes the logits. Without PF_STEP_KEEP every stage waits, and is told the same by
 * pf_session_keep() once the last one has gone through, or 0 where one failed. The logits have the bits of the whole model's,
 * where all stages have the same kernel set (pf_model_info.cpu_isa, pf_model_params.cpu_isa), precision and cache type. What
 * else there is of a session is there for each stage: rolling back, checkpoints, files and parts, which name its layers.
 * Drafts are the last stage's, taps those of a stage's layers. */

/* Keeps the first n of the tokens that wait, 0 to all; the others never were. Takes no time. What the session is then is
 * the same bits as after evaluating those n alone, and pf_session_rollback_limit() too. ARGUMENT for more than wait,
 * and for a part of more than PF_STEP_WAITING (PF_STEP_WHOLE): none is then as after a failed step. */
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

/* Drafts with what the model has for it (pf_model_info.drafts): logits [vocab] for position + 1, given the token that will
 * stand at position. Does not move the session. UNSUPPORTED where it has nothing; ARGUMENT on an empty session, and on one
 * that was loaded without what drafting keeps, as long as nothing was evaluated since. */
PF_API pf_status pf_session_draft(pf_session *session, int32_t next_token, float *logits, int64_t logits_capacity,
                                  pf_error *err);

/* Drafts n tokens, for position + 1 on, given the token that will stand at position: each the likeliest behind the one before.
 * An MTP block goes on from its own streams behind the first one. It is trained to draft one, and is much less often right
 * about later ones; n at most the session's chunk. DSpark computes a block at once; n at most pf_model_info.draft_most.
 * chances [n]: of MTP the probabilities that it gives them; of DSpark how likely each is right where those before it are, as
 * its confidence head says, or their probabilities where it has none. Errors as of pf_session_draft(). */
PF_API pf_status pf_session_draft_tokens(pf_session *session, int32_t next_token, int32_t n, int32_t *tokens,
                                         float *chances, pf_error *err);

/* Makes a copy of n_rows rows of the output head, in 4 bits, which pf_session_draft_tokens() of all the model's sessions uses
 * from then on: a draft is then several times quicker, and never a token of the rows that are left out, the rarer ones.
 * Does nothing where one was made before, and where it would gain nothing: where nothing drafts, with less than twice so many
 * tokens, and with a head on a device. MEMORY. */
PF_API pf_status pf_model_prepare_drafts(pf_model *model, int32_t n_rows, pf_error *err);
/* The memory that takes; 0 where it does nothing. */
PF_API uint64_t pf_model_draft_bytes(const pf_model *model, int32_t n_rows);

/* Drops the last n tokens. The last 256 evaluated can always be dropped, less those dropped already, and so can all
 * (n = position), and whatever leads back to a checkpoint; pf_session_rollback_limit() says how many of the last now. So
 * a chunk of 512 cannot be dropped as a whole where others came before it, and what may have to go again is better left
 * waiting (pf_step_eval()), which takes nothing from the limit.
 * After a failed or cancelled step of more than 128 tokens the limit is 0 until more have been evaluated. REBUILD for
 * any other n, and nothing has changed. */
PF_API pf_status pf_session_rollback(pf_session *session, int64_t n, pf_error *err);
PF_API int64_t pf_session_rollback_limit(const pf_session *session);

/* Writes the cache to a file / replaces this session's cache by a file's. A file fits a session of the same model
 * (directory and a sample of the weights are compared), precision and cache type whose capacity holds its tokens. What
 * drafting keeps is in the file too; a session with another drafter, or none, loads it as well, and drafts from what it
 * evaluates from then on: that touches how often drafts are right, and nothing else.
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
    int32_t has_mtp;              /* 1: with what drafting keeps, of an MTP block or DSpark stages */
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
    uint64_t draft_cache_bytes; /* of cache_bytes, what drafting keeps */
} pf_session_memory;
PF_API pf_status pf_session_get_memory(const pf_session *session, pf_session_memory *mem, pf_error *err);

/* Debug taps: every named intermediate of the forward pass, as tests/oracle names them. data is float [n] or, for
 * "topk" and "experts", int32 [n]; is_int tells. Called on the evaluating thread, once a token. */
typedef void (*pf_tap_fn)(void *user, const char *name, int32_t layer, int64_t position, const void *data,
                          int64_t n, int32_t is_int);
PF_API void pf_session_set_tap(pf_session *session, pf_tap_fn fn, void *user);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_SESSION_H */
