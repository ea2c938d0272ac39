"""The paper's notation, whatever is written."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from explora_geo.adaptation import ExPLoRAConfig

INDICES = st.integers(-40, 39)
BLOCKS = st.lists(INDICES, max_size=6).map(tuple)


@given(BLOCKS, st.integers(0, 4096), st.sampled_from(['', 'D', 'M', 'DINOv2', 'MAE']))
def test_what_is_written_is_read_back(blocks: tuple[int, ...], rank: int, prefix: str) -> None:
    config = ExPLoRAConfig(unfrozen_blocks=blocks, rank=rank)
    assert ExPLoRAConfig.parse(config.notation(prefix)) == config
    assert ExPLoRAConfig(**config.to_dict()) == config


@given(BLOCKS, st.integers(0, 99), st.text(' ', max_size=3))
def test_spaces_and_the_short_form_mean_the_same(blocks: tuple[int, ...], rank: int, space: str) -> None:
    config = ExPLoRAConfig(unfrozen_blocks=blocks, rank=rank)
    text = config.notation()
    spaced = space + text.replace(',', f'{space},{space}').replace('[', f'[{space}') + space
    assert ExPLoRAConfig.parse(spaced) == config


@given(st.text('DM-ExPLoRA[]Lr0123456789,. \n', max_size=24) | st.text(max_size=12))
@example('[' * 1000)
@example('[1,,L]')
@example('[L]-r' + '9' * 5000)
@example('[' + '9' * 5000 + ']')
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        config = ExPLoRAConfig.parse(text)
    except ValueError as error:
        assert '\n' not in str(error)
        return
    # What was read means the same when it is written.
    assert ExPLoRAConfig.parse(config.notation()) == config


@given(
    st.fixed_dictionaries(
        {},
        optional={
            'unfrozen_blocks': st.none()
            | st.lists(st.integers() | st.text(max_size=2) | st.floats(), max_size=3),
            'rank': st.integers() | st.floats() | st.text(max_size=2) | st.none(),
            'alpha': st.none() | st.floats() | st.integers(),
            'dropout': st.floats() | st.integers(),
            'targets': st.lists(st.sampled_from(['q', 'v', 'fc1', 'x']), max_size=3),
            'train_norms': st.booleans(),
        },
    )
)
def test_any_fields_make_a_usable_configuration_or_none(fields: dict[str, object]) -> None:
    try:
        config = ExPLoRAConfig(**fields)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    assert config.rank >= 0 and 0 <= config.dropout < 1
    assert config.alpha is None or 0 < config.alpha < math.inf
    assert ExPLoRAConfig.parse(config.notation()).unfrozen_blocks == config.unfrozen_blocks
