/* The terminal on every platform: Ctrl-C, and text in UTF-8. */
#ifndef EMBED_CONSOLE_H
#define EMBED_CONSOLE_H

#include <pyflash.h>

#include <stdbool.h>
#include <stdio.h>

/* Before the program starts any thread, so before it opens a model: Ctrl-C comes on a thread of its own from now on,
 * because a signal handler could call hardly anything. argc and argv become UTF-8. False when out of resources. */
bool console_start(int *argc, char ***argv);

/* Ctrl-C cancels this session from now on, once, and with NULL ends the program again. Returns whether it came since
 * the last call. */
bool console_cancels(pf_session *session);

/* Whether a person reads or writes there; then escape sequences are understood too. */
bool console_is_terminal(FILE *file);

#endif
