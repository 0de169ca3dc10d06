/* A test's checks: each failure is printed with its place and counted; main() returns the count. */
#ifndef PF_TEST_UNITS_H
#define PF_TEST_UNITS_H

#include <stdio.h>

extern int test_failures;

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            test_failures++;                                                              \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
        }                                                                                 \
    } while (0)

void test_status(void);
void test_memory(void);
void test_pool(void);
void test_files(const char *folder);
void test_gguf(const char *folder);

#endif
