"""Replaces modules that torch.export cannot trace."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import BaseModelOutput


def exportable(model):
    """Copy a model so that torch.export can trace it; the copy shares its weights."""
    model = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    if model.config.text_config.model_type == "omit_bigru":
        model.text_encoder.backbone = ExportedBiGRU(model.text_encoder.backbone)
    return model


class ExportedBiGRU(nn.Module):
    """Computes what `BiGRU` does, by a custom operator: torch.export would unroll a GRU for one number of words."""

    def __init__(self, bigru):
        super().__init__()
        self.embeddings, self.layers, self.width = bigru.embeddings, bigru.gru.num_layers, bigru.gru.hidden_size
        for layer in range(self.layers):
            for kind, names in (
                ("weights", ["weight_ih"]),
                ("recurrence", ["weight_hh"]),
                ("biases", ["bias_ih", "bias_hh"]),
            ):
                both = [
                    torch.cat([_in_onnx_order(getattr(bigru.gru, f"{name}_l{layer}{way}")) for name in names])
                    for way in ("", "_reverse")
                ]
                self.register_buffer(f"{kind}_{layer}", torch.stack(both).detach())

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs) -> BaseModelOutput:
        lengths = attention_mask.bool().sum(dim=1).clamp_min(1)
        states = self.embeddings(input_ids)
        for layer in range(self.layers):
            arguments = (getattr(self, f"{kind}_{layer}") for kind in ("weights", "recurrence", "biases"))
            both = torch.ops.omit_hf.bidirectional_gru(states, lengths, *arguments, self.width)
            states = both.flatten(-2)
        return BaseModelOutput(last_hidden_state=both.mean(dim=-2))


def _in_onnx_order(parameter: Tensor) -> Tensor:
    """Reorder the gates from reset, update, new to update, reset, new; or back."""
    reset, update, new = parameter.chunk(3)
    return torch.cat([update, reset, new])


@torch.library.custom_op("omit_hf::bidirectional_gru", mutates_args=())
def bidirectional_gru(
    words: Tensor, lengths: Tensor, weights: Tensor, recurrence: Tensor, biases: Tensor, width: int
) -> Tensor:
    """Run one layer of a GRU in both directions, with weights in ONNX's order.

    Args:
        words: [B, L, E].
        lengths: lengths of the captions, [B].
        weights, recurrence, biases: [2, 3H, E], [2, 3H, H] and [2, 6H].
        width: H.

    Returns:
        States [B, L, 2, H], zero after a caption's end.
    """
    parameters = []
    for way in range(2):
        parameters += [_in_onnx_order(weights[way]), _in_onnx_order(recurrence[way])]
        parameters += [_in_onnx_order(each) for each in biases[way].chunk(2)]
    packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
    start = words.new_zeros(2, words.shape[0], width)
    states, _ = torch._VF.gru(packed.data, packed.batch_sizes, start, parameters, True, 1, 0.0, False, True)
    states, _ = pad_packed_sequence(packed._replace(data=states), batch_first=True, total_length=words.shape[1])
    return states.unflatten(-1, (2, -1)).contiguous()


@bidirectional_gru.register_fake
def _(words, lengths, weights, recurrence, biases, width):
    return words.new_empty(*words.shape[:2], 2, width)
