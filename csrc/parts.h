// Numbers of things in parts.
#pragma once

#include <cstdint>

namespace softreg {

constexpr int64_t parts_of(int64_t n, int64_t in_part) { return (n + in_part - 1) / in_part; }
constexpr int64_t rounded_up(int64_t n, int64_t unit) { return parts_of(n, unit) * unit; }

}  // namespace softreg
