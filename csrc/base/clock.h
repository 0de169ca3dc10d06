/* The time that passes, for measuring how long work takes. */
#ifndef PF_BASE_CLOCK_H
#define PF_BASE_CLOCK_H

/* Seconds since some moment of the past; never runs backwards. */
double pf_clock_seconds(void);

#endif
