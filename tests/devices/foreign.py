"""A second device without a GPU: tensors that say they are on "foreign:0", and whose values are real, held on the CPU.

An operation that mixes the two devices fails as it does on CUDA, one that CUDA takes passes, and what is computed has
the CPU's bits. So whatever runs here touches no tensor that was left behind on the CPU.

`register` makes the device known to torch: once in a process, and before its first backward pass, for which autograd
starts a thread for each device that it knows then. PyTorch's tests of Python backends show the parts that are used
here: test/test_privateuseone_python_backend.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "foreign"
DEVICE = torch.device("cpu")  # until `register` has made it the second one
COPIES = {"_to_copy", "copy_"}  # from one device to the other
INDEXED = {"index", "index_put_", "_index_put_impl_"}  # by numbers that may be on the CPU
MADE = (
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m"),
    *("linspace", "logspace", "randperm", "randperm.generator"),
)
_libraries: list[torch.library.Library] = []  # a kernel lives as long as its library


class Foreign(Tensor):
    """A tensor on the second device, around one that holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Foreign":
        facts = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **facts)
        self.held = held
        return self

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Foreign({self.held})"

    # With these two `Module.to` keeps the parameters' identities, as it does between a CPU and a GPU.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: object) -> "Foreign":
        return Foreign(inner["held"])

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the tensor on the CPU that `torch.load` with `map_location="cpu"` makes of one on a GPU."""
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        _refuse_mixing(func, args, tensors)
        if torch.Tag.nondeterministic_seeded in func.tags:
            _check_generator(func, [*args, *kwargs.values()])
        to = kwargs.get("device")
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*_held(args), **{name: _held(value) for name, value in kwargs.items()})
        if isinstance(args[0], Tensor) and out is _held(args[0]):  # in place, on either device
            return args[0]
        there = to is None or torch.device(to).type == NAME
        return _around(out, {id(x.held): x for x in tensors if isinstance(x, Foreign)}) if there else out


def _tensors(x: Any) -> Iterator[Tensor]:
    for each in x:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _held(x: Any) -> Any:
    if isinstance(x, Foreign):
        return x.held
    return type(x)(map(_held, x)) if isinstance(x, list | tuple) else x


def _around(out: Any, known: Mapping[int, Foreign]) -> Any:
    """The results as tensors on the device; those that an operation wrote to are those that it was given."""
    if isinstance(out, list | tuple):
        return pytree.tree_map_only(Tensor, lambda x: _around(x, known), out)
    if not isinstance(out, Tensor):
        return out
    found = known.get(id(out), None)
    if found is not None and found.shape != out.shape:
        raise NotImplementedError(f"an operation made {tuple(out.shape)} of an output of {tuple(found.shape)}")
    return Foreign(out) if found is None else found


def _refuse_mixing(func: Any, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
    """Raise a RuntimeError where CUDA would: a tensor on the CPU is in the wrong place, unless it is copied, the
    indices of one that is not, or a number for an elementwise operation whose result is on the device."""
    strangers = [x for x in tensors if not isinstance(x, Foreign)]
    name = func.overloadpacket.__name__
    if not strangers or name in COPIES:
        return
    first_is_there = isinstance(args[0], Foreign) or not isinstance(args[0], Tensor)
    if name in INDEXED and first_is_there:
        indices = {id(x) for x in _tensors(args[1])}
        strangers = [x for x in strangers if id(x) not in indices and x.dim()]
    elif torch.Tag.pointwise in func.tags and (first_is_there or not func._schema.name.endswith("_")):
        strangers = [x for x in strangers if x.dim()]
    if strangers:
        shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, and of shape {shapes} are on cpu")


class _Module(_DummyBackendModule):
    """What torch looks for under `torch.foreign`."""

    def is_available(self) -> bool:
        """Nobody is to take the device unasked, as an accelerator that happens to be there."""
        return False

    def get_rng_state(self, device: object) -> Tensor:
        """Nothing: what is drawn there is drawn from the CPU's generator."""
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def registered() -> bool:
    """Whether the device is known to torch."""
    return DEVICE.type == NAME


def register() -> None:
    """Make the device known to torch."""
    global DEVICE
    _setup_privateuseone_for_python_backend(NAME, _Module())
    DEVICE = torch.device(NAME, 0)
    library, everything = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in MADE:
        packet, _, overload = name.partition(".")
        library.impl(name, _making(getattr(getattr(torch.ops.aten, packet), overload or "default")), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes nothing there
    _libraries.extend([library, everything])


def _making(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: Any, device: object = None, pin_memory: object = None, **options: Any) -> Tensor:
        _check_generator(op, [*args, *options.values()])
        return Foreign(op(*args, device=torch.device("cpu"), **options))

    return make


def _check_generator(op: object, given: Sequence[object]) -> None:
    if any(isinstance(each, torch.Generator) for each in given):
        raise RuntimeError(f"{op}: expected a {NAME!r} device type for generator but found 'cpu'")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


def there(x: Any) -> Any:
    """Whatever holds tensors, with these on the second device."""
    return pytree.tree_map(lambda each: each.to(DEVICE) if isinstance(each, Tensor) else each, x)


def here(x: Any) -> Any:
    """Whatever holds tensors of the second device, with these on the CPU; an AssertionError where one is not of it."""

    def back(each: Any) -> Any:
        assert not isinstance(each, Tensor) or each.device == DEVICE
        return each.cpu() if isinstance(each, Tensor) else each

    return pytree.tree_map(back, x)
