// The layers that wait for a persistent kernel, and memory for what they compute.
#pragma once

#include <vector>

#include "ops/autoencoder/library_convolution.h"
#include "ops/autoencoder/persistent_layers.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {

// The stream, and the layers that wait.
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
    const int64_t count = sizes[0] * sizes[1] * sizes[2] * sizes[3];
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->numel() >= count && (best == free_.end() || it->numel() < best->numel())) best = it;
    }
    if (best == free_.end()) return new_tensor(queue.like(), sizes);
    const Tensor map = channels_last(*best, sizes);
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

}  // namespace asng::cuda
