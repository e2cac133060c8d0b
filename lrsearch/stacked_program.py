"""A model's forward pass as steps that are done for all copies: what torch.fx finds, and when it may not be used."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from lrsearch import chance
from lrsearch.as_alone import DESCRIBING, tensors_of
from lrsearch.contents import Contents, is_equal
from lrsearch.restore import find_generators
from lrsearch.stacked_rules import IN_PLACE, OUT_OF_PLACE, function_rule, rule_of
from lrsearch.stacked_values import Copies, Rule, Value, to_stacked


class Program:
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
                    rule = function_rule(OUT_OF_PLACE[node.target])
                else:
                    rule = rule_of(node, model, constants)
                self._steps.append((node, rule, last_needed[node]))

    @classmethod
    def of(cls, model: nn.Module) -> Program | None:
        """Return the program; None when vmap must have the model as a whole.

        That is when it cannot be traced, ties weights, takes or gives several tensors, has hooks, is called in a way of
        its own, or when tracing it drew chance, changed something or computed with weights: then what its Python does
        once per step would have been done once for all. So it is when it writes into what it makes of numbers alone, or
        makes other numbers again.
        Raises ValueError when it draws chance from python's or numpy's generators.
        """
        tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        if len(tensors) != len({id(tensor) for _, tensor in tensors}):
            return None
        if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
            return None
        if type(model).__call__ is not nn.Module.__call__:
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
        if isinstance(output.args[0].target, type):
            return None  # a named tuple or the like, of several tensors
        if any(node.op == "call_method" and not hasattr(torch.Tensor, str(node.target)) for node in nodes):
            return None  # it takes no tensor but a dictionary, say
        aliases = _Aliases(nodes, model)
        if aliases.may_write_into(tracer.constants):
            return None
        if aliases.writes_into_views():
            raise ValueError("the model writes into what it has reshaped, which in a gang may be another memory")
        return cls(graph, model, tracer.constants, aliases.need_no_place())

    def run(self, stacked: Copies, inputs: Value) -> torch.Tensor:
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

    What is computed inside `torch.no_grad` or an autocast of the model's own, once it has drawn or seeded chance, or by
    a layer whose mode or other settings the model has changed on the way, raises, as a graph does not say so.
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
        self._settings = {part: dict(vars(part)) for part in model.modules()}
        try:
            with self.apart:
                return self.trace(model)
        except Exception:  # a model may do anything while it is traced
            return None

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before = self._settings.get(m, vars(m))
        if any(before.get(name) is not own for name, own in vars(m).items()):
            raise ValueError("the model changes a layer on the way")
        return super().call_module(m, forward, args, kwargs)

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
    drawn = torch.get_rng_state().numpy().tobytes()  # another one inside `fork_rng`, say
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), drawn, *autocast


def _filled(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(argument, list):  # a graph's own does not let a function write into it, as the model's does
        return [_filled(one, values) for one in argument]
    return values[argument] if isinstance(argument, fx.Node) else fx.node.map_arg(argument, values.__getitem__)
