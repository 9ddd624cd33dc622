// cpu/svdrd.h: the choice of the instruction set and the division of a batch, or of a matrix, among threads.
#include "cpu/svdrd.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/team.h"
#include "cpu/threads.h"

namespace svdrd {
namespace {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet supported_instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return InstructionSet::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

InstructionSet chosen_instruction_set() {
  static const InstructionSet chosen = [] {
    const InstructionSet supported = supported_instruction_set();
    const char* wanted = std::getenv("SVDRD_ISA");
    if (wanted == nullptr) return supported;
    InstructionSet limit = supported;
    if (std::strcmp(wanted, "baseline") == 0) limit = InstructionSet::baseline;
    if (std::strcmp(wanted, "avx2") == 0) limit = InstructionSet::avx2;
    return limit < supported ? limit : supported;
  }();
  return chosen;
}

// One instruction set's kernels. Which of them a matrix meets is no matter: a lane computes the same bits in any group.
template <typename T>
struct Kernels {
  const KernelTable<T>& dense;
  const KernelTable<T>& few;       // 4 lanes
  const KernelTable<T>& many;      // as many lanes as a register holds floats
  const KernelTable<T>& many_svd;  // float32 on AVX2 and AVX-512: twice as many, whose two chains hide latency
  const KernelTable<T>& many_newton;  // AVX-512: half of `many`, so that Newton's matrices of doubles stay in nearer caches
};

Kernels<float> kernels(float) {
#if defined(__x86_64__)
  if (chosen_instruction_set() == InstructionSet::avx512)
    return {avx512::float_kernels(), avx512_x4::float_kernels(), avx512_x16::float_kernels(),
            avx512_x32::float_kernels(), avx512_x8::float_kernels()};
  if (chosen_instruction_set() == InstructionSet::avx2)
    return {avx2::float_kernels(), avx2_x4::float_kernels(), avx2_x8::float_kernels(), avx2_x16::float_kernels(),
            avx2_x8::float_kernels()};
#endif
  const KernelTable<float>& lanes = baseline_x4::float_kernels();
  return {baseline::float_kernels(), lanes, lanes, lanes, lanes};
}

Kernels<double> kernels(double) {
  const auto all = [](const KernelTable<double>& dense, const KernelTable<double>& few,
                      const KernelTable<double>& many) { return Kernels<double>{dense, few, many, many, many}; };
#if defined(__x86_64__)
  if (chosen_instruction_set() == InstructionSet::avx512)
    return all(avx512::double_kernels(), avx512_x4::double_kernels(), avx512_x16::double_kernels());
  if (chosen_instruction_set() == InstructionSet::avx2)
    return all(avx2::double_kernels(), avx2_x4::double_kernels(), avx2_x8::double_kernels());
#endif
  return all(baseline::double_kernels(), baseline_x4::double_kernels(), baseline_x4::double_kernels());
}

// What a group of matrices in the lanes does faster than one matrix at a time, and what of it fits the second-level
// cache (docs/design/cpu_small.md). The choice must not look at the batch: the two give different bits.
bool in_lanes(int64_t m, int64_t n) { return (m < n ? m : n) <= 32 && m * n <= 1024; }

// The derivative of svd() is little more than products, which the lanes do faster only for the smallest matrices.
bool svd_backward_in_lanes(int64_t m, int64_t n) { return (m < n ? m : n) <= 12 && m * n <= 256; }

// Below this many multiply-adds a further thread costs more to wake or start (5-50 us) than it takes over.
constexpr double work_per_thread = 1e6;

// Matrices to be worked on, and the threads for it.
struct Batch {
  int64_t count;
  int64_t m;
  int64_t n;
  double work_per_item;
  int threads;

  // How many threads are worth it in groups of so many.
  int64_t threads_for(int64_t group) const {
    const int64_t groups = (count + group - 1) / group;
    int64_t wanted = static_cast<int64_t>(work_per_item * static_cast<double>(groups * group) / work_per_thread);
    wanted = wanted < threads ? wanted : threads;
    wanted = wanted < groups ? wanted : groups;
    return wanted < 1 ? 1 : wanted;
  }

  // How many groups the busiest thread has.
  int64_t rounds(int64_t group) const {
    const int64_t at_once = group * threads_for(group);
    return (count + at_once - 1) / at_once;
  }
};

// The one of `few`, groups of 4, and of `many`, larger groups, that has done the batch first: the small ones where lanes
// would be empty or threads idle in large groups. A group of 16 takes as long as so many groups of 4.
template <typename T>
const KernelTable<T>& faster(const Batch& batch, const KernelTable<T>& few, const KernelTable<T>& many,
                             double sixteen) {
  const double large = sixteen / 16 * static_cast<double>(many.group * batch.rounds(many.group));
  return static_cast<double>(batch.rounds(few.group)) <= large ? few : many;
}

// The kernels for a batch in the lanes, by the SVD, the Gram matrix or products of factors. From 24 columns on a large
// group's doubles do not fit into the first-level cache.
template <typename T>
const KernelTable<T>& lane_kernels(const Batch& batch) {
  const Kernels<T> all = kernels(T());
  return faster(batch, all.few, all.many, (batch.m < batch.n ? batch.m : batch.n) < 24 ? 2 : 3);
}

// The same where `lanes`, and otherwise those for one matrix after the other.
template <typename T>
const KernelTable<T>& chosen_kernels(bool lanes, const Batch& batch) {
  return lanes ? lane_kernels<T>(batch) : kernels(T()).dense;
}

// Those of svd(), which computes float32 in float and has larger groups for large batches of it.
template <typename T>
const KernelTable<T>& svd_kernels(bool lanes, const Batch& batch) {
  const Kernels<T> all = kernels(T());
  if (!lanes || sizeof(T) == 8) return chosen_kernels<T>(lanes, batch);
  return batch.count < 2 * all.many_svd.group ? faster(batch, all.few, all.many, 1.8) : all.many_svd;
}

template <typename T>
const KernelTable<T>& newton_kernels(const Batch& batch) {
  const Kernels<T> all = kernels(T());
  return faster(batch, all.few, all.many_newton, 2);
}

class SharedRanges final : public RangeSource {
 public:
  SharedRanges(int64_t count, int64_t step) : count_(count), step_(step) {}

  bool next(int64_t& begin, int64_t& end) override {
    begin = at_.fetch_add(step_, std::memory_order_relaxed);
    if (begin >= count_) return false;
    end = count_ - begin < step_ ? count_ : begin + step_;
    return true;
  }

  Team* team() override { return nullptr; }

 private:
  const int64_t count_;
  const int64_t step_;
  std::atomic<int64_t> at_{0};
};

// A single item, by the whole team.
class TeamRange final : public RangeSource {
 public:
  TeamRange(int64_t item, Team* team) : item_(item), team_(team) {}

  bool next(int64_t& begin, int64_t& end) override {
    begin = item_;
    end = item_ + 1;
    return !std::exchange(taken_, true);
  }

  Team* team() override { return team_; }

 private:
  const int64_t item_;
  Team* const team_;
  bool taken_ = false;
};

// A kernel with its arguments. Not a template's argument, which would compile what follows once for each of them.
using Work = std::function<void(RangeSource&)>;

// Lets the threads call work(ranges) until the items 0 .. count - 1 are done.
void run_side_by_side(const Batch& batch, int64_t group, const Work& work) {
  if (batch.count == 0) return;
  const int64_t groups = (batch.count + group - 1) / group, wanted = batch.threads_for(group);

  // Ranges small enough that the last one to finish keeps nobody waiting for long.
  const int64_t step = wanted <= 1 ? groups : (groups + 16 * wanted - 1) / (16 * wanted);
  SharedRanges ranges(batch.count, step * group);
  if (wanted <= 1) return work(ranges);

  std::vector<std::exception_ptr> errors(static_cast<size_t>(wanted));
  const auto guarded = [&](int thread) {
    try {
      work(ranges);
    } catch (...) {
      errors[static_cast<size_t>(thread)] = std::current_exception();
    }
  };
  on_threads(static_cast<int>(wanted), std::ref(guarded));
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

// Lets a team of `threads` threads do one item.
void run_as_team(int64_t item, int threads, const Work& work) {
  Team team(threads);
  TeamRange ranges(item, &team);
  std::exception_ptr error;
  const auto member = [&](int thread) {
    if (thread != 0) return team.help();
    try {
      work(ranges);
    } catch (...) {
      error = std::current_exception();
    }
    team.dismiss();
  };
  on_threads(threads, std::ref(member));
  if (error) std::rethrow_exception(error);
}

// A product's multiply-adds, and what small matrices cost beside it.
double cube(int64_t m, int64_t n) {
  const double k = static_cast<double>(m < n ? m : n);
  return static_cast<double>(m) * static_cast<double>(n) * k + 100.0 * k;
}

bool for_team(int64_t m, int64_t n, double least) { return cube(m, n) >= least && !in_lanes(m, n); }

// Beyond that a thread would rather wait than help.
constexpr int largest_team = 8;

// Matrices of so many multiply-adds a product, and pairs of them, are done faster by a team than by its leader alone.
// The two sides of a pair need nothing of each other.
constexpr double least_for_team = 200.0 * 200 * 200, least_pair_for_team = 100.0 * 100 * 100;

// Lets the threads call work(ranges) until the items 0 .. count - 1 are done. They work side by side, for that is the
// faster way. A single item that is left over they do together. Two or more they would have to do one after the other,
// each in less than half of the time that one thread needs.
void run_all(Batch batch, int64_t group, bool for_team, const Work& work) {
  const bool together = for_team && batch.threads > 1 && batch.count % batch.threads == 1;
  if (together) --batch.count;
  run_side_by_side(batch, group, work);
  if (together) run_as_team(batch.count, batch.threads < largest_team ? batch.threads : largest_team, work);
}

// The kernel is held by reference: a std::function of its own would allocate memory for what it captures.
template <typename Kernel>
void run(const Batch& batch, int64_t group, bool for_team, const Kernel& kernel) {
  run_all(batch, group, for_team, std::cref(kernel));
}

// Whether Newton's iteration takes those of the matrices that are well conditioned. It works on a multiple of 4 columns,
// and where two or three of them are padding the Gram matrix is faster, or not slower. Beyond 12 columns, too: forward and
// backward together take as long or longer, and the backward alone twice as long as from the factors.
template <typename T>
bool by_newton(int64_t m, int64_t n, double smooth) {
  const int64_t columns = m < n ? m : n;
  return sizeof(T) == 4 && smooth == 0 && in_lanes(m, n) && columns >= 4 && columns <= 12 &&
         (columns + 1) % 4 <= 1;
}

// Numbers of a batch, each at most once.
class ItemList final : public ItemSink {
 public:
  explicit ItemList(int64_t batch) : items_(new int64_t[static_cast<size_t>(batch)]) {}

  void add(const int64_t* items, int count) override {
    std::copy_n(items, count, &items_[count_.fetch_add(count, std::memory_order_relaxed)]);
  }
  const int64_t* items() const { return items_.get(); }
  int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  const std::unique_ptr<int64_t[]> items_;
  std::atomic<int64_t> count_{0};
};

// p of all matrices, and what each leaves for its backward unless `saved` is null.
template <typename T>
void newton_polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, T* p, T* saved, bool only_newton,
                         int threads) {
  const Batch all{batch, m, n, 15 * cube(m, n), threads};
  const KernelTable<T>& newton = newton_kernels<T>(all);
  ItemList rest(batch);
  run(all, newton.group, false,
      [&](RangeSource& ranges) { newton.newton_polar_factor(ranges, a, m, n, rcond, p, saved, rest); });
  if (only_newton) return;
  const Batch refused{rest.count(), m, n, 30 * cube(m, n), threads};
  const KernelTable<T>& svd = lane_kernels<T>(refused);
  run(refused, svd.group, false, [&](RangeSource& ranges) {
    svd.rest_polar_factor(ranges, rest.items(), a, m, n, rcond, p, nullptr, nullptr, nullptr, saved);
  });
}

// Whether the Gram matrix takes those that are well conditioned where Newton's iteration takes none. With 5 columns it
// would gain a fifteenth, and where matrices are deficient it would cost a third.
template <typename T>
bool by_gram(int64_t m, int64_t n, double smooth) {
  return sizeof(T) == 4 && smooth == 0 && in_lanes(m, n) && (m < n ? m : n) >= 6;
}

template <typename T>
void gram_polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, T* p, T* u, T* s, T* vh,
                       int threads) {
  const Batch all{batch, m, n, 20 * cube(m, n), threads};
  const KernelTable<T>& gram = lane_kernels<T>(all);
  ItemList rest(batch);
  run(all, gram.group, false,
      [&](RangeSource& ranges) { gram.gram_polar_factor(ranges, a, m, n, rcond, p, u, s, vh, rest); });
  const Batch refused{rest.count(), m, n, 30 * cube(m, n), threads};
  const KernelTable<T>& svd = lane_kernels<T>(refused);
  run(refused, svd.group, false, [&](RangeSource& ranges) {
    svd.rest_polar_factor(ranges, rest.items(), a, m, n, rcond, p, u, s, vh, nullptr);
  });
}

}  // namespace

template <typename T>
void svd(const T* a, int64_t batch, int64_t m, int64_t n, T* u, T* s, T* vh, int threads) {
  if (m == 0 || n == 0) return;
  const Batch all{batch, m, n, 15 * cube(m, n), threads};
  const KernelTable<T>& table = svd_kernels<T>(in_lanes(m, n), all);
  run(all, table.group, for_team(m, n, least_for_team),
      [&](RangeSource& ranges) { table.svd(ranges, a, m, n, u, s, vh); });
}

template <typename T>
void svd_backward(const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s, const T* vh, int64_t batch,
                  int64_t m, int64_t n, T* grad_a, int threads) {
  if (m == 0 || n == 0) return;
  const Batch all{batch, m, n, 6 * cube(m, n), threads};
  const KernelTable<T>& table = chosen_kernels<T>(svd_backward_in_lanes(m, n), all);
  run(all, table.group, for_team(m, n, least_for_team), [&](RangeSource& ranges) {
    table.svd_backward(ranges, grad_u, grad_s, grad_vh, u, s, vh, m, n, grad_a);
  });
}

template <typename T>
void polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s, T* vh,
                  int threads) {
  if (m == 0 || n == 0) return;
  const bool newton = by_newton<T>(m, n, smooth);
  if (!newton && by_gram<T>(m, n, smooth)) return gram_polar_factor(a, batch, m, n, rcond, p, u, s, vh, threads);
  if (!newton || u != nullptr) {
    const Batch all{batch, m, n, 30 * cube(m, n), threads};
    const KernelTable<T>& table = chosen_kernels<T>(in_lanes(m, n), all);
    run(all, table.group, for_team(m, n, least_for_team),
        [&](RangeSource& ranges) { table.polar_factor(ranges, a, m, n, rcond, smooth, p, u, s, vh); });
  }
  // Where the factors are wanted, too, p has the bits that it has without them.
  if (newton) newton_polar_factor<T>(a, batch, m, n, rcond, p, nullptr, u != nullptr, threads);
}

template <typename T>
void polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t batch, int64_t m, int64_t n,
                           double smooth, T* grad_a, int threads) {
  if (m == 0 || n == 0) return;
  const Batch all{batch, m, n, 4 * cube(m, n), threads};
  const KernelTable<T>& table = chosen_kernels<T>(in_lanes(m, n), all);
  run(all, table.group, for_team(m, n, least_for_team),
      [&](RangeSource& ranges) { table.polar_factor_backward(ranges, grad, u, s, vh, m, n, smooth, grad_a); });
}

int64_t saved_size(int64_t m, int64_t n) { return SavedLayout(m, n).size; }

template <typename T>
void saving_polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* saved,
                         int threads) {
  if (m == 0 || n == 0) return;
  if (by_newton<T>(m, n, smooth)) return newton_polar_factor(a, batch, m, n, rcond, p, saved, false, threads);
  polar_factor<T>(a, batch, m, n, rcond, smooth, p, nullptr, nullptr, nullptr, threads);
  for (int64_t at = 0; at < batch * saved_size(m, n); ++at) saved[at] = T(0);
}

template <typename T>
void saved_polar_factor_backward(const T* grad, const T* a, const T* p, const T* saved, int64_t batch, int64_t m,
                                 int64_t n, double rcond, double smooth, T* grad_a, int threads) {
  if (batch == 0 || m == 0 || n == 0) return;
  if (!by_newton<T>(m, n, smooth)) {  // saving_polar_factor saves nothing
    const size_t count = static_cast<size_t>(batch), k = static_cast<size_t>(m < n ? m : n);
    std::vector<T> formed_p(count * static_cast<size_t>(m * n)), u(count * static_cast<size_t>(m) * k), s(count * k);
    std::vector<T> vh(count * k * static_cast<size_t>(n));
    polar_factor<T>(a, batch, m, n, rcond, smooth, formed_p.data(), u.data(), s.data(), vh.data(), threads);
    return polar_factor_backward<T>(grad, u.data(), s.data(), vh.data(), batch, m, n, smooth, grad_a, threads);
  }
  const Batch all{batch, m, n, 12 * cube(m, n), threads};
  const KernelTable<T>& newton = newton_kernels<T>(all);
  ItemList rest(batch);
  run(all, newton.group, false, [&](RangeSource& ranges) {
    newton.newton_polar_factor_backward(ranges, grad, p, saved, m, n, grad_a, rest);
  });
  const SavedLayout layout(m, n);
  for (int64_t i = 0; i < rest.count(); ++i)
    if (saved[rest.items()[i] * layout.size + layout.kind] == SavedLayout::nothing) {
      std::vector<T> formed_p(static_cast<size_t>(batch * m * n)), formed(static_cast<size_t>(batch * layout.size));
      saving_polar_factor<T>(a, batch, m, n, rcond, smooth, formed_p.data(), formed.data(), threads);
      return saved_polar_factor_backward<T>(grad, a, p, formed.data(), batch, m, n, rcond, smooth, grad_a, threads);
    }
  const Batch refused{rest.count(), m, n, 4 * cube(m, n), threads};
  const KernelTable<T>& svd = lane_kernels<T>(refused);
  run(refused, svd.group, false, [&](RangeSource& ranges) {
    svd.rest_polar_factor_backward(ranges, rest.items(), grad, saved, m, n, grad_a);
  });
}

template <typename T>
void basis_loss(const T* x_hat, const T* x, int64_t batch, int64_t height, int64_t width, int64_t block_height,
                int64_t block_width, double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x, int threads) {
  if (batch == 0 || height == 0 || width == 0) return;
  const LossProblem problem{height, width, block_height, block_width, rcond, smooth};
  const int64_t blocks = batch * (height / block_height) * (width / block_width);
  const bool lanes = in_lanes(block_height, block_width);
  const double work = cube(block_height, block_width);
  Batch all{blocks, block_height, block_width, 60 * work, threads};
  if (!lanes || sizeof(T) == 8) {
    const KernelTable<T>& table = chosen_kernels<T>(lanes, all);
    return run(all, table.group, for_team(block_height, block_width, least_pair_for_team),
               [&](RangeSource& ranges) { table.basis_loss(ranges, x_hat, x, problem, loss, grad_x_hat, grad_x); });
  }
  // Newton's iteration fills the columns up to a multiple of 4.
  const int64_t columns = (std::min(block_height, block_width) + 3) / 4 * 4;
  all.work_per_item = 40 * cube(std::max({block_height, block_width, columns}), columns);
  const KernelTable<T>& newton = newton_kernels<T>(all);
  ItemList rest(blocks);
  run(all, newton.group, false, [&](RangeSource& ranges) {
    newton.newton_basis_loss(ranges, x_hat, x, problem, loss, grad_x_hat, grad_x, rest);
  });
  const Batch refused{rest.count(), block_height, block_width, 60 * work, threads};
  const KernelTable<T>& svd = lane_kernels<T>(refused);
  run(refused, svd.group, false, [&](RangeSource& ranges) {
    svd.rest_basis_loss(ranges, rest.items(), x_hat, x, problem, loss, grad_x_hat, grad_x);
  });
}

const char* instruction_set() {
  switch (chosen_instruction_set()) {
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::baseline:
      break;
  }
  return "baseline";
}

template void svd(const float*, int64_t, int64_t, int64_t, float*, float*, float*, int);
template void svd(const double*, int64_t, int64_t, int64_t, double*, double*, double*, int);
template void svd_backward(const float*, const float*, const float*, const float*, const float*, const float*, int64_t,
                           int64_t, int64_t, float*, int);
template void svd_backward(const double*, const double*, const double*, const double*, const double*, const double*,
                           int64_t, int64_t, int64_t, double*, int);
template void polar_factor(const float*, int64_t, int64_t, int64_t, double, double, float*, float*, float*, float*,
                           int);
template void polar_factor(const double*, int64_t, int64_t, int64_t, double, double, double*, double*, double*, double*,
                           int);
template void polar_factor_backward(const float*, const float*, const float*, const float*, int64_t, int64_t, int64_t,
                                    double, float*, int);
template void polar_factor_backward(const double*, const double*, const double*, const double*, int64_t, int64_t,
                                    int64_t, double, double*, int);
template void saving_polar_factor(const float*, int64_t, int64_t, int64_t, double, double, float*, float*, int);
template void saving_polar_factor(const double*, int64_t, int64_t, int64_t, double, double, double*, double*, int);
template void saved_polar_factor_backward(const float*, const float*, const float*, const float*, int64_t, int64_t,
                                          int64_t, double, double, float*, int);
template void saved_polar_factor_backward(const double*, const double*, const double*, const double*, int64_t, int64_t,
                                          int64_t, double, double, double*, int);
template void basis_loss(const float*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, double, double,
                         float*, float*, float*, int);
template void basis_loss(const double*, const double*, int64_t, int64_t, int64_t, int64_t, int64_t, double, double,
                         double*, double*, double*, int);

}  // namespace svdrd
