// x86-64 with AVX2, FMA and F16C.
#define SOFTREG_INSTRUCTION_SET InstructionSet::kAvx2
#include "cpu/kernels.inc.h"
