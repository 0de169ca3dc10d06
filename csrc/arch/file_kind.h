/* What a GGUF is, by its keys and names: a model of this architecture, or what else is put into GGUF files. */
#ifndef PF_ARCH_FILE_KIND_H
#define PF_ARCH_FILE_KIND_H

#include "format/gguf.h"

/* OK for a file of this architecture, also one that holds only a model's MTP block. Else UNSUPPORTED, or FORMAT where
 * general.architecture or all tensors are missing, with what the file is and what to do. */
pf_status pf_file_kind_check(const pf_gguf *gguf, pf_error *err);
/* OK for one that has DSpark stages, of this architecture's models. */
pf_status pf_file_kind_check_dspark(const pf_gguf *gguf, pf_error *err);

#endif
