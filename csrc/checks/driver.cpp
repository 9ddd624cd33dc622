// Runs every function of cpu/svdrd.h, and of gpu/kernels.h on emulated lanes, over a zoo of matrices, and checks the
// results against their definitions in long
// double. No Python, no torch: this is what the sanitizers run. Prints one line for each type and shape with the worst
// ratios (in units of n * eps, LAPACK style) and exits 1 if one reaches 30, if a deficient matrix's noise floor reaches
// 4 eps * s_1, or if one of the exact rules (bits, zeros, NaN) is broken.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gpu/kernels.h"
#include "cpu/svdrd.h"
#include "equal_within.h"

namespace {

using Real = long double;

constexpr double largest_ratio = 30;
constexpr double largest_floor = 4;

int failures = 0;

void fail(const char* rule, const std::string& matrix, int64_t m, int64_t n, double value) {
  ++failures;
  std::printf("FAILED: %s, %s %lldx%lld: %g\n", rule, matrix.c_str(), static_cast<long long>(m),
              static_cast<long long>(n), value);
}

class Generator {
 public:
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(uniform() * static_cast<double>(high - low + 1));
  }

 private:
  std::mt19937_64 engine_{20240607};
};

struct Matrix {
  std::string name;
  int64_t rank;  // where A is exactly deficient, its rank; -1 where the rank is not asked about
  std::vector<double> entries;
};

class Zoo {
 public:
  Zoo(int64_t m, int64_t n, double eps, double tiny, double huge) : m_(m), n_(n), k_(m < n ? m : n), eps_(eps) {
    add("zero", 0, [](int64_t, int64_t) { return 0.0; });
    add("identity", -1, [](int64_t i, int64_t j) { return i == j ? 1.0 : 0.0; });
    add("random", -1, [this](int64_t, int64_t) { return g_.normal(); });
    add("random 1e-30", -1, [this](int64_t, int64_t) { return 1e-30 * g_.normal(); });
    add("random 1e30", -1, [this](int64_t, int64_t) { return 1e30 * g_.normal(); });
    add("near underflow", -1, [this, tiny](int64_t, int64_t) { return tiny * (1 + g_.uniform()); });
    add("denormal", -1,
        [this, tiny](int64_t, int64_t) { return tiny * eps_ * static_cast<double>(g_.integer(-9, 9)); });
    add("near overflow", -1,
        [this, huge](int64_t, int64_t) { return huge / static_cast<double>(m_ + n_) * (g_.uniform() - 0.5); });
    add("ones", 1, [](int64_t, int64_t) { return 1.0; });
    add("constant", 1, [](int64_t, int64_t) { return 113.0 / 255; });
    add("half flat", 1, [this](int64_t i, int64_t) { return i < m_ / 2 ? 31.0 / 255 : 200.0 / 255; });
    add("checkerboard", 1, [](int64_t i, int64_t j) { return (i + j) % 2 ? 1.0 : -1.0; });
    add("ramp", 2, [](int64_t i, int64_t j) { return static_cast<double>(3 * i + 5 * j + 7); });
    add("single tiny element", 1, [tiny](int64_t i, int64_t j) { return i == 0 && j == 0 ? tiny : 0.0; });
    add("jordan", -1, [](int64_t i, int64_t j) { return i == j ? 0.5 : j == i + 1 ? 1.0 : 0.0; });
    add("hilbert", -1, [](int64_t i, int64_t j) { return 1.0 / static_cast<double>(i + j + 1); });
    add("kronecker-like", -1,
        [](int64_t i, int64_t j) { return (i & j) % 2 ? -1.0 : 1.0 + static_cast<double>(i / 2 == j / 2); });
    add("upper ones", -1, [](int64_t i, int64_t j) { return i <= j ? 1.0 : 0.0; });
    add("graded rows", -1,
        [this](int64_t i, int64_t) { return std::pow(10.0, -static_cast<double>(i % 20)) * g_.normal(); });
    add("graded columns up", -1,
        [this](int64_t, int64_t j) { return std::pow(10.0, static_cast<double>(j % 20) - 19) * g_.normal(); });
    const auto u = vector(m_), v = vector(n_);
    add("outer product", 1,
        [&](int64_t i, int64_t j) { return u[static_cast<size_t>(i)] * v[static_cast<size_t>(j)]; });
    const auto left = vector(m_ * (k_ / 2 + 1)), right = vector(n_ * (k_ / 2 + 1));
    add("rank k/2", k_ / 2, [&](int64_t i, int64_t j) {
      double sum = 0;
      for (int64_t r = 0; r < k_ / 2; ++r)
        sum += left[static_cast<size_t>(i * (k_ / 2) + r)] * right[static_cast<size_t>(j * (k_ / 2) + r)];
      return sum;
    });
    add("duplicated columns", n_ > m_ ? -1 : (n_ + 1) / 2, [this, last = 0.0](int64_t, int64_t j) mutable {
      if (j % 2 == 0) last = g_.normal();
      return static_cast<double>(static_cast<float>(last));
    });
    add("zero row and column", m_ == n_ ? k_ - 1 : -1,
        [this](int64_t i, int64_t j) { return i == m_ / 2 || j == n_ / 3 ? 0.0 : g_.normal(); });
    add("image-like", -1, [this](int64_t i, int64_t j) {
      return std::floor(120 + 50 * std::sin(0.21 * static_cast<double>(i)) +
                        40 * std::cos(0.13 * static_cast<double>(j + i)) + 6 * g_.normal()) /
             255;
    });
    add("diagonal, equal pairs", -1,
        [](int64_t i, int64_t j) { return i == j ? static_cast<double>(1 + i / 2) : 0.0; });
    add("diagonal, gap of 2 ulp", -1,
        [this](int64_t i, int64_t j) { return i == j ? 1 + 2 * eps_ * static_cast<double>(i) : 0.0; });
    add_spectrum("orthogonal", [](int64_t) { return 1.0; });
    add_spectrum("arithmetic", [this](int64_t i) { return 1 - static_cast<double>(i) / static_cast<double>(k_); });
    add_spectrum("geometric",
                 [this](int64_t i) { return std::pow(eps_, static_cast<double>(i) / static_cast<double>(k_)); });
    add_spectrum("clustered", [this](int64_t i) { return i == 0 ? 1.0 : 64 * eps_; });
    add_spectrum("log-random", [this](int64_t) { return std::exp(std::log(eps_) * g_.uniform()); });
  }

  const std::vector<Matrix>& matrices() const { return matrices_; }

 private:
  std::vector<double> vector(int64_t length) {
    std::vector<double> r;
    for (int64_t i = 0; i < length; ++i) r.push_back(static_cast<double>(g_.integer(-9, 9)));
    if (!r.empty()) r[0] = 3;
    return r;
  }

  template <typename Entry>
  void add(const char* name, int64_t rank, Entry entry) {
    Matrix a{name, rank, {}};
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j < n_; ++j) a.entries.push_back(entry(i, j));
    matrices_.push_back(a);
  }

  // U D V with U and V products of random reflections.
  template <typename Value>
  void add_spectrum(const char* name, Value value) {
    add(name, -1, [](int64_t, int64_t) { return 0.0; });
    std::vector<double>& a = matrices_.back().entries;
    for (int64_t i = 0; i < k_; ++i) a[static_cast<size_t>(i * n_ + i)] = value(i);
    for (int repeat = 0; repeat < 2; ++repeat) {
      reflect(a, m_, n_, n_, 1);
      reflect(a, n_, m_, 1, n_);
    }
  }

  void reflect(std::vector<double>& a, int64_t length, int64_t count, int64_t stride, int64_t step) {
    std::vector<double> w;
    double squares = 0;
    for (int64_t i = 0; i < length; ++i) {
      w.push_back(g_.normal());
      squares += w.back() * w.back();
    }
    for (int64_t j = 0; j < count; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < length; ++i)
        sum += w[static_cast<size_t>(i)] * a[static_cast<size_t>(i * stride + j * step)];
      for (int64_t i = 0; i < length; ++i)
        a[static_cast<size_t>(i * stride + j * step)] -= 2 * sum / squares * w[static_cast<size_t>(i)];
    }
  }

  int64_t m_, n_, k_;
  double eps_;
  Generator g_;
  std::vector<Matrix> matrices_;
};

// c = a b or a^T b, row-major, in long double.
std::vector<Real> multiply(const std::vector<Real>& a, const std::vector<Real>& b, int64_t rows, int64_t inner,
                           int64_t columns, bool transpose_a = false) {
  std::vector<Real> c(static_cast<size_t>(rows * columns), 0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < inner; ++k) {
      const Real aik = a[static_cast<size_t>(transpose_a ? k * rows + i : i * inner + k)];
      for (int64_t j = 0; j < columns; ++j)
        c[static_cast<size_t>(i * columns + j)] += aik * b[static_cast<size_t>(k * columns + j)];
    }
  return c;
}

std::vector<Real> transpose(const std::vector<Real>& a, int64_t rows, int64_t columns) {
  std::vector<Real> b(a.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      b[static_cast<size_t>(j * rows + i)] = a[static_cast<size_t>(i * columns + j)];
  return b;
}

Real distance(const std::vector<Real>& a, const std::vector<Real>& b) {
  Real sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

Real norm(const std::vector<Real>& a) { return distance(a, std::vector<Real>(a.size(), 0)); }

Real inner(const std::vector<Real>& a, const std::vector<Real>& b) {
  Real sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Real distance_to_identity(std::vector<Real> a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[static_cast<size_t>(i * n + i)] -= 1;
  return norm(a);
}

template <typename T>
std::vector<Real> slice(const std::vector<T>& a, int64_t item, int64_t size) {
  return {a.begin() + item * size, a.begin() + (item + 1) * size};
}

template <typename T>
bool same_bits(const std::vector<T>& a, int64_t item_a, const std::vector<T>& b, int64_t item_b, int64_t size) {
  return std::memcmp(a.data() + item_a * size, b.data() + item_b * size, static_cast<size_t>(size) * sizeof(T)) == 0;
}

template <typename T>
bool all_nan(const std::vector<T>& a, int64_t item, int64_t size) {
  for (int64_t i = item * size; i < (item + 1) * size; ++i)
    if (!std::isnan(a[static_cast<size_t>(i)])) return false;
  return true;
}

struct Worst {
  double value = 0;
  std::string matrix;

  void see(double ratio, const std::string& name) {
    if (ratio > value || std::isnan(ratio)) {
      value = ratio;
      matrix = name;
    }
  }
};

// What is checked: the kernels of the CPU, and those of the GPU with their lanes played on the host.
struct CpuKernels {
  static constexpr bool svd_has_backward = true;
  static constexpr bool saves_iterates = true;

  template <typename T>
  static void svd(const T* a, int64_t batch, int64_t m, int64_t n, T* u, T* s, T* vh, int threads) {
    svdrd::svd(a, batch, m, n, u, s, vh, threads);
  }
  template <typename T>
  static void polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u,
                           T* s, T* vh, int threads) {
    svdrd::polar_factor(a, batch, m, n, rcond, smooth, p, u, s, vh, threads);
  }
  template <typename T>
  static void polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t batch, int64_t m,
                                    int64_t n, double smooth, T* grad_a, int threads) {
    svdrd::polar_factor_backward(grad, u, s, vh, batch, m, n, smooth, grad_a, threads);
  }
  template <typename T>
  static void basis_loss(const T* x_hat, const T* x, int64_t batch, int64_t height, int64_t width, int64_t block_height,
                         int64_t block_width, double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x,
                         int threads) {
    svdrd::basis_loss(x_hat, x, batch, height, width, block_height, block_width, rcond, smooth, loss, grad_x_hat,
                      grad_x, threads);
  }
};

// Where the CPU's check takes one thread and two, the lanes are played forwards and backwards.
struct EmulatedKernels {
  static constexpr bool svd_has_backward = false;
  static constexpr bool saves_iterates = false;

  static svdrd::cuda::Shape shape(int64_t m, int64_t n) { return {static_cast<int>(m), static_cast<int>(n)}; }

  template <typename Problem>
  static void launch(const Problem& problem, int threads) {
    svdrd::cuda::launch(problem, nullptr, threads - 1, nullptr);
  }
  template <typename T>
  static void svd(const T* a, int64_t batch, int64_t m, int64_t n, T* u, T* s, T* vh, int threads) {
    launch(svdrd::cuda::SvdProblem<T>{batch, shape(m, n), a, u, s, vh}, threads);
  }
  template <typename T>
  static void polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u,
                           T* s, T* vh, int threads) {
    launch(svdrd::cuda::PolarProblem<T>{batch, shape(m, n), a, rcond, smooth, p, u, s, vh}, threads);
  }
  template <typename T>
  static void polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t batch, int64_t m,
                                    int64_t n, double smooth, T* grad_a, int threads) {
    launch(svdrd::cuda::PolarBackwardProblem<T>{batch, shape(m, n), grad, u, s, vh, smooth, grad_a}, threads);
  }
  template <typename T>
  static void basis_loss(const T* x_hat, const T* x, int64_t batch, int64_t height, int64_t width, int64_t block_height,
                         int64_t block_width, double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x,
                         int threads) {
    const int64_t blocks = batch * (height / block_height) * (width / block_width);
    const auto block = shape(block_height, block_width);
    launch(svdrd::cuda::LossProblem<T>{blocks, block, x_hat, x, height, width, rcond, smooth, loss, grad_x_hat}, threads);
    launch(svdrd::cuda::LossProblem<T>{blocks, block, x, x_hat, height, width, rcond, smooth, nullptr, grad_x}, threads);
  }
};

template <typename T, typename Kernels>
class Check {
 public:
  Check(int64_t m, int64_t n)
      : m_(m),
        n_(n),
        k_(m < n ? m : n),
        size_(m * n),
        zoo_(m, n, eps, static_cast<double>(std::numeric_limits<T>::min()),
             static_cast<double>(std::numeric_limits<T>::max())),
        matrices_(zoo_.matrices()),
        count_(static_cast<int64_t>(matrices_.size())) {
    for (const Matrix& matrix : matrices_)
      for (double entry : matrix.entries) a_.push_back(static_cast<T>(entry));
    Generator g;
    for (size_t i = 0; i < a_.size(); ++i) {
      direction_.push_back(static_cast<T>(g.normal()));
      other_direction_.push_back(static_cast<T>(g.normal()));
    }
  }

  void run() {
    check_svd();
    if (Kernels::svd_has_backward) check_svd_backward();
    check_polar(0);
    check_polar(0.05);
    check_loss();
    check_neighbours();
    report("svd", svd_);
    report("svd backward", svd_backward_);
    report("polar factor", polar_);
    report("backward", backward_);
    report("loss", loss_);
    if (!(floor_.value < largest_floor)) fail("noise floor / (eps s_1)", floor_.matrix, m_, n_, floor_.value);
    std::printf("%-7s %4lldx%-4lld svd %6.2f  its backward %6.2f  polar %6.2f  backward %6.2f  loss %6.2f  floor %5.2f\n",
                sizeof(T) == 4 ? "float32" : "float64", static_cast<long long>(m_), static_cast<long long>(n_),
                svd_.value, svd_backward_.value, polar_.value, backward_.value, loss_.value, floor_.value);
  }

 private:
  static constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  static constexpr double rcond = 4 * eps;
  // What no number of T can resolve.
  static constexpr double resolution = static_cast<double>(std::numeric_limits<T>::denorm_min());

  struct Factors {
    std::vector<T> u, s, vh;
    Factors(int64_t batch, int64_t m, int64_t n, int64_t k)
        : u(static_cast<size_t>(batch * m * k), T(NAN)),
          s(static_cast<size_t>(batch * k), T(NAN)),
          vh(static_cast<size_t>(batch * k * n), T(NAN)) {}
  };

  std::vector<T> empty(int64_t items) const { return std::vector<T>(static_cast<size_t>(items * size_), T(NAN)); }
  const std::string& name(int64_t i) const { return matrices_[static_cast<size_t>(i)].name; }
  double units(int64_t n) const { return eps * static_cast<double>(n); }

  void report(const char* what, const Worst& worst) {
    if (!(worst.value < largest_ratio)) fail(what, worst.matrix, m_, n_, worst.value);
  }

  void check_svd() {
    Factors f(count_, m_, n_, k_);
    Kernels::svd(a_.data(), count_, m_, n_, f.u.data(), f.s.data(), f.vh.data(), 2);
    for (int64_t i = 0; i < count_; ++i) {
      const auto a = slice(a_, i, size_), u = slice(f.u, i, m_ * k_), s = slice(f.s, i, k_),
                 vh = slice(f.vh, i, k_ * n_);
      const Real size = norm(a) * units(std::max(m_, n_)) + resolution * static_cast<Real>(size_);
      svd_.see(static_cast<double>(distance(a, multiply(scale_columns(u, s), vh, m_, k_, n_)) / size), name(i));
      svd_.see(static_cast<double>(distance_to_identity(multiply(u, u, k_, m_, k_, true), k_)) / units(m_), name(i));
      svd_.see(
          static_cast<double>(distance_to_identity(multiply(vh, transpose(vh, k_, n_), k_, n_, k_), k_)) / units(n_),
          name(i));
      for (int64_t j = 0; j < k_; ++j) {
        const Real value = s[static_cast<size_t>(j)];
        if (!(value >= 0) || (j > 0 && value > s[static_cast<size_t>(j - 1)]))
          fail("order of the values", name(i), m_, n_, static_cast<double>(value));
      }
      const int64_t rank = matrices_[static_cast<size_t>(i)].rank;
      if (rank > 0 && rank < k_ && s[0] > 0)
        floor_.see(static_cast<double>(s[static_cast<size_t>(rank)] / s[0]) / eps, name(i));
    }
    check_values_alone(f);
  }

  // They are as near to those beside the vectors as both may be to the truth, have the same bits in any batch, and order.
  void check_values_alone(const Factors& f) {
    std::vector<T> values(f.s.size(), T(NAN)), single(static_cast<size_t>(k_), T(NAN));
    svdrd::svd<T>(a_.data(), count_, m_, n_, nullptr, values.data(), nullptr, 2);
    for (int64_t i = 0; i < count_; ++i) {
      svdrd::svd<T>(a_.data() + i * size_, 1, m_, n_, nullptr, single.data(), nullptr, 1);
      if (!same_bits(values, i, single, 0, k_)) fail("bits of the values alone", name(i), m_, n_, 0);
      const auto s = slice(f.s, i, k_), alone = slice(values, i, k_);
      const Real size = s[0] * units(std::max(m_, n_)) + resolution;
      for (int64_t j = 0; j < k_; ++j) {
        const size_t at = static_cast<size_t>(j);
        svd_.see(static_cast<double>(std::abs(alone[at] - s[at]) / size), name(i));
        if (!(alone[at] >= 0) || (j > 0 && alone[at] > alone[at - 1]))
          fail("order of the values alone", name(i), m_, n_, static_cast<double>(alone[at]));
      }
    }
  }

  void check_svd_backward() {
    Factors f(count_, m_, n_, k_), g(count_, m_, n_, k_);
    Kernels::svd(a_.data(), count_, m_, n_, f.u.data(), f.s.data(), f.vh.data(), 2);
    Generator random;
    for (std::vector<T>* gradient : {&g.u, &g.s, &g.vh})
      for (T& entry : *gradient) entry = static_cast<T>(random.normal());
    for (int given = 0; given < 8; ++given) {
      const T* grad_u = given & 1 ? g.u.data() : nullptr;
      const T* grad_s = given & 2 ? g.s.data() : nullptr;
      const T* grad_vh = given & 4 ? g.vh.data() : nullptr;
      std::vector<T> grad = empty(count_), single = empty(1);
      svdrd::svd_backward(grad_u, grad_s, grad_vh, f.u.data(), f.s.data(), f.vh.data(), count_, m_, n_, grad.data(), 2);
      for (int64_t i = 0; i < count_; ++i) {
        check_svd_gradient(i, slice(grad, i, size_), svd_derivative(f, g, i, given));
        svdrd::svd_backward(grad_u == nullptr ? nullptr : grad_u + i * m_ * k_,
                            grad_s == nullptr ? nullptr : grad_s + i * k_,
                            grad_vh == nullptr ? nullptr : grad_vh + i * k_ * n_, f.u.data() + i * m_ * k_,
                            f.s.data() + i * k_, f.vh.data() + i * k_ * n_, 1, m_, n_, single.data(), 1);
        if (!same_bits(grad, i, single, 0, size_)) fail("bits of svd's gradient alone", name(i), m_, n_, given);
      }
    }
    std::vector<T> grad = empty(count_);
    g.vh[static_cast<size_t>(k_ * n_)] = std::numeric_limits<T>::infinity();
    svdrd::svd_backward(g.u.data(), g.s.data(), g.vh.data(), f.u.data(), f.s.data(), f.vh.data(), count_, m_, n_,
                        grad.data(), 2);
    for (int64_t i = 0; i < count_; ++i)
      if (all_nan(grad, i, size_) != (i == 1)) fail("NaN for a gradient with Inf, and for it alone", name(i), m_, n_, 0);
  }

  struct Derivative {
    std::vector<Real> value;
    Real size;  // of what is added up in it: random gradients may cancel
  };

  void check_svd_gradient(int64_t i, const std::vector<Real>& grad, const Derivative& expected) {
    bool clamped = false;
    for (size_t at = 0; at < grad.size(); ++at) {
      if (!std::isfinite(grad[at])) return fail("finite gradient of svd", name(i), m_, n_, 0);
      clamped = clamped || std::fabs(expected.value[at]) > static_cast<Real>(std::numeric_limits<T>::max()) / 2;
    }
    if (clamped) return;
    const Real size = expected.size * units(std::max(m_, n_)) + resolution * static_cast<Real>(size_);
    svd_backward_.see(static_cast<double>(distance(grad, expected.value) / size), name(i));
  }

  std::vector<Real> column_norms(const std::vector<Real>& a, int64_t rows) const {
    std::vector<Real> norms(static_cast<size_t>(k_), 0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < k_; ++j)
        norms[static_cast<size_t>(j)] = std::hypot(norms[static_cast<size_t>(j)], a[static_cast<size_t>(i * k_ + j)]);
    return norms;
  }

  // Formula (2) of docs/design/gradients.md in long double; `given` has bits for gU, gS and gVh. Which quotients are 0
  // is decided in double, so that rounding cannot decide a tie differently.
  Derivative svd_derivative(const Factors& f, const Factors& g, int64_t i, int given) const {
    const auto u = slice(f.u, i, m_ * k_), vh = slice(f.vh, i, k_ * n_), s = slice(f.s, i, k_);
    const auto v = transpose(vh, k_, n_);
    auto grad_u = slice(g.u, i, m_ * k_), grad_s = slice(g.s, i, k_), grad_v = transpose(slice(g.vh, i, k_ * n_), k_, n_);
    if (!(given & 1)) grad_u.assign(grad_u.size(), 0);
    if (!(given & 2)) grad_s.assign(grad_s.size(), 0);
    if (!(given & 4)) grad_v.assign(grad_v.size(), 0);
    const double s_1 = s[0] > 0 ? static_cast<double>(s[0]) : 1;
    const auto relative = [&](int64_t j) { return static_cast<double>(s[static_cast<size_t>(j)]) / s_1; };

    const auto projected_u = multiply(u, grad_u, k_, m_, k_, true), projected_v = multiply(v, grad_v, k_, n_, k_, true);
    const auto size_u = column_norms(grad_u, m_), size_v = column_norms(grad_v, n_);
    std::vector<Real> core(static_cast<size_t>(k_ * k_), 0), sizes(core);
    for (int64_t p = 0; p < k_; ++p)
      for (int64_t q = 0; q < k_; ++q) {
        const size_t at = static_cast<size_t>(p * k_ + q), across = static_cast<size_t>(q * k_ + p);
        const double gap = relative(q) - relative(p), sum = relative(q) + relative(p);
        const Real skew_u = projected_u[at] - projected_u[across], skew_v = projected_v[at] - projected_v[across];
        if (p == q) core[at] = sizes[at] = grad_s[static_cast<size_t>(p)];
        if (p == q || !(sum > 4 * eps)) continue;
        const bool distinct = std::fabs(gap) > units(std::max(m_, n_)) * sum;
        core[at] = (skew_u - skew_v) / (2 * static_cast<Real>(sum)) / s_1;
        if (distinct) core[at] += (skew_u + skew_v) / (2 * static_cast<Real>(gap)) / s_1;
        const size_t pp = static_cast<size_t>(p), qq = static_cast<size_t>(q);
        sizes[at] = (size_u[pp] + size_u[qq] + size_v[pp] + size_v[qq]) / 2 /
                    static_cast<Real>(distinct ? std::fabs(gap) : sum) / s_1;
      }
    auto result = multiply(multiply(u, core, m_, k_, k_), vh, m_, k_, n_);

    // What lies outside the span of U, or of V, over s.
    const auto outside = [&](std::vector<Real> part, const std::vector<Real>& basis, const std::vector<Real>& projected,
                             int64_t rows) {
      const auto inside = multiply(basis, projected, rows, k_, k_);
      for (int64_t p = 0; p < rows; ++p)
        for (int64_t q = 0; q < k_; ++q) {
          const size_t at = static_cast<size_t>(p * k_ + q);
          part[at] = relative(q) > 4 * eps ? (part[at] - inside[at]) / relative(q) / s_1 : 0;
        }
      return part;
    };
    std::vector<Real> rest;
    if (m_ != n_)
      for (int64_t q = 0; q < k_; ++q)
        if (relative(q) > 4 * eps)
          sizes[static_cast<size_t>(q * k_ + q)] +=
              (m_ > n_ ? size_u : size_v)[static_cast<size_t>(q)] / relative(q) / s_1;
    if (m_ > n_) rest = multiply(outside(grad_u, u, projected_u, m_), vh, m_, k_, n_);
    if (m_ < n_) rest = multiply(u, transpose(outside(grad_v, v, projected_v, n_), n_, k_), m_, k_, n_);
    for (size_t at = 0; at < rest.size(); ++at) result[at] += rest[at];
    return {result, norm(sizes)};
  }

  std::vector<Real> scale_columns(std::vector<Real> u, const std::vector<Real>& s) const {
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j < k_; ++j) u[static_cast<size_t>(i * k_ + j)] *= s[static_cast<size_t>(j)];
    return u;
  }

  void check_polar(double smooth) {
    std::vector<T> p = empty(count_), alone = empty(count_), grad = empty(count_), other_grad = empty(count_);
    Factors f(count_, m_, n_, k_);
    Kernels::polar_factor(a_.data(), count_, m_, n_, rcond, smooth, p.data(), f.u.data(), f.s.data(), f.vh.data(), 2);
    Kernels::template polar_factor<T>(a_.data(), count_, m_, n_, rcond, smooth, alone.data(), nullptr, nullptr, nullptr, 1);
    const auto backward = [&](const std::vector<T>& direction, std::vector<T>& to) {
      Kernels::polar_factor_backward(direction.data(), f.u.data(), f.s.data(), f.vh.data(), count_, m_, n_, smooth,
                                   to.data(), 2);
    };
    backward(direction_, grad);
    backward(other_direction_, other_grad);
    if constexpr (Kernels::saves_iterates) check_saved(smooth, alone);
    for (int64_t i = 0; i < count_; ++i) {
      if (!same_bits(p, i, alone, i, size_)) fail("bits with and without factors", name(i), m_, n_, smooth);
      const auto a = slice(a_, i, size_), pi = slice(p, i, size_);
      if (smooth == 0) {
        const auto h = multiply(pi, a, n_, m_, n_, true);
        const Real size = norm(a) * units(std::max(m_, n_)) + resolution * static_cast<Real>(size_);
        polar_.see(static_cast<double>(distance(a, multiply(pi, h, m_, n_, n_)) / size), name(i));
        polar_.see(static_cast<double>(distance(h, transpose(h, n_, n_)) / size), name(i));
        const auto ppt = multiply(pi, transpose(pi, m_, n_), m_, n_, m_);
        polar_.see(static_cast<double>(distance(pi, multiply(ppt, pi, m_, m_, n_))) / units(std::max(m_, n_)), name(i));
      } else {
        auto u = slice(f.u, i, m_ * k_), s = slice(f.s, i, k_);
        for (Real& value : s) value /= std::hypot(value, static_cast<Real>(smooth));
        const auto expected = multiply(scale_columns(u, s), slice(f.vh, i, k_ * n_), m_, k_, n_);
        // The values are known to eps * s_1, and the weight's slope is at most 1 / smooth.
        const Real known = 1 + norm(a) / std::max(static_cast<Real>(smooth), norm(a) * Real(eps));
        polar_.see(static_cast<double>(distance(pi, expected) / (units(std::max(m_, n_)) * std::min(known, Real(64)))),
                   name(i));
      }
      check_gradient(i, a, slice(grad, i, size_), slice(other_grad, i, size_), smooth);
    }
  }

  // The backward from what the forward saved for it, or from nothing.
  void check_saved(double smooth, const std::vector<T>& expected) {
    std::vector<T> p = empty(count_), grad = empty(count_), other_grad = empty(count_), from_nothing = empty(count_);
    const size_t size = static_cast<size_t>(count_ * svdrd::saved_size(m_, n_));
    std::vector<T> saved(size, T(NAN)), nothing(size, T(0));
    svdrd::saving_polar_factor(a_.data(), count_, m_, n_, rcond, smooth, p.data(), saved.data(), 2);
    const auto backward = [&](const std::vector<T>& direction, const std::vector<T>& from, std::vector<T>& to) {
      svdrd::saved_polar_factor_backward(direction.data(), a_.data(), p.data(), from.data(), count_, m_, n_, rcond,
                                         smooth, to.data(), 2);
    };
    backward(direction_, saved, grad);
    backward(other_direction_, saved, other_grad);
    backward(direction_, nothing, from_nothing);
    for (int64_t i = 0; i < count_; ++i) {
      if (!same_bits(p, i, expected, i, size_)) fail("bits of what is saved", name(i), m_, n_, smooth);
      if (!same_bits(grad, i, from_nothing, i, size_)) fail("bits from nothing saved", name(i), m_, n_, smooth);
      check_gradient(i, slice(a_, i, size_), slice(grad, i, size_), slice(other_grad, i, size_), smooth);
    }
  }

  void check_gradient(int64_t i, const std::vector<Real>& a, const std::vector<Real>& grad,
                      const std::vector<Real>& other, double smooth) {
    const Real bound = static_cast<Real>(std::numeric_limits<T>::max()) / 2;
    bool clamped = false, vanished = norm(grad) < static_cast<Real>(std::numeric_limits<T>::min()) / eps;
    for (size_t at = 0; at < grad.size(); ++at) {
      if (!std::isfinite(grad[at]) || !std::isfinite(other[at]))
        return fail("finite gradient", name(i), m_, n_, smooth);
      clamped = clamped || std::fabs(grad[at]) > bound || std::fabs(other[at]) > bound;
    }
    if (clamped || vanished) return;
    const auto g = slice(direction_, i, size_), h = slice(other_direction_, i, size_);
    const Real unit = units(std::max(m_, n_));
    backward_.see(static_cast<double>(std::fabs(inner(h, grad) - inner(g, other)) /
                                      (norm(h) * norm(grad) + norm(g) * norm(other)) / unit),
                  name(i));
    if (smooth == 0)
      backward_.see(static_cast<double>(std::fabs(inner(grad, a)) / (norm(grad) * norm(a)) / unit), name(i));
    // The Jacobian is positive semidefinite.
    backward_.see(static_cast<double>(-inner(g, grad) / (norm(g) * norm(grad)) / unit), name(i));
  }

  // The zoo as blocks of images beside one another: block i against block i + 1.
  void check_loss() {
    const int64_t width = 2 * n_, height = m_ * ((count_ + 1) / 2);
    std::vector<T> x_hat(static_cast<size_t>(height * width), T(0)), x(x_hat);
    const auto at = [&](int64_t block, int64_t i, int64_t j) {
      return static_cast<size_t>(((block / 2) * m_ + i) * width + (block % 2) * n_ + j);
    };
    for (int64_t b = 0; b < count_; ++b)
      for (int64_t i = 0; i < m_; ++i)
        for (int64_t j = 0; j < n_; ++j) {
          x_hat[at(b, i, j)] = a_[static_cast<size_t>(b * size_ + i * n_ + j)];
          x[at(b, i, j)] = a_[static_cast<size_t>((b + 1) % count_ * size_ + i * n_ + j)];
        }
    const int64_t blocks = 2 * ((count_ + 1) / 2);
    std::vector<T> loss(static_cast<size_t>(blocks), T(NAN)), grad_x_hat(x.size(), T(NAN)), grad_x(x.size(), T(NAN));
    Kernels::basis_loss(x_hat.data(), x.data(), 1, height, width, m_, n_, rcond, 0.0, loss.data(), grad_x_hat.data(),
                      grad_x.data(), 2);

    std::vector<T> p = empty(count_), sign = empty(count_), grad = empty(count_);
    Factors f(count_, m_, n_, k_);
    Kernels::polar_factor(a_.data(), count_, m_, n_, rcond, 0.0, p.data(), f.u.data(), f.s.data(), f.vh.data(), 2);
    std::vector<Real> expected;
    for (int64_t b = 0; b < count_; ++b) {
      Real sum = 0;
      for (int64_t i = 0; i < size_; ++i) {
        const T difference =
            p[static_cast<size_t>(b * size_ + i)] - p[static_cast<size_t>((b + 1) % count_ * size_ + i)];
        sum += std::fabs(static_cast<Real>(difference));
        const T rounding = static_cast<T>(svdrd::equal_within * eps);
        sign[static_cast<size_t>(b * size_ + i)] =
            static_cast<T>((difference > rounding) - (difference < -rounding)) / static_cast<T>(size_);
      }
      expected.push_back(sum / static_cast<Real>(size_));
    }
    Kernels::polar_factor_backward(sign.data(), f.u.data(), f.s.data(), f.vh.data(), count_, m_, n_, 0.0, grad.data(), 2);
    for (int64_t b = 0; b < count_; ++b) {
      loss_.see(static_cast<double>(
                    std::fabs(static_cast<Real>(loss[static_cast<size_t>(b)]) - expected[static_cast<size_t>(b)])) /
                    eps,
                name(b));
      const auto own = slice(grad, b, size_);
      std::vector<Real> fused;
      bool clamped = false;
      for (int64_t i = 0; i < m_; ++i)
        for (int64_t j = 0; j < n_; ++j) {
          fused.push_back(grad_x_hat[at(b, i, j)]);
          clamped = clamped || std::fabs(fused.back()) > static_cast<Real>(std::numeric_limits<T>::max()) / 2;
          if (!std::isfinite(grad_x_hat[at(b, i, j)]) || !std::isfinite(grad_x[at(b, i, j)]))
            return fail("finite loss gradient", name(b), m_, n_, 0);
        }
      // Both routes round their factors; a gradient ruled by 1/s_k inherits the relative rounding of s_k. Where it vanishes
      // (both polar factors symmetric), what is left is the rounding of the sign matrix through a Jacobian of norm 1/s_k.
      Real smallest = 0;
      for (int64_t j = 0; j < k_; ++j)
        if (f.s[static_cast<size_t>(b * k_ + j)] > 0) smallest = f.s[static_cast<size_t>(b * k_ + j)];
      const Real condition = smallest > 0 ? static_cast<Real>(f.s[static_cast<size_t>(b * k_)]) / smallest : 1;
      const Real rounding = smallest > 0 ? norm(slice(sign, b, size_)) / smallest : 0;
      const Real size = (norm(own) * condition + rounding) * units(std::max(m_, n_)) +
                        static_cast<Real>(std::numeric_limits<T>::min());
      if (!clamped) loss_.see(static_cast<double>(distance(own, fused) / size), name(b));
    }

    Kernels::basis_loss(x.data(), x.data(), 1, height, width, m_, n_, rcond, 0.0, loss.data(), grad_x_hat.data(),
                      grad_x.data(), 2);
    for (const T value : loss)
      if (value != 0) fail("loss of equal blocks", "all", m_, n_, static_cast<double>(value));
    for (size_t i = 0; i < x.size(); ++i)
      if (grad_x_hat[i] != 0 || grad_x[i] != 0)
        return fail("gradient of equal blocks", "all", m_, n_, static_cast<double>(grad_x_hat[i]));
  }

  // An item must not know its neighbours: alone, in another place, and beside a NaN it has the same bits.
  void check_neighbours() {
    Factors together(count_, m_, n_, k_), moved(count_, m_, n_, k_), single(1, m_, n_, k_);
    std::vector<T> p = empty(count_), moved_p = empty(count_), reversed = empty(count_), single_p = empty(1);
    const int64_t poisoned = count_ / 3;
    for (int64_t i = 0; i < count_; ++i)
      std::copy_n(a_.begin() + i * size_, size_, reversed.begin() + (count_ - 1 - i) * size_);
    reversed[static_cast<size_t>(poisoned * size_ + size_ / 2)] = std::numeric_limits<T>::infinity();
    Kernels::svd(a_.data(), count_, m_, n_, together.u.data(), together.s.data(), together.vh.data(), 1);
    Kernels::svd(reversed.data(), count_, m_, n_, moved.u.data(), moved.s.data(), moved.vh.data(), 2);
    Kernels::template polar_factor<T>(a_.data(), count_, m_, n_, rcond, 0.0, p.data(), nullptr, nullptr, nullptr, 1);
    Kernels::template polar_factor<T>(reversed.data(), count_, m_, n_, rcond, 0.0, moved_p.data(), nullptr, nullptr, nullptr, 2);
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t r = count_ - 1 - i;
      if (r == poisoned) {
        if (!all_nan(moved.u, r, m_ * k_) || !all_nan(moved.s, r, k_) || !all_nan(moved.vh, r, k_ * n_) ||
            !all_nan(moved_p, r, size_))
          fail("NaN for an item with Inf", name(i), m_, n_, 0);
        continue;
      }
      if (!same_bits(together.u, i, moved.u, r, m_ * k_) || !same_bits(together.s, i, moved.s, r, k_) ||
          !same_bits(together.vh, i, moved.vh, r, k_ * n_) || !same_bits(p, i, moved_p, r, size_))
        fail("bits in another place", name(i), m_, n_, 0);
      Kernels::svd(a_.data() + i * size_, 1, m_, n_, single.u.data(), single.s.data(), single.vh.data(), 1);
      Kernels::template polar_factor<T>(a_.data() + i * size_, 1, m_, n_, rcond, 0.0, single_p.data(), nullptr, nullptr, nullptr,
                             1);
      if (!same_bits(together.u, i, single.u, 0, m_ * k_) || !same_bits(together.s, i, single.s, 0, k_) ||
          !same_bits(together.vh, i, single.vh, 0, k_ * n_) || !same_bits(p, i, single_p, 0, size_))
        fail("bits alone", name(i), m_, n_, 0);
    }
  }

  const int64_t m_, n_, k_, size_;
  const Zoo zoo_;
  const std::vector<Matrix>& matrices_;
  const int64_t count_;
  std::vector<T> a_, direction_, other_direction_;
  Worst svd_, svd_backward_, polar_, backward_, loss_, floor_;
};

template <typename T>
void check_empty() {
  T unused = T(1);
  svdrd::svd<T>(&unused, 0, 3, 3, &unused, &unused, &unused, 2);
  svdrd::svd<T>(&unused, 5, 0, 3, &unused, &unused, &unused, 2);
  svdrd::svd_backward<T>(&unused, nullptr, nullptr, &unused, &unused, &unused, 0, 3, 3, &unused, 2);
  svdrd::svd_backward<T>(&unused, nullptr, nullptr, &unused, &unused, &unused, 5, 0, 3, &unused, 2);
  svdrd::polar_factor<T>(&unused, 5, 3, 0, 1e-6, 0, &unused, nullptr, nullptr, nullptr, 2);
  svdrd::basis_loss<T>(&unused, &unused, 0, 8, 8, 8, 8, 1e-6, 0, &unused, &unused, nullptr, 2);
  if (unused != T(1)) fail("empty batches", "empty", 0, 0, static_cast<double>(unused));
}

// Matrices large enough for a team of threads, alone and left over beside others: the bits of one thread.
template <typename T>
void check_teams(int64_t m, int64_t n) {
  const int64_t count = 3, k = m < n ? m : n, size = m * n;
  Generator g;
  std::vector<T> x(static_cast<size_t>(count * size)), y = x;
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<T>(g.normal());
    y[i] = x[i] + static_cast<T>(0.1 * g.normal());
  }
  const auto results = [&](int64_t batch, int threads) {
    const auto zeros = [=](int64_t entries) { return std::vector<T>(static_cast<size_t>(batch * entries)); };
    std::vector<T> u = zeros(m * k), s = zeros(k), vh = zeros(k * n), grad = zeros(size);
    std::vector<T> p = zeros(size), loss = zeros(1), by_hat = zeros(size), by_x = zeros(size);
    svdrd::svd(x.data(), batch, m, n, u.data(), s.data(), vh.data(), threads);
    svdrd::svd_backward<T>(nullptr, s.data(), vh.data(), u.data(), s.data(), vh.data(), batch, m, n, grad.data(),
                           threads);
    svdrd::polar_factor<T>(x.data(), batch, m, n, 1e-6, 0.0, p.data(), nullptr, nullptr, nullptr, threads);
    svdrd::basis_loss(y.data(), x.data(), batch, m, n, m, n, 1e-6, 0.0, loss.data(), by_hat.data(), by_x.data(),
                      threads);
    return std::vector<std::vector<T>>{u, s, vh, grad, p, loss, by_hat, by_x};
  };
  const std::vector<std::vector<T>> expected = results(count, 1);
  for (int64_t batch = 1; batch <= count; ++batch)
    for (int threads = 2; threads <= 4; ++threads) {
      const std::vector<std::vector<T>> teams = results(batch, threads);
      for (size_t i = 0; i < teams.size(); ++i)
        if (std::memcmp(teams[i].data(), expected[i].data(), teams[i].size() * sizeof(T)) != 0)
          fail("bits of a team", "random", m, n, threads);
    }
}

template <typename Kernels>
void check_shapes() {
  const int64_t shapes[][2] = {{1, 1},  {1, 7},   {7, 1},   {2, 2},   {3, 3},   {4, 4},   {5, 7},   {8, 8},  {8, 32},
                               {63, 8}, {16, 16}, {17, 15}, {31, 32}, {32, 32}, {33, 35}, {70, 40}, {64, 64}};
  for (const auto& shape : shapes) {
    Check<float, Kernels>(shape[0], shape[1]).run();
    Check<double, Kernels>(shape[0], shape[1]).run();
  }
}

// What is computed as its transpose.
void check_long_shapes() {
  const int64_t shapes[][2] = {{1025, 1}, {400, 3}, {150, 7}, {75, 15}, {7, 150}};
  for (const auto& shape : shapes) {
    Check<float, CpuKernels>(shape[0], shape[1]).run();
    Check<double, CpuKernels>(shape[0], shape[1]).run();
  }
}

}  // namespace

// Without an argument the kernels of the CPU; with "cuda" those of the GPU on emulated lanes.
int main(int count, char** arguments) {
  const bool emulated = count > 1 && std::strcmp(arguments[1], "cuda") == 0;
  std::printf("%s; worst ratios over the zoo, bars %g and %g\n",
              emulated ? "CUDA kernels, emulated" : svdrd::instruction_set(), largest_ratio, largest_floor);
  if (emulated) {
    check_shapes<EmulatedKernels>();
  } else {
    check_shapes<CpuKernels>();
    check_long_shapes();
    check_empty<float>();
    check_empty<double>();
    check_teams<float>(208, 224);
    check_teams<float>(130, 100);
    check_teams<double>(210, 201);
    check_teams<float>(9000, 13);
    check_teams<double>(2000, 70);  // in parts of its length
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
