// The kernels, section by section. Everything is a constant but what struct gpu_task carries. They
// are compiled as five programs at the same time: MODULES, a sum of the numbers below, says which
// of them this is.
#pragma nv_diag_suppress 177 // which products of prefill are used depends on the architecture
#include "cuda_dims.h"
#include "cuda_task.h"
#include "cuda_primitives.cu"
#include "cuda_layout.cu"
#include "cuda_product.cu"
#include "cuda_block.cu"
#include "cuda_weights.cu"
#include "cuda_cache.cu"
#include "cuda_attention.cu"
#if MODULES & 1
#include "cuda_ring.cu"
#include "cuda_decode_attention.cu"
#include "cuda_decode.cu"
#include "cuda_head.cu"
#include "cuda_step.cu"
#endif
#if MODULES & 2
#include "sample_arithmetic.h"
#include "cuda_sample.cu"
#include "cuda_measure.cu"
#endif
#if MODULES & 28
#include "cuda_warps.cu"
#include "cuda_warpgroup.cu"
#include "cuda_prefill.cu"
#endif
#if MODULES & 4
#include "cuda_prefill_attention.cu"
#endif
