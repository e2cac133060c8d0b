"""Has what vmap calls for several copies of a model compute, draw and lose as it would for one copy alone.

Each of these modes of torch looks at the functions that the user's code calls; what several copies would do otherwise
than one is done here as that one does it, or refused with ValueError.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from lrsearch.convolution import CONVOLUTIONS, convolve
from lrsearch.recurrence import cell_of_one, recurrent_of_one

DESCRIBING = frozenset(
    (
        *(
            getattr(torch.Tensor, name).__get__
            for name in (
                *("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "is_leaf", "itemsize"),
                *("nbytes", "is_sparse", "is_quantized", "is_meta", "is_cpu", "is_mps"),
            )
        ),
        *(
            getattr(torch.Tensor, name)
            for name in (
                *("size", "dim", "numel", "nelement", "stride", "is_floating_point", "is_complex", "is_contiguous"),
                *("get_device", "element_size", "__len__", "ndimension", "new_zeros", "new_ones", "new_empty"),
                *("new_full", "new_tensor"),
            )
        ),
        *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.is_floating_point, torch.is_complex, torch.numel),
    )
)
"""What says nothing of the numbers in a tensor."""


def tensors_of(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that a function gets, alone or in a list."""
    given = [*arguments, *keywords.values()]
    inside = [one for some in given if isinstance(some, (list, tuple)) for one in some]
    return [one for one in (*given, *inside) if isinstance(one, torch.Tensor)]


class AsAlone(TorchFunctionMode):
    """Has what vmap calls drop what one copy alone would, and refuses questions that vmap answers wrongly.

    So it does the models' `own` tensors: a copy that computes with them would never see what it has learned. Matrices
    of shapes that are `turned` lie otherwise than alone, and so would what is drawn like them. What is computed of the
    `counts` alone, such as numbers of steps, the user's code may go by as long as all copies have the same.
    """

    def __init__(
        self,
        own: Collection[int],
        turned: Collection[tuple[int, ...]] = (),
        counts: Iterable[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self._own, self._turned, self._made = own, turned, _Made()
        self._counts: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {id(one): (one, [one]) for one in counts}
        """Those tensors, and what was computed of them, with the counts that it was computed of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in DESCRIBING and _has(self._own, args, kwargs):
            raise ValueError("the model computes with a weight that something else holds, such as a list or a function")
        if func in DRAWING and any(
            one.ndim == 2 and tuple(one.shape) in self._turned and one.stride() == (1, len(one))
            for one in tensors_of(args, kwargs)
        ):
            raise ValueError("the model draws chance in the order in which a weight alone lies in memory")
        if func in GRADIENT_QUESTIONS:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("torch."):
                raise ValueError("the model asks whether a tensor needs gradients, says so, or has hooks on them")
        if func in READING and id(args[0]) in self._counts:
            _, sources = self._counts[id(args[0])]
            *_, own = map(_the_same_for_all, (*sources, args[0]))
            return func(own)
        if func in CHOOSING and self._counts:
            args = args[0], self._chosen(args[1]), *args[2:]
        self._made.before(func, args, kwargs)
        instead = _INSTEAD.get(func)
        found = NotImplemented if instead is None else instead(func, *args, **kwargs)
        result = func(*args, **kwargs) if found is NotImplemented else found
        self._made.after(func, args, kwargs, result)
        if self._counts:
            self._note_count(func, args, kwargs, result)
        return result

    def _chosen(self, places: Any) -> Any:
        """Return places with the masks among them, where these are of buffers, as those of one copy."""
        if isinstance(places, tuple):
            return tuple(one for place in places for one in self._places(place))
        chosen = self._places(places)
        return chosen[0] if len(chosen) == 1 else chosen

    def _places(self, place: Any) -> tuple[Any, ...]:
        is_mask = isinstance(place, torch.Tensor) and place.dtype is torch.bool and id(place) in self._counts
        return places_of(_the_same_for_all(place)) if is_mask else (place,)

    def _note_count(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        of_copies = [one for one in tensors_of(args, kwargs) if _is_of_copies(one)]
        found = [self._counts[id(one)] for one in of_copies if id(one) in self._counts]
        if len(found) < len(of_copies):
            if _writes(func):
                self._counts.pop(id(args[0]), None)
        elif found and _is_of_copies(result):
            self._counts[id(result)] = (result, [source for _, sources in found for source in sources])


def places_of(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what chooses the same as a mask does, which vmap does not take of several dimensions."""
    return mask.nonzero(as_tuple=True) if mask.ndim else (mask,)


def _the_same_for_all(count: torch.Tensor) -> torch.Tensor:
    """Return that of one copy. Raises ValueError where they differ."""
    while _is_of_copies(count):
        side, own = torch._C._functorch.maybe_get_bdim(count), torch._C._functorch.get_unwrapped(count)
        count = own.select(side, 0)
        if not bool((own == count.unsqueeze(side)).all()):
            raise ValueError("the model goes by a number in a buffer, of which each trial has another")
    return count


class _Made:
    """What the user's code has made of numbers alone, and has no view of: each copy gets its own to write into."""

    def __init__(self) -> None:
        self._tensors: dict[int, torch.Tensor] = {}

    def before(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Prepare what the function is about to write to."""
        if self._tensors and args and id(args[0]) in self._tensors and _writes(func):
            _become_of_copies(args[0], tensors_of(args[1:], kwargs))

    def after(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note what the function has made, and let go of what may lie in the memory of its result, too."""
        if self._tensors and func not in DESCRIBING and result is not None and not _is_of_copies(result):
            for one in tensors_of(args, kwargs):
                if one is not result:
                    self._tensors.pop(id(one), None)
        if func in MAKING and not (_is_of_copies(result) or result.requires_grad or "out" in kwargs):
            self._tensors[id(result)] = result


def _writes(func: Any) -> bool:
    """Whether the function changes its first argument in place."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _become_of_copies(x: torch.Tensor, others: Sequence[torch.Tensor]) -> None:
    """Give each copy its own `x`, into which one of the others is to be written, where that is of copies."""
    like = next((one for one in others if _is_of_copies(one)), None)
    if like is not None and not _is_of_copies(x):
        own = like.new_empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
        with suppress(RuntimeError):  # autograd holds it: then torch says why nothing can be written there
            torch.utils.swap_tensors(x, own)  # type: ignore[no-untyped-call]  # torch's


def _has(own: Collection[int], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(id(one) in own for one in tensors_of(args, kwargs))


def _is_of_copies(*tensors: Any) -> bool:
    """Whether one of them is vmap's, which has numbers of each copy."""
    return any(isinstance(one, torch.Tensor) and torch._C._functorch.is_batchedtensor(one) for one in tensors)


def _dropout(func: Any, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002  # torch's name
    if not training or p <= 0:
        return NotImplemented
    x = input
    strides = _strides_alone(x)
    order = sorted(range(x.ndim), key=lambda side: -strides[side])  # as its mask lies in memory
    ones = torch.ones([x.shape[side] for side in order], dtype=x.dtype, device=x.device)
    kept = torch.dropout(ones, p, True).permute([order.index(side) for side in range(x.ndim)])
    return x.mul_(kept) if inplace else x * kept


def _plain_dropout(func: Any, input: torch.Tensor, p: float, train: bool) -> Any:  # noqa: A002  # torch's name
    return _dropout(func, input, p, train)


def _ordered_dropout(func: Any, input: torch.Tensor, *others: Any, **keywords: Any) -> Any:  # noqa: A002  # torch's name
    if input.is_contiguous():
        return NotImplemented
    if not torch.empty_strided(input.shape, _strides_alone(input), device="meta").is_contiguous():
        raise ValueError("the model draws chance in the order in which a tensor alone lies in memory")
    return func(input.contiguous(), *others, **keywords)


def _attention(
    func: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Any:
    if dropout_p or query.ndim != 4 or not _is_of_copies(query, key, value):
        return NotImplemented
    return _Attention.apply(query, key, value, attn_mask, {"is_causal": is_causal, **settings})


def _fill(func: Any, x: torch.Tensor, *others: Any, **keywords: Any) -> Any:
    if not _is_of_copies(x) or tensors_of(others, keywords):
        return NotImplemented
    return x.copy_(func(_lying_as_alone(x), *others, **keywords))


def _normalize(func: Any, *arguments: Any, out: torch.Tensor | None = None, **keywords: Any) -> Any:
    """Write into `out`, as spectral norm does, what torch cannot write there for copies."""
    return NotImplemented if out is None else out.copy_(func(*arguments, **keywords))


def _embedding(
    func: Any,
    input: torch.Tensor,  # noqa: A002  # torch's name
    weight: torch.Tensor,
    padding_idx: int | None = None,
    *others: Any,
    **keywords: Any,
) -> Any:
    """Leave the padding of each copy untrained: where they have places of their own, torch does so for the first."""
    if padding_idx is None or not _is_of_copies(input):
        return NotImplemented
    outputs = func(input, weight, None, *others, **keywords)
    return outputs.detach().where((input == padding_idx % len(weight)).unsqueeze(-1), outputs)


NORMED = ("input", "running_mean", "running_var", "weight", "bias")


def _norm_by_channel(func: Any, *arguments: Any, **keywords: Any) -> Any:
    """Norm the channels of all copies as those of one: torch weighs them afterwards, and its numbers grow too large
    earlier than alone; nor does it take statistics of another number type.
    """
    tensors: dict[str, Any] = dict.fromkeys(NORMED) | dict(zip(NORMED, arguments, strict=False))
    tensors |= {name: keywords.pop(name) for name in NORMED if name in keywords}
    x, *others = tensors.values()
    if x.ndim < 2 or not all(one is None or _is_of_copies(one) for one in others) or not _is_of_copies(x, *others):
        return NotImplemented
    settings = arguments[len(NORMED) :]
    return _NormByChannel.apply(*tensors.values(), lambda *own: func(*own, *settings, **keywords))


def _prelu(func: Any, input: torch.Tensor, weight: torch.Tensor) -> Any:  # noqa: A002  # torch's name
    """Have the slopes in autocast's type, in which the numbers are: for copies it leaves them in float32."""
    return NotImplemented if weight.dtype is input.dtype else func(input, weight.to(input.dtype))


def _recurrent(func: Any, *arguments: Any) -> Any:
    if not isinstance(arguments[3], bool):
        return _packed(func)
    return recurrent_of_one(RECURRENT[func], *arguments)


def _packed(func: Any, *arguments: Any) -> Any:
    raise ValueError("a recurrent layer takes rows of several lengths, which it does for one trial only")


def _cell(func: Any, *arguments: Any) -> Any:
    return cell_of_one(CELLS[func], *arguments)


class _ByVmap(torch.autograd.Function):
    """Base of what vmap alone calls."""

    @staticmethod
    def forward(*arguments: Any) -> torch.Tensor:
        raise AssertionError("vmap calls it")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: what vmap calls is differentiated itself."""


class _Attention(_ByVmap):
    """Attends with the examples of all copies as those of one: by itself torch would go from copy to copy."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[torch.Tensor, int]:
        count, (*tensors, settings) = info.batch_size, arguments

        def folded(tensor: torch.Tensor, dimension: int | None) -> torch.Tensor:
            own = tensor.expand(count, *tensor.shape) if dimension is None else tensor.movedim(dimension, 0)
            return own.flatten(0, 1)

        query, key, value = map(folded, tensors[:3], in_dims)
        mask, dimension = tensors[3], in_dims[3]
        if mask is not None and not (dimension is None and mask.ndim <= 2):
            own = mask.unsqueeze(0) if dimension is None else mask.movedim(dimension, 0)
            own = own[(slice(None), *[None] * (5 - own.ndim))]  # (copies, rows, heads, queries, keys)
            mask = own.expand(count, len(query) // count, *own.shape[2:]).flatten(0, 1)
        outputs = F.scaled_dot_product_attention(query, key, value, mask, **settings)
        return outputs.view(count, -1, *outputs.shape[1:]), 0


class _NormByChannel(_ByVmap):
    """Norms the channels of all copies as those of one."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[torch.Tensor, int]:
        count, (x, *others, norm) = info.batch_size, arguments
        own = x.unsqueeze(1).expand(-1, count, *x.shape[1:]) if in_dims[0] is None else x.movedim(in_dims[0], 1)

        def placed(one: torch.Tensor | None, side: int | None) -> torch.Tensor | None:
            return one if one is None else one.expand(count, -1) if side is None else one.movedim(side, 0)

        channels = list(map(placed, others, in_dims[1:-1]))
        statistics = [None if one is None else one.view(-1) for one in channels[:2]]  # which are written to
        factors = [None if one is None else one.flatten() for one in channels[2:]]
        return norm(own.flatten(1, 2), *statistics, *factors).unflatten(1, (count, -1)), 1


RECURRENT: dict[Any, str] = {
    torch.gru: "GRU",
    torch.lstm: "LSTM",
    torch.rnn_tanh: "RNN_TANH",
    torch.rnn_relu: "RNN_RELU",
}
CELLS: dict[Any, str] = {
    torch.gru_cell: "GRU",
    torch.lstm_cell: "LSTM",
    torch.rnn_tanh_cell: "RNN_TANH",
    torch.rnn_relu_cell: "RNN_RELU",
}


def _lying_as_alone(x: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor that lies in memory, in whose order it is filled, as one made like `x` does alone."""
    return torch.empty_strided(x.shape, _strides_alone(x), dtype=x.dtype, device=x.device)


def _strides_alone(x: torch.Tensor) -> tuple[int, ...]:
    """Return how what is made like `x` lies in memory alone."""
    return torch.empty_like(torch.empty_strided(x.shape, x.stride(), device="meta")).stride()


def _laid(func: Any, x: torch.Tensor, *others: Any, memory_format: Any = None, **keywords: Any) -> Any:
    """Have a copy's channels last, which torch's own does not know of."""
    if memory_format is not torch.channels_last or not _is_of_copies(x):
        return NotImplemented
    same = func is torch.Tensor.to and not (others or keywords)
    own = x if same else func(x, *others, **keywords)
    return own.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _data(func: Any, x: torch.Tensor) -> Any:
    """Return what lies in the same memory; where that is written to, autograd may say so, as it does not alone."""
    return x.detach() if _is_of_copies(x) else NotImplemented


def _bernoulli(func: Any, input: torch.Tensor, *others: Any, **keywords: Any) -> Any:  # noqa: A002  # torch's name
    """Return what torch.bernoulli does for each copy, with its gradients of 0; no number where that raises."""
    if not _is_of_copies(input, *others):
        return NotImplemented
    if others or keywords or input.device.type != "cpu":
        raise ValueError(DRAWS_OTHERWISE)
    drawn = torch.rand(input.shape, dtype=torch.promote_types(input.dtype, torch.float32))  # bit for bit what it draws
    return (drawn < input).to(input.dtype).where((input >= 0) & (input <= 1), torch.nan) + 0 * input


def _multinomial(func: Any, input: torch.Tensor, num_samples: int, replacement: bool = False, **keywords: Any) -> Any:  # noqa: A002  # torch's name
    """Return what torch.multinomial does for each copy."""
    if not _is_of_copies(input):
        return NotImplemented
    if keywords or (replacement and num_samples > 1):
        raise ValueError(DRAWS_OTHERWISE)
    return (input.detach() / _lying_as_alone(input).exponential_()).topk(num_samples).indices


DRAWS_OTHERWISE = "the model draws chance by numbers that it has computed, which a gang does otherwise than one alone"


class Without(TorchFunctionMode):
    """Refuses, in these `words`, what computes with the models' `own` tensors, which no copy has."""

    def __init__(self, own: Collection[int], words: str) -> None:
        super().__init__()
        self._own, self._words = own, words

    def __enter__(self) -> Self:
        self._before = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # torch's
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Leave; what a generator inside has entered and not left would be taken for this otherwise.

        Raises ValueError where there is such a thing: the next batch would find it gone.
        """
        under = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # torch's
        found = [_pop_mode() for _ in under][::-1]  # type: ignore[no-untyped-call]
        left = [mode for mode in found if mode is not self]
        for mode in left:
            _push_mode(mode)  # type: ignore[no-untyped-call]
        if error[0] is None and left != self._before:
            raise ValueError("the data are made under a mode of torch that stays from one batch to the next")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in ASKING and _has(self._own, args, kwargs):
            raise ValueError(self._words)
        return func(*args, **kwargs)


class LossesAsAlone(TorchFunctionMode):
    """Has losses of copies, which vmap calls, computed as that of one copy alone, and no slower to begin with.

    Some lose autocast's float32 there; and torch takes the usual cross-entropy apart for vmap, for which it first
    imports what its compiler knows of shapes, for a second, and cannot where classes have weights and labels are
    smoothed. What computes with the models' `own` tensors is refused.
    """

    def __init__(self, own: Collection[int] = ()) -> None:
        super().__init__()
        self._own, self._made = own, _Made()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in DESCRIBING and _has(self._own, args, kwargs):
            raise ValueError(LOSS_WITH_WEIGHTS)
        self._made.before(func, args, kwargs)
        result = self._computed(func, args, kwargs)
        self._made.after(func, args, kwargs, result)
        return result

    def _computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in GRADIENT_QUESTIONS and _is_of_copies(*args):
            if func != NEEDS_GRADIENT:
                raise ValueError("the loss asks for the history of a tensor's gradients, or has hooks on them")
            return torch._C._functorch.get_unwrapped(args[0]).requires_grad
        if func is F.gaussian_nll_loss:
            return _gaussian_nll_loss(*args, **kwargs)
        if func is F.binary_cross_entropy:
            return _binary_cross_entropy(*args, **kwargs)
        if func not in LOSSES_WITHOUT_AUTOCAST:
            return func(*args, **kwargs)
        args, kwargs = [_in_full(one) for one in args], {name: _in_full(one) for name, one in kwargs.items()}
        if func is F.cross_entropy:
            names = ("input", "target", *CROSS_ENTROPY_DEFAULTS)
            given = CROSS_ENTROPY_DEFAULTS | dict(zip(names, args, strict=False)) | kwargs
            reduced = given["size_average"], given["reduce"], given["reduction"]
            if reduced == (None, None, "mean") and given["target"].dtype is torch.long:
                own = ("input", "target", "weight", "ignore_index", "label_smoothing")
                return _mean_cross_entropy(*(given[name] for name in own))
        return func(*args, **kwargs)


def _in_full(one: Any) -> Any:
    """Return it in float32 where autocast would have it so."""
    if isinstance(one, torch.Tensor) and one.dtype in (torch.bfloat16, torch.float16):
        return one.float() if torch.is_autocast_enabled(one.device.type) else one
    return one


LOSS_WITH_WEIGHTS = "the loss computes with weights of a model that it knows, and not with each trial's own"
LOSSES_WITHOUT_AUTOCAST = (
    *(F.cross_entropy, F.nll_loss, F.hinge_embedding_loss, F.binary_cross_entropy_with_logits),
    *(F.cosine_embedding_loss, F.poisson_nll_loss),
)
CROSS_ENTROPY_DEFAULTS: dict[str, Any] = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "reduction": "mean",
    "label_smoothing": 0.0,
}


def _mean_cross_entropy(
    outputs: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None, ignored: int, smoothing: float
) -> torch.Tensor:
    """Return what F.cross_entropy does for (classes,) and (), (rows, classes, ...) and (rows, ...)."""
    classes = min(1, outputs.ndim - 1)
    counted = targets != ignored
    ids, logs = targets.where(counted, 0), F.log_softmax(outputs, classes)
    found = logs.gather(classes, ids.unsqueeze(classes)).squeeze(classes)
    total = counted.sum()
    if weight is not None:
        found, total = found * weight[ids], weight[ids].where(counted, 0.0).sum()
        logs = logs * weight.reshape(-1, *[1] * (outputs.ndim - classes - 1))
    if smoothing:
        found = (1 - smoothing) * found + smoothing * logs.mean(classes)
    loss: torch.Tensor = -found.where(counted, 0.0).sum() / total
    return loss


def _gaussian_nll_loss(
    input: torch.Tensor,  # noqa: A002  # torch's name
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return what F.gaussian_nll_loss does; no number where that raises as a variance is below 0, which vmap cannot."""
    if not isinstance(var, torch.Tensor):
        var = torch.full_like(input, var)
    variance = var.unsqueeze(-1) if var.shape == input.shape[:-1] else var
    variance = variance + (variance.clamp(min=eps) - variance).detach()
    losses = 0.5 * (variance.log() + (input - target).square() / variance) + full * 0.5 * math.log(2 * math.pi)
    losses = losses.where(~(var < 0).any(), torch.nan)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def _binary_cross_entropy(
    input: torch.Tensor,  # noqa: A002  # torch's name
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return what F.binary_cross_entropy does; no number where that raises as a probability is none, of any copy."""
    if size_average is not None or reduce is not None:
        return F.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)
    is_none = input.isnan()
    losses = F.binary_cross_entropy(input.masked_fill(is_none, 0.5), target, weight, reduction="none")
    losses = losses.masked_fill(is_none, torch.nan)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


NEEDS_GRADIENT = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]  # it is a property
GRADIENT_QUESTIONS = (
    *(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")),
    torch.Tensor.requires_grad.__set__,  # type: ignore[attr-defined]  # it is a property
    torch.Tensor.register_hook,
)
FREEZING = (torch.Tensor.requires_grad.__set__, torch.Tensor.requires_grad_)  # type: ignore[attr-defined]
ASKING = DESCRIBING | frozenset(FREEZING)
READING = frozenset(
    getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")
)
"""What makes numbers of Python of a tensor."""
CHOOSING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
"""What may be told by a mask how many numbers to choose."""
_INSTEAD: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(CONVOLUTIONS, convolve),
    F.dropout: _dropout,
    torch.dropout: _plain_dropout,
    **dict.fromkeys((torch.alpha_dropout, torch.native_dropout, F.alpha_dropout), _ordered_dropout),
    F.scaled_dot_product_attention: _attention,
    **{
        getattr(torch.Tensor, f"{name}_"): _fill
        for name in ("normal", "uniform", "bernoulli", "exponential", "random", "log_normal", "cauchy", "geometric")
    },
    **dict.fromkeys((torch.bernoulli, torch.Tensor.bernoulli), _bernoulli),
    **dict.fromkeys((torch.multinomial, torch.Tensor.multinomial), _multinomial),
    **dict.fromkeys(RECURRENT, _recurrent),
    torch._pack_padded_sequence: _packed,
    F.normalize: _normalize,
    F.embedding: _embedding,
    **dict.fromkeys((F.batch_norm, F.instance_norm), _norm_by_channel),
    **dict.fromkeys((F.prelu, torch.prelu), _prelu),
    **dict.fromkeys((torch.Tensor.contiguous, torch.Tensor.to, torch.Tensor.clone, torch.clone), _laid),
    torch.Tensor.data.__get__: _data,  # type: ignore[attr-defined]  # it is a property
    **dict.fromkeys(CELLS, _cell),
}
"""By function of torch, what does its work for copies: called with the function and what that gets, it returns
NotImplemented where torch does it as well."""

MAKING = frozenset(
    (
        *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.tensor, torch.clone, torch.Tensor.clone),
        *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
        *(torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full, torch.Tensor.new_empty),
    )
)
"""What gives a tensor in new memory."""

DRAWING = frozenset(
    (
        *(F.dropout, torch.dropout, torch.native_dropout, F.alpha_dropout, torch.alpha_dropout, torch.bernoulli),
        *(torch.rand_like, torch.randn_like, torch.randint_like, torch.normal, torch.Tensor.bernoulli, torch.poisson),
    )
)
"""What draws a number for each of a tensor's."""
