"""Copies of tensors on a GPU: in pinned memory, of the moment of the call, while the device works on."""

import pytest
import torch

from recognition import checkpoint
from recognition.checkpoint import Keep, Saver
from recognition.checkpoint.snapshot import HostCopies, content
from recognition.distributed import Ranks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_the_device_does_next_is_not_saved(tmp_path, asynchronous):
    weight = torch.randn(50_000, 512, device="cuda")
    before = weight.cpu()
    image = torch.randn(2, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    image_before = image.cpu()
    with Saver(tmp_path, Ranks(device=weight.device), Keep(), asynchronous) as saver:
        saver.save(1, {"image": image, "count": torch.tensor(3)}, {"weight": weight}, 0, {})
        weight.zero_()
        image.zero_()
    saved = checkpoint.read(tmp_path / "step-000000001")
    assert torch.equal(saved.rows(0, 50_000)["weight"], before)
    assert torch.equal(saved.replicated()["image"], image_before)
    assert saved.replicated()["count"] == 3


def test_copies_are_pinned_and_used_again():
    copies = HostCopies()
    pointers = []
    for _ in range(2):
        what = copies.of(content(1, {}, {}, {"weight": torch.randn(1000, 8, device="cuda")}, 0))
        (part,) = what.row_files[0][2]["weight"].parts
        what.ready()
        assert part.is_pinned()
        pointers.append(part.data_ptr())
    assert pointers[0] == pointers[1]
