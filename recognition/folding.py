"""BatchNorm in eval mode folded into the convolution or linear map in front of it: one pass over the maps for two.

    BN(W∗x + b) = (s·W)∗x + s·(b − μ) + β,   s = γ/√(σ² + ε)

exact but for rounding. The unfolded module stays the state; its folded copy shares every other tensor with it and is
filled anew, a pass over the weights, when a tensor that it was made of has changed.
A norm in front of a padded convolution stays: the zeros of the border are not what it would make of them.
Proven by tests/recognition/test_folding.py.
"""

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Map = nn.Conv2d | nn.Linear


class _Fold(NamedTuple):
    """A map and the norm behind it, in the module, and the map in the copy that is filled."""

    map: Any
    norm: Any
    filled: Any


class Folded:
    """A copy of `module` to run in eval mode without gradient; `module` may change in place and must not otherwise.

    example: an image batch on the meta device, by which it is found what stands in front of each norm.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.module = copy.deepcopy(module, shared).requires_grad_(False).eval()
        parts: dict[str, Any] = dict(module.named_modules())
        self._folds: list[_Fold] = []
        for in_front, norm in pairs(module, example):
            mine: Any = self.module.get_submodule(in_front)
            mine.weight = nn.Parameter(torch.empty_like(mine.weight), requires_grad=False)
            mine.bias = nn.Parameter(torch.empty_like(parts[norm].bias), requires_grad=False)
            holder, _, name = norm.rpartition(".")
            setattr(self.module.get_submodule(holder), name, nn.Identity())
            self._folds.append(_Fold(parts[in_front], parts[norm], mine))
        self._sources = [
            tensor for one in self._folds
            for tensor in (*one.map.parameters(), *one.norm.parameters(), one.norm.running_mean, one.norm.running_var)
        ]
        self._versions: list[int] = []
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fill the copy's weights from those of the module, if they have changed since the last time."""
        versions = [tensor._version for tensor in self._sources]
        if versions == self._versions or not self._folds:
            return
        self._versions = versions
        norms = [fold.norm for fold in self._folds]
        scale = torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms])
        torch._foreach_rsqrt_(scale)
        torch._foreach_mul_(scale, [norm.weight for norm in norms])
        shift = torch._foreach_mul([norm.running_mean for norm in norms], scale)
        for (read, norm, filled), s, t in zip(self._folds, scale, shift, strict=True):
            torch.mul(read.weight, s.view(-1, *[1] * (read.weight.ndim - 1)), out=filled.weight)
            torch.sub(norm.bias, t, out=filled.bias)
            if read.bias is not None:
                filled.bias.addcmul_(read.bias, s)


def pairs(module: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions or linear maps and of the BatchNorms that alone read them, in one forward of `example`."""
    watched = copy.deepcopy(module).to("meta").eval()
    names = {part: name for name, part in watched.named_modules()}
    made_by: dict[int, str] = {}
    read: list[tuple[str, int, str]] = []
    calls: Counter[str] = Counter()
    kept: list[Any] = []  # an id means something only while its tensor lives

    def note(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[names[part]] += 1
        kept.extend((inputs, output))
        if isinstance(part, Map):
            made_by[id(output)] = names[part]
        elif isinstance(part, _BatchNorm) and part.affine and part.track_running_stats:
            read.append((made_by.get(id(inputs[0]), ""), id(inputs[0]), names[part]))

    for part in watched.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | _BatchNorm):
            part.register_forward_hook(note)
    with torch.no_grad(), _Uses() as uses:
        watched(example)
    return [
        (in_front, norm) for in_front, tensor, norm in read
        if in_front and uses.counts[tensor] == 1 and calls[in_front] == calls[norm] == 1
    ]


class _Uses(TorchFunctionMode):
    """Counts how often each tensor goes into a function of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, bool | int | torch.dtype | torch.device | torch.Size):  # of questions, as x.dim()
            self.counts.update(id(tensor) for tensor in (*args, *(kwargs or {}).values()) if isinstance(tensor, Tensor))
            self._kept.append((args, result))
        return result
