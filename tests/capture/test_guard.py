"""The model and the process are left exactly as found, whatever the model does and also when it raises."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxplain.capture.capture import capture
from fxplain.capture.guard import quiet, untouched, values_kept
from fxplain.capture.verify import verify
from fxplain.errors import InputError

torch.set_num_threads(1)


class Messy(nn.Module):
    """Changes all it can reach while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, max_norm=0.1)  # renormalises its own weight in place
        self.proj = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("swapped", torch.zeros(2), persistent=False)
        self.plain = torch.ones(2)
        self.seen: list[int] = []
        self.drop = nn.Dropout(0.5)
        self.fails = False

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        self.swapped = self.swapped + 1
        self.plain.mul_(2)
        self.seen.append(len(self.seen))
        self.count = len(self.seen)
        x.mul_(2)
        random.random()
        np.random.rand()
        torch.rand(1)
        if self.fails:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(True)
            warnings.simplefilter("always")
            self.register_forward_hook(lambda *_: None)
            self.proj.weight.requires_grad_(False)
            self.proj.weight.grad = None
            raise ValueError("no luck")
        y = self.drop(self.embed(ids)) + x
        return torch.softmax(self.proj(y) @ y.mT, -1) @ y + self.plain.sum() + self.calls.sum()


def messy() -> tuple[Messy, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Messy().train()
    model.drop.eval()
    model.embed.requires_grad_(False)
    model.proj.weight.grad = torch.ones(4, 4)
    model.proj.register_forward_hook(lambda *_: None)
    return model, torch.tensor([[0, 1, 2]]), torch.randn(1, 3, 4)


def seen_from_outside(model: nn.Module, *inputs: Tensor) -> list[Any]:
    """All that a user could notice, in a form that compares."""
    state: list[Any] = [
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[union-attr, index]
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        list(warnings.filters),
        len(nn.modules.module._global_forward_hooks),
        len(nn.modules.module._global_forward_pre_hooks),
        [tensor.tolist() for tensor in inputs],
        [tensor.requires_grad for tensor in inputs],
    ]
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if not isinstance(v, Tensor)}
        state += [
            name,
            module.training,
            {k: list(v) if hasattr(v, "__iter__") else v for k, v in own.items()},
        ]
        state += [(k, id(v), v.tolist()) for k, v in vars(module).items() if isinstance(v, Tensor)]
        state += [(k, id(v), v.tolist()) for k, v in module._buffers.items() if v is not None]
    for name, p in model.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        state += [name, id(p), p.tolist(), p.requires_grad, grad, p._backward_hooks]
    return state


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_capture_and_verify_leave_everything_as_found(mode: Any) -> None:
    model, ids, x = messy()
    with mode():
        before = seen_from_outside(model, ids, x)
        captured = capture(model, (ids, x), {})
        assert seen_from_outside(model, ids, x) == before
        verify(captured, (ids, x), {})
        assert seen_from_outside(model, ids, x) == before


def test_also_when_the_model_raises() -> None:
    model, ids, x = messy()
    model.fails = True
    before = seen_from_outside(model, ids, x)
    with pytest.raises(InputError, match="ValueError: no luck"):
        capture(model, (ids, x), {})
    assert seen_from_outside(model, ids, x) == before


def test_captured_graph_reads_the_live_model_and_keeps_its_values() -> None:
    model, ids, x = messy()
    captured = capture(model, (ids, x), {})
    bound = captured.bind((ids, x), {})
    by_path = {p.path: bound[p.node] for p in captured.placeholders}
    assert by_path["proj.weight"].data_ptr() == model.proj.weight.data_ptr()
    before = seen_from_outside(model, ids, x)
    torch.fx.Interpreter(captured.graph).run(*bound.values())
    after = seen_from_outside(model, ids, x)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed in ([], [2])  # the graph may draw random numbers, as the model does


def test_values_written_through_views_and_lists_are_restored() -> None:
    model = nn.Linear(3, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    with torch.no_grad(), values_kept(model):
        model.weight.view(-1)[0] = 9
        model.weight.mul_(2)
        torch._foreach_add_([model.bias], 1.0)
        assert model.weight[0, 0] == 18
    assert torch.equal(model.weight, weight)
    assert torch.equal(model.bias, bias)


def test_an_in_between_training_graph_survives() -> None:
    """A loss that was computed before the capture can still be sent backward after it."""
    model, ids, x = messy()
    model.fails = False
    loss = (model.proj(x) * model.calls.sum() + model.plain.sum() * x.exp()).sum()
    capture(model, (ids, x), {})
    loss.backward()


def test_scripted_modules_keep_their_flags() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Dropout())).train()
    with untouched(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_quiet_restores_logging() -> None:
    import logging

    with quiet():
        assert not logging.getLogger("torch.export").isEnabledFor(logging.ERROR)
    assert logging.getLogger("torch.export").isEnabledFor(logging.ERROR)


def test_quiet_lets_no_warning_through() -> None:
    """Some releases of torch warn of their own code when they read a program."""
    with quiet():
        warnings.warn("of torch's own code", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="the user's"):
        warnings.warn("the user's", UserWarning, stacklevel=1)


def test_a_read_only_mapping_of_a_module_is_left_alone() -> None:
    class Frozen(OrderedDict[str, int]):
        """A configuration that refuses to be written."""

        ready = False

        def __setitem__(self, key: str, value: int) -> None:
            if self.ready:
                raise TypeError("read-only")
            super().__setitem__(key, value)

        def copy(self) -> Frozen:
            raise TypeError("read-only")

    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Frozen(width=3, depth=1)
            self.config.ready = True
            self.calls = [1, 2]

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(3)
            return x * self.config["width"]

    model = Configured()
    with untouched(model):
        model(torch.ones(2))
        assert model.calls == [1, 2, 3]
    assert dict(model.config) == {"width": 3, "depth": 1}
    assert model.calls == [1, 2]
    assert capture(model, (torch.ones(2),), {}).verified == 0
