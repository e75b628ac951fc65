// What the layers of autoencoders need on CUDA devices beside PyTorch's convolutions, see
// asng_ext/ops/autoencoder.py; and whole autoencoders, some at once, whose convolutions are those
// of convolution.h or PyTorch's, see cuda_path.h. To call the latter from here takes the host a
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

// What holds for all autoencoders of a call.
struct Settings {
  Settings(const Tensor& images, const char* name, const std::vector<Tensor>& weights, bool tf32)
      : type(float_of(images, name)),
        weight_type(float_of(weights[0], "weights")),
        choice(convolutions_choice()),
        launches(launches_choice()),
        tf32(tf32),
        rounds(tf32 && type == Float::kFloat32 && choice != Convolutions::kCudnn) {}

  Float type, weight_type;
  Convolutions choice;
  Launches launches;
  bool tf32;
  bool rounds;  // maps, gradients and weights to TF32 where they are written
};

// The stream, and the layers that wait for a persistent kernel.
class Queue {
 public:
  Queue(Float type, int64_t batch, const Tensor& like, CudaStream stream)
      : layers_(type, batch), like_(like), stream_(stream) {}

  CudaStream stream() const { return stream_; }
  const Tensor& like() const { return like_; }
  PersistentLayers& layers() { return layers_; }
  // Launches them.
  void launch() {
    if (layers_.empty()) return;
    const auto size = layers_.launches();
    const Tensor counters = new_scratch(like_, size * sizeof(unsigned long long));
    layers_.run(data<unsigned long long>(counters), stream_);
  }

 private:
  PersistentLayers layers_;
  const Tensor& like_;
  CudaStream stream_;
};

// What a pass through an autoencoder has waiting in a queue: the phase in which its next layer
// begins, and memory that is not given back to PyTorch before the launch. What the pass is done
// with is for its own later layers alone: those of other passes may be computed before.
class Work {
 public:
  explicit Work(Queue& queue) : queue(queue) {}

  Queue& queue;
  // The gradient of a weight is computed beside that of the input.
  int phase = 0;

  void launched() {
    phase = 0;
    free_.clear();
    parts_.clear();
  }
  Tensor new_map(const std::vector<int64_t>& sizes) {
    const int64_t row = sizes[2] * sizes[3], count = sizes[0] * sizes[1] * row;
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->numel() >= count && (best == free_.end() || it->numel() < best->numel())) best = it;
    }
    if (best == free_.end()) return new_tensor(queue.like(), sizes);
    const Tensor map = view(*best, 0, {sizes[0], sizes[1], sizes[2], sizes[3]},
                            {sizes[1] * row, row, sizes[3], 1});
    free_.erase(best);
    return map;
  }
  void done_with(const Tensor& map) {
    if (!queue.layers().empty()) free_.push_back(map);
  }
  // For parts of sums, which are added before those of another convolution come into being.
  float* parts(int64_t count) {
    if (count == 0) return nullptr;
    if (parts_.empty() || parts_.back().numel() < count) {
      if (queue.layers().empty()) parts_.clear();
      parts_.push_back(torch::stable::new_empty(queue.like(), {&count, 1}, ScalarType::Float));
    }
    return data<float>(parts_.back());
  }

 private:
  std::vector<Tensor> free_, parts_;
};

// A chain with its weights, for both directions.
class ChainCall {
 public:
  // `images` are those given, or what has their shape and dtype. The chain's weights are those from
  // `first_weight` on, and its padded ones begin with number `first_value` of all.
  ChainCall(const Settings& settings, const Tensor& images, const char* name,
            const std::vector<Tensor>& weights, size_t first_weight,
            const std::vector<int64_t>& strides, int64_t first_value)
      : settings_(settings),
        chain_(checked_chain(images, name, weights, first_weight, strides)),
        first_weight_(first_weight),
        first_value_(first_value) {}

  const Chain& chain() const { return chain_; }
  size_t first_weight() const { return first_weight_; }

  // Of a feature map as it is saved, or of an image.
  std::vector<int64_t> sizes(const ChainMap& map, int64_t channels) const {
    return {chain_.batch, map.height, map.width, channels};
  }
  Tensor new_map(const Tensor& like, int64_t i) const {
    const ChainMap& map = chain_.maps[i];
    return new_tensor(like, sizes(map, map.padded));
  }

  // Whether a step, the gradient of its input or that of its weight is for a persistent kernel.
  bool waits(size_t i) const { return waits(i, pass_of(i, false)); }
  bool gradient_waits(size_t i) const { return waits(i, pass_of(i, true)); }
  bool weight_gradient_waits(size_t i) const { return waits(i, ConvolutionPass::kWeightGradient); }

  // Adds the weights with padding, as the steps read them, or the gradients of their inputs, to
  // those of other chains in `all`. Our transposed convolutions read turned ones, and convolutions
  // of cuDNN that are computed as transposed ones turned and flipped ones.
  void pad(const std::vector<Tensor>& weights, const Tensor& all, bool for_gradients,
           std::vector<PaddedWeight>& padded) const {
    for (size_t i = 0; i < chain_.steps.size(); ++i) {
      padded.push_back(padded_weight(weights[first_weight_ + i], i, value(all, i)));
      const ConvolutionPass pass = pass_of(i, for_gradients);
      padded.back().flipped = is_mirrored(i, pass);
      padded.back().turned =
          padded.back().flipped || (is_own(i, pass) && pass == ConvolutionPass::kTranspose);
    }
  }

  // The map that a step leads to, of the one from which it leads.
  Tensor step(size_t i, const Tensor& x, const Tensor& padded, const Tensor* added,
              Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (is_own(i, pass_of(i, false))) {
      Tensor y = new_map(work, step.to);
      convolve(i, x, padded, y, added, nullptr, step.relu, step.transposed, work);
      return y;
    }
    Tensor y = is_mirrored(i, pass_of(i, false))
                   ? mirrored(i, as_images(step.from, x), padded, step.to)
                   : convolution(i, as_images(step.from, x), library_weight(padded, i));
    if (step.relu) finish(step.to, y, added, nullptr, true, work.queue.stream());
    return as_saved(step.to, y);
  }

  // The gradient of what it leads from: with what was `added` to that elsewhere, and none where
  // that is the result of ReLU, the mask, and not above 0.
  Tensor input_gradient(size_t i, const Tensor& grad, const Tensor& x, const Tensor& padded,
                        const Tensor* added, const Tensor* mask, Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (is_own(i, pass_of(i, true))) {
      Tensor grad_x = new_map(work, step.from);
      convolve(i, grad, padded, grad_x, added, mask, false, !step.transposed, work);
      return grad_x;
    }
    const Tensor of_output = as_images(step.to, grad);
    const Tensor grad_x =
        is_mirrored(i, pass_of(i, true))
            ? mirrored(i, of_output, padded, step.from)
            : std::get<0>(convolution_backward(i, of_output, as_images(step.from, x),
                                               library_weight(padded, i), {true, false, false}));
    if (added != nullptr || mask != nullptr) {
      finish(step.from, grad_x, added, mask, false, work.queue.stream());
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
    if (!is_own(i, ConvolutionPass::kWeightGradient)) {
      all.tensors.push_back(
          std::get<1>(convolution_backward(i, as_images(step.to, grad), as_images(step.from, x),
                                           library_weight(padded, i), {false, true, false})));
      all.of_library.push_back(padded_weight(grad_weight, i, all.tensors.back().data_ptr()));
      return;
    }
    const ConvolutionShape shape = this->shape(i);
    const Launches launches = launches_of(shape);
    const Tiling tiling = weight_gradient_tiling(settings_.type, shape, launches);
    const int64_t kernel = chain_.weights[i].kernel;
    const int64_t values = step.padded_rows * step.padded_columns * kernel * kernel;
    const int64_t size = tiling.parts * values;
    all.tensors.push_back(torch::stable::new_empty(grad, {&size, 1}, ScalarType::Float));
    const Tensor& parts = all.tensors.back();
    const Tensor &small = step.transposed ? x : grad, &large = step.transposed ? grad : x;
    if (launches == Launches::kPersistent) {
      work.queue.layers().weight_gradient(shape, small.data_ptr(), large.data_ptr(),
                                          data<float>(parts), tiling, work.phase);
    } else {
      cuda::weight_gradient(settings_.type, shape, small.data_ptr(), large.data_ptr(),
                            data<float>(parts), tiling, work.queue.stream());
    }
    all.own.push_back(padded_weight(grad_weight, i, parts.data_ptr()));
    all.own.back().parts = tiling.parts;
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
    return pass == ConvolutionPass::kConvolve && settings_.type == Float::kFloat32 &&
           settings_.tf32 && chain_.steps[i].stride == 1 && !is_own(i, pass);
  }

  bool is_own(size_t i, ConvolutionPass pass) const {
    return cuda::is_own(settings_.choice, settings_.type, settings_.tf32, shape(i), pass);
  }
  bool waits(size_t i, ConvolutionPass pass) const {
    return launches_of(shape(i)) == Launches::kPersistent && is_own(i, pass);
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

  Launches launches_of(const ConvolutionShape& shape) const {
    return fits_persistent(shape) ? settings_.launches : Launches::kEach;
  }

  // Where a step's padded weight begins among all.
  int64_t offset(size_t i) const { return first_value_ + chain_.steps[i].offset; }
  char* value(const Tensor& all, size_t i) const {
    const Float type = settings_.type;
    const int64_t size = type == Float::kFloat64 ? 8 : type == Float::kFloat32 ? 4 : 2;
    return data<char>(all) + offset(i) * size;
  }

  void convolve(size_t i, const Tensor& x, const Tensor& padded, const Tensor& y,
                const Tensor* added, const Tensor* mask, bool relu, bool transposed,
                Work& work) const {
    const ConvolutionShape shape = this->shape(i);
    const Launches launches = launches_of(shape);
    const Tiling tiling = convolution_tiling(settings_.type, transposed, shape, launches);
    const Convolution convolution = {
        .x = x.data_ptr(),
        .weight = value(padded, i),
        .y = y.data_ptr(),
        .added = pointer(added),
        .mask = pointer(mask),
        .transposed = transposed,
        .relu = relu,
        .rounds = settings_.rounds,
        .parts = work.parts(convolution_parts(transposed, shape, tiling))};
    if (launches == Launches::kPersistent) {
      work.phase = work.queue.layers().convolve(shape, convolution, tiling, work.phase);
    } else {
      cuda::convolve(settings_.type, shape, convolution, tiling, work.queue.stream());
    }
  }

  // y ← y + added and so on, see LayerEnd; all of a map's size.
  void finish(int64_t map, const Tensor& y, const Tensor* added, const Tensor* mask, bool relu,
              CudaStream stream) const {
    finish_layer(settings_.type,
                 {y.data_ptr(), pointer(added), pointer(mask), relu,
                  chain_.values(chain_.maps[map]), settings_.rounds},
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
    return channels_last(all, offset(i), step.padded_rows, step.padded_columns, kernel, kernel);
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
        channels_last(all, offset(i), step.padded_columns, step.padded_rows, kernel, kernel);
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
                             const std::vector<Tensor>& weights, size_t first_weight,
                             const std::vector<int64_t>& strides) {
    for (const int64_t stride : strides) {
      STD_TORCH_CHECK(stride == 1 || stride == 2, "strides must be 1 or 2, got ", stride);
    }
    std::vector<ChainWeight> shapes;
    // Channels of the feature map that a weight is applied to, and of those that layers gave.
    int64_t channels = images.size(3);
    std::vector<int64_t> encoded = {channels};
    for (size_t i = 0; i < 2 * strides.size() + 1; ++i) {
      const size_t number = first_weight + i;
      const Tensor& weight = weights[number];
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
      STD_TORCH_CHECK((encodes ? columns : rows) == channels, "weight ", number, " must have ",
                      channels, encodes ? " columns" : " rows", ", got ", encodes ? columns : rows);
      if (encodes) {
        encoded.push_back(rows);
      } else {
        STD_TORCH_CHECK(columns == encoded[layer], "weight ", number, " must have ", encoded[layer],
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

  const Settings& settings_;
  Chain chain_;
  size_t first_weight_;
  int64_t first_value_;
};

// Autoencoders that are given the same images, or whose results are.
class ChainCalls {
 public:
  ChainCalls(const Tensor& images, const char* name, const std::vector<Tensor>& weights,
             const std::vector<int64_t>& strides, const std::vector<int64_t>& layers, bool tf32)
      : settings_(checked_settings(images, name, weights, strides, layers, tf32)) {
    size_t first_weight = 0;
    auto stride = strides.begin();
    for (const int64_t count : layers) {
      calls_.emplace_back(settings_, images, name, weights, first_weight,
                          std::vector<int64_t>(stride, stride + count), padded_values_);
      const Chain& chain = calls_.back().chain();
      first_weight += chain.weights.size();
      stride += count;
      padded_values_ += chain.padded_values;
    }
  }
  // Each refers to the settings.
  ChainCalls(const ChainCalls&) = delete;
  ChainCalls& operator=(const ChainCalls&) = delete;

  const std::vector<ChainCall>& calls() const { return calls_; }
  // Of what the image and the results are, which are the same for all.
  const Chain& first() const { return calls_[0].chain(); }
  const ChainMap& image() const { return first().maps[0]; }

  Queue queue(const Tensor& like, CudaStream stream) const {
    return {settings_.type, first().batch, like, stream};
  }

  // All weights with padding, see ChainCall::pad().
  Tensor pad(const Tensor& like, const std::vector<Tensor>& weights, bool for_gradients,
             CudaStream stream) const {
    Tensor all = new_tensor(like, {padded_values_});
    std::vector<PaddedWeight> padded;
    for (const ChainCall& call : calls_) call.pad(weights, all, for_gradients, padded);
    pad_weights(settings_.weight_type, settings_.type, padded, settings_.rounds, stream);
    return all;
  }
  void crop(const ChainCall::PaddedGradients& all, CudaStream stream) const {
    crop_weights(settings_.weight_type, Float::kFloat32, all.own, stream);
    crop_weights(settings_.weight_type, settings_.type, all.of_library, stream);
  }

  // Images, or their gradients, with the number of channels in which all is computed.
  std::vector<Tensor> with_padding(const std::vector<Tensor>& images, CudaStream stream) const {
    std::vector<Tensor> padded;
    for (const Tensor& t : images) padded.push_back(calls_[0].new_map(t, 0));
    change(images, image().channels, padded, image().padded, settings_.rounds, stream);
    return padded;
  }
  // The other way, as tensors like one of them.
  std::vector<Tensor> without_padding(const std::vector<Tensor>& padded, const Tensor& like,
                                      CudaStream stream) const {
    std::vector<Tensor> images;
    for (size_t i = 0; i < padded.size(); ++i) images.push_back(new_like(like));
    change(padded, image().padded, images, image().channels, false, stream);
    return images;
  }

  // to ← to + added, both padded images.
  void add(const Tensor& to, const Tensor& added, CudaStream stream) const {
    finish_layer(settings_.type,
                 {to.data_ptr(), added.data_ptr(), nullptr, false, first().values(image())},
                 stream);
  }

 private:
  static Settings checked_settings(const Tensor& images, const char* name,
                                   const std::vector<Tensor>& weights,
                                   const std::vector<int64_t>& strides,
                                   const std::vector<int64_t>& layers, bool tf32) {
    STD_TORCH_CHECK(images.dim() == 4 && images.numel() > 0, name,
                    " must have 4 dimensions and not be empty");
    check_tensor(images, name, images.scalar_type(), kDevice);
    size_t count = 0;
    for (const int64_t n : layers) {
      STD_TORCH_CHECK(n >= 0 && n <= static_cast<int64_t>(strides.size()),
                      "layers must be from 0 to the number of strides, got ", n);
      count += n;
    }
    STD_TORCH_CHECK(!layers.empty(), "there must be an autoencoder");
    STD_TORCH_CHECK(strides.size() == count, "there must be ", count,
                    " strides for so many layers, got ", strides.size());
    STD_TORCH_CHECK(weights.size() == 2 * count + layers.size(), "there must be ",
                    2 * count + layers.size(), " weights for ", count, " layers of ", layers.size(),
                    " autoencoders, got ", weights.size());
    return {images, name, weights, tf32};
  }

  void change(const std::vector<Tensor>& from, int64_t from_channels, const std::vector<Tensor>& to,
              int64_t to_channels, bool rounds, CudaStream stream) const {
    std::vector<ChannelChange> changes;
    for (size_t i = 0; i < from.size(); ++i) {
      changes.push_back({from[i].data_ptr(), to[i].data_ptr()});
    }
    change_channels(settings_.type, changes, from_channels, to_channels, first().pixels(image()),
                    rounds, stream);
  }

  Settings settings_;
  std::vector<ChainCall> calls_;
  int64_t padded_values_ = 0;
};

// From the image to the result.
class ForwardPass {
 public:
  ForwardPass(const ChainCall& call, const Tensor& image, const Tensor& weights, bool save,
              Queue& queue)
      : call_(call),
        weights_(weights),
        save_(save),
        work_(queue),
        maps_({image}),
        is_skipped_(call.chain().maps.size(), false) {
    for (const ChainStep& step : call.chain().steps) {
      if (step.added >= 0) is_skipped_[step.added] = true;
    }
  }

  bool is_done() const { return next_ == call_.chain().steps.size(); }
  // Whether the next layer is for a persistent kernel.
  bool waits() const { return call_.waits(next_); }
  void launched() { work_.launched(); }

  void compute_next() {
    const ChainStep& step = call_.chain().steps[next_];
    const Tensor* added = step.added < 0 ? nullptr : &maps_[step.added];
    maps_.push_back(call_.step(next_, maps_[step.from], weights_, added, work_));
    ++next_;
    if (save_) return;
    if (!is_skipped_[step.from]) drop(step.from);
    if (step.added >= 0) drop(step.added);
  }

  // The image and all others, as far as they are kept.
  const std::vector<Tensor>& maps() const { return maps_; }

 private:
  // The memory of what is read no more is free for what comes next; but other passes read the
  // image, too.
  void drop(int64_t map) {
    if (map == 0) return;
    work_.done_with(maps_[map]);
    maps_[map] = maps_[0];
  }

  const ChainCall& call_;
  const Tensor& weights_;
  bool save_;
  Work work_;
  size_t next_ = 0;
  std::vector<Tensor> maps_;
  std::vector<bool> is_skipped_;
};

// From the gradient of the result to that of the image. Of each step there is the gradient of its
// weight, and then that of its input.
class BackwardPass {
 public:
  // `maps` are those of the forward pass; gradients of weights are written into `grad_weights`,
  // which has those of all chains, when `gradients` are cropped.
  BackwardPass(const ChainCall& call, const Tensor& grad, std::vector<Tensor> maps,
               const Tensor& weights, bool x_needs_grad, const std::vector<Tensor>& grad_weights,
               ChainCall::PaddedGradients& gradients, Queue& queue)
      : call_(call),
        maps_(std::move(maps)),
        weights_(weights),
        x_needs_grad_(x_needs_grad),
        grad_weights_(grad_weights),
        gradients_(gradients),
        work_(queue),
        left_(call.chain().steps.size()),
        grads_(call.chain().maps.size(), maps_[0]),
        skipped_(grads_),
        is_skipped_(grads_.size(), false) {
    grads_.back() = grad;
  }

  bool is_done() const { return left_ == 0; }
  // Whether the next gradient is for a persistent kernel.
  bool waits() const {
    const size_t i = left_ - 1;
    return has_weight_ ? call_.gradient_waits(i) : call_.weight_gradient_waits(i);
  }
  void launched() { work_.launched(); }

  void compute_next() {
    const size_t i = left_ - 1;
    const ChainStep& step = call_.chain().steps[i];
    const Tensor &of_output = grads_[step.to], &x = maps_[step.from];
    if (!has_weight_) {
      if (step.added >= 0) {
        skipped_[step.added] = of_output;
        is_skipped_[step.added] = true;
      }
      call_.weight_gradient(i, of_output, x, weights_, grad_weights_[call_.first_weight() + i],
                            gradients_, work_);
      has_weight_ = step.from > 0 || x_needs_grad_;
      if (has_weight_) return;
    } else {
      // All maps but the image are results of ReLU.
      grads_[step.from] = call_.input_gradient(
          i, of_output, x, weights_, is_skipped_[step.from] ? &skipped_[step.from] : nullptr,
          step.from > 0 ? &x : nullptr, work_);
      has_weight_ = false;
    }
    // The memory of what is read no more is free for what comes next.
    if (step.added < 0) work_.done_with(grads_[step.to]);
    if (is_skipped_[step.from]) work_.done_with(skipped_[step.from]);
    grads_[step.to] = maps_[0];
    skipped_[step.from] = maps_[0];
    --left_;
  }

  // Of the image, if it needs one.
  const Tensor& grad_x() const { return grads_[0]; }

 private:
  const ChainCall& call_;
  std::vector<Tensor> maps_;
  const Tensor& weights_;
  bool x_needs_grad_;
  const std::vector<Tensor>& grad_weights_;
  ChainCall::PaddedGradients& gradients_;
  Work work_;
  size_t left_;              // steps
  bool has_weight_ = false;  // of the next one, the gradient of the weight
  // Of each map: its gradient, and what that is by the layer to which the map was added.
  std::vector<Tensor> grads_, skipped_;
  std::vector<bool> is_skipped_;
};

// Completes passes beside each other: each queues layers until its next one is not for a persistent
// kernel, then these are launched, and then come those others, and so on. Without persistent
// kernels that is one pass after the other.
template <class Pass>
void complete(std::vector<Pass>& passes, Queue& queue) {
  for (bool more = true; more;) {
    for (Pass& pass : passes) {
      while (!pass.is_done() && pass.waits()) pass.compute_next();
    }
    queue.launch();
    more = false;
    for (Pass& pass : passes) {
      pass.launched();
      while (!pass.is_done() && !pass.waits()) pass.compute_next();
      more |= !pass.is_done();
    }
  }
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> cae_chains(Tensor x,
                                                                std::vector<Tensor> weights,
                                                                std::vector<int64_t> strides,
                                                                std::vector<int64_t> layers,
                                                                bool save, bool tf32) {
  const ChainCalls chains(x, "x", weights, strides, layers, tf32);
  const DeviceStreamGuard current(x);
  Queue queue = chains.queue(x, current.stream());
  const Tensor padded = chains.pad(x, weights, false, queue.stream());
  std::vector<Tensor> saved = chains.with_padding({x}, queue.stream());
  std::vector<ForwardPass> passes;
  passes.reserve(layers.size());
  for (const ChainCall& call : chains.calls()) {
    passes.emplace_back(call, saved[0], padded, save, queue);
  }
  complete(passes, queue);
  std::vector<Tensor> results;
  for (const ForwardPass& pass : passes) {
    const std::vector<Tensor>& maps = pass.maps();
    results.push_back(maps.back());
    saved.insert(saved.end(), maps.begin() + 1, maps.end() - 1);
  }
  if (!save) saved.clear();
  return {chains.without_padding(results, x, queue.stream()), saved};
}

std::tuple<Tensor, std::vector<Tensor>> cae_chains_backward(
    std::vector<Tensor> grads, std::vector<Tensor> saved, std::vector<Tensor> weights,
    std::vector<int64_t> strides, std::vector<int64_t> layers, bool x_needs_grad, bool tf32) {
  STD_TORCH_CHECK(!grads.empty() && grads.size() == layers.size(), "grads must have ",
                  layers.size(), " tensors, at least one, got ", grads.size());
  const Tensor& like = grads[0];
  const ChainCalls chains(like, "grads", weights, strides, layers, tf32);
  const ChainCall& first = chains.calls()[0];
  for (const Tensor& grad : grads) {
    check_like(grad, "grads", like.scalar_type(),
               first.sizes(chains.image(), chains.image().channels), like);
  }
  size_t kept = 1;  // the image
  for (const ChainCall& call : chains.calls()) kept += call.chain().maps.size() - 2;
  STD_TORCH_CHECK(saved.size() == kept, "saved must have ", kept, " tensors, got ", saved.size());
  const DeviceStreamGuard current(like);
  Queue queue = chains.queue(like, current.stream());
  const Tensor padded = chains.pad(like, weights, true, queue.stream());
  const std::vector<Tensor> of_results = chains.with_padding(grads, queue.stream());
  std::vector<Tensor> grad_weights;
  for (const Tensor& weight : weights) grad_weights.push_back(new_like(weight));
  ChainCall::PaddedGradients gradients;
  std::vector<BackwardPass> passes;
  passes.reserve(layers.size());
  auto next = saved.begin() + 1;
  for (const ChainCall& call : chains.calls()) {
    std::vector<Tensor> maps = {saved[0]};
    const auto end = next + (static_cast<int64_t>(call.chain().maps.size()) - 2);
    maps.insert(maps.end(), next, end);
    next = end;
    for (size_t i = 0; i < maps.size(); ++i) {
      const ChainMap& map = call.chain().maps[i];
      check_like(maps[i], "saved", like.scalar_type(), call.sizes(map, map.padded), like);
    }
    passes.emplace_back(call, of_results[passes.size()], std::move(maps), padded, x_needs_grad,
                        grad_weights, gradients, queue);
  }
  complete(passes, queue);
  chains.crop(gradients, queue.stream());
  if (!x_needs_grad) return {new_tensor(like, {0}), grad_weights};
  const Tensor& sum = passes[0].grad_x();
  for (size_t i = 1; i < passes.size(); ++i) chains.add(sum, passes[i].grad_x(), queue.stream());
  return {chains.without_padding({sum}, like, queue.stream())[0], grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_cae_finish", TORCH_BOX(&cae_finish));
  m.impl("cae_chains", TORCH_BOX(&cae_chains));
  m.impl("_cae_chains_backward", TORCH_BOX(&cae_chains_backward));
}

}  // namespace asng::cuda
