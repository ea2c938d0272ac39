"""A teacher that shares the student's frozen tensors."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT
from explora_geo.objectives.teacher import Teacher

Build = Callable[..., ViT]


@pytest.fixture
def student(build_vit: Build) -> nn.ModuleDict:
    """An adapted backbone and a head."""
    vit = explora(build_vit(mask_token=True), ExPLoRAConfig.parse('[L]-r4'))
    return nn.ModuleDict({'backbone': vit, 'head': nn.Linear(32, 8)})


def move(student: nn.ModuleDict) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def test_frozen_tensors_are_stored_once(student: nn.ModuleDict) -> None:
    teacher = Teacher(student)
    pairs = list(zip(student.named_parameters(), teacher.parts.parameters(), strict=True))
    for (name, mine), theirs in pairs:
        assert (mine.data_ptr() == theirs.data_ptr()) == (not mine.requires_grad), name
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    together = nn.ModuleList([student, teacher])
    assert sum(p.numel() for p in together.parameters()) == trained + sum(
        p.numel() for p in student.parameters()
    )


def test_they_stay_shared_when_cast_and_copied(student: nn.ModuleDict) -> None:
    pair = nn.ModuleDict({'student': student, 'teacher': Teacher(student)})
    for both in (pair.double(), copy.deepcopy(pair)):
        pairs = zip(both['student'].parameters(), both['teacher'].parameters(), strict=True)
        for mine, theirs in pairs:
            assert (mine is theirs) == (not mine.requires_grad) and mine.dtype == torch.float64


def test_the_average_is_the_running_mean_of_what_trains(student: nn.ModuleDict) -> None:
    teacher = Teacher(student)
    expected = {k: v.clone() for k, v in teacher.parts.named_parameters()}
    for momentum in (0.9, 0.5, 1.0):
        move(student)
        teacher.update(student, momentum)
        for name, p in student.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * p.detach()
    for name, p in teacher.parts.named_parameters():
        torch.testing.assert_close(p, expected[name])


def test_a_thousand_steps_leave_every_frozen_bit_as_it_was(student: nn.ModuleDict) -> None:
    teacher = Teacher(student)
    frozen = {n: p.clone() for n, p in student.named_parameters() if not p.requires_grad}
    for _ in range(1000):
        move(student)
        teacher.update(student, 0.992)
    for parts in (student, teacher.parts):
        named = dict(parts.named_parameters())
        assert all(torch.equal(named[n], v) for n, v in frozen.items())


def test_the_state_dict_holds_what_is_shared_once_and_is_read_back(
    student: nn.ModuleDict, build_vit: Build
) -> None:
    pair = nn.ModuleDict({'student': student, 'teacher': Teacher(student)})
    move(student)
    state = {k: v.clone() for k, v in pair.state_dict().items()}
    trained = [n for n, p in student.named_parameters() if p.requires_grad]
    assert [k.removeprefix('teacher.parts.') for k in state if k.startswith('teacher.')] == trained

    vit = explora(build_vit(mask_token=True), ExPLoRAConfig.parse('[L]-r4'))
    other = nn.ModuleDict({'backbone': vit, 'head': nn.Linear(32, 8)})
    restored = nn.ModuleDict({'student': other, 'teacher': Teacher(other)})
    restored.load_state_dict(state)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for name in ('student', 'teacher'):
            first, second = (m[name] if name == 'student' else m[name].parts for m in (pair, restored))
            a, b = first['backbone'](image), second['backbone'](image)
            assert torch.equal(a.cls, b.cls)


def test_a_missing_tensor_of_its_own_is_named(student: nn.ModuleDict) -> None:
    teacher = Teacher(student)
    state: dict[str, Tensor] = dict(teacher.state_dict())
    del state['parts.head.bias']
    with pytest.raises(RuntimeError, match=r'Missing key.*parts\.head\.bias'):
        teacher.load_state_dict(state)
