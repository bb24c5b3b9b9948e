// A torch device of host memory, strict about placement as a GPU is: for tests where there is none.
//
// Every operator runs on the CPU, on tensors that share the device tensors' memory, after a check
// that all its tensors lie on the device. Its generator is one of its own. What it does not have:
// speed, streams, and the arithmetic of a GPU.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::IValue;
constexpr auto kDevice = c10::DeviceType::PrivateUse1;
const Device the_device(kDevice, 0);
const c10::DispatchKeySet device_keys(c10::DispatchKey::PrivateUse1);
bool without_double = false;  // as Apple's mps is

bool on_device(const Tensor& tensor) {
  return tensor.device().type() == kDevice;
}

void check_dtype(at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      !without_double || (dtype != at::kDouble && dtype != at::kComplexDouble),
      "Cannot convert a tensor to float64: the emulated device does not support it");
}

// ------------------------------------------------------------------ memory

c10::DataPtr host_memory(void* data) {
  return c10::DataPtr(data, Device(c10::kCPU));
}

// The device's pointer to what a host storage holds, which lives as long as the pointer does.
c10::DataPtr device_memory(const c10::Storage& host) {
  auto* kept = new c10::Storage(host);
  const auto release = [](void* storage) { delete static_cast<c10::Storage*>(storage); };
  return c10::DataPtr(host.mutable_data(), kept, release, the_device);
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n_bytes) override {
    const c10::Storage host(
        c10::Storage::use_byte_size_t(), n_bytes, c10::GetCPUAllocator()->allocate(n_bytes));
    return device_memory(host);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* to, const void* from, size_t n_bytes) const override {
    default_copy_data(to, from, n_bytes);
  }
};

DeviceAllocator allocator;
REGISTER_ALLOCATOR(kDevice, &allocator)

// ------------------------------------------------------------------ random numbers

struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(at::Generator drawn_from)
      : c10::GeneratorImpl(the_device, device_keys), host(std::move(drawn_from)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(host.clone()); }

  at::Generator host;
};

at::Generator new_generator() {
  return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static const at::Generator generator = new_generator();
  return generator;
}

at::Generator host_generator(const at::Generator& generator) {
  TORCH_CHECK(
      generator.device().type() == kDevice,
      "Expected a '", the_device, "' generator device but found '", generator.device(), "'");
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->host;
}

// ------------------------------------------------------------------ the device itself

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  Device exchangeDevice(Device) const override { return the_device; }
  Device getDevice() const override { return the_device; }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < 1, "invalid device ordinal: ", device);
  }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override { return the_stream(); }
  c10::Stream getNewStream(Device, int) const override { return the_stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return the_stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  static c10::Stream the_stream() { return c10::Stream(c10::Stream::DEFAULT, the_device); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, DeviceGuard)

struct DeviceHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
};

// ------------------------------------------------------------------ running on the CPU

// Tensors of one call, by turns on the device and on the CPU, of one memory.
class HostCall {
 public:
  Tensor host(const Tensor& device) {
    if (!device.defined() || !on_device(device)) {
      return device;
    }
    const c10::Storage& storage = device.storage();
    auto& twin = hosts_[storage.unsafeGetStorageImpl()];
    if (!twin) {
      twin = c10::Storage(
          c10::Storage::use_byte_size_t(), storage.nbytes(), host_memory(storage.mutable_data()),
          c10::GetCPUAllocator(), /*resizable=*/true);
      devices_.emplace(twin.unsafeGetStorageImpl(), storage);
    }
    Tensor found = shaped_like(device, twin, c10::DispatchKeySet(c10::DispatchKey::CPU));
    pairs_.emplace_back(found, device);
    return found;
  }

  // An argument that was given comes back itself, a view of one shares its storage.
  Tensor device(const Tensor& host) {
    for (const auto& [twin, original] : pairs_) {
      if (twin.is_same(host)) {
        return original;
      }
    }
    if (!host.defined()) {
      return host;
    }
    check_dtype(host.scalar_type());
    const c10::Storage& storage = host.storage();
    auto& twin = devices_[storage.unsafeGetStorageImpl()];
    if (!twin) {
      twin = c10::Storage(
          c10::Storage::use_byte_size_t(), storage.nbytes(), device_memory(storage), &allocator,
          /*resizable=*/true);
    }
    return shaped_like(host, twin, device_keys);
  }

  // What was resized on the host is resized on the device.
  void write_back() {
    for (const auto& [host, device] : pairs_) {
      auto* storage = device.storage().unsafeGetStorageImpl();
      if (host.storage().data() != storage->data()) {
        storage->set_data_ptr_noswap(device_memory(host.storage()));
        storage->set_nbytes(host.storage().nbytes());
      }
      if (host.sizes() != device.sizes() || host.strides() != device.strides()) {
        auto* impl = device.unsafeGetTensorImpl();
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
  }

 private:
  static Tensor shaped_like(
      const Tensor& like, const c10::Storage& storage, c10::DispatchKeySet keys) {
    auto tensor = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(storage), keys, like.dtype());
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
        like.sizes(), like.strides(), like.storage_offset());
    tensor._set_conj(like.is_conj());
    tensor._set_neg(like.is_neg());
    return tensor;
  }

  std::unordered_map<c10::StorageImpl*, c10::Storage> hosts_, devices_;
  std::vector<std::pair<Tensor, Tensor>> pairs_;
};

// Keys that stand above the CPU's own kernels: our caller has been through them already.
struct BelowAutograd {
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::DispatchKey::AutocastCPU};
};

// As CUDA has it: numbers may lie on the CPU, and the indices of a subscript.
void check_placement(const Tensor& tensor, const c10::Argument& argument, bool in_list,
                     const std::string& name) {
  if (!tensor.defined() || on_device(tensor)) {
    return;
  }
  const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  const bool number = tensor.dim() == 0 && !in_list && !written && argument.name() != "index";
  TORCH_CHECK(
      number || argument.name() == "indices",
      "Expected all tensors to be on the same device, but found at least two devices, ",
      the_device, " and ", tensor.device(), "! (argument ", argument.name(), " of ", name, ")");
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const std::string& name = schema.name();
  HostCall call;
  const auto given = stack->end() - static_cast<std::ptrdiff_t>(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    IValue& value = given[static_cast<std::ptrdiff_t>(i)];
    const c10::Argument& argument = arguments[i];
    if (value.isTensor()) {
      check_placement(value.toTensor(), argument, false, name);
      value = call.host(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (Tensor& tensor : tensors) {
        check_placement(tensor, argument, true, name);
        tensor = call.host(tensor);
      }
      value = IValue(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
        check_placement(tensor.value_or(Tensor()), argument, true, name);
        tensors.push_back(tensor ? std::optional<Tensor>(call.host(*tensor)) : std::nullopt);
      }
      value = IValue(tensors);
    } else if (value.isDevice()) {
      value = IValue(Device(c10::kCPU));
    } else if (value.isGenerator()) {
      value = IValue(host_generator(value.toGenerator()));
    } else if (value.isNone() && argument.type()->str() == "Generator?") {
      value = IValue(host_generator(default_generator()));
    } else if (value.isString() && argument.name() == "driver") {
      TORCH_CHECK(value.toStringRef() == "gels", name, ": driver should be 'gels', as on CUDA");
    }
  }
  {
    BelowAutograd guard;
    op.callBoxed(stack);
  }
  call.write_back();
  for (auto it = stack->end() - static_cast<std::ptrdiff_t>(schema.returns().size());
       it != stack->end(); ++it) {
    if (it->isTensor()) {
      *it = call.device(it->toTensor());
    } else if (it->isTensorList()) {
      auto tensors = it->toTensorVector();
      for (Tensor& tensor : tensors) {
        tensor = call.device(tensor);
      }
      *it = IValue(tensors);
    }
  }
}

// ------------------------------------------------------------------ what has to be native

Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(device.value_or(the_device).index() < 1, "invalid device ordinal: ", *device);
  const auto kind = dtype.value_or(c10::get_default_dtype_as_scalartype());
  check_dtype(kind);
  return at::detail::empty_generic(size, &allocator, device_keys, kind, format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  const auto kind = dtype.value_or(c10::get_default_dtype_as_scalartype());
  check_dtype(kind);
  return at::detail::empty_strided_generic(size, stride, &allocator, device_keys, kind);
}

// zeros without memory would be a kind of tensor of their own
Tensor zeros(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<Device> device, std::optional<bool> pinned) {
  return empty(size, dtype, layout, device, pinned, std::nullopt).zero_();
}

// The one operator between two devices.
Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  BelowAutograd guard;
  HostCall call;
  call.host(target).copy_(call.host(source), non_blocking);
  return target;
}

void check_same_device(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(
      on_device(a) && on_device(b),
      "Expected all tensors to be on the same device, but found at least two devices, ",
      the_device, " and cpu!");
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups) {
  check_same_device(input, weight);
  check_same_device(input, bias && bias->defined() ? *bias : weight);
  BelowAutograd guard;
  HostCall call;
  return call.device(at::convolution(
      call.host(input), call.host(weight), call.host(bias.value_or(Tensor())), stride, padding,
      dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  check_same_device(gradient, input);
  check_same_device(gradient, weight);
  BelowAutograd guard;
  HostCall call;
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      call.host(gradient), call.host(input), call.host(weight),
      at::IntArrayRef{gradient.size(1)}, stride, padding, dilation, transposed, output_padding,
      groups, wanted);
  return {call.device(of_input), call.device(of_weight), call.device(of_bias)};
}

// torch's own one for the CPU draws from the CPU's generator
std::tuple<Tensor, Tensor> dropout(const Tensor& input, double p, std::optional<bool> train) {
  if (!train.value_or(true) || p == 0) {
    return {input.clone(), at::empty_like(input, input.options().dtype(at::kBool)).fill_(true)};
  }
  auto mask = at::empty_like(input, input.options().dtype(at::kBool)).bernoulli_(1 - p);
  return {input * mask * (p < 1 ? 1 / (1 - p) : 0.0), mask};
}

// plain attention: the fused ones are a device's own
int64_t attention_kind(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
    std::optional<double>, bool) {
  return 0;
}

// what torch asks of a device for an LSTM, where a GPU has it in one piece
std::tuple<Tensor, Tensor, Tensor> lstm_cell(
    const Tensor& of_input, const Tensor& of_hidden, const Tensor& cell,
    const std::optional<Tensor>& input_bias, const std::optional<Tensor>& hidden_bias) {
  Tensor gates = of_input + of_hidden;
  if (input_bias && input_bias->defined()) {
    gates = gates + *input_bias + *hidden_bias;
  }
  const auto part = gates.chunk(4, 1);
  const Tensor in = part[0].sigmoid(), forget = part[1].sigmoid(), value = part[2].tanh(),
               out = part[3].sigmoid();
  const Tensor next = forget * cell + in * value;
  return {out * next.tanh(), next, at::cat({in, forget, value, out}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(
    const std::optional<Tensor>& of_hidden, const std::optional<Tensor>& of_next,
    const Tensor& cell, const Tensor& next, const Tensor& gates, bool has_bias) {
  const auto part = gates.chunk(4, 1);
  const Tensor &in = part[0], &forget = part[1], &value = part[2], &out = part[3];
  const Tensor seen = next.tanh();
  const bool given = of_hidden && of_hidden->defined();
  const Tensor hidden = given ? *of_hidden : at::zeros_like(next);
  Tensor through = hidden * out * (1 - seen * seen);
  if (of_next && of_next->defined()) {
    through = through + *of_next;
  }
  const Tensor of_gates = at::cat(
      {through * value * in * (1 - in), through * cell * forget * (1 - forget),
       through * in * (1 - value * value), hidden * seen * out * (1 - out)},
      1);
  return {of_gates, through * forget, has_bias ? of_gates.sum(0) : Tensor()};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_efficientzerotensor", &zeros);
  m.impl("_copy_from", &copy_from);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("set_.source_Storage", [](Tensor& self, at::Storage source) -> Tensor& {
    return at::native::set_(self, std::move(source));
  });
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_dropout", &dropout);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  m.impl("_fused_sdp_choice", &attention_kind);
}

// conj() and imag are lazy: a copy is what resolves them
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

// The operators that CUDA takes to 16 bit and that networks of these tests are made of.
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using at::autocast::CastPolicy;
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

// What the Python module of the device asks for.
TORCH_LIBRARY(emulated, m) {
  m.def("start() -> ()", []() {
    static DeviceHooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  });
  m.def("seed(int seed) -> ()", [](int64_t seed) {
    at::Generator generator = default_generator();
    generator.set_current_seed(static_cast<uint64_t>(seed));
  });
  m.def("state() -> Tensor", []() { return default_generator().get_state(); });
  m.def("set_state(Tensor state) -> ()", [](const Tensor& state) {
    at::Generator generator = default_generator();
    generator.set_state(state);
  });
  m.def("without_double(bool without) -> ()", [](bool without) { without_double = without; });
}

}  // namespace
