/* pyflash_text.h - tokenizer, chat turns, sampling. Part of pyflash.h. */
#ifndef PYFLASH_TEXT_H
#define PYFLASH_TEXT_H

#include "pyflash_base.h"
#include "pyflash_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

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

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_TEXT_H */
