// A device that isn't there: its memory is the host's, its kernels are those of the CPU, and it refuses what a GPU
// refuses, which is operands of two devices, and to be read by NumPy.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {
using at::Tensor;
constexpr auto kCard = c10::DeviceType::PrivateUse1;
const c10::Device card(kCard, 0);

void release(void* memory) { std::free(memory); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::malloc(bytes) : nullptr;
    return {memory, memory, &release, card};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const final { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(kCard, &memory);
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kCard> {
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Device exchangeDevice(c10::Device) const override { return card; }
  c10::Device getDevice() const override { return card; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = card; key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1); }
};
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator shared = at::make_generator<Generator>();
    return shared;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  c10::Device getDeviceFromPtr(void*) const override { return card; }
};
Hooks hooks;
[[maybe_unused]] const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

bool on_card(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kCard; }

Tensor host_view(const Tensor& tensor) {
  if (!on_card(tensor)) return tensor;
  // What an `out=` that is yet without memory names is a tensor of the host's, copied from after the call.
  if (tensor.storage().nbytes() == 0) return at::empty(tensor.sizes(), tensor.options().device(c10::DeviceType::CPU));
  auto whole = at::from_blob(
      const_cast<void*>(tensor.storage().data()),
      {static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size())},
      at::TensorOptions().dtype(tensor.dtype()));
  auto view = whole.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) view._set_conj(true);
  if (tensor.is_neg()) view._set_neg(true);
  return view;
}

Tensor to_card(const Tensor& tensor) {
  if (!tensor.defined() || on_card(tensor)) return tensor;
  auto copy = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(card));
  host_view(copy).copy_(tensor);
  return copy;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto begin = stack->size() - count;
  std::vector<Tensor> given(count), seen(count);
  at::Generator outer;
  auto host_generator = at::detail::createCPUGenerator();
  bool one_on_card = false, one_on_host = false;
  auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    if (on_card(tensor)) one_on_card = true;
    else if (tensor.dim() > 0) one_on_host = true;
  };
  for (size_t i = 0; i < count; ++i) {
    auto& value = (*stack)[begin + i];
    if (value.isTensor()) {
      given[i] = value.toTensor();
      look(given[i]);
      seen[i] = host_view(given[i]);
      value = seen[i];
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) { look(tensor); list.push_back(host_view(tensor)); }
      value = c10::IValue(c10::List<Tensor>(list));
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& item : value.toOptionalTensorList()) {
        std::optional<Tensor> tensor = item;
        if (tensor) { look(*tensor); tensor = host_view(*tensor); }
        list.push_back(tensor);
      }
      value = c10::IValue(list);
    } else if (value.isDevice()) {
      if (value.toDevice().type() == kCard) value = c10::IValue(c10::Device(c10::DeviceType::CPU));
    } else if (value.isGenerator()) {
      outer = value.toGenerator();
      TORCH_CHECK(outer.device().type() == kCard, schema.name(), ": a generator of ", outer.device(), " for the card");
    }
  }
  const std::string name = schema.name();
  const bool mixes = name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
  TORCH_CHECK(!(one_on_card && one_on_host) || mixes,
      "Expected all tensors to be on the same device, but found cpu and card in ", name);
  if (!outer.defined()) outer = at::globalContext().defaultGenerator(card);
  bool draws = false;
  for (size_t i = 0; i < count; ++i) {
    if (schema.arguments()[i].name() == "generator") {
      host_generator.set_state(outer.get_state());
      (*stack)[begin + i] = c10::IValue(host_generator);
      draws = true;
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  if (draws) outer.set_state(host_generator.get_state());
  const auto results = schema.returns().size();
  const auto first = stack->size() - results;
  for (size_t i = 0; i < results; ++i) {
    auto& value = (*stack)[first + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (value.isTensor()) {
      bool found = false;
      if (alias != nullptr && alias->isWrite()) {
        for (size_t j = 0; j < count; ++j) {
          if (seen[j].defined() && value.toTensor().is_same(seen[j])) {
            if (seen[j].data_ptr() != given[j].data_ptr() || seen[j].sizes() != given[j].sizes()) {
              at::native::resize_(given[j], seen[j].sizes(), std::nullopt);
              host_view(given[j]).copy_(seen[j]);
            }
            value = given[j];
            found = true;
          }
        }
      }
      if (!found) {
        TORCH_CHECK(alias == nullptr || alias->isWrite(), "The card has no view ", name);
        value = to_card(value.toTensor());
      }
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(to_card(tensor));
      value = c10::IValue(c10::List<Tensor>(list));
    }
  }
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}
Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  host_view(to).copy_(host_view(self));
  return to;
}
at::Scalar local_scalar(const Tensor& self) { return at::_local_scalar_dense(host_view(self)); }
Tensor& set_storage(Tensor& self, c10::Storage source) {
  auto size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, source, 0, {size}, {});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::native::set_storage_cpu_(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &local_scalar);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
}  // namespace

