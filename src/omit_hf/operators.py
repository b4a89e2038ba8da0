"""Operators that stand for what `torch.compile` cannot trace, so that it makes one graph of a model.

The transport chooses its backend by the values that it is given, and a BiGRU packs captions by their lengths. In a
compiled model each is one node, which runs as it does without `torch.compile`. Its backward pass repeats the forward
pass, since an operator keeps nothing but tensors. The reference is plain torch, and is traced.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from omit_hf.modeling import transport_omit
from omit_hf.modeling.encoders_omit import BiGRU, run_gru
from omit_hf.modeling.transport_omit import Side, TransportOptions, reference_similarity, transport_similarity

RECORDING = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
SIDES = "Tensor image_rows, Tensor mu, Tensor text_rows, Tensor nu"
OPTIONS = "float regularization, int num_iterations, int num_dustbins, str backend, str matmul_dtype, int memory_budget"


def score_as_operator(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """`transport_similarity` as one node of a graph; of one that is exported, what can be read without the package."""
    if torch.compiler.is_exporting():
        return reference_similarity(image, text, options)
    return transport(*image, *text, *(getattr(options, field.name) for field in fields(options)))


@torch.library.custom_op("omit_hf::transport", mutates_args=(), schema=f"({SIDES}, {OPTIONS}) -> Tensor")
def transport(*arguments) -> Tensor:
    return _score(*arguments)


@transport.register_fake
def _(image_rows, mu, text_rows, nu, *options):
    dtype = torch.float64 if torch.float64 in (image_rows.dtype, mu.dtype, nu.dtype) else torch.float32
    return image_rows.new_empty(image_rows.shape[0], text_rows.shape[0], dtype=dtype)


@torch.library.custom_op(
    "omit_hf::transport_backward",
    mutates_args=(),
    schema=f"(Tensor incoming, bool[] needed, {SIDES}, {OPTIONS}) -> Tensor[]",
)
def transport_backward(incoming: Tensor, needed: list[bool], *arguments) -> list[Tensor]:
    sides, options = list(arguments[:4]), arguments[4:]
    return _gradients(lambda *sides: _score(*sides, *options), sides, needed, incoming)


@transport_backward.register_fake
def _(incoming, needed, *arguments):
    return _like(arguments[:4], needed)


def _score(image_rows: Tensor, mu: Tensor, text_rows: Tensor, nu: Tensor, *options) -> Tensor:
    return transport_similarity(Side(image_rows, mu), Side(text_rows, nu), TransportOptions(*options))


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx, incoming) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:4])
    gradients = transport_backward(incoming.contiguous(), needed, *ctx.saved_tensors, *ctx.options)
    return *_where(needed, gradients), *(None for _ in ctx.options)


transport.register_autograd(_backward, setup_context=_save)


def run_gru_as_operator(gru: nn.GRU, words: Tensor, attended: Tensor) -> Tensor:
    """`run_gru` as one node of a graph; exports have a stand-in of their own."""
    if torch.compiler.is_exporting():
        return run_gru(gru, words, attended)
    return bigru(words, attended, [each for layer in gru.all_weights for each in layer], gru.num_layers)


def _run(words: Tensor, attended: Tensor, weights: list[Tensor], layers: int) -> Tensor:
    def gru(packed):
        start = words.new_zeros(2 * layers, len(words), weights[1].shape[1])
        settings = True, layers, 0.0, False, True  # biases, layers, no dropout, not training, both directions
        data, last = torch._VF.gru(packed.data, packed.batch_sizes, start, weights, *settings)
        return packed._replace(data=data), last

    gru.hidden_size = weights[1].shape[1]
    with torch.autocast(words.device.type, enabled=False):
        return run_gru(gru, words, attended).contiguous()


@torch.library.custom_op("omit_hf::bigru", mutates_args=())
def bigru(words: Tensor, attended: Tensor, weights: list[Tensor], layers: int) -> Tensor:
    return _run(words, attended, weights, layers)


@bigru.register_fake
def _(words, attended, weights, layers):
    return words.new_empty(*words.shape[:2], weights[1].shape[1])


@torch.library.custom_op("omit_hf::bigru_backward", mutates_args=())
def bigru_backward(
    incoming: Tensor, needed: list[bool], words: Tensor, attended: Tensor, weights: list[Tensor], layers: int
) -> list[Tensor]:
    return _gradients(
        lambda words, *weights: _run(words, attended, list(weights), layers), [words, *weights], needed, incoming
    )


@bigru_backward.register_fake
def _(incoming, needed, words, attended, weights, layers):
    return _like([words, *weights], needed)


def _save_gru(ctx, inputs, output) -> None:
    words, attended, weights, ctx.layers = inputs
    ctx.save_for_backward(words, attended, *weights)


def _backward_gru(ctx, incoming) -> tuple:
    words, attended, *weights = ctx.saved_tensors
    of_words, _, of_weights, _ = ctx.needs_input_grad
    of_weights = of_weights if isinstance(of_weights, list | tuple) else [of_weights] * len(weights)
    needed = [of_words, *of_weights]
    gradients = _where(needed, bigru_backward(incoming.contiguous(), needed, words, attended, weights, ctx.layers))
    return gradients[0], None, gradients[1:], None


bigru.register_autograd(_backward_gru, setup_context=_save_gru)


def _gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], needed: list[bool], incoming: Tensor
) -> list[Tensor]:
    """The gradients of those inputs that need one, in their order."""
    with torch._C._PreserveDispatchKeyGuard(), torch.enable_grad():
        for key in RECORDING:  # which an operator runs without
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        inputs = [each.detach().requires_grad_(need) for each, need in zip(inputs, needed, strict=True)]
        wanted = [each for each, need in zip(inputs, needed, strict=True) if need]
        found = torch.autograd.grad(function(*inputs), wanted, incoming, materialize_grads=True)
    return [each.contiguous() for each in found]


def _like(inputs: Sequence[Tensor], needed: list[bool]) -> list[Tensor]:
    return [
        torch.empty_like(each, memory_format=torch.contiguous_format)
        for each, need in zip(inputs, needed, strict=True)
        if need
    ]


def _where(needed: list[bool], gradients: list[Tensor]) -> list[Tensor | None]:
    """Gradients in the places of their inputs, None where none is needed."""
    rest = iter(gradients)
    return [next(rest) if need else None for need in needed]


transport_omit.compiled_similarity = score_as_operator
BiGRU.run_compiled = staticmethod(run_gru_as_operator)
