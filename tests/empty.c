/* A library needs a source of its own besides the objects that it is made of. */
typedef int pf_empty;
