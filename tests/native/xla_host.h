// SPDX-License-Identifier: MIT
// The side of XLA in a call of a handler, without XLA: arrays of exactly the size that their types
// say, attributes of any kind, errors, and threads.
#ifndef JAX_DCN_TESTS_NATIVE_XLA_HOST_H_
#define JAX_DCN_TESTS_NATIVE_XLA_HOST_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/native/stress.h"
#include "xla/ffi/api/ffi.h"

// The context of a call and the function that reads an error's text have new names after version
// 0.3 of the interface.
#if XLA_FFI_API_MINOR > 3
#define JAX_DCN_XLA_CONTEXT XLA_FFI_InvokeContext
#define JAX_DCN_XLA_ERROR_TEXT XLA_FFI_Error_GetDetails
#else
#define JAX_DCN_XLA_CONTEXT XLA_FFI_ExecutionContext
#define JAX_DCN_XLA_ERROR_TEXT XLA_FFI_Error_GetMessage
#endif

// XLA leaves these two types to the host.
struct XLA_FFI_Error {
  std::string message;
  XLA_FFI_Error_Code code;
};

struct JAX_DCN_XLA_CONTEXT {
  jax_dcn::ThreadPool* threads;
};

namespace jax_dcn {

inline const XLA_FFI_Api& Api() {
  static const XLA_FFI_Api api = [] {
    XLA_FFI_Api api = {};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
      return new XLA_FFI_Error{args->message, args->errc};
    };
    api.JAX_DCN_XLA_ERROR_TEXT = [](auto* args) { args->message = args->error->message.c_str(); };
    api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) {
      *args->num_threads = args->ctx->threads->num_threads();
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
    api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) {
      args->ctx->threads->Schedule([task = args->task, data = args->data] { task(data); });
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
    return api;
  }();
  return api;
}

// An operand or a result. The sanitizer sees every access beyond its elements.
class HostArray {
 public:
  HostArray(XLA_FFI_DataType dtype, std::vector<int64_t> shape)
      : shape_(std::move(shape)), bytes_(xla::ffi::ByteWidth(xla::ffi::DataType(dtype))) {
    for (int64_t size : shape_) bytes_ *= size;
    // XLA gives arrays without elements no memory.
    if (bytes_ > 0) data_.reset(static_cast<char*>(std::malloc(bytes_)));
    buffer_ = {XLA_FFI_Buffer_STRUCT_SIZE,          nullptr,      dtype, data_.get(),
               static_cast<int64_t>(shape_.size()), shape_.data()};
  }

  char* data() { return data_.get(); }
  size_t bytes() const { return bytes_; }
  XLA_FFI_DataType dtype() const { return buffer_.dtype; }
  XLA_FFI_Buffer* buffer() { return &buffer_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  std::vector<int64_t> shape_;
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
  XLA_FFI_Buffer buffer_;
};

// A scalar, or an array of integers.
struct HostAttribute {
  XLA_FFI_DataType dtype;
  bool array;
  std::vector<int64_t> values;  // the bits of a scalar
};

// A handler's call: operands, results and attributes.
struct HostCall {
  std::vector<std::unique_ptr<HostArray>> operands, results;
  std::map<std::string, HostAttribute> attributes;  // sorted by name, as XLA's are
};

// Calls a handler. Returns the handler's error, or null.
inline std::unique_ptr<XLA_FFI_Error> Run(XLA_FFI_Handler* handler, HostCall& call,
                                          ThreadPool& threads) {
  std::vector<void*> arguments, results, attributes;
  for (auto& array : call.operands) arguments.push_back(array->buffer());
  for (auto& array : call.results) results.push_back(array->buffer());
  std::vector<XLA_FFI_ArgType> argument_types(arguments.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(results.size(), XLA_FFI_RetType_BUFFER);

  const size_t count = call.attributes.size();
  std::vector<XLA_FFI_ByteSpan> names(count);
  std::vector<XLA_FFI_ByteSpan*> name_pointers(count);
  std::vector<XLA_FFI_Scalar> scalars(count);
  std::vector<XLA_FFI_Array> arrays(count);
  std::vector<XLA_FFI_AttrType> attribute_types(count);
  size_t i = 0;
  for (auto& [name, attribute] : call.attributes) {
    int64_t* const values = attribute.values.data();
    names[i] = {name.data(), name.size()};
    name_pointers[i] = &names[i];
    scalars[i] = {attribute.dtype, values};
    arrays[i] = {attribute.dtype, attribute.values.size(), values};
    attribute_types[i] = attribute.array ? XLA_FFI_AttrType_ARRAY : XLA_FFI_AttrType_SCALAR;
    attributes.push_back(attribute.array ? static_cast<void*>(&arrays[i]) : &scalars[i]);
    ++i;
  }

  JAX_DCN_XLA_CONTEXT context = {&threads};
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &Api();
  frame.ctx = &context;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(arguments.size()),
                argument_types.data(), arguments.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(results.size()),
                result_types.data(), results.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,   nullptr,
                 static_cast<int64_t>(count), attribute_types.data(),
                 name_pointers.data(),        attributes.data()};
  return std::unique_ptr<XLA_FFI_Error>(handler(&frame));
}

}  // namespace jax_dcn

#endif  // JAX_DCN_TESTS_NATIVE_XLA_HOST_H_
