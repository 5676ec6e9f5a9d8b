"""Heads of VATT: from the vectors of three encoders to joint spaces, one of them finer than the other, or to one."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from triptych.layers.batch_norm import BatchNorm
from triptych.layers.glorot import glorot

Vectors = dict[str, dict[str, Float[Tensor, "rows dim"]]]
"""Space -> stream -> vectors, not normalised."""


class FineAndCoarse(nn.Module):
    """Video and audio meet in the fine space ``va``; video goes on from there to meet text in the coarse ``vat``.

    Source: vatt, section 4.
    """

    pairs: Mapping[str, tuple[str, str]] = {"va": ("va", "audio"), "vt": ("vat", "text")}
    """Term -> space, and the stream that video is compared with there."""

    def __init__(self, widths: Mapping[str, int], hidden: int, fine: int, coarse: int) -> None:
        """Build the heads.

        Args:
            widths: Of the vectors, by stream.
            hidden: Between the layers from video to ``va``.
            fine: Width of ``va``.
            coarse: Width of ``vat``.
        """
        super().__init__()
        self.video_fine = nn.Sequential(
            nn.Linear(widths["video"], hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, fine, bias=False),
            BatchNorm(fine),
        )
        self.video_coarse = nn.Sequential(nn.ReLU(), nn.Linear(fine, coarse, bias=False), BatchNorm(coarse))
        self.audio_fine = nn.Linear(widths["audio"], fine)
        self.text_coarse = nn.Linear(widths["text"], coarse)
        self.dims = {"va": fine, "vat": coarse}
        glorot(self)

    def forward(self, vectors: Mapping[str, Float[Tensor, "_ _"]]) -> Vectors:
        """Project the streams that are there."""
        spaces: Vectors = {"va": {}, "vat": {}}
        if "video" in vectors:
            spaces["va"]["video"] = self.video_fine(vectors["video"])
            spaces["vat"]["video"] = self.video_coarse(spaces["va"]["video"])
        if "audio" in vectors:
            spaces["va"]["audio"] = self.audio_fine(vectors["audio"])
        if "text" in vectors:
            spaces["vat"]["text"] = self.text_coarse(vectors["text"])
        return spaces


class JointHead(nn.Module):
    """The ablation: ReLU, a linear layer and batch norm a stream, all to one space ``joint``."""

    pairs: Mapping[str, tuple[str, str]] = {"va": ("joint", "audio"), "vt": ("joint", "text")}
    """See ``FineAndCoarse.pairs``."""

    def __init__(self, widths: Mapping[str, int], dim: int) -> None:
        """Build the heads from vectors of ``widths`` to a space of ``dim``."""
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                stream: nn.Sequential(nn.ReLU(), nn.Linear(width, dim, bias=False), BatchNorm(dim))
                for stream, width in widths.items()
            }
        )
        self.dims = {"joint": dim}
        glorot(self)

    def forward(self, vectors: Mapping[str, Float[Tensor, "_ _"]]) -> Vectors:
        """Project the streams that are there."""
        return {"joint": {stream: self.heads[stream](x) for stream, x in vectors.items()}}
