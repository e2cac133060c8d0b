"""Several copies of a model as one: each parameter is a tensor with one row per copy, and one pass serves all copies.

Known layers are written out for all copies at once (HFTA's rules, Wang et al., MLSys 2021, https://arxiv.org/abs/2102.02344:
copies side by side in the channels, convolutions in groups); anything else goes through `torch.func.vmap`.
"""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from enum import Enum
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call, vmap
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from lrsearch import chance
from lrsearch.as_alone import DESCRIBING, AsAlone, tensors_of
from lrsearch.attention import multi_head_attention
from lrsearch.contents import Contents, is_equal
from lrsearch.convolution import convolve
from lrsearch.linear import linear
from lrsearch.recurrence import recurrent
from lrsearch.restore import find_generators

SLOW_IN_VMAP = "There is a performance drop because we have not yet implemented the batching rule"
"""What torch warns of; whether training together pays is measured anyway."""
warnings.filterwarnings("ignore", SLOW_IN_VMAP, UserWarning)


DEEPEST = 4
"""Levels of what a module holds that are looked at: a list in an object in a dictionary of the module."""


class Layout(Enum):
    """How a value of the copies lies in one tensor. K copies, N rows (examples), C channels."""

    SHARED = "shared"
    """(N, ...): the same for all copies."""
    STACKED = "stacked"
    """(K, N, ...), or (K, ...) for a parameter."""
    FOLDED = "folded"
    """(N, K * C, ...): the channels of the copies beside each other."""


class Value(NamedTuple):
    """A tensor on its way through the copies."""

    layout: Layout
    tensor: torch.Tensor


MULTIPLIED: dict[type[nn.Module], str] = {nn.Linear: "weight", nn.MultiheadAttention: "in_proj_weight"}
"""Modules with the matrix that their inputs are multiplied with."""


class StackedModel:
    """`count` copies of `model`, with the same weights to begin with.

    `parameters` and `buffers` hold, by name, one tensor with a row per copy. Training and evaluation mode are
    `model`'s own, whose weights are never used. A call with inputs for all copies, or with a Value that holds each
    one's own, returns the outputs, (K, N, ...).

    Raises ValueError for a model with hooks on its gradients: nobody would call them.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        if any(part._backward_hooks or part._backward_pre_hooks for part in model.modules()) or any(
            one._backward_hooks or getattr(one, "_post_accumulate_grad_hooks", None) for one in model.parameters()
        ):
            raise ValueError("the model has hooks on its gradients, which only a model alone calls")
        self.model = model
        self.count = count
        # A product's gradient comes out transposed; where weights lie so too, an optimiser goes through both in order.
        turned = {
            f"{name}.{MULTIPLIED[kind]}"
            for name, module in model.named_modules()
            for kind in MULTIPLIED
            if isinstance(module, kind)
        }
        self.parameters = {
            name: _copies(one.mT.contiguous(), count).mT if name in turned else _copies(one, count)
            for name, one in model.named_parameters()
        }
        self.buffers = {name: _copies(one, count) for name, one in model.named_buffers()}
        for name, parameter in model.named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)
        self.own = frozenset(map(id, (*model.parameters(), *model.buffers())))
        """The tensors of `model`, with which no copy computes."""
        self._first = [*model.parameters(), *model.buffers()]
        self._trained = [one.requires_grad for one in model.parameters()]
        self._programs: dict[bool, _Program | None] = {}
        self._seen = _Seen()
        first = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
        everywhere = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._own_name = {name: first[id(one)] for name, one in everywhere}

    def __call__(self, inputs: Any) -> torch.Tensor:
        training = self.model.training
        self.look_again()
        if training not in self._programs:
            by_vmap = None in self._programs.values()  # one of both ways for training and evaluation
            self._programs[training] = None if by_vmap else _Program.of(self.model)
        program = self._programs[training]
        if program is not None and isinstance(inputs, (torch.Tensor, Value)):
            return program.run(self, inputs if isinstance(inputs, Value) else Value(Layout.SHARED, inputs))

        def call(own: dict[str, torch.Tensor], inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            with AsAlone(self.own):
                outputs = functional_call(self.model, own, (inputs,))
            return outputs, {name: own[name] for name in self.buffers}  # functional_call puts replaced ones there

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

    def _check_own(self) -> None:
        own = [*self.model.parameters(), *self.model.buffers()]
        if len(own) != len(self._first) or any(a is not b for a, b in zip(own, self._first, strict=True)):
            raise ValueError("the model puts other weights or buffers in the place of its own")
        if self.model.training and self._trained != [one.requires_grad for one in self.model.parameters()]:
            raise ValueError("the model freezes weights on the way, or trains what was frozen")

    @property
    def replaces_buffers(self) -> bool:
        """Whether a step or an evaluation so far has put other tensors in the place of the buffers."""
        return bool(self.buffers) and None in self._programs.values()

    def begin_as(self, model: nn.Module, rows: slice) -> None:
        """Give those copies the weights of another model. Raises ValueError when it is not made like the first."""
        if not _made_alike(model, self.model):
            raise ValueError("with another seed the model is made in another way")
        own = dict((*model.named_parameters(), *model.named_buffers()))
        with torch.no_grad():
            for name, tensor in (self.parameters | self.buffers).items():
                tensor[rows] = own[name]

    def part(self, rows: slice) -> StackedModel:
        """Return those copies as a model whose parameters are views of this one's."""
        _check_kept(self.model)
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
        """Let the other copies go. Raises ValueError where the model keeps something of them."""
        _check_kept(self.model)
        index = torch.tensor(rows, device=next(iter(self.parameters.values())).device)
        for tensors in (self.parameters, self.buffers):
            for name, tensor in tensors.items():
                kept = select_rows(tensor.detach(), index)
                tensors[name] = kept.requires_grad_(tensor.requires_grad)
        self.count = len(rows)

    def state_dict(self, row: int) -> dict[str, torch.Tensor]:
        """Return what `state_dict` of that copy alone would be, with the versions of its parts, which some look at."""
        own, like = self.parameters | self.buffers, self.model.state_dict()
        state = OrderedDict((name, own[self._own_name[name]].detach()[row].clone()) for name in like)
        vars(state)["_metadata"] = getattr(like, "_metadata", {})
        return state


def _check_kept(model: nn.Module) -> None:
    """Raise ValueError when a part of the model keeps what vmap has computed: outside of vmap it is no tensor."""
    for part in model.modules():
        for name, kept in vars(part).items():
            if isinstance(kept, torch.Tensor) and torch._C._functorch.is_batchedtensor(kept):
                raise ValueError(f"the model keeps what it has computed as an attribute, {name}, that is no buffer")


def side_by_side(inputs: Sequence[torch.Tensor]) -> Value:
    """Return the inputs of each copy, (N, ...), as one value; images lie as convolutions take them."""
    if inputs[0].ndim == 4:
        return Value(Layout.FOLDED, torch.cat(list(inputs), 1))
    return Value(Layout.STACKED, torch.stack(list(inputs)))


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
        self._held: Contents | None = None
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
        is_first, self._held = self._held is None, Contents(model)
        return not is_first

    def is_still(self) -> bool:
        """Whether the model holds what it did at the last look."""
        return self._held is not None and self._held.is_still()


Rule = Callable[[StackedModel, list[Any], dict[str, Any]], Any]


class _Program:
    """The steps of a model's forward pass, as torch.fx finds them, each with the rule that does it for all copies."""

    def __init__(
        self,
        graph: fx.Graph,
        model: nn.Module,
        constants: Mapping[str, torch.Tensor],
        need_no_place: Collection[fx.Node],
    ) -> None:
        self._steps: list[tuple[fx.Node, Rule, list[fx.Node]]] = []
        """Nodes with their rules and what nobody needs after them."""
        last_needed = defaultdict[fx.Node, list[fx.Node]](list)
        for one, last in {one: node for node in graph.nodes for one in (node, *node.all_input_nodes)}.items():
            last_needed[last].append(one)
        for node in graph.nodes:
            if node.op == "placeholder":
                self._input = node
            elif node.op == "output":
                self._output = node.args[0]
            else:
                if node in need_no_place:
                    rule = _function_rule(OUT_OF_PLACE[node.target])
                else:
                    rule = _rule(node, model, constants)
                self._steps.append((node, rule, last_needed[node]))

    @classmethod
    def of(cls, model: nn.Module) -> _Program | None:
        """Return the program; None when vmap must have the model as a whole.

        That is when it cannot be traced, ties weights, takes or gives several tensors, has hooks, or when tracing it
        drew chance, changed something or computed with weights: then what its Python does once per step would have been
        done once for all. So it is when it writes into what it makes of numbers alone, or makes other numbers again.
        Raises ValueError when it draws chance from python's or numpy's generators.
        """
        tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        if len(tensors) != len({id(tensor) for _, tensor in tensors}):
            return None
        if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
            return None
        own = find_generators([vars(part) for part in model.modules()])
        drawn, before = chance.snapshot(own), Contents(model, copies=True)
        tracer, again = _Tracer(tensors), _Tracer(tensors)
        graph = tracer.traced(model)
        chance.restore(drawn, own)
        before.restore()
        if before.has_moved_on:
            raise ValueError("the model asks an iterator for another value at each step, which only a model alone may")
        if graph is not None and tracer.apart.computes:
            return None
        graph_again = None if graph is None else again.traced(model)
        if graph is not None and graph_again is not None and _said(graph_again) != _said(graph):
            raise ValueError("the model computes something else at each call, by something outside of it")
        after = chance.snapshot(own)
        chance.restore(drawn, own)
        changed = before.restore()
        if not all(chance.is_alike(drawn[source], after[source]) for source in ("python", "numpy")):
            raise ValueError("the model throws its dice in Python, by which parameters may come and go with each step")
        if graph is None or graph_again is None or not chance.is_alike(drawn, after) or changed:
            return None
        if not all(is_equal(own, again.constants[name]) for name, own in tracer.constants.items()):
            return None
        nodes = list(graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        output = next(node for node in nodes if node.op == "output")
        if len(placeholders) != 1 or not isinstance(output.args[0], fx.Node):
            return None
        aliases = _Aliases(nodes, model)
        if aliases.may_write_into(tracer.constants):
            return None
        if aliases.writes_into_views():
            raise ValueError("the model writes into what it has reshaped, which in a gang may be another memory")
        return cls(graph, model, tracer.constants, aliases.need_no_place())

    def run(self, stacked: StackedModel, inputs: Value) -> torch.Tensor:
        values: dict[fx.Node, Any] = {self._input: inputs}
        for node, rule, last_needed in self._steps:
            arguments = [_filled(argument, values) for argument in node.args]
            keywords = {key: _filled(argument, values) for key, argument in node.kwargs.items()}
            values[node] = rule(stacked, arguments, keywords)
            for one in last_needed:  # the next one finds its memory in the processor's cache
                del values[one]
        return to_stacked(values[self._output], stacked.count)


RESHAPING = (
    *("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel"),
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16"),
)
"""What gives the same memory or another, as the tensor lies."""
VIEWING = (
    *("getitem", "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "narrow", "select"),
    *("squeeze", "unsqueeze", "detach", "chunk", "split", "tensor_split", "unbind", "expand", "expand_as", "diagonal"),
    *("broadcast_to", "unfold", "as_strided", "hsplit", "vsplit", "dsplit", "view_as_real", "view_as_complex"),
    *("pos", "positive", "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout"),
    *("alpha_dropout", "feature_dropout", "featurealphadropout", "feature_alpha_dropout"),
)
"""What may give the same memory, as dropout does in an evaluation."""
VIEWING_ATTRIBUTES = ("T", "mT", "H", "mH", "data", "real", "imag")


ALWAYS_NEW = frozenset(
    (
        *("add", "sub", "rsub", "mul", "truediv", "div", "pow", "neg", "matmul", "bmm", "mm", "linear", "cat", "stack"),
        *("and", "or", "xor", "not", "invert", "lt", "le", "gt", "ge", "eq", "ne", "where", "masked_fill", "softmax"),
        *("log_softmax", "sigmoid", "tanh", "relu", "gelu", "silu", "sum", "mean", "layer_norm", "embedding"),
        *("scaled_dot_product_attention", "sin", "cos", "exp"),
    )
)
"""What gives other memory than it is given, unless it is told to write in place."""


class _Aliases:
    """Which nodes of a graph are views of the same memory."""

    def __init__(self, nodes: Sequence[fx.Node], model: nn.Module) -> None:
        self._model = model
        self._place = {node: number for number, node in enumerate(nodes)}

    def may_write_into(self, names: Collection[str]) -> bool:
        """Whether a node may change what is read as one of those attributes, or a view of that."""
        shared = set[fx.Node]()
        for node in self._place:
            is_read = not shared.isdisjoint(node.all_input_nodes)
            if is_read and _may_write(node, self._model):
                return True
            if (node.op == "get_attr" and node.target in names) or (is_read and not _is_new(node, self._model)):
                shared.add(node)
        return False

    def writes_into_views(self) -> bool:
        """Whether a node changes in place what a reshaping has given, and what that was made of is used afterwards."""
        for node in self._place:
            reshaped = self._source(node) if _writes(node, self._model) else None
            while reshaped is not None and _kind(reshaped, self._model) not in RESHAPING:
                reshaped = self._source(reshaped)
            if reshaped is not None and self._is_used_after(node, reshaped):
                return True
        return False

    def need_no_place(self) -> set[fx.Node]:
        """Return the nodes such as `x += y` that may as well make another tensor: nothing sees the old one again."""
        return {
            node
            for node in self._place
            if node.target in OUT_OF_PLACE
            and isinstance(node.args[0], fx.Node)
            and self._first(node).op != "get_attr"
            and not self._is_used_after(node, node)
        }

    def _is_view(self, node: fx.Node) -> bool:
        return _kind(node, self._model) in (*RESHAPING, *VIEWING) or _writes(node, self._model)

    def _source(self, node: fx.Node) -> fx.Node | None:
        first = node.args[0] if node.args and self._is_view(node) else None
        return first if isinstance(first, fx.Node) else None

    def _first(self, node: fx.Node) -> fx.Node:
        while (source := self._source(node)) is not None:
            node = source
        return node

    def _is_used_after(self, node: fx.Node, own: fx.Node) -> bool:
        """Whether, after `node`, the memory of `own` is used by others than `own` and its views."""
        others, waiting = set[fx.Node](), [self._first(own)]
        while waiting:
            view = waiting.pop()
            if view not in others and view is not own:
                others.add(view)
                waiting += [user for user in view.users if self._source(user) is view]
        return any(
            self._place[user] > self._place[node] and not _describes(user) for view in others for user in view.users
        )


def _describes(node: fx.Node) -> bool:
    """Whether the node asks for a size or the like alone."""
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op == "call_method" and node.target in ("size", "dim", "numel", "stride")


def _writes(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = _kind(node, model)
    if name.startswith("__") or getattr(node.target, "__module__", "") == "_operator":  # also operator.and_
        return name.strip("_") in (*IN_PLACE, "setitem")
    return name.endswith("_") or node.kwargs.get("inplace") is True


def _may_write(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node may change any of what it is given."""
    name = _kind(node, model)
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    by_name = name.startswith("_foreach_") or name in ("batch_norm", "instance_norm") or "max_norm" in node.kwargs
    return by_name or "out" in node.kwargs or _writes(node, model)


def _is_new(node: fx.Node, model: nn.Module) -> bool:
    """Whether what the node gives is sure to be other memory than what it is given."""
    if node.op == "call_module":
        return any(True for _ in model.get_submodule(str(node.target)).parameters())
    return _kind(node, model).strip("_") in ALWAYS_NEW


def _kind(node: fx.Node, model: nn.Module) -> str:
    """Return the name of what the node does."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__.lower()
    if node.target is getattr:
        return VIEWING[0] if node.args[1] in VIEWING_ATTRIBUTES else ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _said(graph: fx.Graph) -> list[Any]:
    """Return what two graphs have in common that compute the same."""
    return [(node.op, str(node.target), repr(node.args), repr(node.kwargs)) for node in graph.nodes]


class _Apart(TorchFunctionMode):
    """Notices, while a model is traced, what it computes apart from the trace: whether with weights, as in a loop over
    `parameters()`, and which tensors of numbers alone, such as a mask.
    """

    def __init__(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        super().__init__()
        self._own = {id(tensor) for _, tensor in tensors}
        self._made: dict[int, torch.Tensor] = {}
        self._spoilt = set[int]()
        """Memory of tensors that were made and have got something else since."""
        self.computes = False

    def has_made(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was made of numbers alone while the model was traced."""
        return self._made.get(id(tensor)) is tensor and _memory(tensor) not in self._spoilt

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(issubclass(kind, fx.Proxy) for kind in types):
            return result
        given = tensors_of(args, kwargs)
        if func not in DESCRIBING:
            self.computes |= not self._own.isdisjoint(map(id, given))
        name = getattr(func, "__name__", "")
        others = any(isinstance(one, (np.ndarray, np.generic, torch.Generator)) for one in (*args, *kwargs.values()))
        of_numbers = func in DESCRIBING or all(map(self.has_made, given))
        if of_numbers and not others and "empty" not in name:
            self._made |= {id(one): one for one in tensors_of((result,), {}) if one.layout is torch.strided}
        else:  # which may write
            self._spoilt |= {_memory(one) for one in given if self._made.get(id(one)) is one}
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


IN_PLACE = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"),
    *("ilshift", "irshift"),
)
OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(operator, name): getattr(operator, name[1:] if hasattr(operator, name[1:]) else f"{name[1:]}_")
    for name in IN_PLACE
}


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is: by itself torch.fx makes another tensor of it, which nothing else sees."""

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name):
            raise TypeError(f"a graph does not say that {name} becomes another")
        super().__setattr__(name, value)


class _Attribute(fx.proxy.Attribute):
    """The same for what is seen as an attribute, such as `x.T`."""


def _recorded_in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


for _name in IN_PLACE:
    for _kind_of_proxy in (_Proxy, _Attribute):
        setattr(_kind_of_proxy, f"__{_name}__", _recorded_in_place(_name))


class _Tracer(fx.Tracer):
    """Records what a model does with its buffers too, as it may write to them.

    What is computed inside `torch.no_grad` or an autocast of the model's own raises, as a graph does not say so.
    """

    proxy_buffer_attributes = True

    def __init__(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        super().__init__()
        self._modes = _modes()
        self.apart = _Apart(tensors)
        self.constants: dict[str, torch.Tensor] = {}
        """What the model makes of numbers alone, such as a mask; by itself torch.fx would have the model hold it."""
        self._made: list[tuple[torch.Tensor, fx.Node]] = []

    def traced(self, model: nn.Module) -> fx.Graph | None:
        """Return the graph of the model; None where there cannot be one."""
        try:
            with self.apart:
                return self.trace(model)
        except Exception:  # a model may do anything while it is traced
            return None

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, torch.Tensor) or isinstance(a, nn.Parameter) or a in self.tensor_attrs:
            return super().create_arg(a)
        if any(a is buffer for buffer in self.root.buffers()):
            return super().create_arg(a)
        if not self.apart.has_made(a):
            raise ValueError("a graph does not say what becomes of a tensor that others hold")
        for made, node in self._made:
            if made is a and is_equal(a, self.constants[str(node.target)]):  # the model has not changed it since
                return node
        name = f"constant {len(self.constants)}"
        self.constants[name], node = a.detach().clone(), self.create_node("get_attr", name, (), {})
        self._made.append((a, node))
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *arguments: Any, **keywords: Any) -> fx.Node:
        if _modes() != self._modes:
            raise ValueError("the model changes how it computes on the way")
        return super().create_node(*arguments, **keywords)


def _modes() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _filled(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    return values[argument] if isinstance(argument, fx.Node) else fx.node.map_arg(argument, values.__getitem__)


def to_stacked(value: Value, count: int) -> torch.Tensor:
    """Return the tensor as (K, N, ...)."""
    if value.layout is Layout.STACKED:
        return value.tensor
    if value.layout is Layout.SHARED:
        return value.tensor.unsqueeze(0).expand(count, *value.tensor.shape)
    rows, channels, *sides = value.tensor.shape
    return value.tensor.view(rows, count, channels // count, *sides).transpose(0, 1)


def _to_folded(value: Value, count: int) -> torch.Tensor:
    """Return the tensor as (N, K * C, ...)."""
    if value.layout is Layout.FOLDED:
        return value.tensor
    return to_stacked(value, count).transpose(0, 1).flatten(1, 2)


# Rules


def _rule(node: fx.Node, model: nn.Module, constants: Mapping[str, torch.Tensor]) -> Rule:
    """Return what does the node's work for all copies."""
    if node.op == "get_attr":
        name = str(node.target)
        return _constant(constants[name]) if name in constants else _attribute(name, model)
    if node.op == "call_module":
        name = str(node.target)
        return _module_rule(name, model.get_submodule(name))
    if node.op == "call_method":
        method = str(node.target)
        if method in ("size", "dim"):
            return _of_one_copy(operator.methodcaller, method)
        function: Callable[..., Any] = getattr(torch.Tensor, method)
    else:
        assert callable(node.target)
        function = node.target
        if function is getattr:
            return _read_attribute
    return _function_rule(function)


def _constant(tensor: torch.Tensor) -> Rule:
    """Return the rule that gives it anew at each call: should a write there go unnoticed, it is no later step's."""
    return lambda stacked, arguments, keywords: Value(Layout.SHARED, tensor.clone())


def _attribute(name: str, model: nn.Module) -> Rule:
    constant = None
    if name not in dict(model.named_parameters()) and name not in dict(model.named_buffers()):
        constant = operator.attrgetter(name)(model)

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if constant is not None:
            return Value(Layout.SHARED, constant) if isinstance(constant, torch.Tensor) else constant
        return Value(Layout.STACKED, (stacked.parameters | stacked.buffers)[name])

    return rule


def _of_one_copy(make: Callable[..., Callable[[torch.Tensor], Any]], method: str) -> Rule:
    """Return the rule for what is no tensor and the same for every copy, such as a size."""

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        value, *others = arguments
        return make(method, *others, **keywords)(_one_copy(value, stacked.count))

    return rule


def _read_attribute(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    value, name = arguments
    if not isinstance(value, Value):
        return getattr(value, name)
    if name in ("shape", "ndim", "dtype", "device"):
        return getattr(_one_copy(value, stacked.count), name)
    return _through_vmap(lambda tensor: getattr(tensor, name), stacked, [value], {})


def _one_copy(value: Value, count: int) -> torch.Tensor:
    return value.tensor if value.layout is Layout.SHARED else to_stacked(value, count)[0]


Elementwise = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Identity,
)
ChannelByChannel = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
ELEMENTWISE_FUNCTIONS = frozenset(
    (
        F.relu,
        torch.relu,
        torch.Tensor.relu,
        torch.tanh,
        torch.Tensor.tanh,
        torch.sigmoid,
        torch.Tensor.sigmoid,
        torch.square,
        torch.Tensor.square,
        F.gelu,
        F.silu,
        F.leaky_relu,
        torch.Tensor.pow,
        operator.neg,
    )
)
CHANNEL_FUNCTIONS = frozenset((F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d))
ARITHMETIC = frozenset(
    (
        *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul),
        *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    )
)


def _module_rule(name: str, module: nn.Module) -> Rule:
    if not type(module).__module__.startswith("torch.nn.") or hasattr(module, "parametrizations"):
        return _any_module(name, module)  # a subclass may do what it likes
    if any(callable(getattr(type(module), own, None)) for own in vars(module)):
        return _any_module(name, module)  # so may one with another method of its own
    if isinstance(module, Elementwise):
        return _same_layout(module)
    if isinstance(module, ChannelByChannel):
        return _channel_by_channel(module)
    if isinstance(module, nn.Linear):
        return _linear(name, module)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        return _convolution(name, module)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _batch_norm(name, module)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(name, module)
    if isinstance(module, nn.Embedding) and not (module.max_norm or module.sparse or module.scale_grad_by_freq):
        return _embedding(name, module)
    if isinstance(module, (nn.Dropout, nn.Dropout2d)):
        return _dropout(module)
    if isinstance(module, nn.RNNBase) and module.proj_size == 0:
        return _recurrent(name, module)
    if isinstance(module, nn.MultiheadAttention) and _is_plain(module):
        return _attention(name, module)
    if isinstance(module, nn.TransformerEncoderLayer):
        return _encoder_layer(name, module)
    if isinstance(module, nn.TransformerEncoder):
        return _encoder(name, module)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        end = module.end_dim
        return lambda stacked, arguments, keywords: _flatten(arguments[0], end, stacked.count)
    return _any_module(name, module)


def _same_layout(function: Callable[..., torch.Tensor]) -> Rule:
    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if len([one for one in (*arguments, *keywords.values()) if isinstance(one, Value)]) != 1 or not (
            arguments and isinstance(arguments[0], Value)
        ):
            return _through_vmap(function, stacked, arguments, keywords)
        value, *others = arguments
        return Value(value.layout, function(value.tensor, *others, **keywords))

    return rule


def _channel_by_channel(function: Callable[..., torch.Tensor]) -> Rule:
    """Return the rule for what treats each channel of (N, C, H, W) alone."""

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if not arguments or arguments[0].tensor.ndim != (5 if arguments[0].layout is Layout.STACKED else 4):
            return _through_vmap(function, stacked, arguments, keywords)  # (C, H, W) has rows for channels
        value, *others = arguments
        if value.layout is Layout.STACKED:
            value = Value(Layout.FOLDED, _to_folded(value, stacked.count))
        outputs = function(value.tensor, *others, **keywords)
        if not isinstance(outputs, torch.Tensor):
            return _through_vmap(function, stacked, arguments, keywords)
        return Value(value.layout, outputs)

    return rule


def _linear(name: str, module: nn.Linear) -> Rule:
    weight_name, bias_name = f"{name}.weight", f"{name}.bias" if module.bias is not None else None
    by_vmap = _any_module(name, module)

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if not arguments or arguments[0].tensor.ndim < (2 if arguments[0].layout is Layout.SHARED else 3):
            return by_vmap(stacked, arguments, keywords)
        inputs = to_stacked(arguments[0], stacked.count)
        rows = inputs.flatten(1, -2) if inputs.ndim != 3 else inputs
        bias = None if bias_name is None else stacked.parameters[bias_name]
        outputs = linear(rows, stacked.parameters[weight_name], bias)
        return Value(Layout.STACKED, outputs.view(*inputs.shape[:-1], outputs.shape[-1]))

    return rule


def _convolution(name: str, module: nn.Conv2d) -> Rule:
    weight_name, bias_name = f"{name}.weight", f"{name}.bias" if module.bias is not None else None
    # With one channel both layouts are the same memory, and only strides tell a convolution which one is wanted.
    one_channel_last = module.in_channels == 1 and module.weight.stride(1) == 1

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        (value,) = arguments
        if one_channel_last and value.layout is Layout.SHARED and not value.tensor.requires_grad:
            height, width = value.tensor.shape[2:]
            like_images = value.tensor.contiguous().as_strided(value.tensor.shape, (height * width, 1, width, 1))
            value = Value(Layout.SHARED, like_images)
        weight = stacked.parameters[weight_name].flatten(0, 1)
        bias = None if bias_name is None else stacked.parameters[bias_name].flatten()
        shape: Any = (module.stride, module.padding, module.dilation)
        if value.layout is Layout.SHARED and module.groups == 1:
            outputs = F.conv2d(value.tensor, weight, bias, *shape)
        else:
            folded, settings = _to_folded(value, stacked.count), (*shape, stacked.count * module.groups)
            alone = stacked.count == 1
            outputs = (F.conv2d if alone else partial(convolve, F.conv2d))(folded, weight, bias, *settings)
        return Value(Layout.FOLDED, outputs)

    return rule


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Rule:
    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        (value,) = arguments
        own = {
            part: tensors[f"{name}.{part}"]
            for tensors in (stacked.parameters, stacked.buffers)
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            if f"{name}.{part}" in tensors
        }
        by_batch = module.training or "running_mean" not in own
        if module.training and "num_batches_tracked" in own:
            own["num_batches_tracked"].add_(1)
        mean, variance, weight, bias = (
            own[part].flatten() if part in own else None for part in ("running_mean", "running_var", "weight", "bias")
        )
        inputs = _to_folded(value, stacked.count)
        if module.momentum is None and module.training and mean is not None and variance is not None:
            found_mean, found_variance = torch.zeros_like(mean), torch.zeros_like(variance)
            outputs = F.batch_norm(inputs, found_mean, found_variance, weight, bias, True, 1.0, module.eps)
            share = own["num_batches_tracked"].to(mean.dtype).reciprocal().unsqueeze(1)  # of each in the average so far
            own["running_mean"].lerp_(found_mean.view(stacked.count, -1), share)
            own["running_var"].lerp_(found_variance.view(stacked.count, -1), share)
        else:
            momentum = module.momentum if module.momentum is not None else 0.0
            outputs = F.batch_norm(inputs, mean, variance, weight, bias, by_batch, momentum, module.eps)
        if outputs.ndim > 2:
            return Value(Layout.FOLDED, outputs)
        return Value(Layout.STACKED, to_stacked(Value(Layout.FOLDED, outputs), stacked.count))

    return rule


def _layer_norm(name: str, module: nn.LayerNorm) -> Rule:
    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        (value,) = arguments
        inputs, shape = to_stacked(value, stacked.count), module.normalized_shape
        outputs = F.layer_norm(inputs, shape, None, None, module.eps)
        if module.elementwise_affine:
            beside = [1] * (inputs.ndim - 1 - len(shape))
            weight = stacked.parameters[f"{name}.weight"].view(stacked.count, *beside, *shape)
            if module.bias is None:
                outputs = outputs * weight
            else:
                bias = stacked.parameters[f"{name}.bias"].view(stacked.count, *beside, *shape)
                outputs = torch.addcmul(bias, outputs, weight)
        return Value(Layout.STACKED, outputs)

    return rule


def _embedding(name: str, module: nn.Embedding) -> Rule:
    """Return the rule that looks all copies' rows up in one table, one copy's under the other's."""

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        (value,) = arguments
        places = to_stacked(value, stacked.count)
        table = stacked.parameters[f"{name}.weight"].flatten(0, 1)
        begins = torch.arange(0, len(table), module.num_embeddings, device=places.device)
        # The first copy tells of places below the table, the last one of those above.
        outputs = F.embedding(places + begins.view(-1, *[1] * (places.ndim - 1)), table)
        if module.padding_idx is not None:  # it is never trained
            outputs = outputs.detach().where((places == module.padding_idx).unsqueeze(-1), outputs)
        return Value(Layout.STACKED, outputs)

    return rule


def _dropout(module: nn.Dropout | nn.Dropout2d) -> Rule:
    """Return the rule by which every copy drops what one alone would: the draws are those of one copy."""

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        (value,) = arguments
        if not module.training or module.p == 0:
            return Value(value.layout, value.tensor)
        kept = module(torch.ones_like(_one_copy(value, stacked.count)))
        if value.layout is Layout.FOLDED:
            kept = kept.repeat(1, stacked.count, *[1] * (kept.ndim - 2))
        return Value(value.layout, value.tensor.mul_(kept) if module.inplace else value.tensor * kept)

    return rule


def _recurrent(name: str, module: nn.RNNBase) -> Rule:
    by_vmap = _any_module(name, module)
    directions = 1 + module.bidirectional

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip(("input", "hx"), arguments, strict=False)) | keywords
        value, states = given["input"], given.get("hx")
        if not isinstance(value, Value) or _one_copy(value, stacked.count).ndim != 3:
            return by_vmap(stacked, arguments, keywords)
        inputs = to_stacked(value, stacked.count)
        inputs = inputs.transpose(1, 2) if module.batch_first else inputs
        if states is None:
            places = module.num_layers * directions
            first = [inputs.new_zeros(stacked.count, places, inputs.shape[2], module.hidden_size)] * 2
        else:
            first = [to_stacked(one, stacked.count) for one in ([states] if isinstance(states, Value) else states)]
        outputs, last = recurrent(
            module.mode,
            inputs,
            first if module.mode == "LSTM" else first[:1],
            [stacked.parameters[f"{name}.{own}"] for own in module._flat_weights_names],
            layers=module.num_layers,
            directions=directions,
            dropout=module.dropout,
            training=module.training,
            by_copy=module.mode == "LSTM" and inputs.device.type == "cpu",
        )
        ended = tuple(Value(Layout.STACKED, one) for one in last)
        outputs = outputs.transpose(1, 2) if module.batch_first else outputs
        return Value(Layout.STACKED, outputs), ended if module.mode == "LSTM" else ended[0]

    return rule


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values are of the same size, all keys come in, and the last weight is a parameter."""
    own_keys = module.bias_k is not None or module.add_zero_attn
    return module.in_proj_weight is not None and not own_keys and not hasattr(module.out_proj, "parametrizations")


def _attention(name: str, module: nn.MultiheadAttention) -> Rule:
    by_vmap = _any_module(name, module)
    inputs = ("query", "key", "value")
    others = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    parts = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip((*inputs, *others), arguments, strict=False)) | keywords
        values = [given[one] for one in inputs]
        tensors = {id(value): to_stacked(value, stacked.count) for value in values}
        attention, padding = given.get("attn_mask"), given.get("key_padding_mask")
        is_causal, tells_weights = given.get("is_causal", False), given.get("need_weights", True)
        if any(tensor.ndim != 4 for tensor in tensors.values()) or (is_causal and attention is None):
            return by_vmap(stacked, arguments, keywords)
        if not module.batch_first:
            tensors = {which: tensor.transpose(1, 2) for which, tensor in tensors.items()}
        query, key, value = (tensors[id(value)] for value in values)
        is_causal = is_causal and padding is None and not tells_weights  # else the mask says it
        mask = None
        if attention is not None and not is_causal:
            heads = module.num_heads if _one_copy(attention, stacked.count).ndim == 3 else 1
            mask = _added(attention, (-1, heads, query.shape[2], key.shape[2]), query.dtype, stacked.count)
        if padding is not None:
            hidden = _added(padding, (-1, 1, 1, key.shape[2]), query.dtype, stacked.count)
            mask = hidden if mask is None else mask + hidden
        outputs, weights = multi_head_attention(
            query,
            key,
            value,
            {part: own for part in parts if (own := stacked.parameters.get(f"{name}.{part}")) is not None},
            heads=module.num_heads,
            mask=mask,
            is_causal=is_causal,
            dropout=module.dropout if module.training else 0.0,
            tells_weights=tells_weights,
        )
        if weights is not None and given.get("average_attn_weights", True):
            weights = weights.mean(2)
        outputs = outputs if module.batch_first else outputs.transpose(1, 2)
        return Value(Layout.STACKED, outputs), None if weights is None else Value(Layout.STACKED, weights)

    return rule


def _added(mask: Value, shape: Sequence[int], dtype: torch.dtype, count: int) -> torch.Tensor:
    """Return what is added to scores, (copies or 1, *shape), by a mask that says it or is True for what is hidden."""
    tensor = mask.tensor.unsqueeze(0) if mask.layout is Layout.SHARED else to_stacked(mask, count)
    if tensor.dtype is torch.bool:
        tensor = torch.zeros_like(tensor, dtype=dtype).masked_fill(tensor, -torch.inf)
    return tensor.reshape(len(tensor), *shape)


def _encoder_layer(name: str, module: nn.TransformerEncoderLayer) -> Rule:
    parts = ("self_attn", "norm1", "norm2", "linear1", "linear2", "dropout", "dropout1", "dropout2", "activation")
    rules = {part: _called(f"{name}.{part}", getattr(module, part)) for part in parts}
    add = _function_rule(operator.add)

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip(("src", "src_mask", "src_key_padding_mask", "is_causal"), arguments, strict=False)) | keywords
        masks = {
            "attn_mask": given.get("src_mask"),
            "key_padding_mask": given.get("src_key_padding_mask"),
            "need_weights": False,
            "is_causal": given.get("is_causal", False),
        }

        def through(value: Any, *parts: str) -> Any:
            for part in parts:
                value = rules[part](stacked, [value], {})
            return value

        def attending(value: Any) -> Any:
            return through(rules["self_attn"](stacked, [value, value, value], masks)[0], "dropout1")

        def feeding(value: Any) -> Any:
            return through(value, "linear1", "activation", "dropout", "linear2", "dropout2")

        value = given["src"]
        for norm, block in (("norm1", attending), ("norm2", feeding)):
            if module.norm_first:
                value = add(stacked, [value, block(through(value, norm))], {})
            else:
                value = through(add(stacked, [value, block(value)], {}), norm)
        return value

    return rule


def _called(name: str, one: Callable[..., Any]) -> Rule:
    return _module_rule(name, one) if isinstance(one, nn.Module) else _function_rule(one)


def _encoder(name: str, module: nn.TransformerEncoder) -> Rule:
    rules = [_module_rule(f"{name}.layers.{place}", layer) for place, layer in enumerate(module.layers)]
    norm = None if module.norm is None else _module_rule(f"{name}.norm", module.norm)

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip(("src", "mask", "src_key_padding_mask", "is_causal"), arguments, strict=False)) | keywords
        value, mask, is_causal = given["src"], given.get("mask"), given.get("is_causal")
        if module.use_nested_tensor and not module.training and given.get("src_key_padding_mask") is not None:
            raise ValueError("an encoder with enable_nested_tensor leaves out what is padded when it is evaluated")
        masks = {
            "src_mask": mask,
            "is_causal": _is_causal(mask) if is_causal is None else is_causal,
            "src_key_padding_mask": given.get("src_key_padding_mask"),
        }
        for layer in rules:
            value = layer(stacked, [value], masks)
        return value if norm is None else norm(stacked, [value], {})

    return rule


def _is_causal(mask: Value | None) -> bool:
    """Whether a mask for all copies hides what comes later and nothing else."""
    if mask is None or mask.layout is not Layout.SHARED:
        return False
    own = mask.tensor
    causal = nn.Transformer.generate_square_subsequent_mask(own.shape[-1], device=own.device, dtype=own.dtype)
    return torch.equal(own, causal)


def _flatten(value: Value, end: int, count: int) -> Value:
    """Flatten the dimensions from the first after the rows on, as `nn.Flatten` does."""
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.flatten(1, end))
    tensor = to_stacked(value, count)
    return Value(Layout.STACKED, tensor.flatten(2, end if end < 0 else end + 1))


def _any_module(name: str, module: nn.Module) -> Rule:
    prefix = f"{name}."

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        own = {
            key.removeprefix(prefix): Value(Layout.STACKED, tensor)
            for key, tensor in (stacked.parameters | stacked.buffers).items()
            if key.startswith(prefix)
        }

        def call(own: dict[str, torch.Tensor], *arguments: Any, **keywords: Any) -> Any:
            before = dict(own)
            outputs = functional_call(module, own, arguments, keywords)
            if any(own[key] is not before[key] for key in before):
                raise ValueError(f"{name} replaces its buffers")
            return outputs

        return _through_vmap(call, stacked, [own, *arguments], keywords)

    return rule


TAKING_DIMENSIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys((torch.transpose, torch.Tensor.transpose), ("dim0", "dim1")),
    **dict.fromkeys((torch.unsqueeze, torch.Tensor.unsqueeze), ("dim",)),
    torch.split: ("split_size_or_sections", "dim"),
    torch.Tensor.split: ("split_size", "dim"),
    **dict.fromkeys((torch.chunk, torch.Tensor.chunk), ("chunks", "dim")),
    **dict.fromkeys((torch.softmax, torch.Tensor.softmax, torch.log_softmax, torch.Tensor.log_softmax), ("dim",)),
    **dict.fromkeys((F.softmax, F.log_softmax), ("dim", "_stacklevel")),
    **dict.fromkeys((torch.mean, torch.Tensor.mean, torch.sum, torch.Tensor.sum), ("dim", "keepdim")),
}
"""Functions of a tensor with the names of what else they take; `dim` and the like are dimensions of one copy."""
FIRST_DIMENSION = frozenset((torch.split, torch.Tensor.split, torch.chunk, torch.Tensor.chunk))
"""Those that take the first one where none is given."""


def _function_rule(function: Callable[..., Any]) -> Rule:
    if function in ELEMENTWISE_FUNCTIONS:
        return _same_layout(function)
    if function in (torch.Tensor.to, torch.Tensor.type_as):
        return _cast(function)
    if function in TAKING_DIMENSIONS:
        return _by_dimension(function)
    if function in (torch.permute, torch.Tensor.permute):
        return _permute
    if function is operator.getitem:
        return _getitem
    if function is torch.Tensor.contiguous:
        return _contiguous
    if function in CHANNEL_FUNCTIONS:
        return _channel_by_channel(function)
    if function in (torch.flatten, torch.Tensor.flatten):
        return _flatten_call(function)
    if function in (torch.Tensor.view, torch.Tensor.reshape, torch.reshape):
        return _reshape
    arithmetic = function in ARITHMETIC

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if arithmetic and not keywords:
            layouts = {argument.layout for argument in arguments if isinstance(argument, Value)}
            alike = {argument.tensor.shape for argument in arguments if isinstance(argument, Value)}
            if len(layouts) == len(alike) == 1:
                tensors = [argument.tensor if isinstance(argument, Value) else argument for argument in arguments]
                return Value(layouts.pop(), function(*tensors))
            if function not in OUT_OF_PLACE and Layout.STACKED in layouts:
                aligned = _aligned(arguments, stacked.count)
                if aligned is not None:
                    return Value(Layout.STACKED, function(*aligned))
        return _through_vmap(function, stacked, arguments, keywords)

    return rule


def _aligned(arguments: Sequence[Any], count: int) -> list[torch.Tensor] | None:
    """Return tensors that broadcast as those of one copy do; None where numbers or number types are mixed in."""
    values = [argument for argument in arguments if isinstance(argument, Value)]
    if len(values) < len(arguments) or len({value.tensor.dtype for value in values}) > 1:
        return None
    tensors = [to_stacked(value, count) for value in values]
    most = max(tensor.ndim for tensor in tensors)
    return [tensor[(slice(None), *[None] * (most - tensor.ndim))] for tensor in tensors]


def _values(layout: Layout, result: Any) -> Any:
    """Return what a function gives of tensors in that layout, with its tensors as values."""
    return each_in(lambda one: Value(layout, one) if isinstance(one, torch.Tensor) else one, result)


def _by_dimension(function: Callable[..., Any]) -> Rule:
    names = TAKING_DIMENSIONS[function]

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        value, *others = arguments or [None]
        given = dict(zip(names, others, strict=False)) | keywords
        if function in FIRST_DIMENSION:
            given = {"dim": 0, **given}
        shifted = {name: _shifted(one) if name.startswith("dim") else one for name, one in given.items()}
        known = len(others) <= len(names) and given.keys() <= {*names}
        asked = all(shifted.get(name) is not None for name in names if name.startswith("dim"))
        if not (isinstance(value, Value) and known and asked) or any(isinstance(one, Value) for one in given.values()):
            return _through_vmap(function, stacked, arguments, keywords)
        if value.layout is Layout.SHARED:
            return _values(Layout.SHARED, function(value.tensor, *others, **keywords))
        return _values(Layout.STACKED, function(to_stacked(value, stacked.count), **shifted))

    return rule


def _shifted(dimensions: Any) -> Any:
    """Return where dimensions of one copy, or one, lie behind that of the copies; None where they are no numbers."""
    if isinstance(dimensions, int):
        return dimensions + 1 if dimensions >= 0 else dimensions
    if isinstance(dimensions, (list, tuple)) and dimensions and all(isinstance(one, int) for one in dimensions):
        return [_shifted(one) for one in dimensions]
    return None


def _several(numbers: list[Any]) -> list[Any]:
    """Return numbers that came one by one or as one tuple."""
    return list(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else numbers


def _permute(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    value, *given = arguments
    dimensions = _several(given)
    shifted = _shifted(dimensions)
    if keywords or shifted is None:
        return _through_vmap(torch.Tensor.permute, stacked, arguments, keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.permute(dimensions))
    return Value(Layout.STACKED, to_stacked(value, stacked.count).permute(0, *shifted))


def _getitem(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    value, index = arguments
    if not isinstance(value, Value):  # several results of a function
        return value[index]
    places = index if isinstance(index, tuple) else (index,)
    if not all(one is None or one is Ellipsis or type(one) in (int, slice) for one in places):
        return _through_vmap(operator.getitem, stacked, arguments, keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor[index])
    return Value(Layout.STACKED, to_stacked(value, stacked.count)[(slice(None), *places)])


def _cast(function: Callable[..., torch.Tensor]) -> Rule:
    """Return the rule for what takes number type and device of another tensor."""

    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        value, *others = arguments
        is_shared = isinstance(value, Value) and value.layout is Layout.SHARED
        if not is_shared or any(isinstance(one, Value) for one in keywords.values()):
            return _through_vmap(function, stacked, arguments, keywords)
        like = [_one_copy(one, stacked.count) if isinstance(one, Value) else one for one in others]
        return Value(Layout.SHARED, function(value.tensor, *like, **keywords))

    return rule


def _contiguous(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if len(arguments) != 1 or keywords:
        return _through_vmap(torch.Tensor.contiguous, stacked, arguments, keywords)
    (value,) = arguments
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.contiguous())
    return Value(Layout.STACKED, to_stacked(value, stacked.count).contiguous())


def _flatten_call(function: Callable[..., Any]) -> Rule:
    def rule(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if not arguments:
            return _through_vmap(function, stacked, arguments, keywords)
        value, *others = arguments
        start = keywords.get("start_dim", others[0] if others else 0)
        end = keywords.get("end_dim", others[1] if len(others) > 1 else -1)
        if start == 1 and isinstance(value, Value):
            return _flatten(value, end, stacked.count)
        return _through_vmap(function, stacked, arguments, keywords)

    return rule


def _reshape(stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Give each copy the shape that is asked for; what only a copy of memory can give is copied."""
    value, *given = arguments
    shape = _several(given)
    if keywords or not all(isinstance(side, int) for side in shape):
        return _through_vmap(torch.Tensor.reshape, stacked, arguments, keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.reshape(*shape))
    tensor = to_stacked(value, stacked.count)
    return Value(Layout.STACKED, tensor.reshape(stacked.count, *shape))


def _through_vmap(
    function: Callable[..., Any], stacked: StackedModel, arguments: list[Any], keywords: dict[str, Any]
) -> Any:
    """Call `function` for each copy through vmap; what is shared by all comes out shared."""
    values: list[Value] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, Value):
            values.append(argument)
        return argument

    each_in(note, [arguments, keywords])
    own = [value.layout is not Layout.SHARED for value in values]
    pairs = zip(values, own, strict=True)
    tensors = [to_stacked(value, stacked.count) if mine else value.tensor for value, mine in pairs]

    shape: Any = None
    """The result with places for its tensors, which are all that vmap lets a function return."""

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal shape
        rest = iter(tensors)
        filled = each_in(lambda one: next(rest) if isinstance(one, Value) else one, [arguments, keywords])
        results: list[torch.Tensor] = []

        def take(one: Any) -> Any:
            if not isinstance(one, torch.Tensor):
                return one
            results.append(one)
            return Value(Layout.STACKED, one)

        with AsAlone(stacked.own):
            shape = each_in(take, function(*filled[0], **filled[1]))
        return tuple(results)

    if not any(own):
        layout, results = Layout.SHARED, call(*tensors)
    else:
        layout = Layout.STACKED
        results = vmap(call, in_dims=tuple(0 if mine else None for mine in own), randomness="same")(*tensors)
    found = iter(results)
    return each_in(lambda one: Value(layout, next(found)) if isinstance(one, Value) else one, shape)


def each_in(function: Callable[[Any], Any], nested: Any) -> Any:
    """Return `nested` with `function` applied to all that is in its lists, tuples and dictionaries, however deep."""
    if isinstance(nested, Value):
        return function(nested)
    if isinstance(nested, dict):
        return {key: each_in(function, one) for key, one in nested.items()}
    if isinstance(nested, (list, tuple)):
        made = [each_in(function, one) for one in nested]
        if hasattr(nested, "_fields"):
            return type(nested)(*made)
        return type(nested)(made)  # also torch's own, such as torch.return_types.max
    return function(nested)
