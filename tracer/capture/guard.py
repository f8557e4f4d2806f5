"""Leave the model and the process as they were found, also when the model raises."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxplain.errors import DeviceError, first_line

_CONTAINERS = (dict, list, set)
_LOCK = [threading.RLock()]


def _free() -> None:
    """In a forked process the thread that held the lock does not live on."""
    _LOCK[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """A region for one thread at a time: capture takes the whole process (PyTorch's tracers put stand-ins for
    weights into the model while they run)."""
    with _LOCK[0]:
        yield


@contextmanager
def forks_told() -> Iterator[None]:
    """A region in which PyTorch's refusal to differentiate in a forked process is an error of our own.

    Raises:
        DeviceError: gradients were asked for in a process whose parent has taken some before the fork.
    """
    try:
        yield
    except RuntimeError as error:
        if "fork-based multiprocessing" not in str(error):
            raise
        raise DeviceError(
            "PyTorch takes no gradients in a forked process once its parent has taken some",
            expected="a process of its own, or a method without gradients, such as rollout",
            found=first_line(error),
            hint='give the DataLoader multiprocessing_context="spawn", or explain in the main process',
        ) from error


@contextmanager
def untouched(model: nn.Module | None) -> Iterator[None]:
    """A region in which the model is in eval mode and no gradient is kept, and after which all is as before.

    Restored, in every module: attributes, which tensors are its parameters and buffers, hooks, training
    flags, ``requires_grad`` and ``.grad``; in the process: random states (Python, NumPy, torch on the CPU
    and on devices in use), default dtype, grad and inference mode, the fast path of multi-head attention,
    warning filters. For the *values* of tensors that the model writes into see :func:`values_kept`.

    Much of this is the process's own, so only one thread at a time is in such a region; others wait.
    """
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        stack.callback(_process_state())
        if model is not None:
            stack.callback(_model_state(model))
            for module in model.modules():
                module.training = False  # not .eval(): a model may override it
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def values_kept(model: nn.Module, inputs: Sequence[Tensor] = (), watch: bool = True) -> Iterator[None]:
    """A region after which the tensors of the model, and ``inputs``, hold the values they had before.

    Args:
        watch: keep a copy of a parameter or buffer only when an operation is about to write into it. Without,
            for code that bears no watching, buffers and inputs are copied beforehand and parameters not.
    """
    # tracers write into plain attributes below the dispatcher's reach; they are few and small, so copy them
    copied = [v for module in model.modules() for v in vars(module).values() if isinstance(v, Tensor)]
    if not watch:
        copied += [*inputs, *model.buffers()]
    copies = [(t, t._version, t.detach().clone()) for t in copied if not t.is_inference()]
    try:
        with _Journal([*inputs, *model.parameters(), *model.buffers()]) if watch else nullcontext():
            yield
    finally:
        for tensor, version, copy in copies:
            if tensor._version != version:
                _put_back(tensor, copy, version)


@contextmanager
def quiet() -> Iterator[None]:
    """A region in which torch prints, logs and warns of nothing; what it raises says it all."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """A region after which all random states are as before, so that a second run draws the same numbers."""
    restore = random_state()
    try:
        yield
    finally:
        restore()


@contextmanager
def drawing_from(state: Callable[[], None] | None) -> Iterator[None]:
    """A region in which random numbers are those of an earlier state, if one is given."""
    with same_random_numbers():
        if state is not None:
            state()
        yield


def random_state() -> Callable[[], None]:
    """All random states as they are now; calling the result puts them back."""
    python, cpu = random.getstate(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    numpy = sys.modules.get("numpy")
    array = numpy.random.get_state() if numpy is not None else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if numpy is not None:
            numpy.random.set_state(array)

    return restore


def _process_state() -> Callable[[], None]:
    numbers, dtype = random_state(), torch.get_default_dtype()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path is one opaque kernel per layer

    def restore() -> None:
        numbers()
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(fast)

    return restore


def _model_state(model: nn.Module) -> Callable[[], None]:
    """Remember each module's attributes one container deep, and each parameter's flags."""
    saved: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]] = []
    for module in model.modules():
        own = dict(module.__dict__)
        saved.append((module, own, [(v, _content(v)) for v in own.values() if isinstance(v, _CONTAINERS)]))
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, own, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(own)
            for container, content in containers:
                _refill(container, content)
        for module, training in modes:
            if module.training is not training:  # a scripted module keeps the flag elsewhere
                module.training = training
        for parameter, requires_grad, grad in flags:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad

    return restore


def _content(container: Any) -> Any:
    """What a container holds, as a plain one: classes of its own may copy otherwise, or refuse to."""
    return next(plain(container) for plain in _CONTAINERS if isinstance(container, plain))


def _refill(container: Any, content: Any) -> None:
    """Put back what a container held; one that is as it was is not touched, for it may be read-only."""
    if isinstance(container, dict):
        now, before = ([part for item in each.items() for part in item] for each in (container, content))
    else:
        now, before = list(container), list(content)
    if len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True)):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


class _Journal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a copy of an owned tensor just before the first operation that writes into it; restores at exit.

    Costs nothing for the many tensors that no operation writes into.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    supports_higher_order_operators = True

    def __init__(self, owned: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners: dict[int, list[Tensor]] = {}
        self._copies: dict[int, list[tuple[Tensor, Tensor, int]]] = {}
        for tensor in owned:
            if key := _storage(tensor):
                self._owners.setdefault(key, []).append(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in written(func, args, kwargs):
            key = _storage(tensor)
            if key in self._owners and key not in self._copies:
                with torch.no_grad():
                    self._copies[key] = [(t, t.detach().clone(), _version(t)) for t in self._owners[key]]
        return func(*args, **kwargs)

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for kept in self._copies.values():
            for tensor, copy, version in kept:
                _put_back(tensor, copy, version)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _put_back(tensor: Tensor, copy: Tensor, version: int) -> None:
    """Also the count of writes, so that a graph of the user's that saved the tensor can still go backward."""
    tensor.data.copy_(copy)
    if version >= 0:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments that its schema says it writes into."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found: list[Any] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _storage(tensor: Tensor) -> int:
    """The address of the tensor's memory; 0 where it has none (meta, fake and wrapped tensors)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
