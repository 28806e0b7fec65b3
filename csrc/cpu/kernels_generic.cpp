// Any processor: at::vec's portable vectors, which on aarch64 are NEON.
#define SOFTREG_INSTRUCTION_SET InstructionSet::kGeneric
#include "cpu/kernels.inc.h"
