#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes on 16 cores: builds, runs the
# tests that are marked `cuda`, compute-sanitizer on every launch shape, and the benchmark.
#
#     benchmarks/gpu_check.sh [FOLDER]
#
# Leaves cross_entropy_gpu.csv, its report and chart, and gpu_check.log in FOLDER (default:
# benchmarks/results), and prints a short table last. PYTHON names the interpreter (python3).
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=$(realpath -m "${1:-benchmarks/results}")
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
export FORCE_CUDA=1 PYTHONUNBUFFERED=1
readonly BUILD_S=240 TESTS_S=200 SANITIZER_S=200 TOTAL_S=520
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'failed=1; one_line stopped "by a signal"; finish' TERM INT
summary=() failed=0

# one_line STEP RESULT: what the table at the end says of a step.
one_line() { summary+=("$(printf '%-12s %s' "$1" "$2")"); }

# why_not_zero STATUS LOG: the status in words, and the last line that says something.
why_not_zero() {
  [ "$1" = 124 ] && echo "FAILED: time was up" && return
  echo "FAILED ($1): $(grep -v '^\s*$' "$2" | tail -n 1 | cut -c 1-150)"
}

# judge STEP STATUS LOG: a step that has ended.
judge() {
  if [ "$2" = 0 ]; then
    one_line "$1" "$(tail -n 1 "$3" | cut -c 1-150)"
  else
    failed=1
    one_line "$1" "$(why_not_zero "$2" "$3")"
  fi
}

finish() {
  mkdir -p "$out"
  for log in "$work"/*.log; do
    [ -e "$log" ] && printf '\n=== %s\n' "$(basename "$log" .log)" && cat "$log"
  done >"$out/gpu_check.log"
  printf '\n%s\n' "${summary[@]}"
  printf '%s s; all of it: %s\n' "$SECONDS" "$out/gpu_check.log"
  exit "$failed"
}

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name(), "%d.%d" % torch.cuda.get_device_capability(), sep="\n")' 2>"$work/gpu.log")
if [ -z "$gpu" ]; then
  failed=1
  one_line GPU "none: nothing was run. $(tail -n 1 "$work/gpu.log" | cut -c 1-150)"
  finish
fi
one_line GPU "${gpu%$'\n'*}"
export TORCH_CUDA_ARCH_LIST="${gpu##*$'\n'}"

timeout -k 5 "$BUILD_S" "$python" setup.py build_ext --inplace >"$work/build.log" 2>&1
status=$?
if [ "$status" != 0 ]; then
  failed=1
  one_line build "$(why_not_zero "$status" "$work/build.log")"
  one_line the-rest "not run: nothing was built"
  finish
fi
one_line build "$SECONDS s, sm_${TORCH_CUDA_ARCH_LIST/./}"

# The tools beside the tests; the benchmark alone.
sanitizer=$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer)
declare -A running=()
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck; do
    # Our kernels, but for initcheck, which has to see who wrote what they read. Each tensor is an
    # allocation of its own: what lies beside it is nobody's.
    only=(--kernel-name kns=softreg)
    [ "$tool" = initcheck ] && only=()
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 "$SANITIZER_S" "$sanitizer" --tool "$tool" \
      "${only[@]}" --error-exitcode 9 --report-api-errors no \
      "$python" tests/cuda/launch_shapes.py >"$work/$tool.log" 2>&1 &
    running[$tool]=$!
  done
else
  one_line sanitizer "not run: there is no compute-sanitizer"
fi

workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8 --dist worksteal)
# Interrupted, pytest still says what had failed.
timeout -s INT -k 20 "$TESTS_S" "$python" -m pytest -q -m cuda "${workers[@]}" tests/cuda \
  >"$work/tests.log" 2>&1
judge tests $? "$work/tests.log"
for tool in memcheck racecheck initcheck; do
  [ -n "${running[$tool]:-}" ] || continue
  wait "${running[$tool]}"
  judge "$tool" $? "$work/$tool.log"
done

minutes=$("$python" -c "print(max(0.5, ($TOTAL_S - $SECONDS - 40) / 60))")
rest=$((TOTAL_S - SECONDS > 60 ? TOTAL_S - SECONDS + 30 : 90))
timeout -k 5 "$rest" "$python" benchmarks/bench_cross_entropy.py --device cuda --seconds 0.2 \
  --minutes "$minutes" --out "$out" 2>&1 | tee "$work/benchmark.log"
status=$?
if [ "$status" = 0 ]; then
  table="$out/cross_entropy_gpu.csv"
  left=$(grep -c 'time was up' "$table")
  one_line benchmark "$table$([ "$left" = 0 ] || echo "; $left cells not measured: time was up")"
  missing=$(sed -n '/^## Not measured/,$p' "${table%.csv}.md" | grep '^- ' | grep -v 'time was up')
  [ -z "$missing" ] || one_line "" "$missing"
  "$python" benchmarks/gpu_report.py "$table" --short
else
  failed=1
  one_line benchmark "$(why_not_zero "$status" "$work/benchmark.log")"
fi
finish
