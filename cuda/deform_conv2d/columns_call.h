// SPDX-License-Identifier: MIT
// One XLA call on a chunk of columns: the problem and the chunk, read from its arguments and
// checked, and where its arrays are.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_CALL_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_CALL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/deform_conv2d/call.h"
#include "cuda/deform_conv2d/bins.h"
#include "cuda/deform_conv2d/chunk.h"

namespace jax_dcn {

// Every call has the operands x, kernel, of which only the shape is used, offset, mask, and the
// start of the chunk, s32[2]. Those that follow, and the results, are:
//   columns    -                                       -> columns
//   jvp        tangents of those in `wrt`, without the -> columns, in as many parts as matrix
//              kernel's, which is multiplied by XLA       products follow
//   backward   gradient of the columns,                -> gradients of those in `wrt`; of the
//              and, where there are several chunks,       kernel: the columns; scratch for that of
//              x the results for x, offset and mask so far, in their buffers
//   samples_backward   the same, of the cotangent of   -> the same, without the kernel's; after the
//              y, all of it                               scratch, the gradient of the columns
// Where a chunk is a part of an image, the result for x is a sum, in the type of sums. Without a
// result for x, samples_backward has no columns, and its chunk is all there is.
class DeformConv2dColumnsCall : public DeformConv2dCall {
 public:
  enum Kind { kColumns, kColumnsJvp, kColumnsBackward, kSamplesBackward };

  // Throws Refusal where the arguments do not fit together.
  DeformConv2dColumnsCall(Kind kind, const ffi::RemainingArgs& arguments,
                          const ffi::RemainingRets& results, const ffi::Dictionary& attributes)
      : arguments_(arguments), results_(results) {
    if (arguments.size() < kFirstLinear) throw Refusal("expected at least 5 operands");
    ReadGeometry(attributes);
    ReadProblem(Operand(kX), Operand(kKernel), Operand(kOffset), Operand(kMask));
    arrays_ = Arrays();
    dtype_ = Operand(kX).element_type();
    wide_ = dtype_ == ffi::DataType::F64 ? ffi::DataType::F64 : ffi::DataType::F32;
    for (int64_t i = kX; i <= kMask; ++i) at_[i] = Operand(i, i);
    Expect("start", Operand(kBias), {2}, ffi::DataType::S32);
    start_ = static_cast<ChunkStart>(Operand(kBias).untyped_data());
    if (kind != kColumns) ReadAsked(attributes);
    if (kind == kColumnsBackward) {
      ReadBackward();
    } else if (kind == kSamplesBackward) {
      ReadSamplesBackward();
    } else {
      ReadColumns(kind);
    }
  }

  const DeformConv2dChunk& chunk() const { return chunk_; }
  ChunkStart start() const { return start_; }
  bool Wants(int64_t array) const { return wants_[array]; }
  int32_t* scratch() const { return scratch_; }

  template <typename T>
  DeformConv2dPrimals<T> Primals() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(at_[kX]), static_cast<const T*>(at_[kKernel]),
            static_cast<const A*>(at_[kOffset]), Modulated<const A>(at_[kMask])};
  }

  // That of the kernel is not an array here: null, or not.
  template <typename T>
  DeformConv2dTangents<T> Tangents() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(dot_[kX]),
            wants_[kKernel] ? static_cast<const T*>(at_[kKernel]) : nullptr,
            static_cast<const A*>(dot_[kOffset]), Modulated<const A>(dot_[kMask]), nullptr};
  }

  // Those of each sample.
  template <typename T>
  DeformConv2dCotangents<T> SampleCotangents() const {
    using A = typename Accumulator<T>::type;
    return {nullptr, nullptr, static_cast<A*>(grad_[kOffset]), Modulated<A>(grad_[kMask]), nullptr};
  }

  // Of the columns or, in `samples_backward`, of y.
  template <typename T>
  const T* Cotangent() const {
    return static_cast<const T*>(cotangent_);
  }
  // Null where there is no such result.
  template <typename T>
  T* Columns() const {
    return static_cast<T*>(grad_[kKernel]);
  }
  template <typename T>
  T* GradX() const {
    return IsPartOfImage() ? nullptr : static_cast<T*>(grad_[kX]);
  }
  template <typename A>
  A* GradXSums() const {
    return IsPartOfImage() ? static_cast<A*>(grad_[kX]) : nullptr;
  }

 private:
  static constexpr size_t kFirstLinear = 5;

  ffi::AnyBuffer Operand(int64_t index) const { return Argument(arguments_, index); }

  ffi::AnyBuffer ResultAt(int64_t index) const {
    return *ValueOf("result", results_.get<ffi::AnyBuffer>(index));
  }

  bool IsPartOfImage() const { return chunk_.pixels < chunk_.out_pixels(); }

  template <typename A, typename V>
  A* Modulated(V* data) const {
    return problem_.modulated ? static_cast<A*>(data) : nullptr;
  }

  // The operand that is this array, or of its shape.
  const void* Operand(int64_t index, int64_t array) const {
    return Checked("operand for ", arrays_[array], Operand(index));
  }

  void ExpectCounts(size_t operands, size_t results) const {
    if (arguments_.size() != operands || results_.size() != results) {
      throw Refusal("expected " + std::to_string(operands) + " operands and " +
                    std::to_string(results) + " results, got " + std::to_string(arguments_.size()) +
                    " and " + std::to_string(results_.size()));
    }
  }

  void ReadAsked(const ffi::Dictionary& attributes) {
    wrt_ = ReadWrt(arrays_, attributes);
    for (int64_t array : wrt_) {
      if (array > kMask) throw Refusal("wrt must be of x, kernel, offset and mask");
      wants_[array] = true;
    }
  }

  void ReadColumns(Kind kind) {
    size_t operands = kFirstLinear;
    for (int64_t array : wrt_) {
      if (array != kKernel) dot_[array] = Operand(operands++, array);
    }
    ExpectCounts(operands, 1);
    const bool moves = operands > kFirstLinear;
    ReadChunk(ResultAt(0), kind == kColumns ? 1 : wants_[kKernel] + moves);
    grad_[kKernel] = ResultAt(0).untyped_data();
  }

  void ReadBackward() {
    const int64_t in_place = wrt_.size() - wants_[kKernel];
    const bool continued = arguments_.size() > kFirstLinear + 1;
    ExpectCounts(kFirstLinear + 1 + (continued ? in_place : 0), wrt_.size() + wants_[kX]);
    ReadChunk(Operand(kFirstLinear), 1);
    cotangent_ = Operand(kFirstLinear).untyped_data();
    ReadGradients(continued);
  }

  void ReadSamplesBackward() {
    if (wants_[kKernel]) throw Refusal("wrt must be of x, offset and mask");
    const size_t gradients = wrt_.size();
    const bool continued = arguments_.size() > kFirstLinear + 1;
    ExpectCounts(kFirstLinear + 1 + (continued ? gradients : 0), gradients + 2 * wants_[kX]);
    cotangent_ = Operand(kFirstLinear, kY);
    if (wants_[kX]) {
      ReadChunk(ResultAt(gradients + 1), 1);
      grad_[kKernel] = ResultAt(gradients + 1).untyped_data();
    } else {
      SetChunk(problem_.batch, problem_.out_height * problem_.out_width, 1);
    }
    ReadGradients(continued);
  }

  void ReadGradients(bool continued) {
    if (IsPartOfImage() && chunk_.images != 1) throw Refusal("parts are of one image at a time");
    if (!continued && !IsAll()) throw Refusal("expected the results so far");
    size_t operand = kFirstLinear + 1;
    for (size_t i = 0; i < wrt_.size(); ++i) {
      const int64_t array = wrt_[i];
      const ffi::AnyBuffer result = ResultAt(i);
      grad_[array] = result.untyped_data();
      if (array == kKernel) {
        Expect("result for columns", result, ColumnsShape(), dtype_);
      } else {
        Expect("result", result, arrays_[array].shape, ResultType(array));
        if (continued && Operand(operand++).untyped_data() != grad_[array]) {
          throw Refusal("results so far must be in the buffers of the results");
        }
      }
    }
    if (wants_[kX]) ReadScratch(ResultAt(wrt_.size()));
  }

  bool IsAll() const { return chunk_.images >= problem_.batch && !IsPartOfImage(); }

  ffi::DataType ResultType(int64_t array) const {
    return array == kX && !IsPartOfImage() ? dtype_ : wide_;
  }

  Shape ColumnsShape() const {
    return {problem_.geometry.feature_groups, chunk_.images, chunk_.pixels,
            chunk_.parts * problem_.taps(), problem_.group_channels()};
  }

  void ReadChunk(const ffi::AnyBuffer& columns, int32_t parts) {
    const Shape shape = ShapeOf(columns);
    ExpectRank("columns", shape, 5);
    SetChunk(shape[1], shape[2], parts);
    Expect("columns", columns, ColumnsShape(), dtype_);
  }

  void SetChunk(int64_t images, int64_t pixels, int32_t parts) {
    const DeformConv2dProblem& p = problem_;
    // What is counted in 32 bits: entries of samples, rows of columns, bins, pixels, channels.
    Expect32Bits({images, pixels, p.taps(), p.offset_groups, kCorners});
    Expect32Bits({images, pixels, p.taps(), 2});
    Expect32Bits({images, p.offset_groups, p.height, p.width});
    Expect32Bits({p.batch + images});
    Expect32Bits({p.out_height, p.out_width});
    Expect32Bits({p.height, p.width});
    Expect32Bits({p.channels, 2});
    chunk_ = {problem_, static_cast<int32_t>(images), static_cast<int32_t>(pixels), parts};
  }

  static void Expect32Bits(std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (int64_t factor : factors) {
      if (factor > std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, product)) {
        throw Refusal("a chunk of columns is too large: its parts must be counted in 32 bits");
      }
      product *= factor;
    }
  }

  void ReadScratch(const ffi::AnyBuffer& scratch) {
    const int64_t words = wide_ == ffi::DataType::F64 ? BinsLayout<double>(chunk_).words()
                                                      : BinsLayout<float>(chunk_).words();
    Expect("scratch", scratch, {words}, ffi::DataType::S32);
    scratch_ = static_cast<int32_t*>(scratch.untyped_data());
  }

  const ffi::RemainingArgs& arguments_;
  const ffi::RemainingRets& results_;
  ffi::DataType wide_;
  DeformConv2dChunk chunk_;
  ChunkStart start_;
  std::vector<OperatorCall::Array> arrays_;
  std::vector<int64_t> wrt_;
  bool wants_[kArrays] = {};
  const void* at_[kArrays] = {};
  const void* dot_[kArrays] = {};
  const void* cotangent_ = nullptr;
  void* grad_[kArrays] = {};
  int32_t* scratch_ = nullptr;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_COLUMNS_CALL_H_
