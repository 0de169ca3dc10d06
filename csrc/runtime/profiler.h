/* Times operations, behind pf_profiler of pyflash.h. */
#ifndef PF_RUNTIME_PROFILER_H
#define PF_RUNTIME_PROFILER_H

#include "backend/backend.h"
#include "pyflash.h"

/* The model's backend with a clock around every operation. It computes the same bits. */
const pf_backend *pf_profiler_backend(const pf_profiler *profiler);

/* Whether it is of that model. */
bool pf_profiler_fits(const pf_profiler *profiler, const pf_model *model);

#endif
