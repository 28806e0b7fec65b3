// Any processor: at::vec's portable vectors, which on aarch64 are NEON.
#define SOFTREG_KERNEL_SET kernels_generic
#define SOFTREG_KERNEL_SET_NAME "generic"
#include "cpu/kernels.inc.h"
