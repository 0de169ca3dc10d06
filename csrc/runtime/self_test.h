/* A short test of a device's operations on the very machine: before models are put on a device without anybody having
 * asked for it, and before anything at all is. Every kind of operation runs once or a few times on small fixed inputs, on
 * the device and by the processor's scalar kernels. It takes a fraction of a second. */
#ifndef PF_RUNTIME_SELF_TEST_H
#define PF_RUNTIME_SELF_TEST_H

#include "backend/link.h"

/* Tests the device of a link, unless a device of that index has passed in this process. DEVICE says which operation
 * failed or what differs, and MEMORY that the test itself found none. With the device held. */
pf_status pf_self_test(pf_link *link, int32_t index, pf_error *err);

#endif
