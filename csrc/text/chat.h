/* DeepSeek-V4's chat encoding of plain conversations: what pyflash/chat does for the roles system, user and
 * assistant without tools, reasoning or tasks. */
#ifndef PF_TEXT_CHAT_H
#define PF_TEXT_CHAT_H

#include "base/status.h"
#include "format/gguf.h"
#include "text/tokenizer.h"

typedef enum pf_chat_release {
    PF_RELEASE_PREVIEW,
    PF_RELEASE_0731,
} pf_chat_release;

/* The release of a model file: what general.version says, where it is "preview" or "0731", as in the converter's files.
 * Else, of the two only 0731 has a reasoning effort whose text speaks of "Beyond maximum": a file is of it when its
 * tokenizer.chat_template has these words, as those have that llama.cpp ships for it, or when its name, basename or
 * finetune has "0731", as files have that took the preview's template or none. Else it is of the preview.
 * gguf_export/chat_texts.py has the same rule for Python. */
pf_chat_release pf_chat_release_of(const pf_gguf *gguf);

/* As pf_chat_tokenize(). Errors: ARGUMENT (no messages, a role or thinking mode that there is not, a conversation that
 * it is not the model's turn to go on with, a text of more than 2 GiB), UNSUPPORTED (a vocabulary without the special
 * tokens), MEMORY; then *n_tokens is left alone. */
pf_status pf_chat_encode(const pf_tokenizer *tokenizer, pf_chat_release release, const pf_chat_message *messages,
                         int64_t n_messages, int32_t think, int32_t *tokens, int64_t capacity, int64_t *n_tokens,
                         pf_error *err);

#endif
