"""The mean of a compressed encoder's output, moved to where it was before the compression."""

import torch
from transformers import WhisperForConditionalGeneration

from ..common.processes import all_reduce, shard
from ..padding_lite_whisper import end_of_sound


@torch.no_grad()
def correct_bias(
    lite: WhisperForConditionalGeneration, model: WhisperForConditionalGeneration, windows: torch.Tensor
) -> None:
    """
    Moves the bias of the encoder's last layer norm so that the mean output is that of the base model, in place.

    What the pairs leave out adds up, from layer to layer, to a shift that is much the same for all audio in the
    languages of the calibration. The decoder tells languages apart by less. This is bias correction (Nagel et al.,
    2019, https://arxiv.org/abs/1906.04721, section 4.2), once, at the output. Means are over the positions of sound, of
    which padding has none.

    Time: one forward pass of both encoders for each window. Several processes share the windows.

    Args:
        lite (`WhisperForConditionalGeneration`): the compressed model.
        model (`WhisperForConditionalGeneration`): its base model, of the same dtype and on the same device.
        windows (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`): log-mel features, the same in each process.
    """
    bias = lite.get_encoder().layer_norm.bias
    shift = torch.zeros(len(bias), dtype=torch.float64, device=bias.device)
    count = torch.zeros((), dtype=torch.float64, device=bias.device)
    for window in shard(windows.split(1)):
        features = window.to(bias.device, bias.dtype)
        difference = model.get_encoder()(features)[0] - lite.get_encoder()(features)[0]
        positions = torch.arange(difference.shape[1], device=bias.device) * (features.shape[-1] // difference.shape[1])
        sounding = positions < end_of_sound(features)[0]
        shift += difference[0, sounding].sum(dim=0, dtype=torch.float64)
        count += sounding.sum()
    bias.add_((all_reduce(shift) / all_reduce(count).clamp(min=1)).to(bias.dtype))
