"""Every alignment pulls two shifted clouds together in a few steps, and unknown names are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeda.alignments import ALIGNMENTS, build_alignments
from edgeda.errors import InputError
from edgeda.models import Output


@pytest.mark.parametrize("name", sorted(ALIGNMENTS))
def test_a_few_steps_lower_the_loss_on_shifted_clouds(name):
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    centres = torch.eye(3, 5) * 4
    source = centres[labels] + 0.3 * torch.randn(60, 5)
    target = centres[labels] + 0.3 * torch.randn(60, 5) + torch.tensor([1.5, 1.5, 0.0, 2.0, 0.0])
    extractor, head = nn.Linear(5, 5), nn.Linear(5, 3)
    with torch.no_grad():
        extractor.weight.copy_(torch.eye(5))
        extractor.bias.zero_()
        head.weight.copy_(torch.eye(3, 5))
        head.bias.zero_()
    alignment = build_alignments((name,), 5, 3)[name]
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.1)

    def loss() -> torch.Tensor:
        outputs = [Output(features, head(features)) for features in (extractor(source), extractor(target))]
        return alignment(outputs[0], outputs[1], labels, 1.0)

    before = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * before


def test_unknown_and_empty_alignments_are_refused_by_name():
    with pytest.raises(InputError, match="did you mean 'mmd'"):
        build_alignments(("mmdd",), 5, 3)
    with pytest.raises(InputError, match="mmd, mcc"):
        build_alignments((), 5, 3)
