/* Where the routed experts of a chunk are computed, for layers on a device whose experts are in the host's memory: by
 * the host, or by the device once their weights have been sent there. Decided by how long both took so far, layer by
 * layer.
 *
 * What is compared: the host's time for n tokens, taken as a + b n, and the device's for so many bytes of weights, which
 * contains its computing as far as that takes longer than the sending. Old measurements fade: a chunk of many layers
 * shows a change at once. */
#ifndef PF_OFFLOAD_UPLOAD_CHOICE_H
#define PF_OFFLOAD_UPLOAD_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PF_UPLOAD_LEAST = 32,  /* shorter chunks are the host's: they read most of the experts for a few tokens each */
    PF_UPLOAD_TRY = 256,   /* tokens from which on a side is tried of which too little is known */
    PF_UPLOAD_TRIES = 2,   /* times a side has to be measured before it is compared; the first one loads kernels, pages */
    PF_UPLOAD_RETRY = 50,  /* the side that is not taken is tried again after so many times of what that would take: it
                              may have been measured at a bad moment */
};

typedef enum pf_upload_side { PF_UPLOAD_HOST, PF_UPLOAD_DEVICE } pf_upload_side;

/* All zero at first, but for `always`. */
typedef struct pf_upload_choice {
    bool always;           /* the device's, whenever the chunk is long enough */
    int64_t n_noted[2];    /* measurements by side */
    double weight, n, nn, t, nt; /* host: faded sums of 1, tokens, their squares, seconds, tokens times seconds */
    double seconds_per_byte; /* device: faded mean */
    pf_upload_side last;   /* side of the last measurement, */
    double since_other;    /* and the seconds spent there since the other one was measured */
} pf_upload_choice;

/* The side for n tokens, for which `bytes` of weights would have to be sent. */
pf_upload_side pf_upload_choose(const pf_upload_choice *choice, int64_t n, uint64_t bytes);

/* What a layer took there. */
void pf_upload_note_host(pf_upload_choice *choice, int64_t n, double seconds);
void pf_upload_note_device(pf_upload_choice *choice, uint64_t bytes, double seconds);

/* What it would take, by the measurements so far, of which there is at least one. */
double pf_upload_host_seconds(const pf_upload_choice *choice, int64_t n);
double pf_upload_device_seconds(const pf_upload_choice *choice, uint64_t bytes);

#endif
