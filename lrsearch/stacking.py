"""Several copies of a model as one: each parameter is a tensor with one row per copy, and one pass serves all copies.

Known layers are written out for all copies at once (HFTA's rules, Wang et al., MLSys 2021, https://arxiv.org/abs/2102.02344:
copies side by side in the channels, convolutions in groups); anything else goes through `torch.func.vmap`.
"""

from __future__ import annotations

import ctypes
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lrsearch import chance
from lrsearch.as_alone import AsAlone
from lrsearch.contents import Contents, is_equal
from lrsearch.restore import find, find_among
from lrsearch.stacked_program import Program
from lrsearch.stacked_values import Layout, Value, to_stacked

SLOW_IN_VMAP = "There is a performance drop because we have not yet implemented the batching rule"
"""What torch warns of; whether training together pays is measured anyway."""
warnings.filterwarnings("ignore", SLOW_IN_VMAP, UserWarning)


DEEPEST = 4
"""Levels of what a module holds that are looked at: a list in an object in a dictionary of the module."""

MULTIPLIED: dict[type[nn.Module], str] = {nn.Linear: "weight", nn.MultiheadAttention: "in_proj_weight"}
"""Modules with the matrix that their inputs are multiplied with."""


class StackedModel:
    """`count` copies of `model`, with the same weights to begin with.

    `parameters` and `buffers` hold, by name, one tensor with a row per copy. Training and evaluation mode are
    `model`'s own, whose weights are never used. A call with inputs for all copies, or with a Value that holds each
    one's own, returns the outputs, (K, N, ...).

    Raises ValueError for a model with hooks on its gradients, which nobody would call, or with a part that torch.jit
    has compiled, as nobody sees what that holds.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        if any(part._backward_hooks or part._backward_pre_hooks for part in model.modules()) or any(
            one._backward_hooks or getattr(one, "_post_accumulate_grad_hooks", None) for one in model.parameters()
        ):
            raise ValueError("the model has hooks on its gradients, which only a model alone calls")
        if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
            raise ValueError("a part of the model is compiled by torch.jit")
        self.model = model
        self.count = count
        # A product's gradient comes out transposed; where weights lie so too, an optimiser goes through both in order.
        turned = {
            f"{name}.{MULTIPLIED[kind]}"
            for name, module in model.named_modules()
            for kind in MULTIPLIED
            if isinstance(module, kind)
        }
        self.turned = frozenset(tuple(one.shape) for name, one in model.named_parameters() if name in turned)
        self.parameters = {
            name: _copies(one.mT.contiguous(), count).mT if name in turned else _copies(one, count)
            for name, one in model.named_parameters()
        }
        self.buffers = {name: _copies(one, count) for name, one in model.named_buffers()}
        for name, parameter in model.named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)
        self.own: set[int] = set()
        """The ids of the tensors of all models that it was made of, with which no copy computes."""
        self._note_own(model)
        self._shared = {name: (self.parameters | self.buffers)[name].detach()[:1].clone() for name in _shared(model)}
        """What shares its memory with something else, as it begins: it may not change."""
        for name in self._shared:
            if name in self.parameters and self.parameters[name].requires_grad:
                raise ValueError(f"something that the model holds lies in the memory of its {name}")
        self._first = [*model.parameters(), *model.buffers()]
        self._trained = [one.requires_grad for one in model.parameters()]
        self._programs: dict[bool, Program | None] = {}
        self._seen = _Seen()
        first = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
        everywhere = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._own_name = {name: first[id(one)] for name, one in everywhere}
        # A part that goes by several names is one place: torch would put back what it has put there itself.
        self._places = {
            f"{prefix}.{name}".removeprefix("."): first[id(one)]
            for prefix, part in model.named_modules()
            for name, one in (*part._parameters.items(), *part._buffers.items())
            if one is not None
        }
        """By each place of a weight or buffer, its name."""

    def _note_own(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            self.own.add(id(tensor))
            weakref.finalize(tensor, self.own.discard, id(tensor)).atexit = False  # another may have it afterwards

    def __call__(self, inputs: Any) -> torch.Tensor:
        training = self.model.training
        self.look_again()
        if training not in self._programs:
            by_vmap = None in self._programs.values()  # one of both ways for training and evaluation
            self._programs[training] = None if by_vmap else Program.of(self.model)
        program = self._programs[training]
        if program is not None and isinstance(inputs, (torch.Tensor, Value)):
            return program.run(self, inputs if isinstance(inputs, Value) else Value(Layout.SHARED, inputs))

        def call(own: dict[str, torch.Tensor], inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            placed = {place: own[name] for place, name in self._places.items()}
            for name in self.parameters:  # for `self.weight += 1`, and whoever asks whether it is one
                own[name]._is_param = True  # by which nn.Parameter knows its own
            counts = [own[name] for name, buffer in self.buffers.items() if _is_count(buffer)]
            with AsAlone(self.own, self.turned, counts):
                outputs = functional_call(self.model, placed, (inputs,), tie_weights=False)
            if any(placed[name] is not own[name] for name in self.parameters):
                raise ValueError("the model puts other weights or buffers in the place of its own")
            if any(placed[place] is not own[name] for place, name in self._places.items() if place != name):
                raise ValueError("the model puts another tensor in the place of a buffer that goes by two names")
            return outputs, {name: placed[name] for name in self.buffers}  # functional_call puts replaced ones there

        own = self.parameters | self.buffers
        if isinstance(inputs, Value):
            outputs, buffers = vmap(call, randomness="same")(own, to_stacked(inputs, self.count))
        else:
            outputs, buffers = vmap(partial(call, inputs=inputs), randomness="same")(own)
        with torch.inference_mode(False):  # for training to go on with
            self.buffers = {name: buffer.detach() if training else buffer.clone() for name, buffer in buffers.items()}
        result: torch.Tensor = outputs
        return result

    def look_again(self) -> None:
        """Notice what a change of the model's mode has changed in it; to be called after each that no call follows.

        Raises ValueError when the model has or trains other weights than to begin with.
        """
        if self.model.training is not self._seen.mode:
            self._check_own()
        if self._seen.is_other(self.model):
            self._programs.update({True: None, False: None})

    def is_still(self) -> bool:
        """Whether the model holds what it did when it was last looked at."""
        return self._seen.is_still()

    def versions(self) -> list[int]:
        """Return numbers that tell whether something has written to the parameters since."""
        return [one._version for one in self.parameters.values()]

    def _check_own(self) -> None:
        own = [*self.model.parameters(), *self.model.buffers()]
        if len(own) != len(self._first) or any(a is not b for a, b in zip(own, self._first, strict=True)):
            raise ValueError("the model puts other weights or buffers in the place of its own")
        if self.model.training and self._trained != [one.requires_grad for one in self.model.parameters()]:
            raise ValueError("the model freezes weights on the way, or trains what was frozen")
        for name, before in self._shared.items():
            now = (self.parameters | self.buffers)[name]
            if not is_equal(now, before.expand_as(now)):
                raise ValueError(f"something that the model holds lies in the memory of its {name}, which changes")

    @property
    def replaces_buffers(self) -> bool:
        """Whether a step or an evaluation so far has put other tensors in the place of the buffers."""
        return bool(self.buffers) and None in self._programs.values()

    def begin_as(self, model: nn.Module, rows: slice) -> None:
        """Give those copies the weights of another model. Raises ValueError when it is not made like the first."""
        if not _made_alike(model, self.model):
            raise ValueError("with another seed the model is made in another way")
        own = dict((*model.named_parameters(), *model.named_buffers()))
        self._note_own(model)
        with torch.no_grad():
            for name, tensor in (self.parameters | self.buffers).items():
                tensor[rows] = own[name]

    def part(self, rows: slice) -> StackedModel:
        """Return those copies as a model whose parameters are views of this one's."""
        for kept in _kept(self.model):  # outside of vmap it is no tensor
            raise _cannot_keep(self.model, kept)
        part = copy(self)
        part.parameters = {name: tensor[rows] for name, tensor in self.parameters.items()}
        part.buffers = {name: tensor[rows] for name, tensor in self.buffers.items()}
        part.count = len(range(self.count)[rows])
        return part

    def take_buffers(self, part: StackedModel, rows: slice) -> None:
        """Take over what `part` has in the place of its buffers since it was made."""
        if part is not self:
            with torch.no_grad():
                for name, tensor in self.buffers.items():
                    tensor[rows] = part.buffers[name]

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other copies go, also from what the model keeps of them. Raises ValueError where that cannot be."""
        index = torch.tensor(rows, device=next(iter(self.parameters.values())).device)
        for kept in _kept(self.model):
            try:
                torch.utils.swap_tensors(kept, _rows_of_kept(kept, index))  # type: ignore[no-untyped-call]  # torch's
            except RuntimeError as error:
                raise _cannot_keep(self.model, kept) from error
        for tensors in (self.parameters, self.buffers):
            for name, tensor in tensors.items():
                tensors[name] = select_rows(tensor.detach(), index).requires_grad_(tensor.requires_grad)
        self.count = len(rows)

    def state_dict(self, row: int) -> dict[str, torch.Tensor]:
        """Return what `state_dict` of that copy alone would be, with the versions of its parts, which some look at.

        What a part adds to it that is neither weight nor buffer (`get_extra_state`) is that of all copies.
        """
        own, like = self.parameters | self.buffers, self.model.state_dict()
        state = OrderedDict(
            (name, own[self._own_name[name]].detach()[row].clone() if name in self._own_name else value)
            for name, value in like.items()
        )
        vars(state)["_metadata"] = getattr(like, "_metadata", {})
        return state


def _is_count(buffer: torch.Tensor) -> bool:
    """Whether a buffer of all copies may count something, such as steps: one number for each, or whole ones."""
    return not (buffer.is_floating_point() or buffer.is_complex()) or buffer.ndim == 1 or buffer[0].numel() == 1


def _kept(model: nn.Module) -> list[torch.Tensor]:
    """Return what vmap has computed and parts of the model keep, each once, in however many places."""
    found = find_among((held for _, held in _held(model)), torch.Tensor)
    return [one for one in found if torch._C._functorch.is_batchedtensor(one)]


def _held(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of the model's parts, without weights, buffers, parts, and what torch puts there anew."""
    for part in model.modules():
        not_own = {"_parameters", "_buffers", "_modules"} | made_anew(part)
        yield from ((name, held) for name, held in vars(part).items() if name not in not_own)


def _cannot_keep(model: nn.Module, kept: torch.Tensor) -> ValueError:
    holders = (name for name, held in _held(model) if any(one is kept for one in find(held, torch.Tensor)))
    return ValueError(f"the model keeps what it has computed as an attribute, {next(holders)}, that is no buffer")


def _rows_of_kept(kept: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    numbers, side = torch._C._functorch.get_unwrapped(kept), torch._C._functorch.maybe_get_bdim(kept)
    level = torch._C._functorch.maybe_get_level(kept)
    return torch._C._functorch._add_batch_dim(numbers.index_select(side, index), side, level)


def made_anew(part: nn.Module) -> set[str]:
    """Return the attributes that torch puts there before each call, such as a normed weight."""
    hooks = part._forward_pre_hooks.values()
    return {
        *(("_flat_weights", "_flat_weight_refs") if isinstance(part, nn.RNNBase) else ()),
        *(hook.name for hook in hooks if isinstance(hook, (WeightNorm, SpectralNorm))),
        *(hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)),
    }


class ModelContents(Contents):
    """What a model holds; what torch puts into its parts before each call is put back when it is looked at."""

    def __init__(self, model: nn.Module, *others: object, copies: bool = False) -> None:
        super().__init__(model, *others, copies=copies)
        self._anew = [(vars(part), name, vars(part).get(name)) for part in model.modules() for name in made_anew(part)]

    def is_still(self) -> bool:
        for held, name, before in self._anew:
            held[name] = before
        return super().is_still()


def _shared(model: nn.Module) -> set[str]:
    """Return the names of the weights and buffers with which something else that the model holds shares a number.

    A copy's lie in another memory, so that this would know nothing of what they become.
    """
    own = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
    parts = [(vars(part), made_anew(part)) for part in model.modules()]
    sources = [[one for name, one in held.items() if name not in anew] for held, anew in parts]
    shared, before = set[str](), list[tuple[_Place, Any]]()
    for place, array in sorted(
        ((place, one) for one in find_among(sources, torch.Tensor | np.ndarray) if (place := _place_of(one))),
        key=lambda placed: placed[0],
    ):
        before = [(other, one) for other, one in before if other.memory == place.memory and other.end > place.begin]
        for other, one in before:
            names = {own[id(each)] for each in (array, one) if id(each) in own}
            if not names <= shared and _overlap(_outline(place, array), _outline(other, one)):
                shared |= names
        before.append((place, array))
    return shared


class _Place(NamedTuple):
    """Where a tensor or an array begins and ends, in which memory."""

    memory: tuple[str, int]
    begin: int
    end: int


def _place_of(array: Any) -> _Place | None:
    """Return None for one without numbers of its own there."""
    if isinstance(array, np.ndarray):
        return _Place(("cpu", 0), *np.lib.array_utils.byte_bounds(array)) if array.size else None
    if array.layout is not torch.strided or not array.numel() or array.is_meta:
        return None
    try:
        begin, memory = array.data_ptr(), ("cpu", 0)
    except RuntimeError:  # a kind of tensor that lies nowhere
        return None
    if array.device.type != "cpu":  # where an address may be that of something else
        begin = FAR_FROM_NOTHING + array.storage_offset() * array.element_size()
        memory = (str(array.device), array.untyped_storage()._cdata)
    reach = sum((size - 1) * stride for size, stride in zip(array.shape, array.stride(), strict=True)) + 1
    return _Place(memory, begin, begin + reach * array.element_size())


FAR_FROM_NOTHING = 2**20
"""An address that numpy takes for one."""


def _outline(place: _Place, array: Any) -> np.ndarray[Any, Any]:
    """Return an array with numbers in the same places, none of which is ever read."""
    if isinstance(array, np.ndarray):
        return array
    size = array.element_size()
    memory = (ctypes.c_char * (place.end - place.begin)).from_address(place.begin)
    strides = [stride * size for stride in array.stride()]
    return np.ndarray(tuple(array.shape), f"V{size}", memory, strides=strides)  # type: ignore[arg-type]  # it is one


def _overlap(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    try:
        return bool(np.shares_memory(one, other, max_work=100_000))  # type: ignore[arg-type]  # any number will do
    except np.exceptions.TooHardError:
        return True


def _made_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models differ in nothing but the numbers in their parameters and buffers."""
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        for model in (one, other)
    ]
    kinds = [
        [(name, type_before_parametrizations(part)) for name, part in model.named_modules()] for model in (one, other)
    ]
    return (
        shapes[0] == shapes[1]
        and kinds[0] == kinds[1]
        and all(_holds_alike(vars(a), vars(b)) for a, b in zip(one.modules(), other.modules(), strict=True))
    )


def _holds_alike(one: Any, other: Any, depth: int = DEEPEST) -> bool:
    """Whether two modules, or things that they hold, hold the same values; weights and parts apart."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        own = one.keys() - {"_parameters", "_buffers", "_modules", "_flat_weights"}  # which are parameters, too
        return one.keys() == other.keys() and all(
            _holds_alike(_unnumbered(key, one[key]), _unnumbered(key, other[key]), depth) for key in own
        )
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(_holds_alike(a, b, depth) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        return bool(np.array_equal(one, other))
    if isinstance(one, (bool, int, float, complex, str, bytes, set, frozenset)):
        return bool(one == other)
    if isinstance(one, nn.Module):  # in a list or behind another name, where the model does not know of it
        return chance.is_alike(one.state_dict(), other.state_dict())
    if isinstance(one, partial):
        return _holds_alike((one.func, one.args, one.keywords), (other.func, other.args, other.keywords), depth)
    if isinstance(one, FunctionType):
        free = [[cell.cell_contents for cell in function.__closure__ or ()] for function in (one, other)]
        return one.__code__ == other.__code__ and (depth == 0 or _holds_alike(free[0], free[1], depth - 1))
    held = None if depth == 0 or isinstance(one, (type, ModuleType)) else getattr(one, "__dict__", None)
    return held is None or _holds_alike(held, getattr(other, "__dict__", None), depth - 1)


def _unnumbered(name: Any, held: Any) -> Any:
    """Return the hooks alone where a module holds such: torch numbers them over all modules."""
    is_hooks = isinstance(held, dict) and isinstance(name, str) and name.endswith("_hooks")
    return list(held.values()) if is_hooks else held


def select_rows(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return those rows; the layout of what is in a row stays."""
    size, own = tensor[0].numel(), tensor.stride()[1:]
    if sum((side - 1) * stride for side, stride in zip(tensor.shape[1:], own, strict=True)) + 1 != size:
        return tensor.index_select(0, index)  # a row has holes or overlaps
    strides = (size, *own)
    kept = torch.empty_strided((len(index), *tensor.shape[1:]), strides, dtype=tensor.dtype, device=tensor.device)
    return kept.copy_(tensor.index_select(0, index))


def _copies(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Return (count, ...) in new memory; the layout of each copy is that of `tensor`."""
    return select_rows(tensor.detach().unsqueeze(0), torch.zeros(count, dtype=torch.int64, device=tensor.device))


class _Seen:
    """What a model held when its mode last changed: what a program has read once may be another by now."""

    def __init__(self) -> None:
        self.mode: bool | None = None
        self._held: ModelContents | None = None
        self._looks = 3

    def is_other(self, model: nn.Module) -> bool:
        """Whether the model has changed its mode since the last call, and by then holds something else.

        Between the first steps, too: the loss or the data may change what the model reads.
        """
        if model.training is self.mode:
            if not (model.training and self._looks):
                return False
            self._looks -= 1
        self.mode = model.training
        if self.is_still():
            return False
        is_first, self._held = self._held is None, ModelContents(model)
        return not is_first

    def is_still(self) -> bool:
        """Whether the model holds what it did at the last look."""
        return self._held is not None and self._held.is_still()
