"""A pretend CUDA device for machines without a GPU: it checks devices like CUDA does, and computes on the CPU.

    with pretend_cuda() as seen:
        retriever = HypencoderRetriever(index, model, device="cuda")
        retriever(topics)
    seen.bytes_to_cuda, seen.synchronisations

Calls that CUDA would refuse raise its errors: a CPU tensor that meets a CUDA tensor, and a CUDA tensor that becomes an
array. The bytes that move to the device are counted, and the calls that wait for it. So a test can state "the second batch
moves no vectors" or "nothing waits for the GPU inside the chunk loop". Streams and events exist but do nothing. Kernels,
speed, fp8 and real memory are out of reach.

:class:`PretendCuda` wraps a CPU tensor and says that it lies on ``cuda:0``. :class:`DeviceCalls` handles calls that name a
device, before a CPU build of torch refuses them. ``__torch_dispatch__`` checks all other operations.

Known gaps: attention kernels are not checked. A function that makes tensors inside C++ may be reported as a mix although
CUDA would accept it. Inference mode is replaced by ``no_grad``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda:0")
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    *("equal", "is_nonzero", "_linalg_check_errors"),
}
"""Operations of which the result, or its size, is needed on the CPU."""
MOVERS = {"to", "cuda", "as_tensor", "tensor", "asarray"}
FACTORIES = {
    *("zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "randperm", "eye", "linspace", "scalar_tensor"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like", "full_like"),
    *("rand_like", "randn_like", "tril_indices", "triu_indices"),
}
TO_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."


class Seen:
    """What happened on the pretend device.

    Attributes:
        bytes_to_cuda: Bytes of all tensors that were moved to the device.
        waits: Number of calls that wait for the device, by name.
        free_bytes: Free memory that the device reports, which tests may change.
    """

    def __init__(self) -> None:
        self.free_bytes = 80 * 2**30
        self.clear()

    def clear(self) -> None:
        """Start to count again."""
        self.bytes_to_cuda = 0
        self.waits: Counter[str] = Counter()

    @property
    def synchronisations(self) -> int:
        """Number of calls that wait for the device."""
        return sum(self.waits.values())

    def move_to_cuda(self, tensor: torch.Tensor, non_blocking: bool) -> None:
        """Count a transfer to the device. CUDA waits for it unless the caller says otherwise."""
        self.bytes_to_cuda += tensor.nbytes
        if not non_blocking:
            self.waits["to cuda"] += 1


seen = Seen()


class PretendCuda(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendCuda:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="cpu",
            requires_grad=False,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendCuda({self.inner!r})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Raise CUDA's error."""
        raise TypeError(TO_NUMPY)

    __array__ = numpy

    def record_stream(self, stream: Any) -> None:
        """Do nothing: memory is never reused behind a stream's back."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check the devices of an operation, count what waits, and compute it on the CPU."""
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        tensors = list_tensors((args, kwargs))
        mixed = [t for t in tensors if not isinstance(t, cls) and t.dim()]  # CUDA accepts CPU scalars
        is_indexed = name in ("index", "index_put", "index_put_") and isinstance(args[0], cls)  # and CPU indices
        if is_indexed and mixed:
            seen.waits["index on the CPU"] += 1
        elif mixed and name not in ("copy_", "_to_copy") and "dot_product" not in name:
            raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu ({func})")
        if name == "copy_":
            count_copy(*args)
        if name in WAITING or (name == "repeat_interleave" and len(tensors) > 1):
            seen.waits[name] += 1
        if name.startswith("index") and any(t.dtype == torch.bool for t in list_tensors(args[1:])):
            seen.waits["index by mask"] += 1
        out = func(*convert(unwrap, args), **convert(unwrap, kwargs))
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return kwargs["out"] if "out" in kwargs else convert(wrap, out)


def count_copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
    """Count a copy into an existing tensor, if it is from one device to the other."""
    if isinstance(target, PretendCuda) and not isinstance(source, PretendCuda):
        seen.move_to_cuda(source, non_blocking)
    elif isinstance(source, PretendCuda) and not isinstance(target, PretendCuda):
        seen.waits["to cpu"] += 1


def list_tensors(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in list_tensors(item)]


def convert(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every value in nested arguments or results."""
    if isinstance(value, dict):
        return {key: convert(function, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(convert(function, item) for item in value)
    if isinstance(value, tuple):  # several results with names
        return type(value)([convert(function, item) for item in value])
    return function(value)


def unwrap(value: Any) -> Any:
    """Return the CPU tensor of a pretend one; other values unchanged."""
    return value.inner if isinstance(value, PretendCuda) else value


def wrap(value: Any) -> Any:
    """Put a tensor on the pretend device; other values unchanged."""
    return PretendCuda(value) if isinstance(value, torch.Tensor) and not isinstance(value, PretendCuda) else value


def is_device(kind: str, value: Any) -> bool:
    """Return True if a value names a device of a kind, such as ``cuda``."""
    text = value.type if isinstance(value, torch.device) else value if isinstance(value, str) else ""
    return text.split(":")[0] == kind


class DeviceCalls(TorchFunctionMode):
    """Handles calls that name a device, and questions where a tensor lies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one call of a function of torch."""
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        kwargs.pop("pin_memory", None)  # a CPU build of torch cannot pin memory
        owner = args[0] if args and isinstance(args[0], torch.Tensor) else None
        values = [*args, *kwargs.values()]
        if isinstance(owner, PretendCuda):
            handled, answer = self._ask_tensor(func, name, owner, values)
            if handled:
                return answer
        if any(is_device("cuda", value) for value in values) and name in MOVERS | FACTORIES:
            return self._call_for_cuda(func, owner, args, kwargs)
        return func(*args, **kwargs)

    def _ask_tensor(self, func: Any, name: str, owner: PretendCuda, values: list[Any]) -> tuple[bool, Any]:
        """Return whether a call of a pretend tensor needs special treatment, and its result."""
        if name == "__get__":
            for attribute, answer in {"device": CUDA, "is_cuda": True, "is_cpu": False}.items():
                if func == getattr(torch.Tensor, attribute).__get__:
                    return True, answer
        if name in ("numpy", "__array__"):
            raise TypeError(TO_NUMPY)
        if name == "one_hot":  # makes its classes in C++, where the wrapper's own device is the CPU
            return True, wrap(func(owner.inner, *values[1:]))
        if name == "tolist":
            seen.waits["tolist"] += 1
            return True, owner.inner.tolist()
        if name == "cpu" or (name == "to" and any(self._is_on_cpu(value) for value in values[1:])):
            seen.waits["to cpu"] += 1
            dtypes = [value for value in values[1:] if isinstance(value, torch.dtype)]
            return True, owner.inner.clone().to(dtypes[0] if dtypes else owner.dtype)
        return False, None

    @staticmethod
    def _is_on_cpu(value: Any) -> bool:
        return is_device("cpu", value) or (isinstance(value, torch.Tensor) and not isinstance(value, PretendCuda))

    @staticmethod
    def _call_for_cuda(func: Any, owner: torch.Tensor | None, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the result of a call that puts a tensor on the device."""
        non_blocking = bool(kwargs.pop("non_blocking", False))
        moved = [tensor for tensor in list_tensors((args, kwargs)) if not isinstance(tensor, PretendCuda)]
        for tensor in moved:
            seen.move_to_cuda(tensor, non_blocking)
        if getattr(func, "__name__", "") in ("tensor", "as_tensor", "asarray") and not list_tensors((args, kwargs)):
            seen.waits["to cuda"] += 1  # numbers or an array

        def place(value: Any) -> Any:
            return torch.device("cpu") if is_device("cuda", value) else unwrap(value)

        out = func(*convert(place, args), **convert(place, kwargs))
        if isinstance(owner, PretendCuda) and out is owner.inner:
            return owner
        return wrap(out.clone() if moved and out is owner else out)


class PretendStream:
    """A stream or an event: nothing runs in the background, so there is nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Do nothing."""

    def wait_event(self, event: Any) -> None:
        """Do nothing."""

    def record(self, stream: Any = None) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


ANSWERS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "is_bf16_supported": lambda *args, **kwargs: True,
    "synchronize": lambda *args, **kwargs: None,
    "mem_get_info": lambda *args, **kwargs: (seen.free_bytes, 80 * 2**30),
    "memory_reserved": lambda *args: 0,
    "memory_allocated": lambda *args: 0,
    "get_device_capability": lambda *args, **kwargs: (9, 0),
    "Stream": PretendStream,
    "Event": PretendStream,
    "current_stream": PretendStream,
    "stream": lambda stream: contextlib.nullcontext(),
}
"""What the functions of ``torch.cuda`` return."""


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Seen]:
    """Make torch believe in one CUDA device; yields what was seen on it."""
    saved = {name: getattr(torch.cuda, name) for name in ANSWERS}
    mode = torch.inference_mode
    entering, leaving = mode.__enter__, mode.__exit__

    def enter(self: Any) -> None:
        self.no_grad = torch.no_grad()
        self.no_grad.__enter__()

    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, answer)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    mode.__enter__ = enter  # type: ignore[method-assign]
    mode.__exit__ = lambda self, *error: self.no_grad.__exit__(*error)  # type: ignore[method-assign]
    seen.__init__()  # type: ignore[misc]
    try:
        with DeviceCalls():
            yield seen
    finally:
        mode.__enter__, mode.__exit__ = entering, leaving  # type: ignore[method-assign]
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        for name, original in saved.items():
            setattr(torch.cuda, name, original)
