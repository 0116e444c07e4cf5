"""Bias correction of a compressed encoder's output."""

import torch
from transformers import WhisperForConditionalGeneration

from ..common.processes import all_reduce, shard
from ..padding_lite_whisper import end_of_sound


@torch.no_grad()
def correct_bias(
    lite: WhisperForConditionalGeneration, model: WhisperForConditionalGeneration, windows: torch.Tensor
) -> None:
    """
    Adjusts the bias of the encoder's final layer norm in place so that its mean output matches the base model's.

    The errors of the low-rank pairs accumulate over the layers to a nearly constant shift of the output for all audio
    in the calibration languages. The shift is large enough to disturb language identification. It is removed by bias
    correction (Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.2), applied once, at the output. Means
    are taken over positions with sound only, not over padding.

    Time: one forward pass of both encoders per window. In a distributed run the processes share the windows.

    Args:
        lite (`WhisperForConditionalGeneration`): the compressed model.
        model (`WhisperForConditionalGeneration`): its base model, with the same dtype and device.
        windows (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`): log-mel features, identical in all
            processes.
    """
    bias = lite.get_encoder().layer_norm.bias
    shift = torch.zeros(len(bias), dtype=torch.float64, device=bias.device)
    count = torch.zeros((), dtype=torch.float64, device=bias.device)
    for window in shard(windows.split(1)):
        features = window.to(bias.device, bias.dtype)
        difference = model.get_encoder()(features)[0] - lite.get_encoder()(features)[0]
        positions = torch.arange(difference.shape[1], device=bias.device) * (features.shape[-1] // difference.shape[1])
        has_sound = positions < end_of_sound(features)[0]
        shift += difference[0, has_sound].sum(dim=0, dtype=torch.float64)
        count += has_sound.sum()
    bias.add_((all_reduce(shift) / all_reduce(count).clamp(min=1)).to(bias.dtype))
