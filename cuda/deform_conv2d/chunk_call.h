// SPDX-License-Identifier: MIT
// XLA calls on a chunk of columns: the problem and the chunk, read from the arguments and checked,
// and where the arrays are.
//
// Every call begins with the operands of a PrimalsCall, and the start of the chunk, s32[2]. Only
// samples_backward reads the elements of the kernel. Columns have the shape of DeformConv2dChunk,
// which tells the size of the chunk.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_CALL_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_CALL_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include "cuda/deform_conv2d/bins.h"
#include "cuda/deform_conv2d/chunk.h"
#include "cuda/deform_conv2d/primals_call.h"
#include "cuda/runtime/cursor.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {

class ChunkCall : public PrimalsCall {
 public:
  const DeformConv2dChunk& chunk() const { return chunk_; }
  ChunkStart start() const { return start_; }

 protected:
  ChunkCall(Cursor& cursor, const ffi::Dictionary& attributes) : PrimalsCall(cursor, attributes) {
    const ffi::AnyBuffer start = cursor.Operand();
    Expect("start", start, {2}, ffi::DataType::S32);
    start_ = static_cast<ChunkStart>(start.untyped_data());
  }

  // The primals that the call is about, in the order of their arrays in the call.
  std::vector<int64_t> ReadPrimals(const ffi::Dictionary& attributes) const {
    const std::vector<int64_t> wrt = ReadWrt(arrays_, attributes);
    for (int64_t array : wrt) {
      if (array > kMask) throw Refusal("wrt must be of x, kernel, offset and mask");
    }
    return wrt;
  }

  ffi::DataType wide() const {
    return dtype_ == ffi::DataType::F64 ? ffi::DataType::F64 : ffi::DataType::F32;
  }
  bool IsPartOfImage() const { return chunk_.pixels < chunk_.sizes.out_pixels; }
  bool IsAll() const { return chunk_.images >= problem_.batch && !IsPartOfImage(); }

  Shape ColumnsShape() const {
    return {problem_.geometry.feature_groups, chunk_.images, chunk_.pixels,
            chunk_.parts * problem_.taps(), problem_.group_channels()};
  }

  // Sets the chunk by the shape of its columns, and returns the address of the columns.
  void* ReadColumns(const ffi::AnyBuffer& columns, int32_t parts) {
    const Shape shape = ShapeOf(columns);
    ExpectRank("columns", shape, 5);
    SetChunk(shape[1], shape[2], parts);
    Expect("columns", columns, ColumnsShape(), dtype_);
    return columns.untyped_data();
  }

  void SetChunk(int64_t images, int64_t pixels, int32_t parts) {
    const DeformConv2dProblem& p = problem_;
    const int element_bytes = dtype_ == ffi::DataType::F64   ? 8
                              : dtype_ == ffi::DataType::F32 ? 4
                                                             : 2;
    // The kernels count in 32 bits: entries of samples, rows of columns, bins, pixels, images, and
    // the bytes of a pixel.
    Expect32Bits({images, pixels, p.taps(), p.offset_groups, kCorners});
    Expect32Bits({images, pixels, p.taps(), 2});
    Expect32Bits({images, p.offset_groups, p.height, p.width});
    Expect32Bits({p.batch + images});
    Expect32Bits({p.out_height, p.out_width});
    Expect32Bits({p.out_height * p.out_width + pixels});
    Expect32Bits({p.height, p.width});
    Expect32Bits({p.channels, element_bytes});
    Expect32Bits({p.features, element_bytes});
    chunk_ = DeformConv2dChunk(problem_, element_bytes, images, pixels, parts);
  }

  DeformConv2dChunk chunk_;

 private:
  static void Expect32Bits(std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (int64_t factor : factors) {
      if (factor > std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, product)) {
        throw Refusal("a chunk of columns is too large: its parts must be counted in 32 bits");
      }
      product *= factor;
    }
  }

  ChunkStart start_;
};

// -> the columns.
class ColumnsCall : public ChunkCall {
 public:
  ColumnsCall(Cursor& cursor, const ffi::Dictionary& attributes) : ChunkCall(cursor, attributes) {
    columns_ = ReadColumns(cursor.Result(), 1);
  }

  template <typename T>
  T* columns() const {
    return static_cast<T*>(columns_);
  }

 private:
  void* columns_;
};

// The tangents of the primals in `wrt` but the kernel, whose tangent XLA multiplies
//   -> the columns of each matrix product that follows: the product with the kernel's tangent if
//      the kernel is in `wrt`, and the product with the kernel if another primal is.
class ColumnsJvpCall : public ChunkCall {
 public:
  ColumnsJvpCall(Cursor& cursor, const ffi::Dictionary& attributes)
      : ChunkCall(cursor, attributes) {
    bool samples_move = false;
    for (int64_t array : ReadPrimals(attributes)) {
      if (array == kKernel) {
        kernel_moves_ = true;
        continue;
      }
      if (array == kMask && !problem_.modulated)
        throw Refusal("wrt names mask, and there is no mask");
      const void* dot = Checked("tangent of ", arrays_[array], cursor.Operand());
      (array == kX ? x_dot_ : array == kOffset ? offset_dot_ : mask_dot_) = dot;
      samples_move = true;
    }
    columns_ = ReadColumns(cursor.Result(), kernel_moves_ + samples_move);
  }

  bool kernel_moves() const { return kernel_moves_; }

  // The tangents of x, offset and mask. The tangents of kernel and bias are null.
  template <typename T>
  DeformConv2dTangents<T> Tangents() const {
    using A = typename Accumulator<T>::type;
    return {static_cast<const T*>(x_dot_), nullptr, static_cast<const A*>(offset_dot_),
            ModulatedOrNull(static_cast<const A*>(mask_dot_)), nullptr};
  }

  template <typename T>
  T* columns() const {
    return static_cast<T*>(columns_);
  }

 private:
  bool kernel_moves_ = false;
  const void *x_dot_ = nullptr, *offset_dot_ = nullptr, *mask_dot_ = nullptr;
  void* columns_;
};

// The gradients of x, offset and mask, which the backward calls share. Where there are several
// chunks, each chunk adds its part: the gradients are results, and operands in the same buffers.
// Where a chunk is a part of an image, the gradient of x is a sum, in the type of sums. A result of
// scratch follows the gradients if the gradient of x is among the gradients.
class ChunkBackwardCall : public ChunkCall {
 public:
  // The address does not tell: the address of an array without elements is null.
  bool wants_x() const { return wants_x_; }
  bool wants_samples() const { return grad_offset_ != nullptr || grad_mask_ != nullptr; }
  int32_t* scratch() const { return scratch_; }

  // The gradient of x, or null where the gradient is a sum.
  template <typename T>
  T* grad_x() const {
    return IsPartOfImage() ? nullptr : static_cast<T*>(grad_x_);
  }
  // The gradient of x where the gradient is a sum, or null.
  template <typename T>
  typename Accumulator<T>::type* grad_x_sums() const {
    return IsPartOfImage() ? static_cast<typename Accumulator<T>::type*>(grad_x_) : nullptr;
  }

  // The gradients of offset and mask.
  template <typename T>
  DeformConv2dCotangents<T> SampleCotangents() const {
    using A = typename Accumulator<T>::type;
    return {nullptr, nullptr, static_cast<A*>(grad_offset_),
            ModulatedOrNull(static_cast<A*>(grad_mask_)), nullptr};
  }

 protected:
  using ChunkCall::ChunkCall;

  // Reads the gradient of x, offset or mask, once the chunk is known.
  void ReadGradient(Cursor& cursor, int64_t array, bool continued) {
    const ffi::AnyBuffer result = cursor.Result();
    const bool wide = arrays_[array].wide || IsPartOfImage();
    Expect("result", result, arrays_[array].shape, wide ? this->wide() : dtype_);
    void* const gradient = result.untyped_data();
    wants_x_ |= array == kX;
    (array == kX ? grad_x_ : array == kOffset ? grad_offset_ : grad_mask_) = gradient;
    if (continued && cursor.Operand().untyped_data() != gradient) {
      throw Refusal("results so far must be in the buffers of the results");
    }
  }

  void ReadScratch(Cursor& cursor) {
    const ffi::AnyBuffer scratch = cursor.Result();
    const int64_t words = dtype_ == ffi::DataType::F64 ? ChunkBins<double>(chunk_).words()
                                                       : ChunkBins<float>(chunk_).words();
    Expect("scratch", scratch, {words}, ffi::DataType::S32);
    scratch_ = static_cast<int32_t*>(scratch.untyped_data());
    ExpectAligned({scratch_});
  }

  void ExpectContinued(bool continued) const {
    if (IsPartOfImage() && chunk_.images != 1) throw Refusal("parts are of one image at a time");
    if (!continued && !IsAll()) throw Refusal("expected the results so far");
  }

 private:
  bool wants_x_ = false;
  void *grad_x_ = nullptr, *grad_offset_ = nullptr, *grad_mask_ = nullptr;
  int32_t* scratch_ = nullptr;
};

// The gradient of the columns, the gradients so far
//   -> for each primal in `wrt` its gradient or, for the kernel, the columns; scratch.
class ColumnsBackwardCall : public ChunkBackwardCall {
 public:
  ColumnsBackwardCall(Cursor& cursor, const ffi::Dictionary& attributes)
      : ChunkBackwardCall(cursor, attributes) {
    grad_columns_ = ReadColumns(cursor.Operand(), 1);
    const bool continued = cursor.operands_left() > 0;
    ExpectContinued(continued);
    for (int64_t array : ReadPrimals(attributes)) {
      if (array == kKernel) {
        const ffi::AnyBuffer columns = cursor.Result();
        Expect("result for columns", columns, ColumnsShape(), dtype_);
        columns_ = columns.untyped_data();
      } else {
        ReadGradient(cursor, array, continued);
      }
    }
    if (wants_x()) ReadScratch(cursor);
  }

  template <typename T>
  const T* grad_columns() const {
    return static_cast<const T*>(grad_columns_);
  }
  // Null where the kernel is not in `wrt`.
  template <typename T>
  T* columns() const {
    return static_cast<T*>(columns_);
  }

 private:
  const void* grad_columns_;
  void* columns_ = nullptr;
};

// The cotangent of all of y, the gradients so far
//   -> the gradients of x, offset and mask that are in `wrt`; with the gradient of x, scratch and
//      the gradient of the columns. Without x, one chunk holds all pixels.
class SamplesBackwardCall : public ChunkBackwardCall {
 public:
  SamplesBackwardCall(Cursor& cursor, const ffi::Dictionary& attributes)
      : ChunkBackwardCall(cursor, attributes) {
    const std::vector<int64_t> wrt = ReadPrimals(attributes);
    const auto has = [&](int64_t array) {
      return std::find(wrt.begin(), wrt.end(), array) != wrt.end();
    };
    if (has(kKernel)) throw Refusal("wrt must be of x, offset and mask");
    grad_y_ = Checked("cotangent of ", arrays_[kY], cursor.Operand());
    const bool continued = cursor.operands_left() > 0;
    if (has(kX)) {
      grad_columns_ = ReadColumns(cursor.LastResult(), 1);
    } else {
      SetChunk(problem_.batch, problem_.out_height * problem_.out_width, 1);
    }
    ExpectContinued(continued);
    for (int64_t array : wrt) ReadGradient(cursor, array, continued);
    if (wants_x()) ReadScratch(cursor);
  }

  template <typename T>
  const T* grad_y() const {
    return static_cast<const T*>(grad_y_);
  }
  // Null where x is not in `wrt`.
  template <typename T>
  T* grad_columns() const {
    return static_cast<T*>(grad_columns_);
  }

 private:
  const void* grad_y_;
  void* grad_columns_ = nullptr;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_CALL_H_
