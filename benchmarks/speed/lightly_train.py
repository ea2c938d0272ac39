"""DINOv2 as lightly-train runs it: all weights, with a teacher that is a whole copy."""

import importlib
from types import SimpleNamespace
from typing import Any

import timm

from .setting import Optimised, Setting

_STEP = 500


def _part(name: str) -> Any:
    """A module of lightly-train, which is no dependency."""
    return importlib.import_module(f'lightly_train.{name}')


def lightly_train_dinov2(setting: Setting) -> Optimised:
    """The step of its DINOv2 method, with the teacher's update, after the warm-up of its last layer.

    Its vision transformer has xFormers' attention where that is installed, else none of torch's fused ones.
    """
    method, model = _part('_methods.dinov2.dinov2'), _part('_models.dinov2_vit.dinov2_vit')
    vit: Any = timm.create_model(setting.model, num_classes=0, img_size=setting.image_size)
    source = _part('_models.dinov2_vit.dinov2_vit_src.models.vision_transformer')
    layers = _part('_models.dinov2_vit.dinov2_vit_src.layers')
    wrapped = model.DINOv2ViTModelWrapper(
        source.DinoVisionTransformer(
            img_size=setting.image_size,
            patch_size=vit.patch_embed.patch_size[0],
            embed_dim=vit.embed_dim,
            depth=len(vit.blocks),
            num_heads=vit.blocks[0].attn.num_heads,
            block_fn=lambda **sizes: source.Block(attn_class=layers.MemEffAttention, **sizes),
            block_chunks=0,
        )
    )
    head = setting.head
    arguments = method.DINOv2Args(
        output_dim=head.prototypes, hidden_dim=head.hidden_dim, dino_bottleneck_dim=head.bottleneck_dim
    )
    task = method.DINOv2(
        arguments,
        method.DINOv2AdamWViTArgs(),
        _part('_models.embedding_model').EmbeddingModel(wrapped),
        global_batch_size=setting.batch,
        num_input_channels=3,
    )
    task._trainer = SimpleNamespace(global_step=_STEP)  # all that the step asks of a trainer
    crops, *local = setting.views()
    views = [*crops.chunk(2), *(view for small in local for view in small.chunk(setting.num_local))]
    move = _part('_torch_helpers').update_momentum

    def update() -> None:
        move(task.student_embedding_model, task.teacher_embedding_model, m=0.996)
        move(task.student_head, task.teacher_head, m=0.996)

    return Optimised(setting, task, lambda: task.training_step_impl({'views': views}, 0).loss, update)
