// x86-64 with AVX-512 F, BW, VL and DQ.
#define SOFTREG_INSTRUCTION_SET InstructionSet::kAvx512
#include "cpu/kernels.inc.h"
