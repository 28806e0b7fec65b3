// What upstream gradient a loss will be sent, for gradients that are computed before it comes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <optional>
#include <vector>

namespace softreg {

// Of one op on one type of device, in all threads of a process.
// Devices report late whether a guess was right, so that those in flight are guesses too.
class UpstreamGuess {
 public:
  explicit UpstreamGuess(c10::DeviceType device) : device_(device) {}

  // None where the last guesses were wrong, or gradients wait that nobody came for.
  std::optional<double> upstream();

  void add_waiting(const at::Tensor& gradient);
  void remove_waiting(const at::Tensor& taken);

  void was_wrong();
  // Of hosts that see at once whether the guess was right.
  void came(double upstream, bool was_right);

  // For whoever compares to write to, when a device gets there: the host never waits for it. Two
  // doubles: an upstream gradient that was guessed wrong, and one that was guessed right.
  const at::Tensor& report();

 private:
  using Waiting = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  std::optional<double> taken(int index);
  void learn();
  void learn_wrong(double upstream);
  void learn_right();
  void add_miss();

  c10::DeviceType device_;
  at::Tensor report_;
  double upstream_ = 1;
  int distrust_ = 0;
  int pause_ = 0;
  std::vector<Waiting> waiting_;  // those freed unused count until a backward pass comes
};

}  // namespace softreg
