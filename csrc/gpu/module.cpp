// The Python module svdrd._cuda: gpu/kernels.h over raw pointers. Also compiled as _cuda_emulated, over checks/emulation.cpp.
//
// A pointer is the integer that tensor.data_ptr() returns, 0 a null pointer; a stream is torch.cuda.Stream.cuda_stream. The
// caller answers for shapes, contiguity, and for keeping the memory alive until the stream has got there.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "gpu/kernels.h"

namespace py = pybind11;

namespace {

using svdrd::cuda::LossProblem;
using svdrd::cuda::Operation;
using svdrd::cuda::PolarBackwardProblem;
using svdrd::cuda::PolarProblem;
using svdrd::cuda::Shape;
using svdrd::cuda::SvdProblem;
using Address = std::uintptr_t;

// Calls f with a value of the type that dtype names.
template <typename Function>
auto dispatch(const std::string& dtype, const Function& f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "float64") return f(double{});
  throw std::invalid_argument("dtype is '" + dtype + "'; it must be 'float32' or 'float64'");
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

void check_pointer(const char* name, Address address, int64_t elements) {
  if (address == 0 && elements > 0)
    throw std::invalid_argument(std::string(name) + " is a null pointer; it must hold " + std::to_string(elements) +
                                " elements");
}

Shape checked_shape(int64_t batch, int64_t m, int64_t n) {
  check_at_least("batch", batch, 0);
  check_at_least("m", m, 1);
  check_at_least("n", n, 1);
  if ((m < n ? m : n) > svdrd::cuda::most_columns || (m < n ? n : m) > svdrd::cuda::most_rows)
    throw std::invalid_argument("matrices of " + std::to_string(m) + " x " + std::to_string(n) +
                                "; the smaller side must be at most " + std::to_string(svdrd::cuda::most_columns) +
                                ", the larger one at most " + std::to_string(svdrd::cuda::most_rows));
  return {static_cast<int>(m), static_cast<int>(n)};
}

// What went wrong, and with what.
template <typename Problem>
void launch(const char* operation, const std::string& dtype, const Problem& problem, Address workspace, int device,
            Address stream) {
  try {
    svdrd::cuda::launch(problem, reinterpret_cast<void*>(workspace), device, reinterpret_cast<void*>(stream));
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string("svdrd's ") + operation + " of " + std::to_string(problem.batch) +
                             " matrices of " + std::to_string(problem.shape.m) + " x " +
                             std::to_string(problem.shape.n) + ", " + dtype + ", on cuda:" + std::to_string(device) +
                             ": " + error.what());
  }
}

void svd(const std::string& dtype, Address a, int64_t batch, int64_t m, int64_t n, Address u, Address s, Address vh,
         Address workspace, int device, Address stream) {
  const Shape shape = checked_shape(batch, m, n);
  const int64_t k = shape.columns();
  check_pointer("a", a, batch * m * n);
  check_pointer("u", u, batch * m * k);
  check_pointer("s", s, batch * k);
  check_pointer("vh", vh, batch * k * n);
  dispatch(dtype, [&](auto t) {
    launch("svd", dtype,
           SvdProblem<decltype(t)>{batch, shape, pointer(a, t), pointer(u, t), pointer(s, t), pointer(vh, t)}, workspace,
           device, stream);
  });
}

void polar_factor(const std::string& dtype, Address a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth,
                  Address p, Address u, Address s, Address vh, Address workspace, int device, Address stream) {
  const Shape shape = checked_shape(batch, m, n);
  const int64_t k = shape.columns();
  check_pointer("a", a, batch * m * n);
  check_pointer("p", p, batch * m * n);
  if (u != 0 || s != 0 || vh != 0) {
    check_pointer("u", u, batch * m * k);
    check_pointer("s", s, batch * k);
    check_pointer("vh", vh, batch * k * n);
  }
  dispatch(dtype, [&](auto t) {
    launch("polar_factor", dtype,
           PolarProblem<decltype(t)>{batch, shape, pointer(a, t), rcond, smooth, pointer(p, t), pointer(u, t),
                                     pointer(s, t), pointer(vh, t)},
           workspace, device, stream);
  });
}

void polar_factor_backward(const std::string& dtype, Address grad, Address u, Address s, Address vh, int64_t batch,
                           int64_t m, int64_t n, double smooth, Address grad_a, Address workspace, int device,
                           Address stream) {
  const Shape shape = checked_shape(batch, m, n);
  const int64_t k = shape.columns();
  check_pointer("grad", grad, batch * m * n);
  check_pointer("u", u, batch * m * k);
  check_pointer("s", s, batch * k);
  check_pointer("vh", vh, batch * k * n);
  check_pointer("grad_a", grad_a, batch * m * n);
  dispatch(dtype, [&](auto t) {
    launch("polar_factor_backward", dtype,
           PolarBackwardProblem<decltype(t)>{batch, shape, pointer(grad, t), pointer(u, t), pointer(s, t),
                                             pointer(vh, t), smooth, pointer(grad_a, t)},
           workspace, device, stream);
  });
}

void basis_loss(const std::string& dtype, Address x_hat, Address x, int64_t batch, int64_t height, int64_t width,
                int64_t block_height, int64_t block_width, double rcond, double smooth, Address loss,
                Address grad_x_hat, Address workspace, int device, Address stream) {
  const Shape shape = checked_shape(batch, block_height, block_width);
  if (height % block_height != 0 || width % block_width != 0)
    throw std::invalid_argument("blocks of " + std::to_string(block_height) + " x " + std::to_string(block_width) +
                                " do not divide " + std::to_string(height) + " x " + std::to_string(width));
  check_pointer("x_hat", x_hat, batch * height * width);
  check_pointer("x", x, batch * height * width);
  const int64_t blocks = batch * (height / block_height) * (width / block_width);
  dispatch(dtype, [&](auto t) {
    launch("basis_loss", dtype,
           LossProblem<decltype(t)>{blocks, shape, pointer(x_hat, t), pointer(x, t), height, width, rcond, smooth,
                                    pointer(loss, t), pointer(grad_x_hat, t)},
           workspace, device, stream);
  });
}

// Calls f with an empty problem of the operation: its type and the sizes are all that matters.
template <typename Function>
auto with_problem(const std::string& operation, const std::string& dtype, int64_t batch, const Shape& shape,
                  const Function& f) {
  return dispatch(dtype, [&](auto t) {
    const auto empty = [&](auto problem) {
      problem.batch = batch;
      problem.shape = shape;
      return f(problem);
    };
    using T = decltype(t);
    if (operation == "svd") return empty(SvdProblem<T>{});
    if (operation == "polar_factor") return empty(PolarProblem<T>{});
    if (operation == "polar_factor_backward") return empty(PolarBackwardProblem<T>{});
    if (operation == "basis_loss") return empty(LossProblem<T>{});
    throw std::invalid_argument("operation is '" + operation +
                                "'; it must be svd, polar_factor, polar_factor_backward or basis_loss");
  });
}

int64_t workspace_bytes(const std::string& operation, const std::string& dtype, int64_t batch, int64_t m, int64_t n,
                        int device) {
  return with_problem(operation, dtype, batch, checked_shape(batch, m, n),
                      [&](const auto& problem) { return svdrd::cuda::workspace_bytes(problem, device); });
}

std::pair<int, int64_t> team(const std::string& operation, const std::string& dtype, int64_t m, int64_t n) {
  return with_problem(operation, dtype, 1, checked_shape(1, m, n), [](const auto& problem) {
    using Problem = std::decay_t<decltype(problem)>;
    using T = typename Problem::Element;
    const int lanes = svdrd::cuda::lanes_for<T>(Problem::operation, problem.shape);
    return std::pair<int, int64_t>(
        lanes, svdrd::teams::carve<T>(nullptr, Problem::operation, problem.shape, lanes).bytes);
  });
}

py::dict build_info() {
  py::dict info;
  info["version"] = SVDRD_VERSION;
  info["compiler"] = SVDRD_CUDA_COMPILER;
  info["architectures"] = SVDRD_CUDA_ARCHITECTURES;
  info["emulated"] = SVDRD_CUDA_IS_EMULATED != 0;
  return info;
}

}  // namespace

PYBIND11_MODULE(SVDRD_CUDA_MODULE, module, py::mod_gil_not_used()) {
  module.doc() = "svdrd's CUDA kernels over raw pointers; see csrc/gpu/kernels.h.";
  using release_gil = py::call_guard<py::gil_scoped_release>;
  module.attr("most_columns") = svdrd::cuda::most_columns;
  module.attr("most_rows") = svdrd::cuda::most_rows;
  module.def("svd", &svd, py::arg("dtype"), py::arg("a"), py::arg("batch"), py::arg("m"), py::arg("n"), py::arg("u"),
             py::arg("s"), py::arg("vh"), py::arg("workspace"), py::arg("device"), py::arg("stream"), release_gil());
  module.def("polar_factor", &polar_factor, py::arg("dtype"), py::arg("a"), py::arg("batch"), py::arg("m"),
             py::arg("n"), py::arg("rcond"), py::arg("smooth"), py::arg("p"), py::arg("u"), py::arg("s"), py::arg("vh"),
             py::arg("workspace"), py::arg("device"), py::arg("stream"), release_gil());
  module.def("polar_factor_backward", &polar_factor_backward, py::arg("dtype"), py::arg("grad"), py::arg("u"),
             py::arg("s"), py::arg("vh"), py::arg("batch"), py::arg("m"), py::arg("n"), py::arg("smooth"),
             py::arg("grad_a"), py::arg("workspace"), py::arg("device"), py::arg("stream"), release_gil());
  module.def("basis_loss", &basis_loss, py::arg("dtype"), py::arg("x_hat"), py::arg("x"), py::arg("batch"),
             py::arg("height"), py::arg("width"), py::arg("block_height"), py::arg("block_width"), py::arg("rcond"),
             py::arg("smooth"), py::arg("loss"), py::arg("grad_x_hat"), py::arg("workspace"), py::arg("device"),
             py::arg("stream"), release_gil(), "loss and grad_x_hat may be 0 where they are not wanted.");
  module.def("workspace_bytes", &workspace_bytes, py::arg("operation"), py::arg("dtype"), py::arg("batch"),
             py::arg("m"), py::arg("n"), py::arg("device"),
             "Bytes of device memory, aligned to 256, that the operation wants as its workspace; mostly 0.");
  module.def("team", &team, py::arg("operation"), py::arg("dtype"), py::arg("m"), py::arg("n"),
             "How many threads work on a matrix, and the bytes of memory that they share.");
  module.def("refusal", &svdrd::cuda::refusal, py::arg("device"), "Why the device cannot run the kernels; '' if it can.");
  module.def("build_info", &build_info, "Version, compiler, and the architectures that there is code for.");
}
