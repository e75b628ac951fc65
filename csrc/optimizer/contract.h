// The tensors of asng::_asng_ask and asng::_asng_tell, checked. Both are called so often, and do so
// little, that checks allocate nothing and results are made without the dispatcher.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>

#include "core/counters.h"
#include "core/step_size.h"
#include "platform/cuda_tensors.h"

namespace asng {

// The shape of a tensor that has a row for each instance, or is the row of a single one.
struct InstanceShape {
  std::array<int64_t, 3> sizes{};
  size_t count = 0;

  // P is 0 where there is no dimension for it.
  InstanceShape(int64_t P, std::initializer_list<int64_t> row) {
    if (P > 0) sizes[count++] = P;
    for (const int64_t size : row) sizes[count++] = size;
  }
  std::vector<int64_t> vector() const { return {sizes.begin(), sizes.begin() + count}; }
};

// A dtype of these tensors in the C interface, which is quicker to compare.
inline int32_t code_of(ScalarType dtype) {
  return dtype == ScalarType::Long     ? aoti_torch_dtype_int64()
         : dtype == ScalarType::Double ? aoti_torch_dtype_float64()
         : dtype == ScalarType::Float  ? aoti_torch_dtype_float32()
                                       : aoti_torch_dtype_bool();
}

// The optimizers' state and their space, which have a tensor each because every tensor that Python
// hands over costs as much as a small update.
struct AsngState {
  static constexpr int64_t kMostInstances = 65535;  // as many rows as a grid has

  const Tensor& state;
  DeviceType device;
  int32_t device_code, device_index;  // in the C interface
  int64_t rows;                       // P; 0 where a single instance has no dimension for it
  int64_t instances, categorical, gaussian, theta_size, largest;

  AsngState(const Tensor& state, const Tensor& space, int64_t gaussian, int64_t largest,
            DeviceType device)
      : state(state), device(device), gaussian(gaussian), largest(largest) {
    device_code =
        device == DeviceType::CUDA ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
    device_index = state.get_device_index();
    const int64_t dim = state.dim();
    STD_TORCH_CHECK((dim == 1 || dim == 2) && space.dim() == 1,
                    "state must have 2 dimensions, or 1 for a single instance, and space 1, got ",
                    dim, " and ", space.dim());
    rows = dim == 2 ? state.size(0) : 0;
    instances = dim == 2 ? rows : 1;
    STD_TORCH_CHECK(instances > 0 && instances <= kMostInstances, "state must have from 1 to ",
                    kMostInstances, " rows, got ", instances);
    const int64_t width = state.size(dim - 1), length = space.size(0);
    STD_TORCH_CHECK(gaussian >= 0 && gaussian <= length, "gaussian must be from 0 to ", length,
                    ", got ", gaussian);
    categorical = (length - 1 - 4 * gaussian) / 2;
    theta_size = (width - kCounters - 3 - 5 * gaussian) / 2;
    STD_TORCH_CHECK(categorical >= 0 && categorical + gaussian > 0 && theta_size >= categorical &&
                        length == 1 + 2 * categorical + 4 * gaussian &&
                        width == kCounters + 3 + 2 * theta_size + 5 * gaussian,
                    "state and space must be of at least one variable, and of the same space, got ",
                    width, " and ", length, " numbers with ", gaussian, " Gaussian variables");
    STD_TORCH_CHECK(largest >= 0 && largest <= theta_size && theta_size <= categorical * largest,
                    "largest must be what a variable has at most of ", theta_size,
                    " categories, got ", largest);
    check_rows(state, "state", ScalarType::Double, {width});
    check_shape(space, "space", ScalarType::Double, {0, {length}});
  }

  void check_population(int64_t population, int64_t least) const {
    STD_TORCH_CHECK(population >= least && population <= kLargestPopulation,
                    "population must be from ", least, " to ", kLargestPopulation, ", got ",
                    population);
  }

  void check_rows(const Tensor& t, const char* name, ScalarType dtype,
                  std::initializer_list<int64_t> row) const {
    check_shape(t, name, dtype, {rows, row});
  }
  void check_shape(const Tensor& t, const char* name, ScalarType dtype,
                   const InstanceShape& shape) const {
    const auto sizes = t.sizes();
    int32_t code = 0, type = 0, index = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
    const bool right = sizes.size() == shape.count &&
                       std::equal(sizes.begin(), sizes.end(), shape.sizes.begin()) &&
                       code == code_of(dtype) && type == device_code && index == device_index &&
                       t.is_contiguous();
    if (right) return;
    check(t, name, dtype, shape.vector(), device);
    check_device(t, name, state);
  }

  int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }

  // On the device of the state.
  Tensor empty_rows(std::initializer_list<int64_t> row, ScalarType dtype) const {
    const InstanceShape shape(rows, row);
    std::array<int64_t, 3> strides{};
    int64_t stride = 1;
    for (size_t i = shape.count; i-- > 0;) {
      strides[i] = stride;
      stride *= std::max<int64_t>(shape.sizes[i], 1);
    }
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(shape.count), shape.sizes.data(), strides.data(), code_of(dtype),
        device_code, device_index, &handle));
    return Tensor(handle);
  }
};

// The evaluated samples; returns how many each instance has.
inline int64_t check_evaluations(const AsngState& state, const Tensor& categorical,
                                 const OptionalTensor& numerical, const Tensor& losses) {
  const int64_t dim = state.state.dim();
  STD_TORCH_CHECK(losses.dim() == dim, "losses must have ", dim, " dimensions, as state has, got ",
                  losses.dim());
  const int64_t population = losses.size(dim - 1);
  state.check_population(population, 2);
  state.check_rows(categorical, "categorical", ScalarType::Long, {population, state.categorical});
  STD_TORCH_CHECK(numerical.has_value() == (state.gaussian > 0), "numerical must be ",
                  state.gaussian > 0 ? "a tensor" : "None", " with ", state.gaussian,
                  " Gaussian variables");
  if (numerical) {
    state.check_rows(*numerical, "numerical", ScalarType::Double, {population, state.gaussian});
  }
  // Networks have losses in single precision, and a conversion would be one more launch.
  const bool single = losses.scalar_type() == ScalarType::Float;
  state.check_rows(losses, "losses", single ? ScalarType::Float : ScalarType::Double, {population});
  return population;
}

inline StepSizeSettings step_size_settings(const AsngState& state, double alpha, double delta_init,
                                           double Delta_max) {
  return {alpha, delta_init, Delta_max, std::sqrt(static_cast<double>(state.n_theta()))};
}

}  // namespace asng
