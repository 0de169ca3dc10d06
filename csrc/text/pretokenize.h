/* The pre-tokenizer of DeepSeek-V3/V4: cuts text into the pieces within which byte pairs may merge. */
#ifndef PF_TEXT_PRETOKENIZE_H
#define PF_TEXT_PRETOKENIZE_H

#include <stddef.h>
#include <stdint.h>

/* End of the piece that starts at text[begin], begin < end, where begin is the start of the text or the end of the
 * piece before it and `end` the end of the text. A byte that is no part of well-formed UTF-8 counts as one character
 * without a class. All pieces of a text together take time linear in its length. */
size_t pf_pretokenize_next(const uint8_t *text, size_t begin, size_t end);

#endif
