// x86-64 with AVX-512 F, BW, VL and DQ.
#define SOFTREG_KERNEL_SET kernels_avx512
#define SOFTREG_KERNEL_SET_NAME "avx512"
#include "cpu/kernels.inc.h"
