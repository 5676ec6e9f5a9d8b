"""Vision transformers over patches of spectrograms: AudioMAE's, MAViL's, XKD's, CAV-MAE's."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.vit import ViT, ViTConfig
from triptych.layers.grid_positions import Grid
from triptych.layers.patches import ConvolutionalStem


class AudioViT(ViT):
    """Patches of a spectrogram; tokens, and the values of each, stand in the order time, mel.

    Codes that count mels first (XKD, CAV-MAE) differ in nothing but the order of tokens and values, which an importer
    of their weights turns round.
    """

    modality: Modality = "audio"

    def __init__(
        self,
        config: ViTConfig,
        steps: int = 1024,
        mels: int = 128,
        patch: tuple[int, int] = (16, 16),
        stem: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Build the encoder.

        Args:
            config: Sizes of the transformer.
            steps: Spectrogram frames that the positions are made for.
            mels: Mel bands.
            patch: Spectrogram frames and mel bands of a token.
            stem: Convolutions on the spectrogram before the patches: channels, stride in time and in mels of each.
        """
        values, layers = patch[0] * patch[1], None
        if stem:
            widths, *strides = zip(*stem, strict=True)
            values, layers = widths[-1], ConvolutionalStem(1, widths, list(zip(*strides, strict=True)))
        super().__init__(config, (steps // patch[0], mels // patch[1], 1), values, patch[0], layers)
        self.patch = patch

    def patches(self, data: Float[Tensor, "batch steps mels"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the spectrogram; steps and mels that fill no patch are left out."""
        steps, mels, _ = self.grid_of(data)
        long, high = self.patch
        cut = data[:, : steps * long, : mels * high].unflatten(2, (mels, high)).unflatten(1, (steps, long))
        return cut.transpose(2, 3).flatten(3).flatten(1, 2)

    def grid_of(self, data: Float[Tensor, "batch steps mels"]) -> Grid:
        """Return the number of patches along time and mels."""
        return data.shape[1] // self.patch[0], data.shape[2] // self.patch[1], 1

    def convolve(
        self, patches: Float[Tensor, "batch tokens values"], grid: Grid
    ) -> Float[Tensor, "batch tokens channels"]:
        """Pass the whole spectrogram through the stem."""
        assert self.stem is not None
        steps, mels, _ = grid
        whole = patches.unflatten(2, self.patch).unflatten(1, (steps, mels)).transpose(2, 3).flatten(3).flatten(1, 2)
        maps = self.stem(whole[..., None]).permute(0, 3, 1, 2)
        return functional.adaptive_max_pool2d(maps, (steps, mels)).flatten(2).transpose(1, 2)
