#include "text/chat.h"

#include "base/memory.h"

#include <stdbool.h>
#include <string.h>

/* ---- The rules' fixed texts ---------------------------------------------------------------------------------- */

enum { BOS, EOS, USER, ASSISTANT, THINK_BEGIN, THINK_END, N_SPECIAL };

static const char *const SPECIAL[N_SPECIAL] = {
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
};

static const char EFFORT_MAXIMUM[] =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";
static const char EFFORT_BEYOND[] =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain "
    "that no assumption remains unchecked and no error remains undiscovered.\n\n";

static bool equals(pf_gguf_string text, const char *word) {
    return text.len == strlen(word) && memcmp(text.data, word, strlen(word)) == 0;
}

static bool contains(pf_gguf_string text, const char *word) {
    const uint64_t len = strlen(word);
    for (uint64_t i = 0; i + len <= text.len; i++) {
        if (memcmp(text.data + i, word, (size_t)len) == 0) return true;
    }
    return false;
}

pf_chat_release pf_chat_release_of(const pf_gguf *gguf) {
    static const char *const names[] = {"general.name", "general.basename", "general.finetune"};
    pf_gguf_string text;
    if (pf_gguf_get_string(gguf, "general.version", &text)) {
        if (equals(text, "preview")) return PF_RELEASE_PREVIEW;
        if (equals(text, "0731")) return PF_RELEASE_0731;
    }
    if (pf_gguf_get_string(gguf, "tokenizer.chat_template", &text) && contains(text, "Beyond maximum")) {
        return PF_RELEASE_0731;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (pf_gguf_get_string(gguf, names[i], &text) && contains(text, "0731")) return PF_RELEASE_0731;
    }
    return PF_RELEASE_PREVIEW;
}

/* What stands before the first message, by release and PF_THINK_*. NULL: the release has no such mode. */
static const char *effort_text(pf_chat_release release, int32_t think) {
    static const char *const texts[2][4] = {
        {"", NULL, "", EFFORT_MAXIMUM},
        {"", "", EFFORT_MAXIMUM, EFFORT_BEYOND},
    };
    return think >= PF_THINK_OFF && think <= PF_THINK_MAX ? texts[release == PF_RELEASE_0731][think] : NULL;
}

/* ---- Writing ------------------------------------------------------------------------------------------------- */

/* Ordinary text gathers until a special token ends it, because merges reach across the border of two messages. */
typedef struct writer {
    const pf_tokenizer *tokenizer;
    int32_t special[N_SPECIAL]; /* ids */
    char *text;                 /* [text_len] not encoded yet */
    size_t text_len;
    size_t text_capacity;
    int32_t *tokens;
    int64_t capacity;
    int64_t n;                  /* counts on past the capacity */
    pf_error *err;
} writer;

static pf_status put_text(writer *w, const char *text) {
    size_t len = strlen(text);
    if (len > SIZE_MAX / 2 - w->text_len) return pf_fail(w->err, PF_ERR_MEMORY, "out of memory for a conversation");
    if (w->text_len + len > w->text_capacity) {
        size_t capacity = 2 * (w->text_len + len);
        char *larger = pf_alloc(capacity);
        if (!larger) return pf_fail(w->err, PF_ERR_MEMORY, "out of memory for a conversation");
        if (w->text_len > 0) memcpy(larger, w->text, w->text_len);
        pf_free(w->text);
        w->text = larger;
        w->text_capacity = capacity;
    }
    if (len > 0) memcpy(w->text + w->text_len, text, len);
    w->text_len += len;
    return PF_OK;
}

static pf_status flush(writer *w) {
    int64_t n = 0;
    int64_t room = w->n < w->capacity ? w->capacity - w->n : 0;
    PF_TRY(pf_tokenizer_encode(w->tokenizer, w->text, w->text_len, 0, room > 0 ? w->tokens + w->n : NULL, room, &n,
                               w->err));
    w->n += n;
    w->text_len = 0;
    return PF_OK;
}

static pf_status put_special(writer *w, int which) {
    PF_TRY(flush(w));
    if (w->n < w->capacity) w->tokens[w->n] = w->special[which];
    w->n++;
    return PF_OK;
}

/* ---- Conversations ------------------------------------------------------------------------------------------- */

static bool has_role(const pf_chat_message *message, const char *role) { return strcmp(message->role, role) == 0; }

static pf_status check_messages(const pf_chat_message *messages, int64_t n, pf_error *err) {
    if (!messages || n < 1) return pf_fail(err, PF_ERR_ARGUMENT, "a conversation needs at least one message");
    for (int64_t i = 0; i < n; i++) {
        const pf_chat_message *m = &messages[i];
        if (!m->role || !m->content) {
            return pf_fail(err, PF_ERR_ARGUMENT, "message %lld has no role or no content", (long long)i);
        }
        if (!has_role(m, "system") && !has_role(m, "user") && !has_role(m, "assistant")) {
            size_t len = strlen(m->role);
            return pf_fail(err, PF_ERR_ARGUMENT, "message %lld has the role \"%.*s\": use system, user or assistant",
                           (long long)i, (int)pf_utf8_complete(m->role, len < 40 ? len : 40), m->role);
        }
    }
    return PF_OK;
}

/* Whether it is the model's turn after n >= 1 messages. */
static pf_status check_turn(const pf_chat_message *messages, int64_t n, bool continues, pf_error *err) {
    const pf_chat_message *last = &messages[n - 1];
    if (continues) {
        if (has_role(last, "assistant") && n > 1 && has_role(last - 1, "user")) return PF_OK;
        return pf_fail(err, PF_ERR_ARGUMENT, "to continue, a conversation must end with a user's message and an "
                       "assistant's");
    }
    if (has_role(last, "user")) return PF_OK;
    return pf_fail(err, PF_ERR_ARGUMENT, "the conversation ends with a message of the role \"%s\": a user's must follow"
                   "%s", last->role, has_role(last, "assistant") ? ", or ask to continue it (PF_CHAT_CONTINUE)" : "");
}

static pf_status check_think(pf_chat_release release, int32_t think, pf_error *err) {
    if (effort_text(release, think)) return PF_OK;
    if (think != PF_THINK_LOW) {
        return pf_fail(err, PF_ERR_ARGUMENT, "thinking mode %d is unknown: use off (0), high (2) or max (3)", think);
    }
    return pf_fail(err, PF_ERR_ARGUMENT, "low thinking effort came with release 0731, this model is the preview: use "
                   "off, high or max");
}

static pf_status find_special(writer *w) {
    for (int i = 0; i < N_SPECIAL; i++) {
        w->special[i] = pf_tokenizer_special_id(w->tokenizer, SPECIAL[i], strlen(SPECIAL[i]));
        if (w->special[i] < 0) {
            return pf_fail(w->err, PF_ERR_UNSUPPORTED,
                           "the vocabulary has no special token \"%s\": this is no DeepSeek-V4 chat model", SPECIAL[i]);
        }
    }
    return PF_OK;
}

/* How to write a conversation. last_user: the last user message's index. continues: the last message is left open. */
typedef struct manner {
    bool thinking;
    bool continues;
    int64_t last_user;
} manner;

/* Message i of n. */
static pf_status put_message(writer *w, const pf_chat_message *messages, int64_t n, int64_t i, const manner *how) {
    const pf_chat_message *m = &messages[i];
    const bool thinking = how->thinking, is_open = how->continues && i + 1 == n;
    const int64_t last_user = how->last_user;
    const bool is_user = has_role(m, "user");
    const bool is_assistant = has_role(m, "assistant");
    if (is_user) {
        /* Neighbouring user messages are one turn. */
        PF_TRY(i > 0 && has_role(m - 1, "user") ? put_text(w, "\n\n") : put_special(w, USER));
    } else if (is_assistant && thinking && i > last_user && !(is_open && m->content[0] == '\0')) {
        PF_TRY(put_special(w, THINK_END)); /* of reasoning that is not told */
    }
    PF_TRY(put_text(w, m->content));
    if (is_assistant) return is_open ? PF_OK : put_special(w, EOS);
    if (!is_user || (i + 1 < n && !has_role(m + 1, "assistant"))) return PF_OK;
    PF_TRY(put_special(w, ASSISTANT));
    return put_special(w, thinking && i >= last_user ? THINK_BEGIN : THINK_END);
}

static pf_status put_conversation(writer *w, const pf_chat_message *messages, int64_t n, const char *effort,
                                  manner how) {
    how.last_user = -1;
    for (int64_t i = 0; i < n; i++) {
        if (has_role(&messages[i], "user")) how.last_user = i;
    }
    PF_TRY(put_special(w, BOS));
    PF_TRY(put_text(w, effort));
    for (int64_t i = 0; i < n; i++) PF_TRY(put_message(w, messages, n, i, &how));
    return flush(w);
}

pf_status pf_chat_encode(const pf_tokenizer *tokenizer, pf_chat_release release, const pf_chat_message *messages,
                         int64_t n_messages, int32_t think, int32_t *tokens, int64_t capacity, int64_t *n_tokens,
                         pf_error *err) {
    if (!n_tokens || capacity < 0 || (!tokens && capacity > 0)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "chat: a null pointer or a negative capacity was passed");
    }
    const bool continues = think >= PF_CHAT_CONTINUE;
    const int32_t mode = continues ? think - PF_CHAT_CONTINUE : think;
    PF_TRY(check_messages(messages, n_messages, err));
    PF_TRY(check_think(release, mode, err));
    PF_TRY(check_turn(messages, n_messages, continues, err));
    writer w = {.tokenizer = tokenizer, .tokens = tokens, .capacity = capacity, .err = err};
    PF_TRY(find_special(&w));
    const manner how = {.thinking = mode != PF_THINK_OFF, .continues = continues};
    pf_status status = put_conversation(&w, messages, n_messages, effort_text(release, mode), how);
    pf_free(w.text);
    if (status == PF_OK) *n_tokens = w.n;
    return status;
}
