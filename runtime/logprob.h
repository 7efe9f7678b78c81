// Log-probabilities from logits.
#ifndef LOGPROB_H
#define LOGPROB_H

// log(sum(exp(logits [count]))), with an error below 1e-6; the log-probability of an id in nats is
// its logit less this. NaN if a logit is NaN or +infinity.
static double log_sum_exp(const float *logits, int count);

#endif
