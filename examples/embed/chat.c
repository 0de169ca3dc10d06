#include "chat.h"

#include <stdlib.h>
#include <string.h>

#define TRY(call) \
    do { \
        const pf_status status_ = (call); \
        if (status_ != PF_OK) return status_; \
    } while (0)

static pf_status out_of_memory(chat *c) {
    static const char message[] = "out of memory";
    c->error.code = PF_ERR_MEMORY;
    memcpy(c->error.message, message, sizeof message);
    return PF_ERR_MEMORY;
}

pf_status chat_open(chat *c, const char *path, const chat_options *options) {
    c->options = *options;
    TRY(pf_model_open(path, NULL, &c->model, &c->error));
    TRY(pf_session_open(c->model, NULL, &c->session, &c->error));
    pf_model_info info = {.struct_size = sizeof info};
    TRY(pf_model_get_info(c->model, &info, &c->error));
    c->n_vocab = info.n_vocab;
    c->end_token = info.eos_token;
    c->think_end_token = pf_token_id(c->model, "</think>", strlen("</think>"));
    c->logits = malloc((size_t)info.n_vocab * sizeof *c->logits);
    if (c->logits == NULL) return out_of_memory(c);
    pf_sampler_params sampling;
    pf_sampler_params_init(&sampling);
    sampling.temperature = options->temperature;
    sampling.seed = options->seed;
    return pf_sampler_open(&sampling, &c->sampler, &c->error);
}

void chat_close(chat *c) {
    chat_clear(c);
    free(c->messages);
    free(c->logits);
    pf_sampler_close(c->sampler);
    pf_session_close(c->session);
    pf_model_release(c->model);
}

/* ---- Text that grows ---------------------------------------------------------------------------------------- */

typedef struct buffer {
    char *data;
    size_t len;
    size_t capacity;
} buffer;

static bool make_room(buffer *b, size_t more) {
    if (b->capacity - b->len >= more) return true;
    const size_t capacity = 2 * (b->len + more);
    char *data = realloc(b->data, capacity);
    if (data == NULL) return false;
    b->data = data;
    b->capacity = capacity;
    return true;
}

/* Appends to a C string, which cannot hold zero bytes. */
static bool append_string(buffer *b, const char *text, size_t len) {
    if (!make_room(b, len + 1)) return false;
    for (size_t i = 0; i < len; ++i) {
        if (text[i] != '\0') b->data[b->len++] = text[i];
    }
    b->data[b->len] = '\0';
    return true;
}

/* ---- The conversation --------------------------------------------------------------------------------------- */

static pf_status add_message(chat *c, const char *role, const char *content) {
    if (c->n_messages == c->message_capacity) {
        const int64_t capacity = 2 * c->message_capacity + 8;
        pf_chat_message *messages = realloc(c->messages, (size_t)capacity * sizeof *messages);
        if (messages == NULL) return out_of_memory(c);
        c->messages = messages;
        c->message_capacity = capacity;
    }
    const size_t size = strlen(content) + 1;
    char *copy = malloc(size);
    if (copy == NULL) return out_of_memory(c);
    memcpy(copy, content, size);
    c->messages[c->n_messages++] = (pf_chat_message){.role = role, .content = copy};
    return PF_OK;
}

static void forget_last_message(chat *c) { free((void *)c->messages[--c->n_messages].content); }

void chat_clear(chat *c) {
    while (c->n_messages > 0) forget_last_message(c);
}

/* Evaluates all tokens, one bounded step after the other, and tells after each how far it is. */
static pf_status evaluate(chat *c, const int32_t *tokens, int64_t n, chat_progress_fn progress, void *user) {
    for (int64_t total = n; n > 0;) {
        int64_t done = 0;
        const pf_status status = pf_session_eval(c->session, tokens, n, PF_LOGITS_LAST, c->logits, c->n_vocab, &done,
                                                 &c->error);
        if (status == PF_ERR_CANCELLED && c->late_cancel) { /* meant for the answer before */
            c->late_cancel = false;
            continue;
        }
        if (status != PF_OK) return status;
        tokens += done;
        n -= done;
        if (progress != NULL) progress(user, total - n, total);
    }
    return PF_OK;
}

/* Evaluates the prompt, less what the session holds of it already. */
static pf_status evaluate_prompt(chat *c, const int32_t *tokens, int64_t n_tokens, int32_t *aligned, int64_t capacity,
                                 void *user) {
    TRY(pf_session_align(c->session, tokens, n_tokens, aligned, capacity, &c->n_prompt, &c->error));
    TRY(pf_session_reuse(c->session, aligned, c->n_prompt, &c->n_reused, &c->error));
    TRY(evaluate(c, aligned + c->n_reused, c->n_prompt - c->n_reused, c->options.progress, user));
    /* The next prompt begins like this one, but without the reasoning that follows now: come back to here then. */
    return pf_session_checkpoint(c->session, &c->error);
}

static pf_status prompt(chat *c, void *user) {
    int64_t n = 0;
    TRY(pf_chat_tokenize(c->model, c->messages, c->n_messages, c->options.think, NULL, 0, &n, &c->error));
    const int64_t capacity = n + pf_session_position(c->session);
    int32_t *tokens = malloc((size_t)(n + capacity) * sizeof *tokens);
    if (tokens == NULL) return out_of_memory(c);
    pf_status status = pf_chat_tokenize(c->model, c->messages, c->n_messages, c->options.think, tokens, n, &n,
                                        &c->error);
    if (status == PF_OK) status = evaluate_prompt(c, tokens, n, tokens + n, capacity, user);
    free(tokens);
    return status;
}

/* ---- The answer --------------------------------------------------------------------------------------------- */

/* An answer on its way. */
typedef struct stream {
    bool is_reasoning;
    buffer pending; /* bytes that are no whole character yet */
    buffer answer;  /* without the reasoning */
    chat_write_fn write;
    void *user;
} stream;

static pf_status append_token(chat *c, buffer *b, int32_t token) {
    for (;;) {
        size_t len = 0;
        const size_t room = b->capacity - b->len;
        TRY(pf_detokenize(c->model, &token, 1, 0, room > 0 ? b->data + b->len : NULL, room, &len, &c->error));
        if (len <= room) {
            b->len += len;
            return PF_OK;
        }
        if (!make_room(b, len)) return out_of_memory(c);
    }
}

static pf_status write_token(chat *c, stream *s, int32_t token) {
    if (s->is_reasoning && token == c->think_end_token) {
        s->is_reasoning = false;
        s->pending.len = 0;
        return PF_OK;
    }
    TRY(append_token(c, &s->pending, token));
    const size_t len = pf_utf8_complete(s->pending.data, s->pending.len);
    if (len == 0) return PF_OK;
    s->write(s->user, s->is_reasoning, s->pending.data, len);
    if (!s->is_reasoning && !append_string(&s->answer, s->pending.data, len)) return out_of_memory(c);
    memmove(s->pending.data, s->pending.data + len, s->pending.len - len);
    s->pending.len -= len;
    return PF_OK;
}

static pf_status generate(chat *c, stream *s) {
    for (int64_t n = 1;; ++n) {
        int32_t token = 0;
        TRY(pf_sampler_pick(c->sampler, c->logits, c->n_vocab, &token, NULL, &c->error));
        if (token == c->end_token) return PF_OK;
        c->n_written = n;
        TRY(write_token(c, s, token));
        if (n == c->options.max_tokens) return PF_OK;
        TRY(evaluate(c, &token, 1, NULL, NULL));
    }
}

pf_status chat_ask(chat *c, const char *question, chat_write_fn write, void *user) {
    stream s = {.is_reasoning = c->options.think != PF_THINK_OFF, .write = write, .user = user};
    c->stopped = false;
    c->n_prompt = c->n_reused = c->n_written = 0;
    TRY(add_message(c, "user", question));
    pf_status status = prompt(c, user);
    if (status == PF_OK) status = generate(c, &s);
    if (status == PF_ERR_CANCELLED) {
        c->stopped = true;
        status = PF_OK;
    }
    if (status == PF_OK && s.answer.len > 0) status = add_message(c, "assistant", s.answer.data);
    if (c->n_messages % 2 != 0) forget_last_message(c); /* a question without an answer */
    free(s.pending.data);
    free(s.answer.data);
    return status;
}
