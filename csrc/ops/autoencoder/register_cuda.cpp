// What the layers of autoencoders need on CUDA devices beside PyTorch's convolutions, see
// asng_ext/ops/autoencoder.py; and whole autoencoders, which call these convolutions from here:
// that takes the host a fraction of the time.

#include <array>
#include <tuple>

#include "ops/autoencoder/chain.h"
#include "ops/autoencoder/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

Float float_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Float::kFloat32;
    case ScalarType::Double:
      return Float::kFloat64;
    case ScalarType::BFloat16:
      return Float::kBFloat16;
    case ScalarType::Half:
      return Float::kHalf;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

void cae_finish(Tensor y, OptionalTensor skipped, bool relu) {
  const Float type = float_of(y, "y");
  check_tensor(y, "y", y.scalar_type(), kDevice);
  if (skipped.has_value()) {
    const auto sizes = y.sizes();
    check_like(*skipped, "skipped", y.scalar_type(), {sizes.begin(), sizes.end()}, y);
  }
  const DeviceStreamGuard current(y);
  const void* const added = skipped.has_value() ? skipped->data_ptr() : nullptr;
  finish_layer(type, {y.data_ptr(), added, nullptr, relu, y.numel()}, current.stream());
}

// (sizes), with strides of their own, from `offset` on in what `t` begins.
Tensor view(const Tensor& t, int64_t offset, const std::array<int64_t, 4>& sizes,
            const std::array<int64_t, 4>& strides) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 4, sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// PyTorch's view of numbers that lie as (A, height, width, channels): (A, channels, height, width).
Tensor channels_last(const Tensor& t, int64_t offset, int64_t size, int64_t channels,
                     int64_t height, int64_t width) {
  return view(t, offset, {size, channels, height, width},
              {height * width * channels, 1, width * channels, channels});
}

// A chain with its tensors, for both directions.
class ChainCall {
 public:
  // `images` are those given, or what has their shape and dtype.
  ChainCall(const Tensor& images, const char* name, const std::vector<Tensor>& weights,
            const std::vector<int64_t>& strides)
      : chain_(checked_chain(images, name, weights, strides)),
        type_(float_of(images, name)),
        weight_type_(float_of(weights[0], "weights")) {}

  const Chain& chain() const { return chain_; }

  // Of a feature map as it is saved, or of an image.
  std::vector<int64_t> sizes(const ChainMap& map, int64_t channels) const {
    return {chain_.batch, map.height, map.width, channels};
  }

  // All weights with padding, in one array.
  Tensor pad(const Tensor& like, const std::vector<Tensor>& weights, CudaStream stream) const {
    Tensor all = new_tensor(like, {chain_.padded_values});
    const int64_t size = type_ == Float::kFloat64 ? 8 : type_ == Float::kFloat32 ? 4 : 2;
    std::vector<void*> padded;
    for (const ChainStep& step : chain_.steps)
      padded.push_back(data<char>(all) + step.offset * size);
    pad_weights(weight_type_, type_, padded_weights(weights, padded), stream);
    return all;
  }

  // The other way, of tensors of their own.
  void crop(const std::vector<Tensor>& padded, const std::vector<Tensor>& weights,
            CudaStream stream) const {
    std::vector<void*> pointers;
    for (const Tensor& t : padded) pointers.push_back(t.data_ptr());
    crop_weights(weight_type_, type_, padded_weights(weights, pointers), stream);
  }

  // Images, or their gradients, to the number of channels in which all is computed, and back.
  void change(const Tensor& from, const Tensor& to, int64_t from_channels, int64_t to_channels,
              CudaStream stream) const {
    change_channels(type_, from.data_ptr(), from_channels, to.data_ptr(), to_channels,
                    chain_.pixels(chain_.maps[0]), stream);
  }

  // y ← y + added and so on, see LayerEnd; all of a map's size.
  void finish(const ChainMap& map, const Tensor& y, const Tensor* added, const Tensor* mask,
              bool relu, CudaStream stream) const {
    const auto pointer = [](const Tensor* t) { return t == nullptr ? nullptr : t->data_ptr(); };
    finish_layer(type_, {y.data_ptr(), pointer(added), pointer(mask), relu, chain_.values(map)},
                 stream);
  }

  // A feature map for PyTorch, of one that lies as (B, H, W, P), and the other way.
  Tensor as_images(const ChainMap& map, const Tensor& t) const {
    return channels_last(t, 0, chain_.batch, map.padded, map.height, map.width);
  }
  Tensor as_saved(const ChainMap& map, const Tensor& t) const {
    const int64_t row = map.width * map.padded;
    return view(t, 0, {chain_.batch, map.height, map.width, map.padded},
                {map.height * row, row, map.padded, 1});
  }

  Tensor padded_weight(const Tensor& all, size_t i) const {
    const ChainStep& step = chain_.steps[i];
    const int64_t kernel = chain_.weights[i].kernel;
    return channels_last(all, step.offset, step.padded_rows, step.padded_columns, kernel, kernel);
  }

  // Arguments of convolutions: stride, padding, dilation, transposed, output padding, groups.
  void options(size_t i, StableIValue* to) const {
    using torch::stable::detail::from;
    const ChainStep& step = chain_.steps[i];
    const ChainMap &small = chain_.maps[step.from], &large = chain_.maps[step.to];
    const int64_t padding = chain_.weights[i].kernel / 2;
    // ⌈H/2⌉ is the half of two sizes; the output padding says which one it was.
    const auto more = [&](int64_t size, int64_t half) {
      return step.transposed ? size - step.stride * (half - 1) - 1 : 0;
    };
    to[0] = from(std::vector<int64_t>{step.stride, step.stride});
    to[1] = from(std::vector<int64_t>{padding, padding});
    to[2] = from(std::vector<int64_t>{1, 1});
    to[3] = from(step.transposed);
    to[4] = from(
        std::vector<int64_t>{more(large.height, small.height), more(large.width, small.width)});
    to[5] = from(int64_t{1});
  }

  Tensor convolution(size_t i, const Tensor& x, const Tensor& weight) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack = {from(x), from(weight), from(std::nullopt)};
    options(i, &stack[3]);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
    return dense(torch::stable::detail::to<Tensor>(stack[0]), chain_.maps[chain_.steps[i].to]);
  }

  // Gradients of x, if it needs one, and of the weight.
  std::tuple<Tensor, Tensor> convolution_backward(size_t i, const Tensor& grad, const Tensor& x,
                                                  const Tensor& weight, bool x_needs_grad) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 11> stack = {from(grad), from(x), from(weight), from(std::nullopt)};
    options(i, &stack[4]);
    const std::array<bool, 3> needed = {x_needs_grad, true, false};
    stack[10] = from(torch::headeronly::HeaderOnlyArrayRef<bool>(needed.data(), needed.size()));
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
    Tensor grad_x = torch::stable::detail::to<Tensor>(stack[0]);
    Tensor grad_weight = torch::stable::detail::to<Tensor>(stack[1]);
    torch::stable::detail::to<Tensor>(stack[2]);  // nothing, but it has to be freed
    const ChainStep& step = chain_.steps[i];
    if (x_needs_grad) grad_x = dense(grad_x, chain_.maps[step.from]);
    const int64_t kernel = chain_.weights[i].kernel;
    return {grad_x, dense(grad_weight, step.padded_rows, step.padded_columns, kernel, kernel)};
  }

 private:
  static Chain checked_chain(const Tensor& images, const char* name,
                             const std::vector<Tensor>& weights,
                             const std::vector<int64_t>& strides) {
    STD_TORCH_CHECK(images.dim() == 4 && images.numel() > 0, name,
                    " must have 4 dimensions and not be empty");
    check_tensor(images, name, images.scalar_type(), kDevice);
    STD_TORCH_CHECK(weights.size() == 2 * strides.size() + 1, "there must be ",
                    2 * strides.size() + 1, " weights for ", strides.size(), " strides, got ",
                    weights.size());
    for (const int64_t stride : strides) {
      STD_TORCH_CHECK(stride == 1 || stride == 2, "strides must be 1 or 2, got ", stride);
    }
    std::vector<ChainWeight> shapes;
    // Channels of the feature map that a weight is applied to, and of those that layers gave.
    int64_t channels = images.size(3);
    std::vector<int64_t> encoded = {channels};
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor& weight = weights[i];
      STD_TORCH_CHECK(weight.device().type() == kDevice &&
                          weight.scalar_type() == weights[0].scalar_type() && weight.dim() == 4,
                      "weights must be on the device of ", name,
                      ", of one dtype and have 4 dimensions");
      check_device(weight, "weights", images);
      const bool half =
          images.scalar_type() == ScalarType::BFloat16 || images.scalar_type() == ScalarType::Half;
      STD_TORCH_CHECK(weight.scalar_type() == images.scalar_type() ||
                          (half && weight.scalar_type() == ScalarType::Float),
                      "weights must have the dtype of ", name,
                      ", or float32 where that is half precision, got ",
                      torch::headeronly::toString(weight.scalar_type()));
      const int64_t rows = weight.size(0), columns = weight.size(1), kernel = weight.size(2);
      STD_TORCH_CHECK(kernel % 2 == 1 && kernel * kernel <= kMostTaps && weight.size(3) == kernel,
                      "weights must have square kernels of an odd side of at most 31, got ", kernel,
                      "×", weight.size(3));
      STD_TORCH_CHECK((kernel == 1 || (weight.stride(3) == 1 && weight.stride(2) == kernel)) &&
                          (columns == 1 || weight.stride(1) == kernel * kernel),
                      "each row of a weight must be contiguous");
      STD_TORCH_CHECK(rows > 0 && rows <= 65535 && columns > 0 && columns <= 65535,
                      "weights must have from 1 to 65535 rows and columns");
      const bool encodes = i < strides.size();
      const size_t layer = encodes ? i : 2 * strides.size() - i;  // the last one: 0
      STD_TORCH_CHECK((encodes ? columns : rows) == channels, "weight ", i, " must have ", channels,
                      encodes ? " columns" : " rows", ", got ", encodes ? columns : rows);
      if (encodes) {
        encoded.push_back(rows);
      } else {
        STD_TORCH_CHECK(columns == encoded[layer], "weight ", i, " must have ", encoded[layer],
                        " columns, got ", columns);
      }
      channels = encodes ? rows : columns;
      shapes.push_back({rows, columns, kernel});
    }
    Chain chain(images.size(0), images.size(1), images.size(2), images.size(3), strides, shapes);
    for (const ChainMap& map : chain.maps) {
      checked_product({chain.batch, map.height, map.width, map.padded});
    }
    return chain;
  }

  std::vector<PaddedWeight> padded_weights(const std::vector<Tensor>& weights,
                                           const std::vector<void*>& padded) const {
    std::vector<PaddedWeight> all;
    for (size_t i = 0; i < weights.size(); ++i) {
      const ChainWeight& shape = chain_.weights[i];
      const ChainStep& step = chain_.steps[i];
      all.push_back({weights[i].data_ptr(), weights[i].stride(0), padded[i],
                     static_cast<int>(shape.rows), static_cast<int>(shape.columns),
                     static_cast<int>(shape.kernel * shape.kernel),
                     static_cast<int>(step.padded_rows), static_cast<int>(step.padded_columns)});
    }
    return all;
  }

  // What PyTorch gave, channels-last without gaps, as it is unless that was not its choice.
  Tensor dense(const Tensor& t, const ChainMap& map) const {
    return dense(t, chain_.batch, map.padded, map.height, map.width);
  }
  static Tensor dense(const Tensor& t, int64_t size, int64_t channels, int64_t height,
                      int64_t width) {
    // Strides of dimensions of size 1 mean nothing.
    const bool fits = (channels == 1 || t.stride(1) == 1) &&
                      (width == 1 || t.stride(3) == channels) &&
                      (height == 1 || t.stride(2) == width * channels) &&
                      (size == 1 || t.stride(0) == height * width * channels);
    if (fits) return t;
    const std::vector<int64_t> sizes = {size, height, width, channels};
    Tensor copy = channels_last(new_tensor(t, sizes), 0, size, channels, height, width);
    return torch::stable::copy_(copy, t);
  }

  Chain chain_;
  Float type_, weight_type_;
};

std::tuple<Tensor, std::vector<Tensor>> cae_chain(Tensor x, std::vector<Tensor> weights,
                                                  std::vector<int64_t> strides, bool save) {
  const ChainCall call(x, "x", weights, strides);
  const Chain& chain = call.chain();
  const DeviceStreamGuard current(x);
  const CudaStream stream = current.stream();
  const ChainMap& image = chain.maps[0];
  const Tensor padded = call.pad(x, weights, stream);
  const Tensor first = new_tensor(x, call.sizes(image, image.padded));
  call.change(x, first, image.channels, image.padded, stream);
  std::vector<Tensor> maps = {call.as_images(image, first)};
  std::vector<bool> is_skipped(chain.maps.size(), false);
  for (const ChainStep& step : chain.steps) {
    if (step.added >= 0) is_skipped[step.added] = true;
  }
  for (size_t i = 0; i < chain.steps.size(); ++i) {
    const ChainStep& step = chain.steps[i];
    maps.push_back(call.convolution(i, maps[step.from], call.padded_weight(padded, i)));
    const Tensor* added = step.added < 0 ? nullptr : &maps[step.added];
    if (step.relu) call.finish(chain.maps[step.to], maps.back(), added, nullptr, true, stream);
    if (save) continue;
    // The memory of what is read no more is free for what comes next.
    if (!is_skipped[step.from]) maps[step.from] = x;
    if (step.added >= 0) maps[step.added] = x;
  }
  Tensor out = new_like(x);
  call.change(maps.back(), out, image.padded, image.channels, stream);
  std::vector<Tensor> saved;
  if (save) {
    for (size_t i = 0; i + 1 < maps.size(); ++i) {
      saved.push_back(call.as_saved(chain.maps[i], maps[i]));
    }
    saved.push_back(padded);
  }
  return {out, saved};
}

std::tuple<Tensor, std::vector<Tensor>> cae_chain_backward(Tensor grad, std::vector<Tensor> saved,
                                                           std::vector<Tensor> weights,
                                                           std::vector<int64_t> strides,
                                                           bool x_needs_grad) {
  const ChainCall call(grad, "grad", weights, strides);
  const Chain& chain = call.chain();
  STD_TORCH_CHECK(saved.size() == chain.maps.size(), "saved must have ", chain.maps.size(),
                  " tensors, got ", saved.size());
  std::vector<Tensor> maps;
  for (size_t i = 0; i + 1 < saved.size(); ++i) {
    const ChainMap& map = chain.maps[i];
    check_like(saved[i], "saved", grad.scalar_type(), call.sizes(map, map.padded), grad);
    maps.push_back(call.as_images(map, saved[i]));
  }
  const Tensor& all_padded = saved.back();
  check_like(all_padded, "saved", grad.scalar_type(), {chain.padded_values}, grad);
  const DeviceStreamGuard current(grad);
  const CudaStream stream = current.stream();
  // Of each map: its gradient by the convolution that reads it, and by the layer it was added to.
  std::vector<Tensor> grads(chain.maps.size(), grad), skipped(chain.maps.size(), grad);
  std::vector<bool> is_skipped(chain.maps.size(), false);
  std::vector<Tensor> grad_padded(weights.size(), grad);
  const ChainMap& image = chain.maps[0];
  const Tensor last = new_tensor(grad, call.sizes(image, image.padded));
  call.change(grad, last, image.channels, image.padded, stream);
  grads.back() = call.as_images(image, last);
  for (size_t i = chain.steps.size(); i-- > 0;) {
    const ChainStep& step = chain.steps[i];
    const Tensor& of_output = grads[step.to];
    if (step.relu) {
      const Tensor* added = is_skipped[step.to] ? &skipped[step.to] : nullptr;
      call.finish(chain.maps[step.to], of_output, added, &maps[step.to], false, stream);
    }
    if (step.added >= 0) {
      skipped[step.added] = of_output;
      is_skipped[step.added] = true;
    }
    const bool needed = step.from > 0 || x_needs_grad;
    std::tie(grads[step.from], grad_padded[i]) = call.convolution_backward(
        i, of_output, maps[step.from], call.padded_weight(all_padded, i), needed);
    // The memory of what is read no more is free for what comes next.
    grads[step.to] = grad;
    skipped[step.to] = grad;
  }
  std::vector<Tensor> grad_weights;
  for (const Tensor& weight : weights) grad_weights.push_back(new_like(weight));
  call.crop(grad_padded, grad_weights, stream);
  Tensor grad_x = x_needs_grad ? new_like(grad) : new_tensor(grad, {0});
  if (x_needs_grad) call.change(grads[0], grad_x, image.padded, image.channels, stream);
  return {grad_x, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_cae_finish", TORCH_BOX(&cae_finish));
  m.impl("cae_chain", TORCH_BOX(&cae_chain));
  m.impl("_cae_chain_backward", TORCH_BOX(&cae_chain_backward));
}

}  // namespace asng::cuda
