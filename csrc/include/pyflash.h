/* pyflash.h - what programs include of libpyflash, a local runtime for DeepSeek-V4 models: it includes the
 * others.
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
 * Python reads what stands between the two CDEF marks of each header below, in their order, so that keeps to plain C
 * declarations.
 */
#ifndef PYFLASH_H
#define PYFLASH_H

#include "pyflash_base.h"
#include "pyflash_model.h"
#include "pyflash_session.h"
#include "pyflash_inspect.h"
#include "pyflash_text.h"
#include "pyflash_machine.h"
#include "pyflash_blocks.h"

#endif /* PYFLASH_H */
