// x86-64 with AVX2, FMA and F16C.
#define SOFTREG_KERNEL_SET kernels_avx2
#define SOFTREG_KERNEL_SET_NAME "avx2"
#include "cpu/kernels.inc.h"
