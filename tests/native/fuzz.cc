// SPDX-License-Identifier: MIT
// Makes the calls that fuzz.py draws, one for each line of the input, on arrays of random values.
// A call must be refused in a sentence of the library's or computed; a call that is right must be
// computed. Now and then a computed call is made again on other threads: the results must have the
// same bits, whatever was in their memory before.

#include <sanitizer/common_interface_defs.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "common/ffi/library.h"
#include "common/sampling/half.h"
#include "tests/native/stress.h"
#include "tests/native/xla_host.h"

namespace jax_dcn {

const Library& JAX_DCN_LIBRARY();

namespace {

std::string line;  // the call that is being made

XLA_FFI_DataType DataTypeOf(const std::string& name) {
  static const std::map<std::string, XLA_FFI_DataType> types = {
      {"float32", XLA_FFI_DataType_F32},   {"float64", XLA_FFI_DataType_F64},
      {"bfloat16", XLA_FFI_DataType_BF16}, {"float16", XLA_FFI_DataType_F16},
      {"int32", XLA_FFI_DataType_S32},     {"int64", XLA_FFI_DataType_S64},
      {"bool", XLA_FFI_DataType_PRED}};
  return types.at(name);
}

// Calls `read` as often as the next number of the input says.
template <typename F>
void ReadMany(std::istream& input, const F& read) {
  size_t count = 0;
  input >> count;
  for (; count > 0; --count) read();
}

std::vector<int64_t> ReadIntegers(std::istream& input) {
  std::vector<int64_t> values;
  ReadMany(input, [&] { input >> values.emplace_back(); });
  return values;
}

std::unique_ptr<HostArray> ReadArray(std::istream& input) {
  std::string dtype;
  input >> dtype;
  return std::make_unique<HostArray>(DataTypeOf(dtype), ReadIntegers(input));
}

HostCall ReadCall(std::istream& input) {
  HostCall call;
  ReadMany(input, [&] { call.operands.push_back(ReadArray(input)); });
  ReadMany(input, [&] { call.results.push_back(ReadArray(input)); });
  ReadMany(input, [&] {
    std::string name, dtype;
    bool array;
    input >> name >> dtype >> array;
    call.attributes[name] = {DataTypeOf(dtype), array, ReadIntegers(input)};
  });
  return call;
}

// Values to copy from, because drawing each would take longer than the calls.
class Values {
 public:
  explicit Values(Random& random) : random_(random), bits_(2 * kBytes) {
    for (char& byte : bits_) byte = static_cast<char>(Draw(random, -128, 127));
    for (const double scale : {0.4, 3.0, 12.0}) {
      for (int64_t i = 0; i < kBytes / 8; ++i) {
        const double value = std::normal_distribution<double>(0, scale)(random);
        // Whole numbers are where samples move from one pixel to the next.
        Append(i % 4 == 0 ? std::round(value) : value);
      }
    }
  }

  // Ordinary numbers, bad ones among them, or random bits.
  void Fill(HostArray& array) {
    const bool any = Draw(random_, 0, 3) == 0;
    Copy(any ? bits_ : ordinary_[array.dtype()], array);
    if (!any && Draw(random_, 0, 2) == 0) Spoil(array);
  }

 private:
  static constexpr int64_t kBytes = 1 << 14;

  void Append(double value) {
    const float narrow = static_cast<float>(value);
    AppendBytes(XLA_FFI_DataType_F64, value);
    AppendBytes(XLA_FFI_DataType_F32, narrow);
    // The upper half of a float, and the same shape of bits with less exponent.
    const uint32_t bits = BitCast<uint32_t>(narrow);
    AppendBytes(XLA_FFI_DataType_BF16, static_cast<uint16_t>(bits >> 16));
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 255) - 112;
    const uint32_t half = exponent <= 0 ? 0 : exponent << 10 | (bits >> 13 & 1023);
    AppendBytes(XLA_FFI_DataType_F16, static_cast<uint16_t>(bits >> 16 & 0x8000 | half));
  }

  template <typename T>
  void AppendBytes(XLA_FFI_DataType dtype, T value) {
    const char* bytes = reinterpret_cast<const char*>(&value);
    ordinary_[dtype].insert(ordinary_[dtype].end(), bytes, bytes + sizeof(value));
  }

  void Copy(const std::vector<char>& from, HostArray& array) {
    const std::vector<char>& source = from.empty() ? bits_ : from;
    for (size_t done = 0; done < array.bytes();) {
      const size_t start = 8 * Draw(random_, 0, source.size() / 8 - 1);
      const size_t size = std::min(array.bytes() - done, source.size() - start);
      std::memcpy(array.data() + done, source.data() + start, size);
      done += size;
    }
  }

  void Spoil(HostArray& array) {
    if (array.dtype() == XLA_FFI_DataType_F32) SpoilAs<float>(array);
    if (array.dtype() == XLA_FFI_DataType_F64) SpoilAs<double>(array);
  }

  template <typename T>
  void SpoilAs(HostArray& array) {
    using Limits = std::numeric_limits<T>;
    const T bad[] = {Limits::infinity(),
                     -Limits::infinity(),
                     Limits::quiet_NaN(),
                     Limits::max(),
                     Limits::lowest(),
                     Limits::denorm_min(),
                     T(2147483648.0),
                     T(-1),
                     T(-2147483649.0),
                     T(9.3e18),
                     T(-0.0),
                     T(1e15)};
    const int64_t size = array.bytes() / sizeof(T);
    for (int64_t i = (size + 15) / 16; i > 0; --i) {
      const T value = bad[Draw(random_, 0, std::size(bad) - 1)];
      std::memcpy(array.data() + sizeof(T) * Draw(random_, 0, size - 1), &value, sizeof(T));
    }
  }

  Random& random_;
  std::vector<char> bits_;
  std::map<XLA_FFI_DataType, std::vector<char>> ordinary_;
};

struct Tally {
  XLA_FFI_Handler* handler;
  int64_t computed, refused;
};

[[noreturn]] void Fail(const std::string& why) {
  std::cerr << why << ": " << line << std::endl;
  std::exit(1);
}

void Poison(HostCall& call, int byte) {
  for (auto& result : call.results) {
    if (result->bytes() > 0) std::memset(result->data(), byte, result->bytes());
  }
}

std::vector<std::string> Bits(const HostCall& call) {
  std::vector<std::string> bits;
  for (auto& result : call.results) bits.emplace_back(result->data(), result->bytes());
  return bits;
}

class Fuzzer {
 public:
  explicit Fuzzer(int seed) : random_(seed) {
    for (const auto& [name, handler] : JAX_DCN_LIBRARY().targets) tallies_[name] = {handler, 0, 0};
  }

  // Makes the call of `line`.
  void Make() {
    std::istringstream input(line);
    std::string name;
    bool right;
    input >> right >> name;
    HostCall call = ReadCall(input);
    for (auto& operand : call.operands) values_.Fill(*operand);
    Poison(call, 0xff);
    Tally& tally = tallies_.at(name);
    if (auto error = Run(tally.handler, call, AnyPool())) {
      if (right) Fail("refused: " + error->message);
      CheckRefusal(*error);
      ++tally.refused;
    } else {
      if (++tally.computed % 8 == 0) CheckRepetition(tally.handler, call);
    }
  }

  void Report() const {
    for (const auto& [name, tally] : tallies_) {
      std::cout << name << ": " << tally.computed + tally.refused << " calls: " << tally.computed
                << " computed, " << tally.refused << " refused\n";
    }
  }

 private:
  static void CheckRefusal(const XLA_FFI_Error& error) {
    const bool known = error.code == XLA_FFI_Error_Code_INVALID_ARGUMENT;
    if (!known || error.message.rfind("jax_dcn: ", 0) != 0) Fail(error.message);
  }

  void CheckRepetition(XLA_FFI_Handler* handler, HostCall& call) {
    const std::vector<std::string> bits = Bits(call);
    Poison(call, 0);
    if (Run(handler, call, AnyPool()) != nullptr) Fail("refused when made again");
    if (Bits(call) != bits) Fail("gave other bits when made again");
  }

  ThreadPool& AnyPool() { return pools_[Draw(random_, 0, std::size(pools_) - 1)]; }

  std::map<std::string, Tally> tallies_;
  Random random_;
  Values values_{random_};
  StandardThreadPool pools_[3] = {1, 2, 5};
};

}  // namespace
}  // namespace jax_dcn

int main(int, char** argv) {
  __sanitizer_set_death_callback([] { std::cerr << "the call: " << jax_dcn::line << std::endl; });
  jax_dcn::Fuzzer fuzzer(std::atoi(argv[1]));
  while (std::getline(std::cin, jax_dcn::line)) fuzzer.Make();
  fuzzer.Report();
}
