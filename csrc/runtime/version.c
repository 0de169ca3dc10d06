#include "pyflash.h"

int32_t pf_abi_version(void) { return PF_ABI_VERSION; }

const char *pf_version(void) { return PF_VERSION_STRING; }
