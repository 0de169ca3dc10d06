/* Mapped files that can no longer be read: they have become shorter, or their disk fails. The system then has no other
 * answer to whoever touches them than a fault, SIGBUS, which ends the process without a word. Where the host program
 * asks for it (pf_catch_file_errors), a line says which file it was. */
#ifndef PF_BASE_FAULTS_H
#define PF_BASE_FAULTS_H

#include <stdint.h>

/* Notes that the bytes at data are a file's. Returns a number for pf_faults_forget(), or 0, which it takes too, when no
 * more can be noted. */
int pf_faults_note(const void *data, uint64_t size, const char *path);
void pf_faults_forget(int number);

#endif
