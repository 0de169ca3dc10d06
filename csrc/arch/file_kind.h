/* What a GGUF is, by its keys and names: a model of this architecture, or what else is put into GGUF files. */
#ifndef PF_ARCH_FILE_KIND_H
#define PF_ARCH_FILE_KIND_H

#include "format/gguf.h"

/* OK for a file with the keys of a model of this architecture, also one that holds only its MTP block. Else UNSUPPORTED, or
 * FORMAT where general.architecture is missing, with what the file is and what to do. */
pf_status pf_file_kind_check(const pf_gguf *gguf, pf_error *err);

#endif
