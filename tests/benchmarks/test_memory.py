"""Student and teacher store the frozen trunk once."""

from pathlib import Path

import pytest

from benchmarks.memory import measure_memory, write_memory
from explora_geo.models.heads import HeadConfig

SMALL = HeadConfig(prototypes=64, hidden_dim=32, bottleneck_dim=16)


def test_a_large_student_and_its_teacher_hold_at_most_a_tenth_more_than_one_model() -> None:
    found = measure_memory('vit_large_patch14_dinov2', '[L]-r32', SMALL)
    assert found.model > 300e6 * 4
    # The paper's 15,710,208 numbers exist once more, and LoRA is new in the student.
    lora = 4 * 23 * 4 * 1024 * 32
    assert found.pair == found.model + lora + 4 * 15_710_208
    assert found.pair <= 1.10 * found.model < found.copied


def test_full_training_needs_a_whole_second_model(small_names: None) -> None:
    found = measure_memory('vit_tiny_patch8_32', 'full', SMALL)
    assert found.pair == found.copied == 2 * found.model


def test_the_table_has_a_row_per_adaptation(small_names: None, tmp_path: Path) -> None:
    text = write_memory(tmp_path, 'vit_tiny_patch8_32', ['[L]-r4', 'full']).read_text()
    assert [line.split(' | ')[0] for line in text.splitlines()[-2:]] == ['| [L]-r4', '| full']
    shares = [float(line.split(' | ')[3]) for line in text.splitlines()[-2:]]
    assert 1 < shares[0] < shares[1] == pytest.approx(2)
