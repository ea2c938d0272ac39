"""Student and teacher store the frozen trunk once."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(model: str, adaptation: str) -> tuple[int, int, int]:
    """Bytes of a backbone before it is adapted, of student and teacher, and of both with a copied teacher."""
    with torch.device('meta'):
        vit = create_vit(model, **DINOv2.backbone_options)
        plain = sum(t.nbytes for t in vit.state_dict().values())
        explora(vit, ExPLoRAConfig.parse(adaptation))
    vit.to_empty(device='cpu')  # real storages, whose numbers do not matter
    nn.init.ones_(vit.get_parameter('mask_token'))  # trained, as in DINOv2's files
    teacher = DINOv2(vit, HeadConfig(prototypes=64, hidden_dim=32, bottleneck_dim=16)).final_backbone
    both = [*vit.state_dict().values(), *teacher.state_dict().values()]
    return plain, stored_bytes(both), 2 * stored_bytes(vit.state_dict().values())


def test_a_large_student_and_its_teacher_hold_at_most_a_tenth_more_than_one_model() -> None:
    model, pair, copied = measure('vit_large_patch14_dinov2', '[L]-r32')
    assert model > 300e6 * 4
    # The paper's 15,710,208 numbers exist once more, and LoRA is new in the student.
    lora = 4 * 23 * 4 * 1024 * 32
    assert pair == model + lora + 4 * 15_710_208
    assert pair <= 1.10 * model < copied


def test_full_training_needs_a_whole_second_model(small_names: None) -> None:
    model, pair, copied = measure('vit_tiny_patch8_32', 'full')
    assert pair == copied == 2 * model
