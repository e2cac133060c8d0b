"""How each layer and function is computed for all copies of a model at once: written out, or through torch's vmap."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call, vmap

from lrsearch.as_alone import AsAlone, places_of
from lrsearch.attention import multi_head_attention
from lrsearch.convolution import convolve
from lrsearch.linear import linear
from lrsearch.recurrence import recurrent
from lrsearch.stacked_values import Copies, Layout, Rule, Value, each_in, to_folded, to_stacked

IN_PLACE = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"),
    *("ilshift", "irshift"),
)
OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(operator, name): getattr(operator, name[1:] if hasattr(operator, name[1:]) else f"{name[1:]}_")
    for name in IN_PLACE
}


def rule_of(node: fx.Node, model: nn.Module, constants: Mapping[str, torch.Tensor]) -> Rule:
    """Return what does the node's work for all copies."""
    if node.op == "get_attr":
        name = str(node.target)
        return _constant(constants[name]) if name in constants else _attribute(name, model)
    if node.op == "call_module":
        name = str(node.target)
        module = model.get_submodule(name)
        rule = _module_rule(name, module)
        return _given_in_order(rule, module) if node.kwargs else rule
    if node.op == "call_method":
        method = str(node.target)
        if method in ("size", "dim"):
            return _of_one_copy(method)
        function: Callable[..., Any] = getattr(torch.Tensor, method)
    else:
        assert callable(node.target)
        function = node.target
        if function is getattr:
            return _read_attribute
    return function_rule(function)


def _given_in_order(rule: Rule, module: nn.Module) -> Rule:
    """Return the rule for a call that names what the layer cannot do without, such as `layer(input=x)`."""
    needed = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.default is inspect.Parameter.empty
    ]

    def ordered(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        named = [name for name in needed[len(arguments) :] if name in keywords]
        others = {name: one for name, one in keywords.items() if name not in named}
        return rule(stacked, [*arguments, *(keywords[name] for name in named)], others)

    return ordered


def _constant(tensor: torch.Tensor) -> Rule:
    """Return the rule that gives it anew at each call: should a write there go unnoticed, it is no later step's."""
    return lambda stacked, arguments, keywords: Value(Layout.SHARED, tensor.clone())


def _attribute(name: str, model: nn.Module) -> Rule:
    constant = None
    if name not in dict(model.named_parameters()) and name not in dict(model.named_buffers()):
        constant = operator.attrgetter(name)(model)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if constant is not None:
            return Value(Layout.SHARED, constant) if isinstance(constant, torch.Tensor) else constant
        return Value(Layout.STACKED, (stacked.parameters | stacked.buffers)[name])

    return rule


def _of_one_copy(method: str) -> Rule:
    """Return the rule for what is no tensor and the same for every copy, such as a size."""

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        value, *others = arguments
        return getattr(_one_copy(value, stacked.count), method)(*others, **keywords)

    return rule


def _read_attribute(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return _batch_norm(name, module)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(name, module)
    if isinstance(module, nn.Embedding) and not (module.max_norm or module.sparse or module.scale_grad_by_freq):
        return _embedding(name, module)
    if isinstance(module, nn.PReLU):
        return _slopes(name, module)
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
    if isinstance(module, nn.Transformer):
        return _transformer(name, module)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        end = module.end_dim
        return lambda stacked, arguments, keywords: _flatten(arguments[0], end, stacked.count)
    return _any_module(name, module)


def _same_layout(function: Callable[..., torch.Tensor]) -> Rule:
    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if len([one for one in (*arguments, *keywords.values()) if isinstance(one, Value)]) != 1 or not (
            arguments and isinstance(arguments[0], Value)
        ):
            return _through_vmap(function, stacked, arguments, keywords)
        value, *others = arguments
        return Value(value.layout, function(value.tensor, *others, **keywords))

    return rule


def _channel_by_channel(function: Callable[..., torch.Tensor]) -> Rule:
    """Return the rule for what treats each channel of (N, C, H, W) alone."""

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if not arguments or not _is_of_images(arguments[0]):
            return _through_vmap(function, stacked, arguments, keywords)
        value, *others = arguments
        if value.layout is Layout.STACKED:
            value = Value(Layout.FOLDED, to_folded(value, stacked.count))
        outputs = function(value.tensor, *others, **keywords)
        if not isinstance(outputs, torch.Tensor):
            return _through_vmap(function, stacked, arguments, keywords)
        return Value(value.layout, outputs)

    return rule


def _is_of_images(value: Value) -> bool:
    """Whether it is (N, C, H, W) for each copy; (C, H, W) has rows for channels."""
    return value.tensor.ndim == (5 if value.layout is Layout.STACKED else 4)


def _linear(name: str, module: nn.Linear) -> Rule:
    weight_name, bias_name = f"{name}.weight", f"{name}.bias" if module.bias is not None else None
    by_vmap = _any_module(name, module)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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
    by_vmap = _any_module(name, module)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        (value,) = arguments
        if not _is_of_images(value):
            return by_vmap(stacked, arguments, keywords)
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
            function: Callable[..., Any] = F.conv2d if stacked.count == 1 else partial(convolve, F.conv2d)
            folded = to_folded(value, stacked.count)
            outputs = function(folded, weight, bias, *shape, stacked.count * module.groups)
        return Value(Layout.FOLDED, outputs)

    return rule


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Rule:
    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Value:
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
        inputs = to_folded(value, stacked.count)
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


def _slopes(name: str, module: nn.PReLU) -> Rule:
    by_vmap = _any_module(name, module)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if keywords:
            return by_vmap(stacked, arguments, keywords)
        return _prelu(stacked, [*arguments, Value(Layout.STACKED, stacked.parameters[f"{name}.weight"])], {})

    return rule


def _prelu(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Give each channel of (N, C, ...) its own slope; within vmap autocast would leave the slopes in float32."""
    value, weight = arguments if len(arguments) == 2 and not keywords else (None, None)
    if (
        not (isinstance(value, Value) and isinstance(weight, Value) and weight.layout is Layout.STACKED)
        or weight.tensor.ndim != 2
        or value.tensor.ndim < (3 if value.layout is Layout.STACKED else 2)
    ):
        return _through_vmap(torch.prelu, stacked, arguments, keywords)
    inputs = to_folded(value, stacked.count)
    slopes = weight.tensor.expand(stacked.count, inputs.shape[1] // stacked.count)
    return Value(Layout.FOLDED, torch.prelu(inputs, slopes.flatten()))


def _layer_norm(name: str, module: nn.LayerNorm) -> Rule:
    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Value:
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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Value:
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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Value:
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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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
    add = function_rule(operator.add)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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
    return _module_rule(name, one) if isinstance(one, nn.Module) else function_rule(one)


def _encoder(name: str, module: nn.TransformerEncoder) -> Rule:
    rules = [_module_rule(f"{name}.layers.{place}", layer) for place, layer in enumerate(module.layers)]
    norm = None if module.norm is None else _module_rule(f"{name}.norm", module.norm)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip(("src", "mask", "src_key_padding_mask", "is_causal"), arguments, strict=False)) | keywords
        value, mask, is_causal = given["src"], given.get("mask"), given.get("is_causal")
        padding = given.get("src_key_padding_mask")
        left_out = None if mask is not None or padding is None else _left_out(module, value, padding, stacked.count)
        masks = {
            "src_mask": mask,
            "is_causal": _is_causal(mask) if is_causal is None else is_causal,
            "src_key_padding_mask": padding,
        }
        for layer in rules:
            value = layer(stacked, [value], masks)
        if left_out is not None:
            value = Value(Layout.STACKED, to_stacked(value, stacked.count).masked_fill(left_out, 0.0))
        return value if norm is None else norm(stacked, [value], {})

    return rule


def _transformer(name: str, module: nn.Transformer) -> Rule:
    encode, decode = (_module_rule(f"{name}.{part}", getattr(module, part)) for part in ("encoder", "decoder"))
    of_source = {"mask": "src_mask", "src_key_padding_mask": "src_key_padding_mask", "is_causal": "src_is_causal"}
    of_target = ("tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask", "tgt_is_causal")
    names = list(inspect.signature(module.forward).parameters)

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        given = dict(zip(names, arguments, strict=False)) | keywords
        masks = {own: given.get(theirs) for own, theirs in of_source.items()}
        memory = encode(stacked, [given["src"]], masks)
        masks = {own: given.get(own) for own in of_target}
        return decode(
            stacked, [given["tgt"], memory], {**masks, "memory_is_causal": given.get("memory_is_causal", False)}
        )

    return rule


def _left_out(module: nn.TransformerEncoder, value: Value, padding: Value, count: int) -> torch.Tensor | None:
    """Return where an encoder with enable_nested_tensor gives zeros, for one copy; None where it takes no rows apart.

    So it does in an evaluation with rows that are padded at their ends.
    """
    first, own = module.layers[0], _one_copy(value, count)
    trains = torch.is_grad_enabled() and any(one.requires_grad for one in first.parameters())
    if not module.use_nested_tensor or first.training or trains or own.ndim != 3:
        return None
    if not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled():
        return None
    if padding.layout is not Layout.SHARED:
        raise ValueError("an encoder with enable_nested_tensor leaves out what is padded in each trial otherwise")
    kept = padding.tensor == 0
    if module.mask_check and not torch._nested_tensor_from_mask_left_aligned(own, kept):
        return None
    return ~kept.unsqueeze(-1)


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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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


def function_rule(function: Callable[..., Any]) -> Rule:
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
    if function is torch.prelu:
        return _prelu
    if function in (torch.Tensor.view, torch.Tensor.reshape, torch.reshape):
        return _reshape
    arithmetic = function in ARITHMETIC

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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


def _permute(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    value, *given = arguments
    dimensions = _several(given)
    shifted = _shifted(dimensions)
    if keywords or shifted is None:
        return _through_vmap(torch.Tensor.permute, stacked, arguments, keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.permute(dimensions))
    return Value(Layout.STACKED, to_stacked(value, stacked.count).permute(0, *shifted))


def _getitem(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    value, index = arguments
    if not isinstance(value, Value):  # several results of a function
        return value[index]
    several = isinstance(index, tuple) and not isinstance(index, Value)
    places = index if several else (index,)
    if not all(one is None or one is Ellipsis or type(one) in (int, slice) for one in places):
        chosen = tuple(own for one in places for own in _chosen(one, stacked))
        index = chosen if several or len(chosen) > 1 else chosen[0]
        return _through_vmap(operator.getitem, stacked, [value, index], keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor[index])
    return Value(Layout.STACKED, to_stacked(value, stacked.count)[(slice(None), *places)])


def _chosen(place: Any, stacked: Copies) -> tuple[Any, ...]:
    """Return a mask that is a buffer, and the same for all copies, as places: by theirs each might have a shape of its
    own.
    """
    if not isinstance(place, Value) or not any(place.tensor is one for one in stacked.buffers.values()):
        return (place,)
    first = place.tensor[0]
    if first.dtype is not torch.bool or not bool((place.tensor == first).all()):
        return (place,)
    return tuple(Value(Layout.SHARED, one) for one in places_of(first))


def _cast(function: Callable[..., torch.Tensor]) -> Rule:
    """Return the rule for what takes number type and device of another tensor."""

    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        value, *others = arguments
        is_shared = isinstance(value, Value) and value.layout is Layout.SHARED
        if not is_shared or any(isinstance(one, Value) for one in keywords.values()):
            return _through_vmap(function, stacked, arguments, keywords)
        like = [_one_copy(one, stacked.count) if isinstance(one, Value) else one for one in others]
        return Value(Layout.SHARED, function(value.tensor, *like, **keywords))

    return rule


def _contiguous(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if len(arguments) != 1 or keywords:
        return _through_vmap(torch.Tensor.contiguous, stacked, arguments, keywords)
    (value,) = arguments
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.contiguous())
    return Value(Layout.STACKED, to_stacked(value, stacked.count).contiguous())


def _flatten_call(function: Callable[..., Any]) -> Rule:
    def rule(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if not arguments:
            return _through_vmap(function, stacked, arguments, keywords)
        value, *others = arguments
        start = keywords.get("start_dim", others[0] if others else 0)
        end = keywords.get("end_dim", others[1] if len(others) > 1 else -1)
        if start == 1 and isinstance(value, Value):
            return _flatten(value, end, stacked.count)
        return _through_vmap(function, stacked, arguments, keywords)

    return rule


def _reshape(stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Give each copy the shape that is asked for; what only a copy of memory can give is copied."""
    value, *given = arguments
    shape = _several(given)
    if keywords or not all(isinstance(side, int) for side in shape):
        return _through_vmap(torch.Tensor.reshape, stacked, arguments, keywords)
    if value.layout is Layout.SHARED:
        return Value(Layout.SHARED, value.tensor.reshape(*shape))
    tensor = to_stacked(value, stacked.count)
    return Value(Layout.STACKED, tensor.reshape(stacked.count, *shape))


def _through_vmap(function: Callable[..., Any], stacked: Copies, arguments: list[Any], keywords: dict[str, Any]) -> Any:
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
    has_weights = any(value.tensor.is_leaf and value.tensor.requires_grad for value in values)

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

        with AsAlone(stacked.own, stacked.turned if has_weights else ()):
            shape = each_in(take, function(*filled[0], **filled[1]))
        return tuple(results)

    if not any(own):
        layout, results = Layout.SHARED, call(*tensors)
    else:
        layout = Layout.STACKED
        results = vmap(call, in_dims=tuple(0 if mine else None for mine in own), randomness="same")(*tensors)
    found = iter(results)
    return each_in(lambda one: Value(layout, next(found)) if isinstance(one, Value) else one, shape)
