"""Heads of VATT (vatt, section 4 and trap 8)."""

import torch
from torch import Tensor

from triptych.layers.projection_hierarchy import FineAndCoarse, JointHead

WIDTHS = {"video": 6, "audio": 5, "text": 4}


def _vectors(rows: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {stream: torch.randn(rows, width) for stream, width in WIDTHS.items()}


def test_video_goes_on_from_the_fine_space_to_the_coarse_one() -> None:
    head, vectors = FineAndCoarse(WIDTHS, hidden=8, fine=6, coarse=3).eval(), _vectors()
    spaces = head(vectors)
    assert {space: set(streams) for space, streams in spaces.items()} == {
        "va": {"video", "audio"},
        "vat": {"video", "text"},
    }
    torch.testing.assert_close(spaces["vat"]["video"], head.video_coarse(spaces["va"]["video"]))
    biases = [name for name, _ in head.named_parameters() if name.endswith("bias")]
    norms = {"video_fine.1.bias", "video_fine.4.bias", "video_coarse.2.bias"}
    assert set(biases) == norms | {"audio_fine.bias", "text_coarse.bias"}
    assert {space: set(streams) for space, streams in head({"text": vectors["text"]}).items()} == {
        "va": set(),
        "vat": {"text"},
    }


def test_the_loss_of_sound_does_not_reach_the_coarse_head_and_that_of_words_reaches_both() -> None:
    head = FineAndCoarse(WIDTHS, hidden=8, fine=6, coarse=3)
    head(_vectors())["va"]["video"].square().mean().backward()
    reached = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
    assert reached == {"video_fine"}
    head(_vectors())["vat"]["video"].square().mean().backward()
    reached = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
    assert reached == {"video_fine", "video_coarse"}


def test_the_published_sizes() -> None:
    widths = {"video": 1024, "audio": 768, "text": 512}
    with torch.device("meta"):
        fac, joint = FineAndCoarse(widths, 512, 512, 256), JointHead(widths, 512)
    count = sum(p.numel() for p in fac.parameters())
    fine, coarse = 1024 * 512 + 2 * 512 + 512 * 512 + 2 * 512, 512 * 256 + 2 * 256
    assert count == fine + coarse + (768 * 512 + 512) + (512 * 256 + 256)
    assert sum(p.numel() for p in joint.parameters()) == (1024 + 768 + 512) * 512 + 3 * 2 * 512


def test_one_space_for_all() -> None:
    spaces = JointHead(WIDTHS, 3).eval()(_vectors())
    assert {stream: x.shape for stream, x in spaces["joint"].items()} == dict.fromkeys(WIDTHS, (7, 3))
