/* Collects the squares of what matrix products take, behind pf_collector of pyflash.h. */
#ifndef PF_RUNTIME_COLLECTOR_H
#define PF_RUNTIME_COLLECTOR_H

#include "backend/backend.h"
#include "pyflash.h"

/* The model's backend with products that add to the collector before they do their work, or in the middle of it. They
 * compute the same bits. */
const pf_backend *pf_collector_backend(const pf_collector *collector);

/* A step failed after some of its products had been added. */
void pf_collector_note_failure(pf_collector *collector);

/* Whether it collects of that model. */
bool pf_collector_fits(const pf_collector *collector, const pf_model *model);

#endif
