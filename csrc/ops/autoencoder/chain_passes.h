// The passes through autoencoders, forward and backward, and how those of a population are
// completed beside each other.
#pragma once

#include <utility>
#include <vector>

#include "ops/autoencoder/chain_queue.h"
#include "ops/autoencoder/chain_steps.h"

namespace asng::cuda {

// From the image to the result.
class ForwardPass {
 public:
  ForwardPass(const ChainSteps& steps, const Tensor& image, const Tensor& weights, bool save,
              Queue& queue)
      : steps_(steps),
        weights_(weights),
        save_(save),
        work_(queue),
        maps_({image}),
        is_skipped_(steps.chain().maps.size(), false) {
    for (const ChainStep& step : steps.chain().steps) {
      if (step.added >= 0) is_skipped_[step.added] = true;
    }
  }

  bool is_done() const { return next_ == steps_.chain().steps.size(); }
  // Whether the next layer is for a persistent kernel.
  bool waits() const { return steps_.waits(next_); }
  void launched() { work_.launched(); }

  void compute_next() {
    const ChainStep& step = steps_.chain().steps[next_];
    const Tensor* added = step.added < 0 ? nullptr : &maps_[step.added];
    maps_.push_back(steps_.result(next_, maps_[step.from], weights_, added, work_));
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

  const ChainSteps& steps_;
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
  BackwardPass(const ChainSteps& steps, const Tensor& grad, std::vector<Tensor> maps,
               const Tensor& weights, bool x_needs_grad, const std::vector<Tensor>& grad_weights,
               PaddedGradients& gradients, Queue& queue)
      : steps_(steps),
        maps_(std::move(maps)),
        weights_(weights),
        x_needs_grad_(x_needs_grad),
        grad_weights_(grad_weights),
        gradients_(gradients),
        work_(queue),
        left_(steps.chain().steps.size()),
        grads_(steps.chain().maps.size(), maps_[0]),
        skipped_(grads_),
        is_skipped_(grads_.size(), false) {
    grads_.back() = grad;
  }

  bool is_done() const { return left_ == 0; }
  // Whether the next gradient is for a persistent kernel.
  bool waits() const {
    const size_t i = left_ - 1;
    return has_weight_ ? steps_.gradient_waits(i) : steps_.weight_gradient_waits(i);
  }
  void launched() { work_.launched(); }

  void compute_next() {
    const size_t i = left_ - 1;
    const ChainStep& step = steps_.chain().steps[i];
    const Tensor &of_output = grads_[step.to], &x = maps_[step.from];
    if (!has_weight_) {
      if (step.added >= 0) {
        skipped_[step.added] = of_output;
        is_skipped_[step.added] = true;
      }
      steps_.weight_gradient(i, of_output, x, weights_, grad_weights_[steps_.first_weight() + i],
                             gradients_, work_);
      has_weight_ = step.from > 0 || x_needs_grad_;
      if (has_weight_) return;
    } else {
      // All maps but the image are results of ReLU.
      grads_[step.from] = steps_.input_gradient(
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
  const ChainSteps& steps_;
  std::vector<Tensor> maps_;
  const Tensor& weights_;
  bool x_needs_grad_;
  const std::vector<Tensor>& grad_weights_;
  PaddedGradients& gradients_;
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

}  // namespace asng::cuda
