"""Break the formulas and the kernels, one operator at a time, and see that the tests notice.

Run by hand in a clone (each change is compiled, a minute or two apiece): python tests/mutate.py
With words, only those of the files whose paths contain one of them: python tests/mutate.py core/exp

The 52 that there were on 2026-11-25 were all noticed, and most of those added since; not all have
been run again. A coefficient of `exp` changed in its 13th bit instead of its 9th is below rounding.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from suites import KERNEL_SUITES
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
SUITES = [*KERNEL_SUITES, "test_autograd.py", "test_properties.py", "test_tracers.py"]
SUITES += ["cpu/test_large_results.py", "test_early_gradient.py"]
SUITES += ["test_linear.py", "test_linear_arguments.py"]
SUITES += ["test_linear_autocast.py", "test_linear_ignored.py", "test_linear_products.py"]
# Once more as on a processor without vector units, where half types are multiplied as float32.
SUITES_OF_DEFAULT = ["test_linear_products.py"]


class Mutation(NamedTuple):
    path: str
    before: str
    after: str


MUTATIONS = [
    Mutation("core/value.h", "x == -static_cast<F>(INFINITY) ? F(0)", "x != x ? F(0)"),
    Mutation("core/exp.h", "0x1.00021ep-1f", "0x1.01021ep-1f"),
    Mutation("core/exp.h", "0x1.62e42feep-1, 0x1.a39ef35793c76p-33", "0x1.62e42fefa39efp-1"),
    Mutation("cpu/kernels_vec_exp.h", "0x3fef72b83c7d517b", "0x3fef72b83c7d527b"),
    Mutation("core/tanh.h", "exp.power - F(1))", "exp.power - F(1.0001f))"),
    Mutation("core/tanh.h", "F(1) - quotient, quotient", "F(1) - quotient, F(1.00001f) * quotient"),
    Mutation("core/log_sum_exp.h", "state.sum * vexp(state.max - shift(max))", "state.sum"),
    Mutation(
        "core/cross_entropy.h", "return log_sum - shifted_logit", "return log_sum + shifted_logit"
    ),
    Mutation("core/cross_entropy.h", "row.per_class * smooth_nll", "row.on_target * smooth_nll"),
    Mutation("core/cross_entropy.h", "row.per_class * row.weight_sum;", "row.per_class;"),
    Mutation("core/cross_entropy.h", "return z_loss * lse * lse;", "return z_loss * lse;"),
    Mutation("core/cross_entropy.h", "return F(2) * z_loss * lse;", "return z_loss * lse;"),
    Mutation("core/cross_entropy.h", "row.upstream + grad_lse / sum", "row.upstream + grad_lse"),
    Mutation("core/cross_entropy.h", "mul_sub(exp, softmax_scale, offset)", "exp * softmax_scale"),
    Mutation("cpu/kernels_vec_memory.h", "%1, %2, %0", "%2, %1, %0"),
    Mutation("core/logit_transform.h", "(F(1) - tanh) * (F(1) + tanh)", "(F(1) - tanh)"),
    Mutation("core/logit_transform.h", "of_logits / of_tanh", "1 / of_tanh"),
    Mutation("core/compensated_sum.h", "carry += other.carry;", ""),
    Mutation(
        "kernel_args.h", "< static_cast<uint64_t>(classes)", "<= static_cast<uint64_t>(classes)"
    ),
    Mutation("row_target.h", "return target.counts || args.grad_lse;", "return target.counts;"),
    Mutation("row_target.h", "target.counts || args.lse;", "target.counts;"),
    Mutation("cpu/kernels_row_gradients.h", "kMayBeWeighted && weighted", "false"),
    Mutation("cpu/kernels_row_gradients.h", "beside_ && had_turns", "beside_"),
    Mutation("cpu/kernels_along_row.h", "kept = kept_rows[row % 2]", "kept = kept_rows[0]"),
    Mutation(
        "cpu/kernels_along_row.h", "write_beside<kMayBeWeighted>(i)", "write_beside<false>(i)"
    ),
    Mutation("cpu/kernels_row_ends.h", "load_part(weight_, count_, A(0))", "load_vec(weight_)"),
    Mutation("cpu/kernels_row_ends.h", "end_rows(row + 1)", "end_rows(row)"),
    Mutation("cpu/kernels_row_ends.h", "x + Vec<double>::size()", "x"),
    Mutation("cpu/kernels_row_gradients.h", "value(gradients.label, First{1}", "value(0, First{1}"),
    Mutation("cpu/kernels_rows_together.h", "others = step(others, c, First{n - c});", ""),
    Mutation("cpu/kernels_rows_together.h", "folded<kWidth>(k * kWidth, ", "folded<kWidth>(0, "),
    Mutation("cpu/kernels_rows_together.h", "labels[r] < 0 ? 0 : labels[r]", "0"),
    Mutation("cpu/kernels_along_rows_together.h", "args.lse || args.classes <=", "args.classes <="),
    Mutation(
        "cpu/kernels_along_rows_together.h", "(targets, count, args.grad_lse)", "(targets, 0, 0)"
    ),
    Mutation("cpu/kernels_along_rows_together.h", "grad * load_vec(slopes + c)", "grad"),
    Mutation("cpu/kernels_row_gradients.h", "of(vexp(y.value - max)) * y.slope", "of(y.slope)"),
    Mutation("cpu/kernels_row_gradients.h", "kTransformed ? grad *", "false ? grad *"),
    Mutation("cpu/kernels_row_gradients.h", "tanhs ? tanhs + first :", "tanhs ? tanhs :"),
    Mutation("cpu/kernels_row_state.h", "(tanhs + i, tanh)", "(tanhs + i, logits)"),
    Mutation(
        "cpu/kernels_row_state.h",
        "(args.transform, tanhs + first, n)",
        "(args.transform, tanhs, n)",
    ),
    Mutation(
        "cpu/kernels_row_gradients.h",
        "target, saved, columns.first + first",
        "target, saved, columns.first",
    ),
    Mutation("cpu/kernels_lanes.h", " << k * kWidth;", ";"),
    Mutation("core/row_state.h", "state.coefficient * change", "state.coefficient"),
    Mutation("cpu/kernels_memory.h", "return padded(x, lanes.count, padding);", "return x;"),
    Mutation("cpu/kernels_vec.h", "{low + x.low, high + x.high}", "{low + x.low, high}"),
    Mutation("cpu/kernels_vec_memory.h", "_mm512_set1_epi32(0x7fff)", "_mm512_set1_epi32(0x8000)"),
    Mutation(
        "cpu/kernels_lanes.h", "first_lanes_of<V>(args.classes > 0 ? 1 : 0", "first_lanes_of<V>(1"
    ),
    Mutation("kernel_inputs.h", "args.label_smoothing / rows_.classes", "args.label_smoothing"),
    Mutation("cpu/kernels_row_state.h", "lanes.max > sums.max", "lanes.max < sums.max"),
    Mutation("cpu/kernels_row_state.h", "block.sum = sum_of_exp(", "sum_of_exp("),
    Mutation("cpu/kernels_row_gradients.h", "label_of_row - first", "label_of_row"),
    Mutation(
        "cpu/kernels_row_state.h", "args.weight ? args.weight + first", "args.weight ? args.weight"
    ),
    Mutation(
        "cpu/kernels_along_row.h", "merge(state, of_row[i], args.all_classes_count())", "of_row[i]"
    ),
    Mutation("cpu/kernels_row_gradients.h", "static_cast<A>(lane)), at_label", "A(0)), at_label"),
    Mutation("cpu/kernels_memory.h", "stored(0).store(to);", ""),
    Mutation("cpu/kernels_memory.h", "sizeof(T) % step", "sizeof(T) % width"),
    Mutation("cpu/kernels_lanes.h", "label[part] - LaneIndices<A>(first)", "label[part]"),
    Mutation("cpu/kernels_lanes.h", "bad = bad | (keeps ^ counts);", ""),
    Mutation("cpu/kernels_lanes.h", "(of > none) & ", ""),
    Mutation("cpu/kernels_lanes.h", "weight = of_counting(lanes_of", "weight = (lanes_of"),
    Mutation("cpu/kernels_lanes.h", "wide.low + wide.high", "wide.low"),
    Mutation("cpu/kernels_lane_vec.h", "add_exp(sum.high, x.high, exp.high)", "sum.high"),
    Mutation("cpu/kernels_lane_vec.h", "rest < 0 ? 0 : rest < width ? rest : width", "width"),
    Mutation("cpu/kernels_tile.h", "matrix.inner > 1 ? 1 : matrix.outer_stride", "1"),
    Mutation(
        "cpu/kernels_tile_walk.h",
        "grad_.rows_in_sample(row, args_.probabilities.rows_in_sample(row, rest_))",
        "args_.probabilities.rows_in_sample(row, rest_)",
    ),
    Mutation("cpu/kernels_tile_walk.h", "kBeside && !walk.is_over() && ", "kBeside && "),
    Mutation(
        "cpu/kernels_tile_walk.h",
        "for (int64_t c = done; c < beside_",
        "for (int64_t c = 0; c < beside_",
    ),
    Mutation("cpu/kernels_lane_gradients.h", "beside_ > 0 ? done : 0", "done"),
    Mutation("cpu/kernels_rows_in_lanes.h", "kWrites ? 3 : 2", "2"),
    Mutation("cpu/kernels_lanes.h", "first == 0 ? number : counted_from(first)", "number"),
    Mutation("kernel_args.h", "return !weight && per_class == 0;", "return per_class == 0;"),
    Mutation(
        "cpu/kernels_tile.h",
        "square[k].store(values + (c + k) * kRows + part)",
        "square[k].store(values + (c + k) * kRows)",
    ),
    Mutation(
        "cpu/kernels_tile_walk.h",
        "!place.probabilities.template are_vector<V>(place.count)",
        "false",
    ),
    Mutation("cpu/kernels_lane_gradients.h", "weight_, first_ + c", "weight_, c"),
    Mutation(
        "cpu/kernels_lane_gradients.h",
        "in_place_(probabilities_.template are_vector<V>(place.count))",
        "in_place_(true)",
    ),
    Mutation(
        "cpu/kernels_rows_in_lanes.h",
        "args.transform.is_identity && args.probabilities_are_coefficients()",
        "args.probabilities_are_coefficients()",
    ),
    Mutation("cpu/kernels_lane_gradients.h", "args.grad_loss_stride == 1 && ", ""),
    Mutation("core/log.h", "0x1.5555a4p-2f", "0x1.5955a4p-2f"),
    Mutation("cpu/kernels_rows_in_lanes.h", "none_counts() || args.lse", "none_counts()"),
    Mutation("cpu/kernels_lane_gradients.h", "*of = targets.of_counting(*of)", "*of = *of"),
    Mutation(
        "cpu/kernels_lane_gradients.h",
        "all_flow_ ? grad : of_counting(of_lanes.counting, grad)",
        "grad",
    ),
    Mutation("cpu/kernels.inc.h", "forward_args.logits.inner == grad.inner", "true"),
    Mutation("cpu/cross_entropy.cpp", "is_mean && divisor != expected", "false"),
    Mutation("autograd/derivatives.cpp", "ctx->saved_data.erase(saved);", ""),
    Mutation("autograd/cross_entropy.cpp", " && !at::GradMode::is_enabled()", ""),
    Mutation("autograd/upstream_guess.cpp", "upstream != 0 && ", ""),
    Mutation("autograd/upstream_guess.cpp", "    upstream_ = upstream;\n", ""),
    Mutation("autograd/upstream_guess.cpp", "distrust_ - 1", "distrust_ - 3"),
    Mutation("autograd/upstream_guess.cpp", "std::min(1 << distrust / 2, kLongestPause)", "1"),
    Mutation("cpu/cross_entropy.cpp", "if (!right)", "if (right)"),
    Mutation("autograd/upstream_guess.cpp", "gradient.expired() ||", ""),
    Mutation("autograd/upstream_guess.cpp", "gradient.expired() || ", "true || "),
    Mutation("autograd/upstream_guess.cpp", "gradient._unsafe_get_target() ==", "nullptr =="),
    Mutation("cpu/large_results.cpp", "return bytes >= wanted &&", "return"),
    Mutation("core/cross_entropy.h", "on_target * class_weight * nll", "on_target * nll"),
    Mutation(
        "cpu/kernels_fold.h",
        "A lanes[Vec<A>::size()];\n  x.store(lanes);",
        "A lanes[Vec<A>::size()] = {};",
    ),
    Mutation("autograd/composite.cpp", "1 - (y / args.softcap).square()", "1 - (y / args.softcap)"),
    Mutation("autograd/composite.cpp", "2 * args.z_loss *", "args.z_loss *"),
    Mutation("cpu/kernels_row_gradients.h", "args.grad.data != args.logits.data &&", ""),
    Mutation("layer_rows.h", "indices_.narrow(0, first, count)", "indices_.narrow(0, 0, count)"),
    Mutation("layer_rows.cpp", "indices_(has_lse ?", "indices_(false ?"),
    Mutation("layer_rows.cpp", ".any(1)", ".all(1)"),
    Mutation("linear_cross_entropy.cpp", "of_input_.zero_();", ""),
    Mutation("linear_cross_entropy.cpp", "of_weight_.zero_();", ""),
    Mutation("linear_cross_entropy.cpp", "all.state.zero_();", ""),
    Mutation("linear_cross_entropy.cpp", "all.loss.zero_();", ""),
    Mutation("linear_cross_entropy.cpp", ".masked_fill_(ignored, 0)", ""),
    Mutation("linear_cross_entropy.cpp", "of_chunk.args.reduction = args.reduction;", ""),
    Mutation("linear_cross_entropy.cpp", "has_row_losses ? chunk.of(grad.grad_loss) :", ""),
    Mutation("linear_cross_entropy.cpp", "*grad.grad_lse", "*grad.grad_lse * 2"),
    Mutation("float_products.cpp", "output.copy_(onednn_product(a, b, bias))", "output.zero_()"),
    Mutation("float_products.cpp", "classes >= kLeast && features >= kLeast", "true"),
    Mutation("layer_products.cpp", "is_first ? sum.copy_(x) :", ""),
    Mutation("layer_products.cpp", "is_first ? 0 : 1", "1"),
    Mutation("layer_products.cpp", "body(Range{i * in_part,", "body(Range{0,"),
    Mutation("layer_products.cpp", "sum.add_(product(", "sum.copy_(product("),
    Mutation("autograd/early_layer_gradients.cpp", "return was_right ?", "return true ?"),
    Mutation("autograd/early_layer_gradients.cpp", "gradient->mul_(factor)", "(void)gradient"),
    Mutation(
        "autograd/early_layer_gradients.cpp", "args.input.scalar_type() == at::kHalf", "false"
    ),
    Mutation(
        "autograd/linear_cross_entropy.cpp",
        "const bool float_logits = true",
        "const bool float_logits = false",
    ),
    Mutation(
        "autograd/linear_cross_entropy.cpp", 'ctx->saved_data["float_logits"].toBool()', "false"
    ),
    Mutation("autograd/early_layer_gradients.cpp", "at::GradMode::is_enabled() || ", ""),
    Mutation("checks.cpp", "args.has_probabilities() ? equal : surely_equal", "equal"),
]
SECONDS = 1800  # after which a suite that hangs has noticed too


def run(*command: str, seconds: float | None = None, **environment: str) -> int:
    # The suites run on the CPU.
    env = {**os.environ, "SOFTREG_NO_CUDA": "1", **environment}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, timeout=seconds, env=env
    ).returncode


def build() -> bool:
    return run(sys.executable, "setup.py", "build_ext", "--inplace") == 0


def do_suites_pass() -> bool:
    return do_pass(SUITES) and do_pass(SUITES_OF_DEFAULT, ATEN_CPU_CAPABILITY="default")


def do_pass(suites: list[str], **environment: str) -> bool:
    """Raises SystemExit where they neither pass nor fail: nothing is known of the kernels then."""
    tests = [str(ROOT / "tests" / suite) for suite in suites]
    pytest = (sys.executable, "-m", "pytest", "-q", "-x")
    try:
        status = run(*pytest, *tests, seconds=SECONDS, **environment)
    except subprocess.TimeoutExpired:
        return False
    if status > 1:
        raise SystemExit(f"pytest ended with status {status}: run it by hand")
    return status == 0


def is_noticed(mutation: Mutation) -> bool:
    source = ROOT / "csrc" / mutation.path
    original = source.read_text()
    if original.count(mutation.before) != 1:
        raise SystemExit(f"{mutation.path} has not one {mutation.before!r}: bring it up to date")
    try:
        source.write_text(original.replace(mutation.before, mutation.after))
        if not build():
            raise SystemExit(f"{mutation.after!r} in {mutation.path} does not compile")
        return not do_suites_pass()
    finally:
        source.write_text(original)


def main(words: list[str]) -> int:
    mutations = [of for of in MUTATIONS if not words or any(word in of.path for word in words)]
    if not build():
        raise SystemExit("csrc does not compile as it is")
    if not do_suites_pass():
        raise SystemExit("the suites do not pass as it is")
    missed = []
    try:
        for mutation in tqdm(mutations):
            noticed = is_noticed(mutation)
            missed += [] if noticed else [mutation]
            change = f"{mutation.before} -> {mutation.after}"
            tqdm.write(f"{'noticed' if noticed else 'MISSED '}  {mutation.path}: {change}")
    finally:
        build()
    print(f"{len(mutations) - len(missed)} of {len(mutations)} noticed")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
