/* For test_upload_choice.py, which declares the struct by itself. */
#include "offload/upload_choice.h"

#include <stddef.h>

size_t upload_choice_size(void);

size_t upload_choice_size(void) {
    return sizeof(pf_upload_choice);
}
