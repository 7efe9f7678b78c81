// The sampler's arithmetic, shared by sample.c and the CUDA kernels: each result has the same bits
// on both sides. Everything is a few rounded operations in a fixed order; no product is fused with
// a sum. Relies on memcpy where it is not compiled for a GPU.
#ifndef SAMPLE_ARITHMETIC_H
#define SAMPLE_ARITHMETIC_H

#ifdef __CUDACC__
#define ON_BOTH_SIDES static __device__ inline
#else
#define ON_BOTH_SIDES static inline
#endif

enum {
    SAMPLE_PENALTY_WINDOW = 64, // ids that the repeat penalty looks back on
    SAMPLE_RUNS = 1024,         // parts in which many weights are added up
};

// SplitMix64's output function (Steele, Lea and Flood, 2014).
ON_BOTH_SIDES unsigned long long sample_mix(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// A number in [0, 1): the position-th output of SplitMix64 started at the mixed seed. Being a
// function of the position it survives a rewind.
ON_BOTH_SIDES double sample_uniform(unsigned long long seed, unsigned long long position) {
    const unsigned long long step = 0x9e3779b97f4a7c15ULL;
    unsigned long long start = sample_mix(seed + step);
    return (double)(sample_mix(start + (position + 1) * step) >> 11) * (1.0 / 9007199254740992.0);
}

ON_BOTH_SIDES double sample_product(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b); // never part of a fused operation
#else
    return a * b;
#endif
}

// 2^n, a normal double.
ON_BOTH_SIDES double sample_power(int n) {
    unsigned long long bits = (unsigned long long)(n + 1023) << 52;
#ifdef __CUDA_ARCH__
    return __longlong_as_double((long long)bits);
#else
    double result;
    memcpy(&result, &bits, sizeof result);
    return result;
#endif
}

// e^x for x <= 0, with an error of at most half a unit in the last place and a hundredth; 0 below
// -87, where a float is hardly more. e^x = 2^n e^r with |r| <= ln 2 / 2, and e^r by its Taylor
// series.
ON_BOTH_SIDES float sample_exp(float x) {
    if (!(x >= -87.0f))
        return 0;
    int n = (int)(sample_product(x, 1.4426950408889634) - 0.5); // to nearest
    double r = x - sample_product(n, 0.6931471805599453), e = 1.0 / 362880;
    e = sample_product(e, r) + 1.0 / 40320;
    e = sample_product(e, r) + 1.0 / 5040;
    e = sample_product(e, r) + 1.0 / 720;
    e = sample_product(e, r) + 1.0 / 120;
    e = sample_product(e, r) + 1.0 / 24;
    e = sample_product(e, r) + 1.0 / 6;
    e = sample_product(e, r) + 0.5;
    e = sample_product(e, r) + 1;
    e = sample_product(e, r) + 1;
    return (float)sample_product(e, sample_power(n));
}

// exp((logit - most) / temperature), where most is the largest logit and may be infinite; 0 for
// NaN.
ON_BOTH_SIDES float sample_weight(float logit, float most, float temperature) {
    return logit == most ? 1.0f : sample_exp((logit - most) / temperature);
}

// A recent id's logit: less likely than before (Keskar et al., 2019, in llama.cpp's form).
ON_BOTH_SIDES float sample_penalized(float logit, float penalty) {
    return logit <= 0 ? logit * penalty : logit / penalty;
}

// Weights are added up in SAMPLE_RUNS runs of this many, and then the runs: up to SAMPLE_RUNS of
// them one after the other.
ON_BOTH_SIDES int sample_run_length(int count) {
    return (count + SAMPLE_RUNS - 1) / SAMPLE_RUNS;
}

#endif
