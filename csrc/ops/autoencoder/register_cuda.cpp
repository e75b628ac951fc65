// What the layers of autoencoders need on CUDA devices beside PyTorch's convolutions, see
// asng_ext/ops/autoencoder.py; and whole autoencoders, whose convolutions are those of
// convolution.h or PyTorch's, see cuda_path.h. To call the latter from here takes the host a
// fraction of the time.

#include <array>
#include <optional>
#include <tuple>

#include "ops/autoencoder/chain.h"
#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/cuda.h"
#include "ops/autoencoder/cuda_path.h"
#include "ops/autoencoder/persistent_layers.h"
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

// What a pass queues on its stream. Convolutions of our own may wait for others, to be launched
// in a persistent kernel; memory that they use is not given back to PyTorch before.
class Work {
 public:
  Work(Float type, int64_t batch, Launches launches, const Tensor& like, CudaStream stream)
      : layers_(type, batch), launches_(launches), like_(like), stream_(stream) {}

  // Of the persistent kernel, in which the next convolution begins. The gradient of a weight is
  // computed beside that of the input.
  int phase = 0;

  Launches launches() const { return launches_; }
  // For those of a persistent kernel.
  PersistentLayers& layers() { return layers_; }

  // The stream, for what comes after all that there is by now.
  CudaStream stream() {
    if (!layers_.empty()) {
      const auto size = layers_.launches();
      const Tensor counters = new_scratch(like_, size * sizeof(unsigned long long));
      layers_.run(data<unsigned long long>(counters), stream_);
      phase = 0;
      free_.clear();
      parts_.clear();
    }
    return stream_;
  }

  // Memory of tensors that are done with is for what is queued next.
  Tensor new_map(const std::vector<int64_t>& sizes) {
    const int64_t row = sizes[2] * sizes[3], count = sizes[0] * sizes[1] * row;
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->numel() >= count && (best == free_.end() || it->numel() < best->numel())) best = it;
    }
    if (best == free_.end()) return new_tensor(like_, sizes);
    const Tensor map = view(*best, 0, {sizes[0], sizes[1], sizes[2], sizes[3]},
                            {sizes[1] * row, row, sizes[3], 1});
    free_.erase(best);
    return map;
  }
  void done_with(const Tensor& map) {
    if (!layers_.empty()) free_.push_back(map);
  }
  // For parts of sums, which are added before those of another convolution come into being.
  float* parts(int64_t count) {
    if (count == 0) return nullptr;
    if (parts_.empty() || parts_.back().numel() < count) {
      if (layers_.empty()) parts_.clear();
      parts_.push_back(torch::stable::new_empty(like_, {&count, 1}, ScalarType::Float));
    }
    return data<float>(parts_.back());
  }

 private:
  PersistentLayers layers_;
  Launches launches_;
  const Tensor& like_;
  CudaStream stream_;
  std::vector<Tensor> free_, parts_;
};

// A chain with its tensors, for both directions.
class ChainCall {
 public:
  // `images` are those given, or what has their shape and dtype.
  ChainCall(const Tensor& images, const char* name, const std::vector<Tensor>& weights,
            const std::vector<int64_t>& strides, bool tf32)
      : chain_(checked_chain(images, name, weights, strides)),
        type_(float_of(images, name)),
        weight_type_(float_of(weights[0], "weights")),
        choice_(convolutions_choice()),
        launches_(launches_choice()),
        tf32_(tf32),
        rounds_(tf32 && type_ == Float::kFloat32 && choice_ != Convolutions::kCudnn) {}

  const Chain& chain() const { return chain_; }
  Work work(const Tensor& like, CudaStream stream) const {
    return {type_, chain_.batch, launches_, like, stream};
  }

  // Of a feature map as it is saved, or of an image.
  std::vector<int64_t> sizes(const ChainMap& map, int64_t channels) const {
    return {chain_.batch, map.height, map.width, channels};
  }
  Tensor new_map(const Tensor& like, int64_t i) const {
    const ChainMap& map = chain_.maps[i];
    return new_tensor(like, sizes(map, map.padded));
  }

  // Whether a convolution is ours: a step's, the gradient of its input, or that of its weight.
  bool is_own_step(size_t i) const { return is_own(i, pass_of(i, false)); }
  bool is_own_gradient(size_t i) const { return is_own(i, pass_of(i, true)); }
  bool is_own_weight_gradient(size_t i) const {
    return is_own(i, ConvolutionPass::kWeightGradient);
  }

  // All weights with padding, in one array, in the order in which the steps read them, or the
  // gradients of their inputs. Our transposed convolutions read turned ones, and convolutions of
  // cuDNN that are computed as transposed ones turned and flipped ones.
  Tensor pad(const Tensor& like, const std::vector<Tensor>& weights, bool for_gradients,
             CudaStream stream) const {
    Tensor all = new_tensor(like, {chain_.padded_values});
    const int64_t size = type_ == Float::kFloat64 ? 8 : type_ == Float::kFloat32 ? 4 : 2;
    std::vector<PaddedWeight> padded;
    for (size_t i = 0; i < weights.size(); ++i) {
      const ChainStep& step = chain_.steps[i];
      padded.push_back(padded_weight(weights[i], i, data<char>(all) + step.offset * size));
      const ConvolutionPass pass = pass_of(i, for_gradients);
      padded.back().flipped = is_mirrored(i, pass);
      padded.back().turned =
          padded.back().flipped || (is_own(i, pass) && pass == ConvolutionPass::kTranspose);
    }
    pad_weights(weight_type_, type_, padded, rounds_, stream);
    return all;
  }

  // Images, or their gradients, to the number of channels in which all is computed, and back.
  void change(const Tensor& from, const Tensor& to, int64_t from_channels, int64_t to_channels,
              bool rounds, CudaStream stream) const {
    change_channels(type_, {{from.data_ptr(), to.data_ptr()}}, from_channels, to_channels,
                    chain_.pixels(chain_.maps[0]), rounds && rounds_, stream);
  }

  // The map that a step leads to, of the one from which it leads.
  Tensor step(size_t i, const Tensor& x, const Tensor& padded, const Tensor* added,
              Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (is_own_step(i)) {
      Tensor y = new_map(work, step.to);
      convolve(i, x, padded, y, added, nullptr, step.relu, step.transposed, work);
      return y;
    }
    const CudaStream stream = work.stream();
    Tensor y = is_mirrored(i, pass_of(i, false))
                   ? mirrored(i, as_images(step.from, x), padded, step.to)
                   : convolution(i, as_images(step.from, x), library_weight(padded, i));
    if (step.relu) finish(step.to, y, added, nullptr, true, stream);
    return as_saved(step.to, y);
  }

  // The gradient of what it leads from: with what was `added` to that elsewhere, and none where
  // that is the result of ReLU, the mask, and not above 0.
  Tensor input_gradient(size_t i, const Tensor& grad, const Tensor& x, const Tensor& padded,
                        const Tensor* added, const Tensor* mask, Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (is_own_gradient(i)) {
      Tensor grad_x = new_map(work, step.from);
      convolve(i, grad, padded, grad_x, added, mask, false, !step.transposed, work);
      return grad_x;
    }
    const CudaStream stream = work.stream();
    const Tensor of_output = as_images(step.to, grad);
    const Tensor grad_x =
        is_mirrored(i, pass_of(i, true))
            ? mirrored(i, of_output, padded, step.from)
            : std::get<0>(convolution_backward(i, of_output, as_images(step.from, x),
                                               library_weight(padded, i), {true, false, false}));
    if (added != nullptr || mask != nullptr) {
      finish(step.from, grad_x, added, mask, false, stream);
    }
    return as_saved(step.from, grad_x);
  }

  // Gradients of weights, with padding, that are to be cropped all at once.
  struct PaddedGradients {
    std::vector<Tensor> tensors;
    std::vector<PaddedWeight> own, of_library;
  };
  // Adds that of a step's weight; `grad_weight` is where it belongs.
  void weight_gradient(size_t i, const Tensor& grad, const Tensor& x, const Tensor& padded,
                       const Tensor& grad_weight, PaddedGradients& all, Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (!is_own_weight_gradient(i)) {
      work.stream();
      all.tensors.push_back(
          std::get<1>(convolution_backward(i, as_images(step.to, grad), as_images(step.from, x),
                                           library_weight(padded, i), {false, true, false})));
      all.of_library.push_back(padded_weight(grad_weight, i, all.tensors.back().data_ptr()));
      return;
    }
    const ConvolutionShape shape = this->shape(i);
    const Launches launches = launches_of(shape, work);
    const Tiling tiling = weight_gradient_tiling(type_, shape, launches);
    const int64_t kernel = chain_.weights[i].kernel;
    const int64_t values = step.padded_rows * step.padded_columns * kernel * kernel;
    const int64_t size = tiling.parts * values;
    all.tensors.push_back(torch::stable::new_empty(grad, {&size, 1}, ScalarType::Float));
    const Tensor& parts = all.tensors.back();
    const Tensor &small = step.transposed ? x : grad, &large = step.transposed ? grad : x;
    if (launches == Launches::kPersistent) {
      work.layers().weight_gradient(shape, small.data_ptr(), large.data_ptr(), data<float>(parts),
                                    tiling, work.phase);
    } else {
      cuda::weight_gradient(type_, shape, small.data_ptr(), large.data_ptr(), data<float>(parts),
                            tiling, work.stream());
    }
    all.own.push_back(padded_weight(grad_weight, i, parts.data_ptr()));
    all.own.back().parts = tiling.parts;
  }
  void crop(const PaddedGradients& all, CudaStream stream) const {
    crop_weights(weight_type_, Float::kFloat32, all.own, stream);
    crop_weights(weight_type_, type_, all.of_library, stream);
  }

 private:
  // What a step computes, or the gradient of its input.
  ConvolutionPass pass_of(size_t i, bool is_gradient) const {
    return chain_.steps[i].transposed == is_gradient ? ConvolutionPass::kConvolve
                                                     : ConvolutionPass::kTranspose;
  }

  // Of cuDNN's convolutions in TF32 transposed ones are up to twice as fast, and with a stride of 1
  // each is also a transposed one, of the weight turned and flipped.
  bool is_mirrored(size_t i, ConvolutionPass pass) const {
    return pass == ConvolutionPass::kConvolve && type_ == Float::kFloat32 && tf32_ &&
           chain_.steps[i].stride == 1 && !is_own(i, pass);
  }

  bool is_own(size_t i, ConvolutionPass pass) const {
    return cuda::is_own(choice_, type_, tf32_, shape(i), pass);
  }

  ConvolutionShape shape(size_t i) const {
    const ChainStep& step = chain_.steps[i];
    const ChainMap& large = chain_.maps[step.transposed ? step.to : step.from];
    return {.batch = chain_.batch,
            .height = large.height,
            .width = large.width,
            .channels = step.padded_columns,
            .small_channels = step.padded_rows,
            .kernel = chain_.weights[i].kernel,
            .stride = step.stride};
  }

  static const void* pointer(const Tensor* t) { return t == nullptr ? nullptr : t->data_ptr(); }

  Tensor new_map(Work& work, int64_t i) const {
    const ChainMap& map = chain_.maps[i];
    return work.new_map(sizes(map, map.padded));
  }

  static Launches launches_of(const ConvolutionShape& shape, const Work& work) {
    return fits_persistent(shape) ? work.launches() : Launches::kEach;
  }

  void convolve(size_t i, const Tensor& x, const Tensor& padded, const Tensor& y,
                const Tensor* added, const Tensor* mask, bool relu, bool transposed,
                Work& work) const {
    const char* weight =
        data<char>(padded) + chain_.steps[i].offset * (type_ == Float::kFloat32 ? 4 : 2);
    const Launches launches = launches_of(shape(i), work);
    const Tiling tiling = convolution_tiling(type_, transposed, shape(i), launches);
    const CudaStream stream = launches == Launches::kEach ? work.stream() : nullptr;
    const Convolution convolution = {
        .x = x.data_ptr(),
        .weight = weight,
        .y = y.data_ptr(),
        .added = pointer(added),
        .mask = pointer(mask),
        .transposed = transposed,
        .relu = relu,
        .rounds = rounds_,
        .parts = work.parts(convolution_parts(transposed, shape(i), tiling))};
    if (launches == Launches::kPersistent) {
      work.phase = work.layers().convolve(shape(i), convolution, tiling, work.phase);
    } else {
      cuda::convolve(type_, shape(i), convolution, tiling, stream);
    }
  }

  // y ← y + added and so on, see LayerEnd; all of a map's size.
  void finish(int64_t map, const Tensor& y, const Tensor* added, const Tensor* mask, bool relu,
              CudaStream stream) const {
    finish_layer(type_,
                 {y.data_ptr(), pointer(added), pointer(mask), relu,
                  chain_.values(chain_.maps[map]), rounds_},
                 stream);
  }

  // A feature map for PyTorch, of one that lies as (B, H, W, P), and the other way.
  Tensor as_images(int64_t i, const Tensor& t) const {
    const ChainMap& map = chain_.maps[i];
    return channels_last(t, 0, chain_.batch, map.padded, map.height, map.width);
  }
  Tensor as_saved(int64_t i, const Tensor& t) const {
    const ChainMap& map = chain_.maps[i];
    const int64_t row = map.width * map.padded;
    return view(t, 0, {chain_.batch, map.height, map.width, map.padded},
                {map.height * row, row, map.padded, 1});
  }

  // A padded weight that is not turned, for PyTorch.
  Tensor library_weight(const Tensor& all, size_t i) const {
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

  // See is_mirrored().
  Tensor mirrored(size_t i, const Tensor& x, const Tensor& all, int64_t to) const {
    using torch::stable::detail::from;
    const ChainStep& step = chain_.steps[i];
    const int64_t kernel = chain_.weights[i].kernel;
    const Tensor weight =
        channels_last(all, step.offset, step.padded_columns, step.padded_rows, kernel, kernel);
    const std::vector<int64_t> one = {1, 1}, zero = {0, 0}, padding = {kernel / 2, kernel / 2};
    std::array<StableIValue, 9> stack = {from(x),    from(weight),  from(std::nullopt),
                                         from(one),  from(padding), from(one),
                                         from(true), from(zero),    from(int64_t{1})};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
    return dense(torch::stable::detail::to<Tensor>(stack[0]), chain_.maps[to]);
  }

  // Gradients of x and of the weight, as far as they are needed.
  std::tuple<Tensor, Tensor> convolution_backward(size_t i, const Tensor& grad, const Tensor& x,
                                                  const Tensor& weight,
                                                  const std::array<bool, 3>& needed) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 11> stack = {from(grad), from(x), from(weight), from(std::nullopt)};
    options(i, &stack[4]);
    stack[10] = from(torch::headeronly::HeaderOnlyArrayRef<bool>(needed.data(), needed.size()));
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
    Tensor grad_x = torch::stable::detail::to<Tensor>(stack[0]);
    Tensor grad_weight = torch::stable::detail::to<Tensor>(stack[1]);
    torch::stable::detail::to<Tensor>(stack[2]);  // nothing, but it has to be freed
    const ChainStep& step = chain_.steps[i];
    const int64_t kernel = chain_.weights[i].kernel;
    if (needed[0]) grad_x = dense(grad_x, chain_.maps[step.from]);
    if (needed[1]) {
      grad_weight = dense(grad_weight, step.padded_rows, step.padded_columns, kernel, kernel);
    }
    return {grad_x, grad_weight};
  }

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

  PaddedWeight padded_weight(const Tensor& weight, size_t i, void* padded) const {
    const ChainWeight& shape = chain_.weights[i];
    const ChainStep& step = chain_.steps[i];
    return {weight.data_ptr(),
            weight.stride(0),
            padded,
            static_cast<int>(shape.rows),
            static_cast<int>(shape.columns),
            static_cast<int>(shape.kernel * shape.kernel),
            static_cast<int>(step.padded_rows),
            static_cast<int>(step.padded_columns)};
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
  Convolutions choice_;
  Launches launches_;
  bool tf32_;
  bool rounds_;  // maps, gradients and weights to TF32 where they are written
};

std::tuple<Tensor, std::vector<Tensor>> cae_chain(Tensor x, std::vector<Tensor> weights,
                                                  std::vector<int64_t> strides, bool save,
                                                  bool tf32) {
  const ChainCall call(x, "x", weights, strides, tf32);
  const Chain& chain = call.chain();
  const DeviceStreamGuard current(x);
  Work work = call.work(x, current.stream());
  const ChainMap& image = chain.maps[0];
  const Tensor padded = call.pad(x, weights, false, work.stream());
  std::vector<Tensor> maps = {call.new_map(x, 0)};
  call.change(x, maps[0], image.channels, image.padded, true, work.stream());
  std::vector<bool> is_skipped(chain.maps.size(), false);
  for (const ChainStep& step : chain.steps) {
    if (step.added >= 0) is_skipped[step.added] = true;
  }
  for (size_t i = 0; i < chain.steps.size(); ++i) {
    const ChainStep& step = chain.steps[i];
    const Tensor* added = step.added < 0 ? nullptr : &maps[step.added];
    maps.push_back(call.step(i, maps[step.from], padded, added, work));
    if (save) continue;
    // The memory of what is read no more is free for what comes next.
    const auto drop = [&](int64_t map) {
      work.done_with(maps[map]);
      maps[map] = x;
    };
    if (!is_skipped[step.from]) drop(step.from);
    if (step.added >= 0) drop(step.added);
  }
  Tensor out = new_like(x);
  call.change(maps.back(), out, image.padded, image.channels, false, work.stream());
  maps.pop_back();
  return {out, save ? maps : std::vector<Tensor>()};
}

std::tuple<Tensor, std::vector<Tensor>> cae_chain_backward(Tensor grad, std::vector<Tensor> saved,
                                                           std::vector<Tensor> weights,
                                                           std::vector<int64_t> strides,
                                                           bool x_needs_grad, bool tf32) {
  const ChainCall call(grad, "grad", weights, strides, tf32);
  const Chain& chain = call.chain();
  STD_TORCH_CHECK(saved.size() + 1 == chain.maps.size(), "saved must have ", chain.maps.size() - 1,
                  " tensors, got ", saved.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    const ChainMap& map = chain.maps[i];
    check_like(saved[i], "saved", grad.scalar_type(), call.sizes(map, map.padded), grad);
  }
  const DeviceStreamGuard current(grad);
  Work work = call.work(grad, current.stream());
  const Tensor padded = call.pad(grad, weights, true, work.stream());
  // Of each map: its gradient, and what that is by the layer to which the map was added.
  std::vector<Tensor> grads(chain.maps.size(), grad), skipped(chain.maps.size(), grad);
  std::vector<bool> is_skipped(chain.maps.size(), false);
  ChainCall::PaddedGradients gradients;
  std::vector<Tensor> grad_weights;
  for (const Tensor& weight : weights) grad_weights.push_back(new_like(weight));
  const ChainMap& image = chain.maps[0];
  grads.back() = call.new_map(grad, 0);
  call.change(grad, grads.back(), image.channels, image.padded, true, work.stream());
  for (size_t i = chain.steps.size(); i-- > 0;) {
    const ChainStep& step = chain.steps[i];
    const Tensor& of_output = grads[step.to];
    const Tensor& x = saved[step.from];
    if (step.added >= 0) {
      skipped[step.added] = of_output;
      is_skipped[step.added] = true;
    }
    call.weight_gradient(i, of_output, x, padded, grad_weights[i], gradients, work);
    if (step.from > 0 || x_needs_grad) {
      // All maps but the image are results of ReLU.
      grads[step.from] = call.input_gradient(i, of_output, x, padded,
                                             is_skipped[step.from] ? &skipped[step.from] : nullptr,
                                             step.from > 0 ? &x : nullptr, work);
    }
    // The memory of what is read no more is free for what comes next.
    if (step.added < 0) work.done_with(grads[step.to]);
    if (is_skipped[step.from]) work.done_with(skipped[step.from]);
    grads[step.to] = grad;
    skipped[step.from] = grad;
  }
  call.crop(gradients, work.stream());
  Tensor grad_x = x_needs_grad ? new_like(grad) : new_tensor(grad, {0});
  if (x_needs_grad) {
    call.change(grads[0], grad_x, image.padded, image.channels, false, work.stream());
  }
  return {grad_x, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_cae_finish", TORCH_BOX(&cae_finish));
  m.impl("cae_chain", TORCH_BOX(&cae_chain));
  m.impl("_cae_chain_backward", TORCH_BOX(&cae_chain_backward));
}

}  // namespace asng::cuda
