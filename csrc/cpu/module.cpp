// The Python module svdrd._native: cpu/svdrd.h over raw pointers.
//
// A pointer is the integer that tensor.data_ptr() returns, 0 a null pointer. The caller answers for shapes, contiguity
// and for keeping the memory alive. The GIL is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/svdrd.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

enum class Dtype { float32, float64 };

Dtype dtype_from(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "float64") return Dtype::float64;
  throw std::invalid_argument("dtype is '" + name + "'; it must be 'float32' or 'float64'");
}

// Calls the kernel with a value of the type that dtype names.
template <typename Kernel>
void dispatch(Dtype dtype, Kernel kernel) {
  if (dtype == Dtype::float32)
    kernel(float{});
  else
    kernel(double{});
}

template <typename T>
T* pointer(Address address, T) {
  return reinterpret_cast<T*>(address);
}

void check_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least)
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                                std::to_string(least));
}

void check_sizes(int64_t batch, int64_t m, int64_t n, int threads) {
  check_at_least("batch", batch, 0);
  check_at_least("m", m, 0);
  check_at_least("n", n, 0);
  check_at_least("threads", threads, 1);
}

// The block size to compute with: a whole side of 0 is a block of size 0, and there are none of them.
int64_t checked_block(const char* name, int64_t block, const char* side_name, int64_t side) {
  check_at_least(side_name, side, 0);
  if (block == 0 && side == 0) return 1;
  check_at_least(name, block, 1);
  if (side % block != 0)
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(block) + ", which does not divide " +
                                side_name + " = " + std::to_string(side));
  return block;
}

// A null pointer is right only where there is nothing to read or write.
void check_pointer(const char* name, Address address, int64_t elements) {
  if (address == 0 && elements > 0)
    throw std::invalid_argument(std::string(name) + " is a null pointer; it must hold " + std::to_string(elements) +
                                " elements");
}

void svd(const std::string& dtype, Address a, int64_t batch, int64_t m, int64_t n, Address u, Address s, Address vh,
         int threads) {
  check_sizes(batch, m, n, threads);
  const int64_t k = m < n ? m : n;
  check_pointer("a", a, batch * m * n);
  check_pointer("s", s, batch * k);
  if (u != 0 || vh != 0) {
    check_pointer("u", u, batch * m * k);
    check_pointer("vh", vh, batch * k * n);
  }
  dispatch(dtype_from(dtype), [&](auto type) {
    svdrd::svd(pointer(a, type), batch, m, n, pointer(u, type), pointer(s, type), pointer(vh, type), threads);
  });
}

void svd_backward(const std::string& dtype, Address grad_u, Address grad_s, Address grad_vh, Address u, Address s,
                  Address vh, int64_t batch, int64_t m, int64_t n, Address grad_a, int threads) {
  check_sizes(batch, m, n, threads);
  const int64_t k = m < n ? m : n;
  check_pointer("u", u, batch * m * k);
  check_pointer("s", s, batch * k);
  check_pointer("vh", vh, batch * k * n);
  check_pointer("grad_a", grad_a, batch * m * n);
  dispatch(dtype_from(dtype), [&](auto type) {
    using T = decltype(type);
    svdrd::svd_backward<T>(pointer(grad_u, type), pointer(grad_s, type), pointer(grad_vh, type), pointer(u, type),
                           pointer(s, type), pointer(vh, type), batch, m, n, pointer(grad_a, type), threads);
  });
}

void polar_factor(const std::string& dtype, Address a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth,
                  Address p, Address u, Address s, Address vh, int threads) {
  check_sizes(batch, m, n, threads);
  const int64_t k = m < n ? m : n;
  check_pointer("a", a, batch * m * n);
  check_pointer("p", p, batch * m * n);
  if (u != 0 || s != 0 || vh != 0) {
    check_pointer("u", u, batch * m * k);
    check_pointer("s", s, batch * k);
    check_pointer("vh", vh, batch * k * n);
  }
  dispatch(dtype_from(dtype), [&](auto type) {
    svdrd::polar_factor(pointer(a, type), batch, m, n, rcond, smooth, pointer(p, type), pointer(u, type),
                        pointer(s, type), pointer(vh, type), threads);
  });
}

void polar_factor_backward(const std::string& dtype, Address grad, Address u, Address s, Address vh, int64_t batch,
                           int64_t m, int64_t n, double smooth, Address grad_a, int threads) {
  check_sizes(batch, m, n, threads);
  const int64_t k = m < n ? m : n;
  check_pointer("grad", grad, batch * m * n);
  check_pointer("u", u, batch * m * k);
  check_pointer("s", s, batch * k);
  check_pointer("vh", vh, batch * k * n);
  check_pointer("grad_a", grad_a, batch * m * n);
  dispatch(dtype_from(dtype), [&](auto type) {
    svdrd::polar_factor_backward(pointer(grad, type), pointer(u, type), pointer(s, type), pointer(vh, type), batch, m,
                                 n, smooth, pointer(grad_a, type), threads);
  });
}

void saving_polar_factor(const std::string& dtype, Address a, int64_t batch, int64_t m, int64_t n, double rcond,
                         double smooth, Address p, Address saved, int threads) {
  check_sizes(batch, m, n, threads);
  check_pointer("a", a, batch * m * n);
  check_pointer("p", p, batch * m * n);
  check_pointer("saved", saved, m * n == 0 ? 0 : batch * svdrd::saved_size(m, n));
  dispatch(dtype_from(dtype), [&](auto type) {
    svdrd::saving_polar_factor(pointer(a, type), batch, m, n, rcond, smooth, pointer(p, type), pointer(saved, type),
                               threads);
  });
}

void saved_polar_factor_backward(const std::string& dtype, Address grad, Address a, Address p, Address saved,
                                 int64_t batch, int64_t m, int64_t n, double rcond, double smooth, Address grad_a,
                                 int threads) {
  check_sizes(batch, m, n, threads);
  check_pointer("grad", grad, batch * m * n);
  check_pointer("a", a, batch * m * n);
  check_pointer("p", p, batch * m * n);
  check_pointer("saved", saved, m * n == 0 ? 0 : batch * svdrd::saved_size(m, n));
  check_pointer("grad_a", grad_a, batch * m * n);
  dispatch(dtype_from(dtype), [&](auto type) {
    using T = decltype(type);
    svdrd::saved_polar_factor_backward<T>(pointer(grad, type), pointer(a, type), pointer(p, type), pointer(saved, type),
                                          batch, m, n, rcond, smooth, pointer(grad_a, type), threads);
  });
}

void basis_loss(const std::string& dtype, Address x_hat, Address x, int64_t batch, int64_t height, int64_t width,
                int64_t block_height, int64_t block_width, double rcond, double smooth, Address loss,
                Address grad_x_hat, Address grad_x, int threads) {
  check_at_least("batch", batch, 0);
  check_at_least("threads", threads, 1);
  block_height = checked_block("block_height", block_height, "height", height);
  block_width = checked_block("block_width", block_width, "width", width);
  check_pointer("x_hat", x_hat, batch * height * width);
  check_pointer("x", x, batch * height * width);
  check_pointer("loss", loss, batch * (height / block_height) * (width / block_width));
  dispatch(dtype_from(dtype), [&](auto type) {
    svdrd::basis_loss(pointer(x_hat, type), pointer(x, type), batch, height, width, block_height, block_width, rcond,
                      smooth, pointer(loss, type), pointer(grad_x_hat, type), pointer(grad_x, type), threads);
  });
}

// SVDRD_FLAGS holds a line "name=flags" for each instruction set.
std::map<std::string, std::string> flags_per_instruction_set() {
  std::map<std::string, std::string> flags;
  std::istringstream lines(SVDRD_FLAGS);
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find('=');
    flags[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return flags;
}

void use_openmp(Address parallel, Address thread_number, Address give_up_threads) {
  svdrd::OpenMP library{};
  library.parallel = reinterpret_cast<decltype(library.parallel)>(parallel);
  library.thread_number = reinterpret_cast<decltype(library.thread_number)>(thread_number);
  library.give_up_threads = reinterpret_cast<decltype(library.give_up_threads)>(give_up_threads);
  svdrd::use_openmp(library);
}

py::dict build_info() {
  py::dict info;
  info["version"] = SVDRD_VERSION;
  info["compiler"] = SVDRD_COMPILER;
  info["flags"] = flags_per_instruction_set();
  info["cuda"] = false;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "svdrd's C++ kernels over raw pointers; see csrc/cpu/svdrd.h for what each computes.";
  using release_gil = py::call_guard<py::gil_scoped_release>;
  module.def("svd", &svd, py::arg("dtype"), py::arg("a"), py::arg("batch"), py::arg("m"), py::arg("n"), py::arg("u"),
             py::arg("s"), py::arg("vh"), py::arg("threads"), release_gil());
  module.def("svd_backward", &svd_backward, py::arg("dtype"), py::arg("grad_u"), py::arg("grad_s"), py::arg("grad_vh"),
             py::arg("u"), py::arg("s"), py::arg("vh"), py::arg("batch"), py::arg("m"), py::arg("n"), py::arg("grad_a"),
             py::arg("threads"), release_gil());
  module.def("polar_factor", &polar_factor, py::arg("dtype"), py::arg("a"), py::arg("batch"), py::arg("m"),
             py::arg("n"), py::arg("rcond"), py::arg("smooth"), py::arg("p"), py::arg("u"), py::arg("s"), py::arg("vh"),
             py::arg("threads"), release_gil());
  module.def("polar_factor_backward", &polar_factor_backward, py::arg("dtype"), py::arg("grad"), py::arg("u"),
             py::arg("s"), py::arg("vh"), py::arg("batch"), py::arg("m"), py::arg("n"), py::arg("smooth"),
             py::arg("grad_a"), py::arg("threads"), release_gil());
  module.def("saving_polar_factor", &saving_polar_factor, py::arg("dtype"), py::arg("a"), py::arg("batch"),
             py::arg("m"), py::arg("n"), py::arg("rcond"), py::arg("smooth"), py::arg("p"), py::arg("saved"),
             py::arg("threads"), release_gil());
  module.def("saved_polar_factor_backward", &saved_polar_factor_backward, py::arg("dtype"), py::arg("grad"),
             py::arg("a"), py::arg("p"), py::arg("saved"), py::arg("batch"), py::arg("m"), py::arg("n"),
             py::arg("rcond"), py::arg("smooth"), py::arg("grad_a"), py::arg("threads"), release_gil());
  module.def("saved_size", &svdrd::saved_size, py::arg("m"), py::arg("n"),
             "How many numbers of each m x n matrix saving_polar_factor saves.");
  module.def("basis_loss", &basis_loss, py::arg("dtype"), py::arg("x_hat"), py::arg("x"), py::arg("batch"),
             py::arg("height"), py::arg("width"), py::arg("block_height"), py::arg("block_width"), py::arg("rcond"),
             py::arg("smooth"), py::arg("loss"), py::arg("grad_x_hat"), py::arg("grad_x"), py::arg("threads"),
             release_gil());
  module.def("instruction_set", &svdrd::instruction_set,
             "The instruction set the kernels run with on this processor; SVDRD_ISA in the environment lowers it.");
  module.def("use_openmp", &use_openmp, py::arg("GOMP_parallel"), py::arg("omp_get_thread_num"),
             py::arg("omp_pause_resource_all"),
             "From now on threads are those of the OpenMP whose functions have these addresses.");
  module.def("threads_of", &svdrd::threads_of,
             "Whose threads compute for the calling thread: 'OpenMP', those of torch's operators, or 'own'.");
  module.def("build_info", &build_info, "Version, compiler, flags per instruction set, and whether CUDA is in.");
}
