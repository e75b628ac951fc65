// The steps of an autoencoder in both directions, by convolutions of convolution.h or PyTorch's,
// see cuda_path.h.
#pragma once

#include <vector>

#include "ops/autoencoder/chain.h"
#include "ops/autoencoder/chain_queue.h"
#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/cuda.h"
#include "ops/autoencoder/cuda_path.h"
#include "ops/autoencoder/library_convolution.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {

// What holds for all autoencoders of a call.
struct ChainSettings {
  ChainSettings(Float type, Float weight_type, bool tf32)
      : type(type),
        weight_type(weight_type),
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

// Gradients of weights, with padding, that are to be cropped all at once.
struct PaddedGradients {
  std::vector<Tensor> tensors;
  std::vector<PaddedWeight> own, of_library;
};

class ChainSteps {
 public:
  // The chain's weights are those from `first_weight` on, and its padded ones begin with number
  // `first_value` of all.
  ChainSteps(const ChainSettings& settings, const Chain& chain, size_t first_weight,
             int64_t first_value)
      : settings_(settings),
        chain_(chain),
        first_weight_(first_weight),
        first_value_(first_value) {}

  const Chain& chain() const { return chain_; }
  size_t first_weight() const { return first_weight_; }

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
  Tensor result(size_t i, const Tensor& x, const Tensor& padded, const Tensor* added,
                Work& work) const {
    const ChainStep& step = chain_.steps[i];
    const ConvolutionPass pass = pass_of(i, false);
    if (is_own(i, pass)) {
      return convolve(i, pass, x, padded, step.to, added, nullptr, step.relu, work);
    }
    const bool mirrored = is_mirrored(i, pass);
    const Tensor y = library_convolution(i, mirrored)
                         .result(images(step.from, x), library_weight(padded, i, mirrored));
    if (step.relu) finish(step.to, y, added, nullptr, true, work.queue.stream());
    return channels_last(y, sizes(step.to));
  }

  // The gradient of what it leads from: with what was `added` to that elsewhere, and none where
  // that is the result of ReLU, the mask, and not above 0.
  Tensor input_gradient(size_t i, const Tensor& grad, const Tensor& x, const Tensor& padded,
                        const Tensor* added, const Tensor* mask, Work& work) const {
    const ChainStep& step = chain_.steps[i];
    const ConvolutionPass pass = pass_of(i, true);
    if (is_own(i, pass)) {
      return convolve(i, pass, grad, padded, step.from, added, mask, false, work);
    }
    const bool mirrored = is_mirrored(i, pass);
    const LibraryConvolution convolution = library_convolution(i, mirrored);
    const Tensor of_output = images(step.to, grad), weight = library_weight(padded, i, mirrored);
    const Tensor grad_x =
        mirrored ? convolution.result(of_output, weight)
                 : convolution.gradient(of_output, images(step.from, x), weight, false);
    if (added != nullptr || mask != nullptr) {
      finish(step.from, grad_x, added, mask, false, work.queue.stream());
    }
    return channels_last(grad_x, sizes(step.from));
  }

  // Adds that of a step's weight; `grad_weight` is where it belongs.
  void weight_gradient(size_t i, const Tensor& grad, const Tensor& x, const Tensor& padded,
                       const Tensor& grad_weight, PaddedGradients& all, Work& work) const {
    const ChainStep& step = chain_.steps[i];
    if (!is_own(i, ConvolutionPass::kWeightGradient)) {
      all.tensors.push_back(library_convolution(i, false).gradient(
          images(step.to, grad), images(step.from, x), library_weight(padded, i, false), true));
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
  bool is_own(size_t i, ConvolutionPass pass) const {
    return cuda::is_own(settings_.choice, settings_.type, settings_.tf32, shape(i), pass);
  }
  // Of cuDNN's convolutions in TF32 transposed ones are up to twice as fast, and with a stride of 1
  // each is also a transposed one, of the weight turned and flipped.
  bool is_mirrored(size_t i, ConvolutionPass pass) const {
    return pass == ConvolutionPass::kConvolve && settings_.type == Float::kFloat32 &&
           settings_.tf32 && chain_.steps[i].stride == 1 && !is_own(i, pass);
  }
  Launches launches_of(const ConvolutionShape& shape) const {
    return fits_persistent(shape) ? settings_.launches : Launches::kEach;
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
  std::vector<int64_t> sizes(int64_t map) const { return chain_.sizes(chain_.maps[map]); }

  // Where a step's padded weight begins among all.
  int64_t offset(size_t i) const { return first_value_ + chain_.steps[i].offset; }
  char* value(const Tensor& all, size_t i) const {
    const Float type = settings_.type;
    const int64_t size = type == Float::kFloat64 ? 8 : type == Float::kFloat32 ? 4 : 2;
    return data<char>(all) + offset(i) * size;
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

  static const void* pointer(const Tensor* t) { return t == nullptr ? nullptr : t->data_ptr(); }

  // By a convolution of our own: the map of number `to`, or its gradient.
  Tensor convolve(size_t i, ConvolutionPass pass, const Tensor& x, const Tensor& padded, int64_t to,
                  const Tensor* added, const Tensor* mask, bool relu, Work& work) const {
    const bool transposed = pass == ConvolutionPass::kTranspose;
    const ConvolutionShape shape = this->shape(i);
    const Launches launches = launches_of(shape);
    const Tiling tiling = convolution_tiling(settings_.type, transposed, shape, launches);
    const Tensor y = work.new_map(sizes(to));
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
    return y;
  }

  // A step as PyTorch computes it, or as it does if that is_mirrored().
  LibraryConvolution library_convolution(size_t i, bool mirrored) const {
    const ChainStep& step = chain_.steps[i];
    const int64_t padding = chain_.weights[i].kernel / 2;
    if (!step.transposed) return {step.stride, padding, mirrored};
    const ChainMap &small = chain_.maps[step.from], &large = chain_.maps[step.to];
    // ⌈H/2⌉ is the half of two sizes; the output padding says which one it was.
    const auto more = [&](int64_t size, int64_t half) {
      return size - step.stride * (half - 1) - 1;
    };
    return {step.stride,
            padding,
            true,
            {more(large.height, small.height), more(large.width, small.width)}};
  }
  Tensor images(int64_t map, const Tensor& t) const { return as_images(t, sizes(map)); }
  Tensor library_weight(const Tensor& padded, size_t i, bool mirrored) const {
    const ChainStep& step = chain_.steps[i];
    const int64_t kernel = chain_.weights[i].kernel;
    const int64_t rows = mirrored ? step.padded_columns : step.padded_rows;
    const int64_t columns = mirrored ? step.padded_rows : step.padded_columns;
    return as_images(padded, {rows, kernel, kernel, columns}, offset(i));
  }

  // y ← y + added and so on, see LayerEnd; all of a map's size.
  void finish(int64_t map, const Tensor& y, const Tensor* added, const Tensor* mask, bool relu,
              CudaStream stream) const {
    finish_layer(settings_.type,
                 {y.data_ptr(), pointer(added), pointer(mask), relu,
                  chain_.values(chain_.maps[map]), settings_.rounds},
                 stream);
  }

  const ChainSettings& settings_;
  const Chain& chain_;
  size_t first_weight_;
  int64_t first_value_;
};

}  // namespace asng::cuda
