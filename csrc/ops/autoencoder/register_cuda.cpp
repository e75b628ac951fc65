// What the layers of autoencoders need on CUDA devices beside PyTorch's convolutions, see
// asng_ext/ops/autoencoder.py; and whole autoencoders, some at once.

#include <tuple>
#include <utility>
#include <vector>

#include "ops/autoencoder/chain_contract.h"
#include "ops/autoencoder/chain_passes.h"
#include "ops/autoencoder/chain_steps.h"
#include "ops/autoencoder/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

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

// The autoencoders of a call, and what is done for all of them at once, on PyTorch's stream.
class Chains {
 public:
  // As in ChainsCall.
  Chains(const Tensor& images, const char* name, const std::vector<Tensor>& weights,
         const std::vector<int64_t>& strides, const std::vector<int64_t>& layers, bool tf32)
      : call_(images, name, weights, strides, layers),
        settings_(call_.type, call_.weight_type, tf32),
        images_(images),
        current_(images) {
    size_t first_weight = 0;
    for (const Chain& chain : call_.chains) {
      steps_.emplace_back(settings_, chain, first_weight, padded_values_);
      first_weight += chain.weights.size();
      padded_values_ += chain.padded_values;
    }
  }
  // Steps refer to what is here.
  Chains(const Chains&) = delete;
  Chains& operator=(const Chains&) = delete;

  // Of each autoencoder.
  const std::vector<ChainSteps>& steps() const { return steps_; }

  Queue queue() const { return {settings_.type, first().batch, images_, current_.stream()}; }

  // All weights with padding, see ChainSteps::pad().
  Tensor pad(const std::vector<Tensor>& weights, bool for_gradients) const {
    Tensor all = new_tensor(images_, {padded_values_});
    std::vector<PaddedWeight> padded;
    for (const ChainSteps& steps : steps_) steps.pad(weights, all, for_gradients, padded);
    pad_weights(settings_.weight_type, settings_.type, padded, settings_.rounds, current_.stream());
    return all;
  }
  void crop(const PaddedGradients& all) const {
    crop_weights(settings_.weight_type, Float::kFloat32, all.own, current_.stream());
    crop_weights(settings_.weight_type, settings_.type, all.of_library, current_.stream());
  }

  // Images, or their gradients, with the number of channels in which all is computed.
  std::vector<Tensor> with_padding(const std::vector<Tensor>& images) const {
    std::vector<Tensor> padded;
    for (const Tensor& t : images) padded.push_back(new_tensor(t, first().sizes(image())));
    change(images, image().channels, padded, image().padded, settings_.rounds);
    return padded;
  }
  // The other way.
  std::vector<Tensor> without_padding(const std::vector<Tensor>& padded) const {
    std::vector<Tensor> images;
    for (size_t i = 0; i < padded.size(); ++i) images.push_back(new_like(images_));
    change(padded, image().padded, images, image().channels, false);
    return images;
  }

  // to ← to + added, both padded images.
  void add(const Tensor& to, const Tensor& added) const {
    finish_layer(settings_.type,
                 {to.data_ptr(), added.data_ptr(), nullptr, false, first().values(image())},
                 current_.stream());
  }

 private:
  // Of what the image and the results are, which are the same for all.
  const Chain& first() const { return call_.chains[0]; }
  const ChainMap& image() const { return first().maps[0]; }

  void change(const std::vector<Tensor>& from, int64_t from_channels, const std::vector<Tensor>& to,
              int64_t to_channels, bool rounds) const {
    std::vector<ChannelChange> changes;
    for (size_t i = 0; i < from.size(); ++i) {
      changes.push_back({from[i].data_ptr(), to[i].data_ptr()});
    }
    change_channels(settings_.type, changes, from_channels, to_channels, first().pixels(image()),
                    rounds, current_.stream());
  }

  ChainsCall call_;
  ChainSettings settings_;
  const Tensor& images_;
  DeviceStreamGuard current_;
  std::vector<ChainSteps> steps_;
  int64_t padded_values_ = 0;
};

std::tuple<std::vector<Tensor>, std::vector<Tensor>> cae_chains(Tensor x,
                                                                std::vector<Tensor> weights,
                                                                std::vector<int64_t> strides,
                                                                std::vector<int64_t> layers,
                                                                bool save, bool tf32) {
  const Chains chains(x, "x", weights, strides, layers, tf32);
  Queue queue = chains.queue();
  const Tensor padded = chains.pad(weights, false);
  std::vector<Tensor> saved = chains.with_padding({x});
  std::vector<ForwardPass> passes;
  passes.reserve(layers.size());
  for (const ChainSteps& steps : chains.steps()) {
    passes.emplace_back(steps, saved[0], padded, save, queue);
  }
  complete(passes, queue);
  std::vector<Tensor> results;
  for (const ForwardPass& pass : passes) {
    const std::vector<Tensor>& maps = pass.maps();
    results.push_back(maps.back());
    saved.insert(saved.end(), maps.begin() + 1, maps.end() - 1);
  }
  if (!save) saved.clear();
  return {chains.without_padding(results), saved};
}

std::tuple<Tensor, std::vector<Tensor>> cae_chains_backward(
    std::vector<Tensor> grads, std::vector<Tensor> saved, std::vector<Tensor> weights,
    std::vector<int64_t> strides, std::vector<int64_t> layers, bool x_needs_grad, bool tf32) {
  STD_TORCH_CHECK(!grads.empty() && grads.size() == layers.size(), "grads must have ",
                  layers.size(), " tensors, at least one, got ", grads.size());
  const Tensor& like = grads[0];
  const Chains chains(like, "grads", weights, strides, layers, tf32);
  const auto sizes = like.sizes();
  for (const Tensor& grad : grads) {
    check_like(grad, "grads", like.scalar_type(), {sizes.begin(), sizes.end()}, like);
  }
  size_t kept = 1;  // the image
  for (const ChainSteps& steps : chains.steps()) kept += steps.chain().maps.size() - 2;
  STD_TORCH_CHECK(saved.size() == kept, "saved must have ", kept, " tensors, got ", saved.size());
  Queue queue = chains.queue();
  const Tensor padded = chains.pad(weights, true);
  const std::vector<Tensor> of_results = chains.with_padding(grads);
  const std::vector<Tensor> grad_weights = new_like(weights);
  PaddedGradients gradients;
  std::vector<BackwardPass> passes;
  passes.reserve(layers.size());
  auto next = saved.begin() + 1;
  for (const ChainSteps& steps : chains.steps()) {
    const Chain& chain = steps.chain();
    std::vector<Tensor> maps = {saved[0]};
    const auto end = next + (static_cast<int64_t>(chain.maps.size()) - 2);
    maps.insert(maps.end(), next, end);
    next = end;
    for (size_t i = 0; i < maps.size(); ++i) {
      check_like(maps[i], "saved", like.scalar_type(), chain.sizes(chain.maps[i]), like);
    }
    passes.emplace_back(steps, of_results[passes.size()], std::move(maps), padded, x_needs_grad,
                        grad_weights, gradients, queue);
  }
  complete(passes, queue);
  chains.crop(gradients);
  if (!x_needs_grad) return {new_tensor(like, {0}), grad_weights};
  const Tensor& sum = passes[0].grad_x();
  for (size_t i = 1; i < passes.size(); ++i) chains.add(sum, passes[i].grad_x());
  return {chains.without_padding({sum})[0], grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_cae_finish", TORCH_BOX(&cae_finish));
  m.impl("cae_chains", TORCH_BOX(&cae_chains));
  m.impl("_cae_chains_backward", TORCH_BOX(&cae_chains_backward));
}

}  // namespace asng::cuda
