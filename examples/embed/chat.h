/* A conversation with a model: what most programs that embed one need. No globals, no platform, no input or output. */
#ifndef EMBED_CHAT_H
#define EMBED_CHAT_H

#include <pyflash.h>

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Hears how far the reading of a prompt is, in tokens that the session did not hold already. */
typedef void (*chat_progress_fn)(void *user, int64_t done, int64_t total);

typedef struct chat_options {
    int32_t think;      /* PF_THINK_*; may be another for each question */
    int64_t max_tokens; /* of one answer, 0: as many as fit */
    float temperature;
    uint64_t seed;
    chat_progress_fn progress; /* may be NULL; its user is that of chat_ask() */
} chat_options;

/* Receives an answer as it is made: whole UTF-8 characters, len bytes, no terminating zero. */
typedef void (*chat_write_fn)(void *user, bool is_reasoning, const char *text, size_t len);

typedef struct chat {
    chat_options options;
    pf_model *model;
    pf_session *session; /* for pf_session_cancel(), which stops an answer */
    pf_sampler *sampler;
    float *logits;       /* [n_vocab] */
    int64_t n_vocab;
    int32_t end_token;
    int32_t think_end_token;
    pf_chat_message *messages; /* [n_messages], contents owned */
    int64_t n_messages;
    int64_t message_capacity;
    int64_t n_prompt;    /* tokens of the last prompt */
    int64_t n_reused;    /* of them, those that the session held already */
    int64_t n_written;   /* tokens of the last answer */
    bool stopped;        /* the last answer was stopped */
    bool late_cancel;    /* set it when a pf_session_cancel() came and the answer was not stopped */
    pf_error error;      /* of the last call that failed */
} chat;

/* Fills a zeroed chat. After a failure too, chat_close() frees it. */
pf_status chat_open(chat *c, const char *path, const chat_options *options);
void chat_close(chat *c);

/* Forgets the conversation. */
void chat_clear(chat *c);

/* Asks, and writes the answer. Both become part of the conversation; when the answer is stopped, as far as it came, and
 * when nothing of it came, the question is forgotten too. */
pf_status chat_ask(chat *c, const char *question, chat_write_fn write, void *user);

#ifdef __cplusplus
}
#endif

#endif
